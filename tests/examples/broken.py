"""Projects for the task `sentiment` that go wrong, each in one known way, for tests that submit them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from examples.pack import EXAMPLES

# An example whose statement holds this word breaks the handler of `crash-on-one`; all others are answered.
CRASH_WORD = "crashme"

HANDLER = """\
import time
{imports}
from dynalab.handler.base_handler import BaseDynaHandler


class Handler(BaseDynaHandler):
    def initialize(self, context):
        self.initialized = True

    def answer(self, example):
        {before}
        return {answer}


_service = Handler()


def handle(data, context):
    if not _service.initialized:
        _service.initialize(context)
    if data is None:
        return None
    return [_service.answer(_service._read_data(data))]
"""
GOOD = {"imports": "", "before": "pass", "answer": '{"id": example["uid"], "label": "neutral"}'}

# kind: what of the handler is different
BREAKAGES = {
    "import-error": {"imports": "import module_that_nobody_has\n"},
    "crash-on-one": {"before": f'assert "{CRASH_WORD}" not in example["statement"], "this example breaks me"'},
    "wrong-ids": {"answer": '{"id": "nobody", "label": "neutral"}'},
    "wrong-types": {"answer": '{"id": example["uid"], "label": 1}'},
    "nan": {
        "before": 'prob = dict.fromkeys(("negative", "positive", "neutral"), float("nan"))',
        "answer": '{"id": example["uid"], "label": "neutral", "prob": prob}',
    },
    "never-answers": {"before": "time.sleep(3600)"},
}
# kind: the line of requirements.txt that cannot be installed
REQUIREMENTS = {
    "unknown-requirement": "dynabench-no-such-package==1.0",
    "requirement-option": "--index-url https://packages.invalid/simple",
    "requirement-url": "helper @ https://packages.invalid/helper-1.0-py3-none-any.whl",
}
KINDS = (*BREAKAGES, *REQUIREMENTS)


def broken_project(kind: str, dest: Path, name: str) -> Path:
    """Make the project of the model ``name`` in the new folder ``dest`` and return it."""
    assert kind in KINDS, f"{kind!r} is none of {KINDS}"
    shutil.copytree(EXAMPLES / "majority", dest, ignore=shutil.ignore_patterns(".dynalab", "__pycache__"))
    (dest / "handler.py").write_text(HANDLER.format(**GOOD | BREAKAGES.get(kind, {})))
    if kind in REQUIREMENTS:
        (dest / "requirements.txt").write_text(f"packaging==26.3\n{REQUIREMENTS[kind]}\n")
    setup = {
        "task": "sentiment",
        "checkpoint": "checkpoint.json",
        "handler": "handler.py",
        "requirements": kind in REQUIREMENTS,
        "setup": False,
        "model_files": [],
        "exclude": [],
    }
    config = dest / ".dynalab" / name / "setup_config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps(setup))
    return dest
