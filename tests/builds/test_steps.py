from __future__ import annotations

import pytest
from django.db import OperationalError

from builds.steps import FLUSH_SECONDS, StepLog


class Rows:
    """Where a step's output is kept, in a database that may be away."""

    def __init__(self) -> None:
        self.kept, self.is_away = "", False

    def save(self, text: str) -> None:
        if self.is_away:
            raise OperationalError(2006, "Server has gone away")
        self.kept = text


def test_output_that_comes_while_the_database_is_away_is_kept_until_it_is_back(db):
    rows = Rows()
    log = StepLog(rows.save)
    rows.is_away = True
    log.saved_at -= 2 * FLUSH_SECONDS
    log(b"first ")
    rows.is_away = False
    log.saved_at -= 2 * FLUSH_SECONDS

    log(b"second")

    assert rows.kept == "first second"


def test_a_step_does_not_end_without_its_output(db):
    rows = Rows()
    log = StepLog(rows.save)
    log(b"all")
    rows.is_away = True

    with pytest.raises(OperationalError):
        log.flush()
