"""What can be done with a submission."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from dynabench_site import queue
from dynabench_site.api import ApiError, Conflict
from submissions.models import MAX_NAME, MODEL_NAME, Submission, SubmissionLock
from tasks_catalog.models import Task

TWIN_MINUTES = 15
SILENT_MINUTES = 5


class LimitReached(ApiError):
    def __init__(self, task: Task, free_at: datetime) -> None:
        seconds = max(1, int((free_at - timezone.now()).total_seconds()) + 1)
        detail = (
            f"No more than {task.submission_limit} models every {task.limit_hours} hours for task {task.code}. "
            f"Your next slot is free at {free_at:%Y-%m-%d %H:%M} UTC."
        )
        super().__init__(429, "submission_limit", detail, {"Retry-After": str(seconds)})


def check_name(name: str) -> None:
    if not name or len(name) > MAX_NAME or not MODEL_NAME.regex.search(name):
        raise ApiError(400, "bad_name", f"A model's name is 1 to {MAX_NAME} small letters, digits and hyphens.")


def submitable_task(code: str) -> Task:
    task = Task.objects.filter(code=code).select_related("build_config").first()
    if task is None:
        raise ApiError(404, "unknown_task", f"There is no task {code!r}. GET /tasks/submitable lists the tasks.")
    if not task.submitable:
        raise ApiError(403, "task_not_submitable", f"Task {code} does not take models at the moment.")
    return task


def slots(*, owner: User, task: Task) -> tuple[int, datetime | None]:
    """How many uploads are free, and when the next one is (None: now)."""
    taken = Submission.objects.taking_slots(owner=owner, task=task).order_by("created_at")
    return free_slots(task, list(taken.values_list("created_at", flat=True)))


def free_slots(task: Task, times: Sequence[datetime]) -> tuple[int, datetime | None]:
    """The same for uploads made at these times, oldest first."""
    over = len(times) - task.submission_limit
    if over < 0:
        return -over, None
    return 0, times[over] + timedelta(hours=task.limit_hours)


def reserve(*, owner: User, task: Task, name: str) -> Submission:
    """Take a slot before the body is read; at the limit only for what may turn out to be a repetition."""
    check_name(name)
    with _locked(owner, task):
        mine = Submission.objects.filter(owner=owner, task=task, name=name)
        if mine.filter(status=Submission.Status.RECEIVING).exists():
            raise Conflict("upload_in_progress", f"An upload of {name} is under way. Wait for its answer.")
        free, free_at = slots(owner=owner, task=task)
        if free_at and not mine.filter(created_at__gt=_twin_time()).exists():
            raise LimitReached(task, free_at)
        return Submission.objects.create(owner=owner, task=task, name=name)


def accept(submission: Submission, *, size: int, sha256: str, setup_config: dict[str, Any]) -> Submission:
    """The bytes are stored and checked: ask for the build; a repetition of a recent upload is that upload."""
    owner, task = submission.owner, submission.task
    with _locked(owner, task):
        if first := _twin(submission, sha256):
            refused: ApiError | None = None
        else:
            first, refused = submission, _over_limit(submission)
        if first == submission and not refused:
            submission.advance(
                Submission.Status.UPLOADED, size=size, sha256=sha256, setup_config=setup_config, touched_at=Now()
            )
            queue.send(queue.BUILD_SUBMISSION, submission.pk, cluster=queue.BUILD_CLUSTER)
            return submission
    discard(submission)
    if refused:
        raise refused
    return first


def discard(submission: Submission) -> None:
    """Undo an upload that was not accepted: object, row and slot."""
    submission.task.storage().delete(submission.archive_key)
    Submission.objects.filter(pk=submission.pk, status=Submission.Status.RECEIVING).delete()


def cancel(submission: Submission, *, by: str = "") -> None:
    """Ask every later stage to stop; they read the flag at each step."""
    if not submission.can_cancel:
        raise Conflict("not_cancellable", f"{submission.name} is {submission.status}: there is nothing to cancel.")
    Submission.objects.filter(pk=submission.pk).update(cancel_requested=True)
    submission.refresh_from_db(fields=["cancel_requested"])
    queue.send(queue.BUILD_SUBMISSION, submission.pk, cluster=queue.BUILD_CLUSTER)


def sweep() -> None:
    """Give back what uploads left behind whose web server died."""
    silent = Now() - timedelta(minutes=SILENT_MINUTES)
    stale = Submission.objects.filter(status=Submission.Status.RECEIVING, touched_at__lt=silent)
    for submission in stale.select_related("task__build_config"):
        discard(submission)


def _twin_time() -> Any:
    return Now() - timedelta(minutes=TWIN_MINUTES)


def _twin(submission: Submission, sha256: str) -> Submission | None:
    same = Submission.objects.filter(
        owner_id=submission.owner_id, task_id=submission.task_id, name=submission.name, sha256=sha256
    )
    return same.filter(created_at__gt=_twin_time()).exclude(pk=submission.pk).order_by("pk").first()


def _over_limit(submission: Submission) -> LimitReached | None:
    taken = Submission.objects.taking_slots(owner=submission.owner, task=submission.task)
    if taken.exclude(pk=submission.pk).count() < submission.task.submission_limit:
        return None
    oldest = taken.exclude(pk=submission.pk).order_by("created_at").first()
    return LimitReached(submission.task, oldest.created_at + timedelta(hours=submission.task.limit_hours))


@contextmanager
def _locked(user: User, task: Task) -> Iterator[None]:
    """A transaction in which nobody else counts the slots of this user and task."""
    SubmissionLock.objects.get_or_create(user=user, task=task)  # in its own transaction, or twins would deadlock
    with transaction.atomic():
        SubmissionLock.objects.select_for_update().get(user=user, task=task)
        yield
