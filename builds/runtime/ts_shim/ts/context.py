"""What a handler is told about its model and the request, after TorchServe's documented `Context`."""

from __future__ import annotations

from typing import Any


class NoMetrics:
    """Accepts every metric a handler reports (`add_time`, `add_counter`, ...) and forgets it."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class Context:
    """The model's name, manifest and properties; requests of our server carry no headers."""

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any],
        batch_size: int,
        gpu: int | None,
        mms_version: str,
        limit_max_image_pixels: bool = True,
        metrics: Any = None,
        model_yaml_config: dict[str, Any] | None = None,
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self.metrics = metrics or NoMetrics()
        self.model_yaml_config = model_yaml_config or {}
        self.request_ids: dict[int, str] = {}
        self.system_properties = {
            "model_dir": model_dir,
            "gpu_id": gpu,
            "batch_size": batch_size,
            "server_name": "dynabench",
            "server_version": mms_version,
            "limit_max_image_pixels": limit_max_image_pixels,
        }

    def get_request_id(self, idx: int = 0) -> str | None:
        return self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> str | None:
        return None

    def get_all_request_header(self, idx: int) -> dict[str, str]:
        return {}

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Accepted and ignored: answers are always JSON."""

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Accepted and ignored."""
