"""Does what the statement says: sleeps, dies, or answers."""

import os
import time


def handle(data, context):
    if data is None:
        return None
    example = data[0]["body"]
    print(f"asked {sorted(example)}")
    if example["statement"] == "sleep":
        time.sleep(600)
    if example["statement"] == "die":
        os._exit(3)
    return [{"id": example["uid"], "label": "positive"}]
