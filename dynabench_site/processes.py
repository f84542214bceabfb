"""The processes of an installation on one machine: started, watched and stopped together."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from django.conf import settings
from django.core.management.base import CommandError

PR_SET_PDEATHSIG = 1
START_SECONDS = 60
STOP_SECONDS = 12


def die_with_parent() -> None:
    """The kernel ends this process when its parent dies, however that happens (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Services:
    """A web server and clusters, as children that end with us; what they log is in var/log/."""

    def __init__(self, clusters: Iterable[str]) -> None:
        self.clusters = list(clusters)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        _require_free_port()
        try:
            self._start("web", *_gunicorn())
            for name in self.clusters:
                self._start(f"cluster-{name}", "manage.py", "cluster", name)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ended(self) -> str | None:
        """The name of a process that is gone and should not be."""
        return next((name for name, process in self.processes.items() if process.poll() is not None), None)

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def _start(self, name: str, *arguments: str) -> None:
        with self._log(name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=settings.BASE_DIR,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _log(self, name: str) -> Path:
        folder = settings.VAR / "log"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.log"

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not (_port_answers() and all(self._is_ready(name) for name in self.clusters)):
            if name := self.ended():
                raise CommandError(f"{name} ended at once. Its log is {self._log(name)}.")
            if time.monotonic() > deadline:
                raise CommandError(f"Not ready after {START_SECONDS} s. The logs are in {settings.VAR / 'log'}.")
            time.sleep(0.1)

    def _is_ready(self, name: str) -> bool:
        return f"cluster {name} ready" in self._log(f"cluster-{name}").read_text(errors="replace")


def _gunicorn() -> list[str]:
    configured = ["-c", "python:dynabench_site.web_server", "dynabench_site.wsgi"]
    return ["-m", "gunicorn", *configured, "--bind", f"127.0.0.1:{settings.PORT}"]


def _require_free_port() -> None:
    if _port_answers():
        raise CommandError(f"Port {settings.PORT} is taken. Choose another: DYNABENCH_PORT=8001 …")


def _port_answers() -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", settings.PORT)) == 0


def wait_for_signal(services: Services) -> None:
    """Return at Ctrl-C or SIGTERM; raise CommandError when one of the services ends."""
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: stopped.append(received))
    while not stopped:
        if name := services.ended():
            raise CommandError(f"{name} ended unexpectedly; see {settings.VAR / 'log'}.")
        time.sleep(0.2)
