"""What a build does is written down step by step, and can be read while it goes on."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from django.db import connection
from django.db.models.functions import Now

from builds.models import Build, BuildStep
from builds.sandboxes.policy import Log
from dynabench_site.database import AWAY
from dynabench_site.faults import NotYet
from dynabench_site.jobs import CancelRequested
from submissions.models import Submission

logger = logging.getLogger(__name__)
MAX_LOG_BYTES = 512 * 1024
FLUSH_SECONDS = 1.0
CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
SECRET = re.compile(
    r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|\b[0-9a-f]{64}\b(?=.{0,3}token)|(?i:(?<=token=)[^\s&]+|(?<=password=)\S+)"
)


class StepFailed(Exception):
    """A step ended badly; `code` and the message are for the model's owner."""

    def __init__(self, code: str, detail: str, *, exit_code: int = 1) -> None:
        super().__init__(detail)
        self.code, self.detail, self.exit_code = code, detail, exit_code


class Recorder(Protocol):
    def step(self, name: str, command: str = "") -> AbstractContextManager[Log]:
        """Gives a function to write the step's output to."""


def readable(output: bytes) -> str:
    """Text without control characters and without what looks like a secret."""
    return SECRET.sub("•••", CONTROL.sub("", output.decode("utf-8", "replace").replace("\r\n", "\n")))


class StepLog:
    """Collects a step's output: the first and the last part of it, when it is too long."""

    def __init__(self, save: Callable[[str], None]) -> None:
        self.head, self.tail, self.dropped = b"", b"", 0
        self.save, self.saved_at = save, time.monotonic()

    def __call__(self, output: bytes) -> None:
        room = MAX_LOG_BYTES // 2 - len(self.head)
        self.head += output[:room]
        self.tail += output[room:] if room > 0 else output
        if (surplus := len(self.tail) - MAX_LOG_BYTES // 2) > 0:
            self.dropped += surplus
            self.tail = self.tail[surplus:]
        if time.monotonic() - self.saved_at > FLUSH_SECONDS:
            self._show()

    def _show(self) -> None:
        """While the database is away the output is kept: who runs a model must go on reading what it prints."""
        try:
            self.flush()
        except AWAY as error:
            logger.warning("a step's output could not be shown: %s", error)
            connection.close()
            self.saved_at = time.monotonic()

    @property
    def text(self) -> str:
        gap = f"\n… {self.dropped} bytes dropped …\n" if self.dropped else ""
        return readable(self.head) + gap + readable(self.tail)

    def flush(self) -> None:
        self.save(self.text)
        self.saved_at = time.monotonic()


def check_cancelled(submission: Submission) -> None:
    """Raise CancelRequested when its sender, or staff, asked to stop; without a database nobody can have."""
    try:
        submission.refresh_from_db(fields=["cancel_requested"])
    except AWAY as error:
        logger.warning("whether %s was cancelled is not known: %s", submission.pk, error)
        connection.close()
    if submission.cancel_requested:
        raise CancelRequested


class RowRecorder:
    """Writes the steps of one attempt of a build; before each it looks whether it should go on."""

    def __init__(self, build: Build) -> None:
        self.build = build

    @contextmanager
    def step(self, name: str, command: str = "") -> Iterator[Log]:
        check_cancelled(self.build.submission)
        row = BuildStep.objects.create(build=self.build, attempt=self.build.attempts, name=name, command=command)
        log = StepLog(lambda text: BuildStep.objects.filter(pk=row.pk).update(output=text) and None)
        exit_code: int | None = 1
        try:
            yield log
            exit_code = 0
        except NotYet as error:
            exit_code = None
            log(f"waiting for {error}\n".encode())
            raise
        except StepFailed as error:
            exit_code = error.exit_code
            log(f"\n{error.detail}\n".encode())
            raise
        finally:
            log.flush()
            BuildStep.objects.filter(pk=row.pk).update(exit_code=exit_code, finished_at=Now())
