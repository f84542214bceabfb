"""TorchServe's `BaseHandler` for the parts that need no TorchServe; torch only where a method works with tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]


class BaseHandler:
    """Load a TorchScript checkpoint and run it; subclasses override what differs."""

    def __init__(self) -> None:
        self.initialized = False
        self.model: Any = None
        self.device: Any = None
        self.map_location: str | None = None
        self.mapping: dict[str, str] | None = None
        self.manifest: dict[str, Any] = {}
        self.context: Any = None
        self.model_pt_path: str | None = None

    def initialize(self, context: Any) -> None:
        """Load the checkpoint (TorchScript, `.pt`) and `index_to_name.json` where there is one.

        Raises:
            RuntimeError: torch is not installed, or the checkpoint is not a `.pt` file.
        """
        self.manifest = context.manifest
        model_dir = Path(context.system_properties["model_dir"])
        checkpoint = model_dir / self.manifest["model"]["serializedFile"]
        if torch is None or checkpoint.suffix != ".pt":
            raise RuntimeError(
                f"BaseHandler.initialize cannot load {checkpoint.name}: it loads TorchScript (.pt) with torch. "
                "Name torch in requirements.txt, or load the checkpoint in your own initialize(context)."
            )
        gpu = context.system_properties["gpu_id"]
        self.map_location = "cuda" if gpu is not None and torch.cuda.is_available() else "cpu"
        self.device = torch.device(f"cuda:{gpu}" if self.map_location == "cuda" else "cpu")
        self.model_pt_path = str(checkpoint)
        self.model = torch.jit.load(self.model_pt_path, map_location=self.device).eval()
        names = model_dir / "index_to_name.json"
        self.mapping = json.loads(names.read_text("utf-8")) if names.exists() else None
        self.initialized = True

    def preprocess(self, data: Any) -> Any:
        return torch.as_tensor(data, device=self.device)

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.model(data.to(self.device), *args, **kwargs)

    def postprocess(self, data: Any) -> Any:
        return data.tolist()

    def handle(self, data: Any, context: Any) -> Any:
        """Preprocess, infer, postprocess."""
        self.context = context
        return self.postprocess(self.inference(self.preprocess(data)))
