"""The demo as a visitor runs it, in a directory of its own, twice."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from django.conf import settings
from django.db import connection

from tests.conftest import PARTS
from tests.pipeline.conftest import database_url

# Hutto & Gilbert's own figures, recomputed from the sets that they published.
VADER_ACCURACY = {"tweets": 88.5, "movies": 55.3, "amazon": 59.1, "nyt": 54.0}
METRICS = {"macro_f1", "accuracy", "examples_per_second", "memory_utilization"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def database(db) -> dict[str, str]:
    """None is named, and the demo makes its own; a server that the tests run on makes another for it."""
    if connection.vendor == "sqlite":
        return {}
    name = f"{connection.settings_dict['NAME']}_demo"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE OR REPLACE DATABASE {name} CHARACTER SET utf8mb4")
    return {"DYNABENCH_DATABASE_URL": database_url(name), "DYNABENCH_SECRET_KEY": "for this test only"}


@contextmanager
def images_removed(var: Path) -> Iterator[None]:
    """What an installation in this directory left in the docker engine goes with it."""
    try:
        yield
    finally:
        mark = hashlib.sha256(os.fsencode(var)).hexdigest()[:8]
        if PARTS["docker"]():
            engine = docker.from_env()
            for image in engine.images.list(filters={"reference": f"dynabench-{mark}/*"}):
                engine.images.remove(image.id, force=True)


def run_demo(var: Path, more: dict[str, str]) -> dict[str, Any]:
    """What `manage.py demo` says of the models that it ranked."""
    own = {"DYNABENCH_VAR": str(var), "DYNABENCH_PORT": str(free_port()), **more}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DYNABENCH_")}
    run = subprocess.run(
        [sys.executable, "manage.py", "demo", "--no-serve", "--json"],
        cwd=settings.BASE_DIR,
        env=inherited | own,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-5000:]
    return json.loads(run.stdout)


@pytest.mark.timeout(600)
def test_the_demo_ranks_real_models_and_repeats_nothing(tmp_path, database):
    with images_removed(tmp_path):
        first = run_demo(tmp_path, database)
        logs = "".join(path.read_text() for path in (tmp_path / "log").iterdir())
        again = run_demo(tmp_path, database)

    assert set(first) == {"task", "models", "also", "sandbox", "seconds"}
    assert first["task"] == "sentiment"
    assert [model["name"] for model in first["models"]] == ["vader", "textblob", "majority"]
    vader = first["models"][0]["scores"]
    assert {name: scores["accuracy"] for name, scores in vader.items()} == pytest.approx(VADER_ACCURACY, abs=0.3)
    assert all(set(scores) == METRICS for scores in vader.values())
    assert [task["task"] for task in first["also"]] == ["nli", "flores_small1"]
    assert [model["dynascore"] for model in again["models"]] == [model["dynascore"] for model in first["models"]]
    assert "/authenticate/refresh_from_api" in logs
    assert "api_token=" not in logs
    assert stat.S_IMODE((tmp_path / "demo-accounts.txt").stat().st_mode) == 0o600
