"""The rows, their locks and their clock on a real MariaDB server, private to this test."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

SUITES = ["tests/dynabench_site", "tests/evaluations", "tests/pipeline", "--ignore=tests/pipeline/test_demo.py"]
SUITES += [f"tests/submissions/test_{name}.py" for name in ("api", "limit", "tokens")]
START_SECONDS = 60


@pytest.fixture
def database_url() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="dbm-"))  # short: a socket's path may have 107 bytes
    user = getpass.getuser()
    options = ["--no-defaults", f"--datadir={folder / 'data'}"]
    install = ["mariadb-install-db", *options, "--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run([*install, f"--user={user}"], check=True, capture_output=True)
    server = subprocess.Popen(
        ["mariadbd", *options, f"--user={user}", f"--socket={folder / 's'}", "--skip-networking"],
        stderr=(folder / "log").open("wb"),
    )
    try:
        wait_for_server(folder)
        yield f"mysql://root@/dynabench?unix_socket={folder / 's'}"
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


def wait_for_server(folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    ping = ["mariadb-admin", "--no-defaults", f"--socket={folder / 's'}", "--user=root", "ping"]
    while subprocess.run(ping, capture_output=True).returncode:
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.2)


@pytest.mark.mariadb
@pytest.mark.timeout(900)
def test_the_suites_that_live_on_rows_pass_on_mariadb(database_url, tmp_path):
    environment = {**os.environ, "DYNABENCH_DATABASE_URL": database_url, "DYNABENCH_VAR": str(tmp_path)}
    for name in list(environment):
        if name.startswith(("PYTEST_", "COV_")):
            del environment[name]
    environment["DYNABENCH_SECRET_KEY"] = "for this test only"

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *SUITES],
        cwd=settings.BASE_DIR,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
