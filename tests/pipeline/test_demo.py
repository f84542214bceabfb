"""The demo as a visitor runs it, in a directory of its own, twice."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

# Hutto & Gilbert's own figures, recomputed from the sets that they published.
VADER_ACCURACY = {"tweets": 88.5, "movies": 55.3, "amazon": 59.1, "nyt": 54.0}
METRICS = {"macro_f1", "accuracy", "examples_per_second", "memory_utilization"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_demo(var: Path) -> dict[str, Any]:
    own = {"DYNABENCH_VAR": str(var), "DYNABENCH_PORT": str(free_port())}
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
def test_the_demo_ranks_real_models_and_repeats_nothing(tmp_path):
    first = run_demo(tmp_path)
    logs = "".join(path.read_text() for path in (tmp_path / "log").iterdir())
    again = run_demo(tmp_path)

    assert set(first) == {"task", "models", "also", "sandbox", "seconds"}
    assert first["task"] == "sentiment"
    assert [model["name"] for model in first["models"]] == ["vader", "textblob", "majority"]
    vader = first["models"][0]["scores"]
    assert {name: scores["accuracy"] for name, scores in vader.items()} == pytest.approx(VADER_ACCURACY, abs=0.3)
    assert all(set(scores) == METRICS for scores in vader.values())
    assert [task["task"] for task in first["also"]] == ["nli"]
    assert [model["dynascore"] for model in again["models"]] == [model["dynascore"] for model in first["models"]]
    assert "/authenticate/refresh_from_api" in logs
    assert "api_token=" not in logs
    assert stat.S_IMODE((tmp_path / "demo-accounts.txt").stat().st_mode) == 0o600
