"""Debian's docker-registry on loopback: images really go there and come back, and only with ECR's login."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynabench_site.processes import die_with_parent

START_SECONDS = 30
PASSWORD = "123456789012-auth-token"  # what moto's GetAuthorizationToken hands out
# bcrypt of AWS:PASSWORD.
HTPASSWD = "AWS:$2y$04$FuQDxJ2cnvL2o4c9GXDs4OXoAVk8YOBPl042ys3obMgKzGMaZ2p6G\n"


@contextmanager
def serving_registry(folder: Path) -> Iterator[str]:
    """`host:port` of a registry whose images are in `folder`."""
    address = f"127.0.0.1:{free_port()}"
    (folder / "htpasswd").write_text(HTPASSWD)
    config = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "images")}, "delete": {"enabled": True}},
        "auth": {"htpasswd": {"realm": "registry", "path": str(folder / "htpasswd")}},
        "http": {"addr": address},
    }
    (folder / "registry.yml").write_text(json.dumps(config))
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", folder / "registry.yml"],
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )
    try:
        _wait_until_it_asks_for_a_login(address, process)
        yield address
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_asks_for_a_login(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection(address, timeout=5)
        try:
            connection.request("GET", "/v2/")
            if connection.getresponse().status == http.client.UNAUTHORIZED:
                return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    raise RuntimeError(f"docker-registry did not start; {process.args} ended with {process.poll()}.")
