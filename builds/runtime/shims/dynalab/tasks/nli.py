"""The older generation's `TaskIO` of natural language inference."""

from dynalab.tasks.common import BaseTaskIO


class TaskIO(BaseTaskIO):
    task = "nli"
    input_keys = ("context", "hypothesis")
    output_keys = ("label",)
    optional_keys = ("prob",)
