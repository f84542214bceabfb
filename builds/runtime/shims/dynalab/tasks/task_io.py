"""`TaskIO(task_code)`: the newer generation, which reads the task's fields from its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynalab.tasks.common import ROOTPATH as ROOTPATH
from dynalab.tasks.common import BaseTaskIO


class TaskIO(BaseTaskIO):
    """Inputs and outputs of one task, from `<task_code>.json` (`{"config": {...}, "task": code}`).

    `targets` are the fields named in both input and output; `inputs_without_targets` the other inputs.

    Raises:
        RuntimeError: no config of that task was found.
    """

    signature_key = "signature"

    def __init__(self, task_code: str, task_info_path: str | None = None) -> None:
        super().__init__()
        local, project = f"./.dynalab/{task_code}.json", f"{ROOTPATH}/{task_code}.json"
        paths = [task_info_path] if task_info_path else [local, project]
        found = next((path for path in paths if Path(path).exists()), None)
        if found is None:
            raise RuntimeError(f"No task io found. Looked for {' and '.join(paths)}: is {task_code!r} the task's code?")
        self.task_info = json.loads(Path(found).read_text("utf-8"))
        self._read_fields()

    def _read_fields(self) -> None:
        config = self.task_info["config"]
        contexts, inputs = config.get("context", []), config.get("input", [])
        self.outputs = {field["name"]: field for field in config.get("output", [])}
        self.outputs.update({field["name"]: field for field in contexts + inputs if field["name"] in self.outputs})
        self.targets = [field for field in inputs if field["name"] in self.outputs]
        self.inputs_without_targets = [field for field in inputs if field["name"] not in self.outputs]
        self.task = self.task_info["task"]
        self.input_keys = tuple(field["name"] for field in self.inputs_without_targets + contexts)
        self.output_keys = tuple(field["name"] for field in self.targets)
        self.optional_keys = tuple(self.outputs.keys() - set(self.output_keys))

    def parse_signature_input(
        self, response: dict[str, Any], data: dict[str, Any]
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """The task's code, and those of its inputs and outputs that are present."""
        inputs = {key: data[key] for key in self.input_keys if key in data}
        return self.task, inputs, {key: response[key] for key in self.outputs if key in response}
