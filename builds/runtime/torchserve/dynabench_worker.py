"""What TorchServe loads as its handler: it loads the user's, and answers for it whatever happens to it."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

RUNTIME = Path(__file__).resolve().parents[1]
sys.path.append(str(RUNTIME))
from serve import arrange_import_path  # noqa: E402

arrange_import_path(RUNTIME.parent, shims=["shims"])  # TorchServe's own `ts` is the one that counts here
from dynabench_runtime.answers import answer_batch, answer_one, describe, parse_examples  # noqa: E402
from dynabench_runtime.handler import load_handler  # noqa: E402
from dynabench_runtime.image import Image  # noqa: E402


class Worker:
    """The user's handler; an empty request asks why it could not be loaded, and gets nothing when it was."""

    def initialize(self, context: Any) -> None:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what handlers print is log; TorchServe's own lines are not
        sys.stdout.reconfigure(line_buffering=True)
        logging.getLogger().setLevel(logging.WARNING)
        self.image, self.error = Image.here(), ""
        context.model_name, context.manifest = self.image.model_name, self.image.manifest
        context.system_properties["model_dir"] = str(self.image.model_dir)
        try:
            self.ask = load_handler(self.image, context)
        except BaseException as error:  # noqa: BLE001  a handler may raise anything, SystemExit included
            self.error = describe(error)

    def handle(self, requests: list[dict[str, Any]], context: Any) -> list[bytes]:
        body = requests[0].get("body")
        if self.error or body in (None, b""):
            return [self.error.encode()]
        if self.image.is_batching:
            return [b"\n".join(answer_batch(self.ask, body, parse_examples(body, True)))]
        return [answer_one(self.ask, body)]
