"""Copy the text; between Croatian and Serbian write it in the other alphabet, by the checkpoint's table of letters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynalab.handler.base_handler import BaseDynaHandler


class Handler(BaseDynaHandler):
    def initialize(self, context: Any) -> None:
        """Read the table, and know it in both directions and for capital letters, too."""
        checkpoint, _, _ = self._handler_initialize(context)
        letters = []
        for latin, cyrillic in json.loads(Path(checkpoint).read_text(encoding="utf-8")).items():  # lj before l
            letters += [(latin, cyrillic), (latin.capitalize(), cyrillic.upper())]
        self.letters = {
            ("hrv", "srp"): letters,
            ("srp", "hrv"): [(cyrillic, latin) for latin, cyrillic in letters],
        }
        self.initialized = True

    def translate(self, example: dict[str, str]) -> dict[str, str]:
        text = example["sourceText"]
        for letter, other in self.letters.get((example["sourceLanguage"], example["targetLanguage"]), ()):
            text = text.replace(letter, other)
        return {"id": example["uid"], "translatedText": text}

    def postprocess(self, data: list[dict]) -> list[str]:
        """The task sends many examples at once, as bytes with one in each line, and takes as many lines back."""
        examples = [json.loads(line) for line in bytes(self._read_data(data)).splitlines()]
        return ["\n".join(json.dumps(self.translate(example)) for example in examples)]


_service = Handler()


def handle(data: list[dict] | None, context: Any) -> list[str] | None:
    if not _service.initialized:
        _service.initialize(context)
    if data is None:
        return None
    return _service.postprocess(data)
