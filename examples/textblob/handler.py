"""TextBlob's pattern analyser as a dynalab model: the mean polarity of the words it knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynalab.handler.base_handler import BaseDynaHandler
from textblob.sentiments import PatternAnalyzer


class Handler(BaseDynaHandler):
    def initialize(self, context: Any) -> None:
        """Load the analyser, and the threshold from the checkpoint."""
        checkpoint, _, _ = self._handler_initialize(context)
        self.threshold = json.loads(Path(checkpoint).read_text())["threshold"]
        self.analyzer = PatternAnalyzer()
        self.initialized = True

    def preprocess(self, data: list[dict]) -> str:
        return self._read_data(data)["statement"]

    def inference(self, statement: str) -> str:
        polarity = self.analyzer.analyze(statement).polarity
        if abs(polarity) <= self.threshold:
            return "neutral"
        return "positive" if polarity > 0 else "negative"

    def postprocess(self, label: str, data: list[dict]) -> list[dict]:
        return [{"id": self._read_data(data)["uid"], "label": label}]


_service = Handler()


def handle(data: list[dict] | None, context: Any) -> list[dict] | None:
    if not _service.initialized:
        _service.initialize(context)
    if data is None:
        return None
    return _service.postprocess(_service.inference(_service.preprocess(data)), data)
