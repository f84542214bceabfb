"""The older generation's `TaskIO` of sentiment analysis."""

from __future__ import annotations

from dynalab.tasks.common import BaseTaskIO


class TaskIO(BaseTaskIO):
    task = "sentiment"
    input_keys = ("statement",)
    output_keys = ("label",)
    optional_keys = ("prob",)
