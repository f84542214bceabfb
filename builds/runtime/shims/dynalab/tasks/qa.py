"""The older generation's `TaskIO` of question answering."""

from dynalab.tasks.common import BaseTaskIO


class TaskIO(BaseTaskIO):
    task = "qa"
    input_keys = ("context", "question")
    output_keys = ("answer",)
    optional_keys = ("conf",)
