"""Does what the example's `hypothesis` asks for."""

import json
import os
import sys
import time


def return_what_is_asked(example):
    good = {"id": example["uid"], "label": "neutral"}
    return {
        "none": None,
        "dict": good,
        "two": [good, good],
        "text": ["not JSON"],
        "number": [7],
        "nan": [{**good, "prob": float("nan")}],
        "infinity": ['{"id": "x", "prob": 1e999}'],
        "surrogate": [{**good, "label": "\ud800"}],
        "set": [{**good, "label": {1}}],
        "json text": [json.dumps(good, indent=1)],
    }.get(example["hypothesis"], [good])


def handle(data, context):
    if data is None:
        return None
    example = data[0]["body"]
    if example["hypothesis"] == "raise":
        raise ValueError("I do not like this one")
    if example["hypothesis"] == "exit":
        sys.exit(3)
    if example["hypothesis"] == "die":
        os._exit(9)
    if example["hypothesis"] == "sleep":
        time.sleep(60)
    if example["hypothesis"] == "hoard":
        bytearray(b"x" * (4 << 30))
    return return_what_is_asked(example)
