from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from dynabench_site.processes import Services, wait_for_signal
from evaluations.services import cluster_pools


class Command(BaseCommand):
    help = "Run the web server and all clusters on this machine until Ctrl-C."

    def handle(self, *args: Any, **options: Any) -> None:
        with Services(cluster_pools()) as services:
            self.stdout.write(f"{settings.BASE_URL}/ — Ctrl-C stops all of it")
            self.stdout.flush()
            wait_for_signal(services)
