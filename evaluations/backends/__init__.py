"""Where inferences run. A runner starts one, tells how it goes, stops it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from django.conf import settings
from django.utils.module_loading import import_string

from evaluations.models import Inference


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a started inference goes: `seconds` without start-up, memory in bytes, what is wrong in words."""

    state: Literal["running", "succeeded", "failed"]
    code: str = ""
    detail: str = ""
    predictions_sha256: str = ""
    examples: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0


class InferenceRunner(Protocol):
    def start(self, inference: Inference) -> str:
        """Start it, or find it started already; its handle. Predictions go to the inference's key."""

    def poll(self, handle: str) -> Outcome:
        """How it goes."""

    def stop(self, handle: str) -> None:
        """It runs no longer."""


def runner() -> InferenceRunner:
    return import_string(settings.INFERENCE_RUNNER)()
