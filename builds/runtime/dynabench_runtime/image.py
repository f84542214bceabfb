"""What the image says about its model, and whether a mounted archive is the same model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Ask = Callable[[Any], Any]  # the body of one request -> whatever the handler returns


class HandlerError(Exception):
    """The model breaks the protocol; the message tells its author what to change."""


@dataclass(frozen=True)
class Image:
    """`opt/dynabench/image.json` below `root`, which is `/` except in a sandbox without mounts."""

    root: Path
    task_code: str
    model_name: str
    archive_sha256: str
    torchserve_config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path) -> Image:
        facts = json.loads((root / "opt/dynabench/image.json").read_text("utf-8"))
        return cls(root=root, **facts)

    @classmethod
    def here(cls) -> Image:
        """That of this container; DYNABENCH_ROOT is set in sandboxes without mounts."""
        return cls.read(Path(os.environ.get("DYNABENCH_ROOT", "/")))

    @property
    def model_dir(self) -> Path:
        return self.root / "opt/dynabench/model"

    @property
    def manifest(self) -> dict[str, Any]:
        """The archive's `MAR-INF/MANIFEST.json`."""
        return json.loads((self.model_dir / "MAR-INF/MANIFEST.json").read_text("utf-8"))

    @property
    def is_batching(self) -> bool:
        """Does the handler want a whole batch as bytes (`decode_input_request` false)?"""
        return str(self.torchserve_config.get("decode_input_request", True)).lower() == "false"

    @property
    def max_body_bytes(self) -> float:
        return float(self.torchserve_config.get("max_request_size", "inf"))

    def check_mounted_archives(self) -> None:
        """Raise HandlerError if an archive at `opt/ml/model` is not the one this image was built from.

        An equal archive holds the bytes that are unpacked in the image already, so those are used.
        """
        for archive in sorted((self.root / "opt/ml/model").glob("*.mar")):
            found = sha256_of(archive)
            if found != self.archive_sha256:
                raise HandlerError(
                    f"{archive} has sha256 {found}, but this image was built from {self.archive_sha256}. "
                    "Mount the archive of this image, or none: the image is complete without it."
                )


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
