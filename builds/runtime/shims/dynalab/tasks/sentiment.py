"""The older generation's `TaskIO` of sentiment analysis."""

from dynalab.tasks.common import BaseTaskIO


class TaskIO(BaseTaskIO):
    task = "sentiment"
    input_keys = ("statement",)
    output_keys = ("label",)
    optional_keys = ("prob",)
