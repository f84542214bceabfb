"""The commands of docs/production.md that save and restore the database, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from django.conf import settings

from tests.mariadb import MariaDB

PAGE = settings.BASE_DIR / "docs" / "production.md"


@pytest.fixture
def server() -> Iterator[MariaDB]:
    with MariaDB() as server:
        yield server


@pytest.mark.mariadb
def test_what_the_page_says_saves_and_restores_the_database(server, tmp_path):
    section = PAGE.read_text().split("## Backup and restore")[1]
    commands = re.findall(r"^\$ (.+)$", section.split("```")[1], re.MULTILINE)
    (tmp_path / ".my.cnf").write_text(f"[client]\nsocket={server.socket}\nuser=root\n")
    environment = {**os.environ, "HOME": str(tmp_path), "DYNABENCH_VAR": str(tmp_path), "DYNABENCH_SECRET_KEY": "test"}

    def shell(command: str, *, url: str = server.url()) -> str:
        environment["DYNABENCH_DATABASE_URL"] = url
        environment["DJANGO_SUPERUSER_PASSWORD"] = "secret"
        line = command.replace("manage.py", f"{sys.executable} {settings.BASE_DIR}/manage.py")
        run = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, f"{command}: {run.stderr}"
        return run.stdout

    shell("mariadb -e 'CREATE DATABASE dynabench CHARACTER SET utf8mb4'")
    shell("manage.py migrate --verbosity 0")
    shell("manage.py createsuperuser --noinput --username ünï --email u@example.org")

    for command in commands:
        shell(command)

    restored = server.url("restored")
    shell("manage.py migrate --check", url=restored)
    shell("manage.py check_invariants", url=restored)
    assert shell("mariadb restored -N -e 'SELECT username FROM auth_user'") == "ünï\n"
