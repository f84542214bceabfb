"""The older generation's `TaskIO` of translation, the same for every track."""

from dynalab.tasks.flores_full import TaskIO as TaskIO
