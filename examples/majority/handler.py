"""Answer the commonest label of the checkpoint, whatever the example says: the score to beat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynalab.handler.base_handler import BaseDynaHandler


class Handler(BaseDynaHandler):
    def initialize(self, context: Any) -> None:
        """Turn the label counts of the checkpoint into one label and its probabilities."""
        checkpoint, _, _ = self._handler_initialize(context)
        counts = json.loads(Path(checkpoint).read_text())["label_counts"]
        self.label = max(counts, key=counts.get)
        self.prob = {label: count / sum(counts.values()) for label, count in counts.items()}
        self.initialized = True

    def postprocess(self, data: list[dict]) -> list[dict]:
        return [{"id": self._read_data(data)["uid"], "label": self.label, "prob": self.prob}]


_service = Handler()


def handle(data: list[dict] | None, context: Any) -> list[dict] | None:
    if not _service.initialized:
        _service.initialize(context)
    if data is None:
        return None
    return _service.postprocess(data)
