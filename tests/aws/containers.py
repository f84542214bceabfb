"""The machine behind SageMaker: pulls images with ECR's login and runs them without a network."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker.types import LogConfig

from builds.sandboxes import folder
from builds.sandboxes.docker import JOB_LABEL, DockerSandbox, DockerServer, container, kill, limits, remove
from builds.sandboxes.engine import engine
from builds.sandboxes.folder import Mount
from builds.sandboxes.policy import NOBODY, SandboxError, SandboxPolicy
from tests.aws.registry import PASSWORD

INSTANCE = SandboxPolicy(memory_mb=4096, cpus=2.0)
PULL_SECONDS = 600
MODEL_DATA = "/opt/ml/model"


class NoImage(Exception):
    """The registry does not hand out the image."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A running container and the model server in it."""

    server: DockerServer
    made: Any

    def stop(self) -> None:
        with contextlib.suppress(SandboxError), engine() as client:  # it may have ended
            kill(client.containers.get(self.made.id))

    def utilization(self, seconds: float) -> dict[str, float]:
        """Percent of the instance's memory at its peak, and of one processor."""
        with engine() as client:
            used = client.api.stats(self.made.id, stream=False, one_shot=True)
        peak = used["memory_stats"].get("max_usage") or self.server.peak_memory()
        return {
            "MemoryUtilization": 100 * peak / INSTANCE.memory,
            "CPUUtilization": 100 * used["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9 / max(seconds, 0.1),
        }


class Host:
    def __init__(self, registry: str) -> None:
        self.registry = registry
        self._pulled: set[str] = set()

    @contextmanager
    def run(self, model: dict[str, Any], data: bytes | None, name: str) -> Iterator[Instance]:
        """The model's image as SageMaker starts it: `serve`, its environment, its data unpacked; gone afterwards."""
        image = model["PrimaryContainer"]["Image"]
        self._pull(image)
        environment = {"DYNABENCH_SOCKET": folder.SOCKET_INSIDE} | model["PrimaryContainer"].get("Environment", {})
        options = limits(INSTANCE) | {
            "command": ["serve"],
            "environment": environment,
            "log_config": LogConfig(type="json-file", config={"max-size": "10m", "max-file": "1"}),
            "tmpfs": {"/tmp": "exec,nosuid,nodev,size=1024m"},
            "user": f"{NOBODY}:{NOBODY}",
        }
        mark = folder.job_mark(name)
        with folder.socket_folder(mark) as sockets, engine() as client:
            mounts = [Mount(sockets, folder.SOCKET_FOLDER, True)]
            if data is not None:
                mounts.append(Mount(unpacked(data, sockets.parent / "data"), MODEL_DATA))
            with container(client, image, name, mounts, options) as made:
                made.start()
                with DockerServer(made, INSTANCE, sockets) as server:
                    yield Instance(server, made)

    def _pull(self, image: str) -> None:
        try:
            with engine(timeout=PULL_SECONDS) as client:
                client.images.pull(image, auth_config={"username": "AWS", "password": PASSWORD})
        except SandboxError as error:
            raise NoImage(f"Requested image {image} not found. {error}") from error
        self._pulled.add(image)

    def sweep(self) -> None:
        """What a killed stand left is gone."""
        DockerSandbox().sweep(())

    def close(self) -> None:
        """Our containers, their folders and what we pulled for them are gone."""
        ours = f"dyna-{folder.installation()}:{os.getpid()}:"
        with engine() as client:
            for left in client.containers.list(all=True, filters={"label": JOB_LABEL}, ignore_removed=True):
                if left.labels[JOB_LABEL].startswith(ours):
                    remove(left)
        for job in Path(tempfile.gettempdir()).glob(f"dyna-{folder.installation()}-*/{folder.JOB_FILE}"):
            if job.read_text().startswith(ours):
                folder.erase(job.parent)
        for image in self._pulled:
            with contextlib.suppress(SandboxError), engine() as client:
                client.images.remove(image)


def unpacked(archive: bytes, target: Path) -> Path:
    target.mkdir()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(target, filter="data")
    folder.seal(target)
    return target
