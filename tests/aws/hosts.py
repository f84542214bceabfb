"""The processes of a production installation, each on a host of its own: they share database, S3 and SQS only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from django.conf import settings

from dynabench_site.processes import die_with_parent
from tests.aws.stand import Stand
from tests.pipeline.conftest import database_url

ROLE = "arn:aws:iam::123456789012:role/dynabench-models"
SECRET_KEY = "shared by all hosts of these tests and by nothing else, long enough"
START_SECONDS = 60
LEASE_SECONDS = "4"


@dataclass
class Host:
    """One process group with its own host name and its own VAR."""

    name: str
    arguments: list[str]
    environment: Mapping[str, str]
    folder: Path
    port: int | None = None
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self) -> None:
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*(named if os.geteuid() == 0 else []), sys.executable, *self.arguments],
                cwd=settings.BASE_DIR,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        if self.port is None:
            return self.log.read_text(errors="replace").count(" ready\n") > 0
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5).status == 200
        except (OSError, urllib.error.HTTPError):
            return False

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=20)


class Installation:
    """Starts hosts of one installation on a stand."""

    def __init__(self, stand: Stand, folder: Path) -> None:
        self.stand, self.folder, self.hosts = stand, folder, dict[str, Host]()

    def web(self, name: str, **environment: str) -> Host:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = [
            *("-m", "gunicorn", "dynabench_site.wsgi", "-c", "python:dynabench_site.web_server"),
            *("--bind", f"127.0.0.1:{port}", "--workers", "2", "--threads", "16", "--timeout", "120"),
        ]
        return self._add(name, arguments, "AKIAWEB", port=port, **environment)

    def cluster(self, name: str, *, host: str = "", **environment: str) -> Host:
        role = "AKIABUILD" if name == "build" else "AKIAEVAL"
        return self._add(host or f"host-{name}", ["manage.py", "cluster", name], role, **environment)

    def run(self, *arguments: str, role: str = "AKIAOPERATOR", **environment: str) -> str:
        """What a management command prints on a host of its own."""
        own = {**os.environ, **self.environment("operator", role), **environment}
        command = [sys.executable, "manage.py", *arguments]
        done = subprocess.run(command, cwd=settings.BASE_DIR, env=own, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def environment(self, name: str, role: str) -> dict[str, str]:
        return {
            **self.stand.environment(role),
            "DYNABENCH_PROFILE": "production",
            "DYNABENCH_SAGEMAKER_ROLE": ROLE,
            "DYNABENCH_DATABASE_URL": database_url(),
            "DYNABENCH_VAR": str(self.folder / name / "var"),
            "DYNABENCH_SECRET_KEY": SECRET_KEY,
            "DYNABENCH_LEASE_SECONDS": LEASE_SECONDS,
            "DYNABENCH_SANDBOX": "docker",
        }

    def _add(self, name: str, arguments: list[str], role: str, port: int | None = None, **more: str) -> Host:
        environment = self.environment(name, role) | more
        (Path(environment["DYNABENCH_VAR"])).mkdir(parents=True, exist_ok=True)
        cache = Path(environment["DYNABENCH_VAR"]) / "cache"
        if not cache.exists():
            cache.symlink_to((settings.VAR / "cache").resolve())  # downloads are shared by the tests of a run
        host = Host(name, arguments, environment, self.folder / name, port)
        self.hosts[name] = host
        return host


@contextmanager
def installation(stand: Stand, folder: Path) -> Iterator[Installation]:
    made = Installation(stand, folder)
    try:
        made.run("create_queues")
        yield made
    finally:
        for host in made.hosts.values():
            if host.process.poll() is None:
                host.kill()
