"""nginx with our sample configuration, before two web servers on the test's database; and a client of theirs."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from dynabench_site.processes import die_with_parent

HOST = "bench.example.org"
CONFIG = settings.BASE_DIR / "deploy" / "nginx.conf"
SCRATCH = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
START_SECONDS = 90
ANSWER_SECONDS = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Site:
    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.port, self.http_port, *self.web_ports = (free_port() for _ in range(4))
        self.web: list[subprocess.Popen] = []
        self.certificate = folder / "fullchain.pem"
        self.config = folder / "nginx.conf"

    def write_config(self) -> None:
        """The sample with this machine's ports and folders, and a certificate of its own."""
        name = ["-subj", f"/CN={HOST}", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", self.folder / "privkey.pem", "-out", self.certificate]
        new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        subprocess.run([*new, *name, *files], check=True, capture_output=True)
        text = CONFIG.read_text()
        scratch = "".join(f"{name}_temp_path {self.folder / name};" for name in SCRATCH)
        for old, new in {
            "user www-data;": "user root;" if os.geteuid() == 0 else "",
            "http {": f"http {{ {scratch}",
            "/run/nginx.pid": str(self.folder / "nginx.pid"),
            "/var/log/nginx/": f"{self.folder}/",
            f"/etc/ssl/{HOST}/": f"{self.folder}/",
            "listen 80": f"listen 127.0.0.1:{self.http_port}",
            "listen 443": f"listen 127.0.0.1:{self.port}",
            "127.0.0.1:8001": f"127.0.0.1:{self.web_ports[0]}",
            "127.0.0.1:8002": f"127.0.0.1:{self.web_ports[1]}",
        }.items():
            assert old in text, f"{old!r} is not in {CONFIG}"
            text = text.replace(old, new)
        self.config.write_text(text)

    def nginx(self, *arguments: str) -> list[str]:
        return ["nginx", "-e", str(self.folder / "start.log"), "-c", str(self.config), *arguments]

    @contextmanager
    def nginx_running(self) -> Iterator[None]:
        self.write_config()
        nginx = _start(self.nginx("-g", "daemon off;"), self.folder / "nginx.out")
        try:
            wait_for_port(self.port)
            yield
        finally:
            nginx.terminate()
            nginx.wait()

    @contextmanager
    def web_running(self) -> Iterator[None]:
        try:
            for port in self.web_ports:
                options = ["-c", "python:dynabench_site.web_server", "--bind", f"127.0.0.1:{port}"]
                command = [sys.executable, "-m", "gunicorn", "dynabench_site.wsgi", *options]
                self.web.append(_start(command, self.folder / f"web-{port}.log", self.environment))
            for port in self.web_ports:
                wait_for_port(port)
            yield
        finally:
            for process in self.web:
                kill(process)

    def logs(self) -> str:
        files = [*self.folder.glob("*.log"), self.folder / "nginx.out"]
        return "".join(path.read_text(errors="replace") for path in files)

    def request(
        self, method: str, path: str, body: Iterable[bytes] = (), headers: dict[str, str] | None = None
    ) -> Answer:
        """One request over TLS; what was answered before all was sent counts too."""
        context = ssl.create_default_context(cafile=self.certificate)
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS, context=context)
        connection.putrequest(method, path, skip_host=True)
        for key, value in {"Host": HOST, **(headers or {})}.items():
            connection.putheader(key, value)
        connection.endheaders()
        try:
            for piece in body:
                connection.send(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = connection.getresponse()
        found = Answer(answer.status, answer.headers, answer.read())
        connection.close()
        return found


def _start(command: list[str], log: Path, environment: dict[str, str] | None = None) -> subprocess.Popen:
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=settings.BASE_DIR,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def kill(process: subprocess.Popen) -> None:
    """kill -9 of a master and its workers."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, f"nothing listens on {port}"
        time.sleep(0.1)
