from __future__ import annotations

import time

from dynabench_site import queue, sweeper


def clear_for_ever() -> None:
    time.sleep(3600)


def test_a_cluster_that_ends_waits_only_seconds_for_what_is_cleared(db, monkeypatch):
    monkeypatch.setattr(queue, "SLOW_SWEEPS", [f"{__name__}.clear_for_ever"])
    monkeypatch.setattr(sweeper, "CLEAR_SECONDS", 0.2)
    started = time.monotonic()

    sweeper.clear_leftovers()

    assert time.monotonic() - started < 5
