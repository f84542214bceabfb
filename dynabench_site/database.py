"""What a database server does to those who use it: it takes back one of two crossing transactions, and goes away."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from django.db import InterfaceError, OperationalError, connection

logger = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

AWAY = (OperationalError, InterfaceError)  # not to be reached, restarted, too busy: the same may pass later
DEADLOCK, LOCK_WAIT = 1213, 1205
RETRIES = 5
FIRST_CLIENT_ERROR = 2000  # MySQL's codes from here on tell that there was no answer from a server
RETURN_SECONDS = 1.0


def retried(function: Callable[P, R]) -> Callable[P, R]:
    """A function that makes its own transaction: when the database takes that back for another's sake, do it again.

    Inside a larger transaction only that one can be done again.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        for pause in [0.05 * 2**n for n in range(RETRIES)]:
            try:
                return function(*args, **kwargs)
            except OperationalError as error:
                if connection.in_atomic_block or error.args[0] not in {DEADLOCK, LOCK_WAIT}:
                    raise
                logger.warning("%s is done again: %s", function.__qualname__, error)
            time.sleep(random.uniform(0, pause))
        return function(*args, **kwargs)

    return run


def is_away(error: BaseException | None) -> bool:
    """Whether it is one of AWAY or came of one: a closing cursor raises the driver's own error, with that behind."""
    while error and not isinstance(error, AWAY):
        error = error.__cause__ or error.__context__
    return error is not None


def wait_until_it_answers() -> None:
    """Return when the database can be reached; raises what waiting would not mend."""
    while True:
        try:
            return connection.ensure_connection()
        except OperationalError as error:
            code = error.args[0]
            if not (isinstance(code, int) and code >= FIRST_CLIENT_ERROR):
                raise
            logger.warning("the database can't be reached: %s", error)
        time.sleep(RETURN_SECONDS)


def repeat_until_it_answers(write: Callable[[], None]) -> None:
    """Do it, again and again while the database is away."""
    while True:
        try:
            return write()
        except AWAY as error:
            logger.warning("the database is away: %s", error)
            connection.close()
        time.sleep(RETURN_SECONDS)
