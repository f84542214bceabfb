"""Where inferences run. A runner starts one, tells how it goes, stops it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Protocol

from django.conf import settings
from django.utils.module_loading import import_string

from evaluations.models import Inference
from tasks_catalog.models import BuildConfig


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a started inference goes: `seconds` without start-up, memory in bytes, what is wrong in words.

    *failed* is the model's own fault, *lost* nobody's: another try may end well.
    """

    state: Literal["running", "succeeded", "failed", "lost"]
    code: str = ""
    detail: str = ""
    predictions_sha256: str = ""
    examples: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    cost: Decimal | None = None  # US$


class InferenceRunner(Protocol):
    def limits(self, config: BuildConfig, examples: int) -> dict[str, Any]:
        """What an inference over so many examples runs under, `deadline_seconds` among it."""

    def start(self, inference: Inference) -> str:
        """Start it, or find it started already; its handle. Predictions go to the inference's keys."""

    def link(self, inference: Inference) -> str:
        """An address where operators see it run; empty when there is none."""

    def poll(self, inference: Inference) -> Outcome:
        """How a started one goes."""

    def stop(self, inference: Inference) -> None:
        """It runs no longer, also when it never did."""


def runner() -> InferenceRunner:
    return import_string(settings.INFERENCE_RUNNER)()
