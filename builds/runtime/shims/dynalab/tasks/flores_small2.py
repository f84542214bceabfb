"""The older generation's `TaskIO` of translation, the same for every track."""

from __future__ import annotations

from dynalab.tasks.flores_full import TaskIO as TaskIO
