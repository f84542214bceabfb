"""Inside every cluster: beats, frees what was lost, makes good what is missing, sends the mail."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from functools import partial

from django.conf import settings
from django.db import connection
from django.utils.module_loading import import_string

from dynabench_site import clusters, jobs, outbox, queue
from dynabench_site.database import AWAY, RETURN_SECONDS

logger = logging.getLogger(__name__)
MAIL_SECONDS = 2
LEFTOVERS_SECONDS = 300
CLEAR_SECONDS = 3


def clear_leftovers() -> None:
    """Once more before the cluster ends: what its workers ran outside of them must not outlive it."""
    rounds = Rounds("leftovers", map(import_string, queue.SLOW_SWEEPS), LEFTOVERS_SECONDS)
    rounds.start()
    rounds.stop()  # after this one round
    rounds.join(CLEAR_SECONDS)


def _steps() -> list[Callable[[], object]]:
    """One sweep; doing it twice, or in two clusters at once, changes nothing more."""
    return [*(partial(jobs.free_lost, model) for model in jobs.all_models()), *map(import_string, queue.SWEEPS)]


class Rounds(threading.Thread):
    """Does its steps again and again until stopped; a step that fails is logged and keeps no other from its turn.

    After an outage of the database it waits for `patience` seconds.
    """

    def __init__(
        self, name: str, steps: Iterable[Callable[[], object]], seconds: float, *, patience: float = 0
    ) -> None:
        super().__init__(daemon=True, name=name)
        self.steps, self.seconds, self.patience = list(steps), seconds, patience
        self.stopping = threading.Event()

    def run(self) -> None:
        while True:
            for step in self.steps:
                self._do(step)
            if self.stopping.wait(self.seconds):
                break
        connection.close()

    def _do(self, step: Callable[[], object]) -> None:
        try:
            step()
        except AWAY as error:
            logger.warning("%s: the database is away: %s", self.name, error)
            self._outlast()
        except Exception:  # noqa: BLE001 - the sweeper's edge: it must outlive whatever a row or a part does
            logger.exception("%s: a step failed", self.name)
            connection.close()

    def _outlast(self) -> None:
        connection.close()
        while not self.stopping.wait(RETURN_SECONDS):
            try:
                connection.ensure_connection()
                break
            except AWAY:
                connection.close()
        self.stopping.wait(self.patience)

    def stop(self) -> None:
        self.stopping.set()


def start() -> list[Rounds]:
    pace = settings.HEARTBEAT_SECONDS
    rounds = [
        Rounds("heartbeat", [clusters.beat], pace),
        # Or it would free what is about to be renewed.
        Rounds("sweep", _steps(), pace, patience=2 * (pace + RETURN_SECONDS)),
        Rounds("leftovers", map(import_string, queue.SLOW_SWEEPS), LEFTOVERS_SECONDS),
        Rounds("mail", [outbox.send_due], min(pace, MAIL_SECONDS)),
    ]
    for thread in rounds:
        thread.start()
    return rounds
