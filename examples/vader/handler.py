"""VADER (Hutto and Gilbert, 2014) as a dynalab model: a lexicon and rules, no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynalab.handler.base_handler import BaseDynaHandler
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


class Handler(BaseDynaHandler):
    def initialize(self, context: Any) -> None:
        """Load the lexicon, and the threshold from the checkpoint."""
        checkpoint, _, _ = self._handler_initialize(context)
        self.threshold = json.loads(Path(checkpoint).read_text())["threshold"]
        self.analyzer = SentimentIntensityAnalyzer()
        self.initialized = True

    def preprocess(self, data: list[dict]) -> str:
        return self._read_data(data)["statement"]

    def inference(self, statement: str) -> str:
        compound = self.analyzer.polarity_scores(statement)["compound"]
        if abs(compound) <= self.threshold:
            return "neutral"
        return "positive" if compound > 0 else "negative"

    def postprocess(self, label: str, data: list[dict]) -> list[dict]:
        return [{"id": self._read_data(data)["uid"], "label": label}]


_service = Handler()


def handle(data: list[dict] | None, context: Any) -> list[dict] | None:
    if not _service.initialized:
        _service.initialize(context)
    if data is None:
        return None
    return _service.postprocess(_service.inference(_service.preprocess(data)), data)
