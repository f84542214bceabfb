"""Make the queues of all clusters: `manage.py create_queues`, before the first cluster starts and for each new one."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand
from django.utils.module_loading import import_string

from dynabench_site import queue


class Command(BaseCommand):
    help = "Make the queue of every cluster, and one beside it for what nobody could read. Again, it changes nothing."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        for name in sorted(import_string("evaluations.services.cluster_pools")()):
            queue.create(name)
            self.stdout.write(queue.queue_name(name))
