"""The older generation's `TaskIO` of hate speech detection."""

from dynalab.tasks.common import BaseTaskIO


class TaskIO(BaseTaskIO):
    task = "hs"
    input_keys = ("statement",)
    output_keys = ("label",)
    optional_keys = ("prob",)
