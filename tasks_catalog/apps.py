from __future__ import annotations

from django.apps import AppConfig


class TasksConfig(AppConfig):
    name = "tasks_catalog"
    verbose_name = "Tasks and datasets"
