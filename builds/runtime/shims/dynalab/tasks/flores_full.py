"""The older generation's `TaskIO` of translation; all three tracks sign as flores."""

from dynalab.tasks.common import BaseTaskIO


class TaskIO(BaseTaskIO):
    task = "flores"
    input_keys = ("sourceLanguage", "targetLanguage", "sourceText")
    output_keys = ("translatedText",)
