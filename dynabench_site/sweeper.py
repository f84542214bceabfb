"""Inside every cluster: beats, frees what was lost, makes good what is missing, sends the mail."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection
from django.utils.module_loading import import_string

from dynabench_site import clusters, jobs, outbox, queue

logger = logging.getLogger(__name__)


def sweep() -> None:
    """One round; running it twice, or in two clusters at once, changes nothing more."""
    for model in jobs.all_models():
        jobs.free_lost(model)
    for name in queue.SWEEPS:
        import_string(name)()


class Rounds(threading.Thread):
    """Calls a function again and again until stopped; a database that is away is waited for."""

    def __init__(self, work: Callable[[], object], seconds: float) -> None:
        super().__init__(daemon=True, name=work.__name__)
        self.work, self.seconds, self.stopping = work, seconds, threading.Event()

    def run(self) -> None:
        while not self.stopping.wait(self.seconds):
            try:
                self.work()
            except DatabaseError:
                logger.exception("%s failed, next round in %s s", self.name, self.seconds)
                connection.close()
        connection.close()

    def stop(self) -> None:
        self.stopping.set()


def start() -> list[Rounds]:
    pace = settings.HEARTBEAT_SECONDS
    rounds = [Rounds(clusters.beat, pace), Rounds(sweep, pace), Rounds(outbox.send_due, min(pace, 2))]
    for thread in rounds:
        thread.start()
    return rounds
