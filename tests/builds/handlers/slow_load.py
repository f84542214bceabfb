"""Loads only once the file `go` lies beside it, and answers `wait` only once `answer` does."""

import time
from pathlib import Path


def wait_for(name):
    while not Path(name).exists():
        time.sleep(0.01)


def handle(data, context):
    if data is None:
        return wait_for("go")
    example = data[0]["body"]
    if example["hypothesis"] == "wait":
        wait_for("answer")
    return [{"id": example["uid"], "label": "neutral"}]
