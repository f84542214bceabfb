"""The stand in a test's hands: AWS, its registry, what was called, and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import docker
from botocore.config import Config
from botocore.exceptions import ClientError

from builds.sandboxes.docker import JOB_LABEL
from tests.aws.calls import OWN_ROLE
from tests.aws.registry import PASSWORD, serving_registry

ROOT = Path(__file__).parent.parent.parent
ONCE = Config(retries={"total_max_attempts": 1})


@dataclass(frozen=True)
class Stand:
    url: str
    registry: str
    record: Path
    pid: int

    def environment(self, role: str = "AKIATEST", region: str = "us-west-1") -> dict[str, str]:
        """Variables with which a process of ours works on this stand, known to the record as `role`."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": role,
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, service: str, region: str = "us-west-1", role: str = "AKIATEST", config: Config = ONCE) -> Any:
        """A plain boto3 client; it tries once."""
        session = boto3.Session(role, "secret", region_name=region)
        return session.client(service, endpoint_url=self.url, config=config)

    def calls(self, **wanted: Any) -> list[dict[str, Any]]:
        """The recorded calls that have these values, in the order of their answers."""
        lines = map(json.loads, self.record.read_text().splitlines())
        return [line for line in lines if all(line[key] == value for key, value in wanted.items())]

    def faults(self, *rules: dict[str, Any]) -> None:
        """From now on these rules, and no others, disturb calls."""
        self.steer("POST", "faults", list(rules))

    def fired(self) -> list[int]:
        """How often each rule has disturbed a call."""
        return [rule["fired"] for rule in self.steer("GET", "faults")]

    def limits(self, by_region: dict[str, dict[str, int]]) -> None:
        self.steer("POST", "limits", by_region)

    def late_metrics(self, seconds: float) -> None:
        self.steer("POST", "late_metrics", seconds)

    def order(self, *orders: dict[str, Any]) -> None:
        """How jobs end whose names have a part; the others run."""
        self.steer("POST", "jobs", list(orders))

    def jobs(self) -> list[dict[str, Any]]:
        return self.steer("GET", "jobs")

    def doubly_paid(self) -> list[str]:
        """Jobs over the same model and input as an earlier one that did not fail."""
        paid, found = set(), []
        for job in self.jobs():
            work = job["region"], job["model"], job["input"]
            if work in paid:
                found.append(job["name"])
            if job["status"] in ("InProgress", "Completed"):
                paid.add(work)
        return found

    def containers(self) -> list[str]:
        """What runs for this stand's jobs and endpoints, by their names."""
        found = docker.from_env().containers.list(filters={"label": JOB_LABEL}, ignore_removed=True)
        marks = [made.labels[JOB_LABEL].split(":") for made in found]
        return [name for _, pid, _, name in marks if int(pid) == self.pid]

    def push(self, image: str, repository: str, region: str = "us-west-1") -> str:
        """The address by digest under which SageMaker finds this image of the local engine."""
        with suppress(ClientError):  # it is there
            self.client("ecr", region, OWN_ROLE).create_repository(repositoryName=repository)
        client, address = docker.from_env(), f"{self.registry}/{repository}"
        client.images.get(image).tag(address)
        said = client.images.push(
            address, auth_config={"username": "AWS", "password": PASSWORD}, stream=True, decode=True
        )
        lines = list(said)
        client.images.remove(address)
        digest = next((line["aux"]["Digest"] for line in lines if "Digest" in line.get("aux", {})), None)
        assert digest, lines
        return f"{address}@{digest}"

    def steer(self, method: str, what: str, given: Any = None) -> Any:
        data = json.dumps(given).encode() if given is not None else None
        with urlopen(Request(f"{self.url}/_stand/{what}", data, method=method), timeout=60) as answer:
            return json.load(answer)


@contextmanager
def running_stand(folder: Path) -> Iterator[Stand]:
    """AWS and its registry as processes that end with us."""
    record = folder / "calls.jsonl"
    with serving_registry(folder) as registry, (folder / "aws.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.aws.server", "--record", record, "--registry", registry],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            line = process.stdout.readline().decode()
            assert line.startswith("aws ready "), (folder / "aws.log").read_text()
            yield Stand(line.split()[-1], registry, record, process.pid)
        finally:
            process.terminate()
            process.wait(60)


def wait_for(condition: Any, seconds: float = 60) -> Any:
    """What the condition gives once it is true; the last value when time is up."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value
