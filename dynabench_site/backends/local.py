"""The queue in the database's own rows."""

from __future__ import annotations

import logging
import time

from django.db import Error, connection
from django_q.brokers.orm import ORM

logger = logging.getLogger(__name__)
AWAY_SECONDS = 1.0


class RowBroker(ORM):
    """django-q's ORM broker, for which a database that is away is an empty queue: it goes on when that is back."""

    def dequeue(self) -> list[tuple[int, str]] | None:
        try:
            return super().dequeue()
        except Error as error:
            logger.warning("no messages, the database is away: %s", error)
            connection.close()
            time.sleep(AWAY_SECONDS)
            return None

    def acknowledge(self, task_id: int) -> None:
        """Or it comes again after a day, and changes nothing."""
        try:
            super().acknowledge(task_id)
        except Error as error:
            logger.warning("message %s stays in the queue: %s", task_id, error)
            connection.close()
