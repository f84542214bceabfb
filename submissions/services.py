"""What can be done with a submission."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from dynabench_site import queue
from dynabench_site.api import ApiError, Conflict
from dynabench_site.database import retried
from dynabench_site.faults import NotYet
from submissions.archives import Manifest
from submissions.models import MAX_NAME, MODEL_NAME, Submission, SubmissionLock
from tasks_catalog.models import Task

logger = logging.getLogger(__name__)
TWIN_MINUTES = 15
SILENT_MINUTES = 5
# More than a web server waits for a silent client, less than a client is asked to wait after a 503.
BROKEN_SECONDS = 25


def submitable_task(code: str) -> Task:
    task = Task.objects.filter(code=code).select_related("build_config").first()
    if task is None:
        raise ApiError(404, "unknown_task", f"There is no task {code!r}. GET /tasks/submitable lists the tasks.")
    if not task.submitable:
        raise ApiError(403, "task_not_submitable", f"Task {code} does not take models at the moment.")
    return task


def slots(*, owner: User, task: Task, but: Submission | None = None) -> tuple[int, datetime | None]:
    """How many uploads are free, and when the next one is (None: now); what we refused and our failures don't count."""
    since = Now() - timedelta(hours=task.limit_hours)
    sent = Submission.objects.filter(owner=owner, task=task, created_at__gt=since).exclude(pk=but and but.pk)
    counted = sent.exclude(status=Submission.Status.DEAD).order_by("created_at")
    times = list(counted.values_list("created_at", flat=True))
    over = len(times) - task.submission_limit
    if over < 0:
        return -over, None
    return 0, times[over] + timedelta(hours=task.limit_hours)


@retried
def reserve(*, owner: User, task: Task, name: str) -> Submission:
    """Take a slot before the body is read; at the limit only for what may turn out to be a repetition."""
    if len(name) > MAX_NAME or not MODEL_NAME.regex.search(name):
        raise ApiError(400, "bad_name", f"A model's name is 1 to {MAX_NAME} small letters, digits and hyphens.")
    mine = Submission.objects.filter(owner=owner, task=task, name=name)
    _give_up(mine, timedelta(seconds=BROKEN_SECONDS))
    with _locked(owner, task):
        if mine.filter(status=Submission.Status.RECEIVING).exists():
            raise Conflict(
                "upload_in_progress",
                f"An upload of {name} is under way. Wait for its answer; if it broke off, half a minute.",
            )
        if not _recent(mine).exists():
            _require_slot(owner, task)
        return Submission.objects.create(owner=owner, task=task, name=name)


@retried
def accept(submission: Submission, manifest: Manifest, *, size: int, sha256: str) -> Submission:
    """The bytes are stored and checked: ask for the build; a project that was sent just now is that upload.

    Raises ApiError when the slot was for a repetition only and this is none; the upload is then to be discarded.
    """
    owner, task = submission.owner, submission.task
    with _locked(owner, task):
        digest = manifest.content_digest
        same = Submission.objects.filter(owner=owner, task=task, name=submission.name, content_digest=digest)
        first = _recent(same).exclude(pk=submission.pk).order_by("pk").first()
        if first is None:
            _require_slot(owner, task, but=submission)
            submission.advance(
                Submission.Status.UPLOADED,
                size=size,
                sha256=sha256,
                content_digest=digest,
                setup_config=manifest.setup_config,
                touched_at=Now(),
            )
            queue.send(queue.BUILD_SUBMISSION, submission.pk, cluster=queue.BUILD_CLUSTER)
            return submission
    discard(submission)
    return first


def discard(submission: Submission) -> None:
    """Undo an upload that was not accepted: object, row and slot."""
    with transaction.atomic():
        row = Submission.objects.select_for_update().filter(pk=submission.pk).first()
        if row and row.status != Submission.Status.RECEIVING:
            return  # it was accepted, and only the answer to our COMMIT was lost
        _delete_archive(submission)
        if row:
            row.delete()


def _delete_archive(submission: Submission) -> None:
    try:
        submission.task.storage().delete(submission.archive_key)
    except NotYet as error:  # its key is never used again
        logger.warning("%s may stay in storage: %s", submission.archive_key, error)


def cancel(submission: Submission, *, by: str = "") -> None:
    """Ask every later stage to stop; they read the flag at each step."""
    unfinished = Submission.objects.unfinished().filter(pk=submission.pk, cancel_requested=False)
    if not unfinished.update(cancel_requested=True):
        raise Conflict("not_cancellable", f"{submission.name} is {submission.status}: there is nothing to cancel.")
    submission.refresh_from_db(fields=["cancel_requested"])
    queue.send(queue.BUILD_SUBMISSION, submission.pk, cluster=queue.BUILD_CLUSTER)


def sweep() -> None:
    """Give back what uploads left behind whose web server died."""
    _give_up(Submission.objects.all(), timedelta(minutes=SILENT_MINUTES))


def _give_up(submissions: QuerySet[Submission], silence: timedelta) -> None:
    """Undo uploads of which nothing came for so long: their web server died."""
    stale = submissions.filter(status=Submission.Status.RECEIVING, touched_at__lt=Now() - silence)
    for submission in stale.select_related("task__build_config"):
        with transaction.atomic():
            if stale.select_for_update().filter(pk=submission.pk).first():  # else it has come alive
                discard(submission)


def _recent(submissions: QuerySet[Submission]) -> QuerySet[Submission]:
    return submissions.filter(created_at__gt=Now() - timedelta(minutes=TWIN_MINUTES))


def _require_slot(owner: User, task: Task, *, but: Submission | None = None) -> None:
    _, free_at = slots(owner=owner, task=task, but=but)
    if free_at is None:
        return
    seconds = max(1, int((free_at - timezone.now()).total_seconds()) + 1)
    detail = (
        f"No more than {task.submission_limit} models every {task.limit_hours} hours for task {task.code}. "
        f"Your next slot is free at {free_at:%Y-%m-%d %H:%M} UTC."
    )
    raise ApiError(429, "submission_limit", detail, {"Retry-After": str(seconds)})


@contextmanager
def _locked(user: User, task: Task) -> Iterator[None]:
    """A transaction in which nobody else counts the slots of this user and task."""
    SubmissionLock.objects.get_or_create(user=user, task=task)  # in its own transaction, or twins would deadlock
    with transaction.atomic():
        SubmissionLock.objects.select_for_update().get(user=user, task=task)
        yield
