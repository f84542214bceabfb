"""Word overlap as an NLI baseline: shared words entail, one-sided negation contradicts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from dynalab.handler.base_handler import BaseDynaHandler
from dynalab.tasks.task_io import TaskIO


class Handler(BaseDynaHandler):
    def initialize(self, context: Any) -> None:
        """Read the threshold (a share of words, 0..1) and the negations from the checkpoint."""
        checkpoint, _, _ = self._handler_initialize(context)
        settings = json.loads(Path(checkpoint).read_text())
        self.entailed_from = settings["entailed_from"]
        self.negations = frozenset(settings["negations"])
        self.task_io = TaskIO("nli")
        self.initialized = True

    def preprocess(self, data: list[dict]) -> tuple[set[str], set[str]]:
        example = self._read_data(data)
        return words(example["context"]), words(example["hypothesis"])

    def inference(self, pair: tuple[set[str], set[str]]) -> str:
        context, hypothesis = pair
        if bool(context & self.negations) != bool(hypothesis & self.negations):
            return "contradictory"
        overlap = len(context & hypothesis) / max(len(hypothesis), 1)
        return "entailed" if overlap >= self.entailed_from else "neutral"

    def postprocess(self, label: str, data: list[dict]) -> list[dict]:
        example = self._read_data(data)
        response = {"id": example["uid"], "label": label}
        self.task_io.sign_response(response, example)
        return [response]


def words(text: str) -> set[str]:
    """The distinct words of ``text``, in lower case."""
    return set(re.findall(r"\w+", text.lower()))


_service = Handler()


def handle(data: list[dict] | None, context: Any) -> list[dict] | None:
    if not _service.initialized:
        _service.initialize(context)
    if data is None:
        return None
    return _service.postprocess(_service.inference(_service.preprocess(data)), data)
