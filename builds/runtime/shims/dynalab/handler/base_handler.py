"""`BaseDynaHandler`: what a dynalab handler inherits from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ts.torch_handler.base_handler import BaseHandler

from dynalab.tasks.common import ROOTPATH as ROOTPATH


class BaseDynaHandler(BaseHandler):
    """Two helpers: where the checkpoint lies, and the example in a request."""

    def _handler_initialize(self, context: Any) -> tuple[str, str, str]:
        """Path of the checkpoint, the folder of the model's files, and `cpu` or `cuda:<n>`."""
        properties = context.system_properties
        model_dir, gpu = properties["model_dir"], properties["gpu_id"]
        checkpoint = str(Path(model_dir, context.manifest["model"]["serializedFile"]))
        torch = sys.modules.get("torch")
        sees_gpu = gpu is not None and torch is not None and torch.cuda.is_available()
        return checkpoint, model_dir, f"cuda:{gpu}" if sees_gpu else "cpu"

    def _read_data(self, data: list[dict[str, Any]]) -> Any:
        """The example (a dict with `uid`) of a request."""
        return data[0]["body"]
