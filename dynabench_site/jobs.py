"""A job is a row that one worker holds at a time: lease, attempts, waiting. The queue only rings."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar, Self

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import OperationalError, connection, models, transaction
from django.db.models.functions import Now

from dynabench_site import clusters
from dynabench_site.database import AWAY, is_away, repeat_until_it_answers, retried
from dynabench_site.faults import NotYet
from dynabench_site.interrupts import interruptible
from dynabench_site.state import Stateful

logger = logging.getLogger(__name__)


MAX_DETAIL = 8000  # characters: it goes into rows, mails and pages


def shortened(detail: str) -> str:
    """The beginning and the end of what a model may have made as long as it likes."""
    half = MAX_DETAIL // 2
    dropped = len(detail) - MAX_DETAIL
    return detail if dropped <= 0 else f"{detail[:half]}\n… {dropped} characters left out …\n{detail[-half:]}"


class JobFailed(Exception):
    """The work can't succeed as it is: `theirs`, whoever sent the model has to change something; else we have to."""

    def __init__(self, code: str, detail: str, *, theirs: bool = True) -> None:
        super().__init__(detail)
        self.code, self.detail, self.theirs = code, detail, theirs


class JobStumbled(Exception):
    """A failure on our side that another try may not meet."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


class CancelRequested(Exception):
    """Its sender, or staff, asked to stop."""


class LeaseLost(Exception):
    """Somebody else holds the job now, or it has ended: whatever this worker still writes would be wrong."""


def in_seconds(seconds: float) -> models.Expression:
    """That many seconds from now, by the database's clock."""
    return models.ExpressionWrapper(Now() + timedelta(seconds=seconds), output_field=models.DateTimeField())


class JobQuerySet(models.QuerySet):
    def queued(self) -> Self:
        return self.filter(status=Job.Status.QUEUED)

    def running(self) -> Self:
        return self.filter(status=Job.Status.RUNNING)

    def unfinished(self) -> Self:
        return self.filter(status__in=[Job.Status.QUEUED, Job.Status.RUNNING])

    def due(self) -> Self:
        return self.queued().filter(models.Q(not_before=None) | models.Q(not_before__lte=Now()))

    def lost(self) -> Self:
        """Running, but the lease ran out or the instance that held it is gone."""
        alive = clusters.ClusterHeartbeat.objects.alive().filter(pk=models.OuterRef("holder_id"))
        return (
            self.running()
            .annotate(holder_alive=models.Exists(alive))
            .filter(models.Q(lease_until__lt=Now()) | models.Q(holder_alive=False))
        )


class Job(Stateful):
    class Status(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        DEAD = "dead"
        CANCELLED = "cancelled"

    TRANSITIONS = {
        Status.QUEUED: {Status.RUNNING, Status.CANCELLED, Status.DEAD},
        Status.RUNNING: {Status.QUEUED, Status.SUCCEEDED, Status.FAILED, Status.DEAD, Status.CANCELLED},
        Status.FAILED: {Status.QUEUED},
        Status.DEAD: {Status.QUEUED},
    }
    MAX_ATTEMPTS: ClassVar[int] = 3
    MAX_INTERRUPTIONS: ClassVar[int] = 50

    status = models.CharField(max_length=10, choices=Status, default=Status.QUEUED, db_index=True)
    cluster = models.CharField(max_length=31, help_text="The cluster whose workers execute this job.")
    attempts = models.PositiveSmallIntegerField(default=0)
    interruptions = models.PositiveSmallIntegerField(default=0)
    lease_token = models.PositiveIntegerField(default=0)
    lease_until = models.DateTimeField(null=True, blank=True)
    holder = models.ForeignKey(
        clusters.ClusterHeartbeat, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    not_before = models.DateTimeField(null=True, blank=True)
    waits = models.PositiveSmallIntegerField(default=0, help_text="In a row, for what is not there.")
    waiting_for = models.CharField(max_length=255, blank=True)
    error_code = models.CharField(max_length=50, blank=True)
    error_detail = models.TextField(blank=True)
    created_at = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        abstract = True

    @property
    def is_finished(self) -> bool:
        return self.status not in {self.Status.QUEUED, self.Status.RUNNING}

    @property
    def can_retry(self) -> bool:
        return self.status in {self.Status.FAILED, self.Status.DEAD}

    def claim(self) -> bool:
        """Take the job, or learn that it isn't ours to take; the attempt is counted before the work."""
        instance = clusters.current()
        if instance is None or instance.name != self.cluster:
            return False
        token = self.lease_token + 1
        claimed = self.move(
            self.Status.QUEUED,
            self.Status.RUNNING,
            fence=models.Q(lease_token=self.lease_token, attempts__lt=self.MAX_ATTEMPTS)
            & (models.Q(not_before=None) | models.Q(not_before__lte=Now())),
            by=str(instance),
            attempts=models.F("attempts") + 1,
            lease_token=token,
            lease_until=in_seconds(settings.LEASE_SECONDS),
            holder=instance,
            waiting_for="",
            not_before=None,
            error_code="",
            error_detail="",
            started_at=Now(),
            finished_at=None,
        )
        if claimed:
            self.lease_token = token
        return claimed

    def advance(self, target: str, *, reason: str = "", **fields: Any) -> None:
        """Move a job that this worker holds; raises LeaseLost when it no longer does."""
        if target not in {self.Status.QUEUED, self.Status.RUNNING}:
            fields = {"finished_at": Now(), "waits": 0, **fields}
        token, by = self.lease_token, str(clusters.current() or "")
        fence = models.Q(lease_token=token)
        if not self.move(self.Status.RUNNING, target, fence=fence, reason=reason, by=by, lease_until=None, **fields):
            raise LeaseLost(f"{self._meta.model_name} {self.pk} is no longer ours")

    def fail(self, error: JobFailed) -> None:
        """End it: trying again would change nothing."""
        target = self.Status.FAILED if error.theirs else self.Status.DEAD
        self.advance(target, reason=error.code, error_code=error.code, error_detail=shortened(error.detail))

    def stumble(self, code: str, detail: str) -> None:
        """Our own failure: try again later, or give up when the attempts are used up."""
        if self.attempts >= self.MAX_ATTEMPTS:
            self.advance(self.Status.DEAD, reason=code, error_code=code, error_detail=detail)
        else:
            self.advance(
                self.Status.QUEUED,
                reason=code,
                not_before=in_seconds(settings.LEASE_SECONDS * self.attempts),
                waiting_for=f"another try, after a failure on our side ({code})",
            )

    def wait(self, reason: str, seconds: float, **fields: Any) -> None:
        """Step back without spending the attempt: what it needs isn't there yet."""
        self.advance(
            self.Status.QUEUED,
            reason=reason,
            attempts=models.F("attempts") - 1,
            not_before=in_seconds(seconds),
            waiting_for=reason[:255],
            **{"waits": 0, **fields},
        )

    def step_back(self) -> None:
        """The database went away under the work: begin again soon, without spending the attempt."""
        if self.interruptions < self.MAX_INTERRUPTIONS:
            self.wait("the database, which was away", 1, interruptions=models.F("interruptions") + 1)
        else:
            self.stumble("database_away", f"The database went away {self.interruptions} times while this was done.")

    @retried
    def save_progress(self, **fields: Any) -> None:
        """Write columns of a job that this worker holds; raises LeaseLost when it no longer does."""
        held = type(self)._base_manager.filter(pk=self.pk, lease_token=self.lease_token, status=self.Status.RUNNING)
        if not held.update(**fields):
            raise LeaseLost(f"{self._meta.model_name} {self.pk} is no longer ours")

    def retry(self, *, by: str = "") -> bool:
        """Put a failed or dead job back in the queue with all its attempts; False when it is neither."""
        return self.can_retry and self.move(
            self.status,
            self.Status.QUEUED,
            reason="retry",
            by=by,
            attempts=0,
            interruptions=0,
            not_before=None,
            waiting_for="",
            finished_at=None,
        )

    def cancel(self, *, by: str = "") -> bool:
        """End a queued job, or fence off the worker of a running one."""
        fields = {"lease_token": models.F("lease_token") + 1, "finished_at": Now(), "waiting_for": ""}
        return any(
            self.move(source, self.Status.CANCELLED, reason="cancelled", by=by, **fields)
            for source in (self.Status.QUEUED, self.Status.RUNNING)
        )

    @contextmanager
    def kept_alive(self, deadline_seconds: float) -> Iterator[None]:
        """Renew the lease in the background; when it is lost, and at the deadline, interrupt the work."""
        done = threading.Event()
        with interruptible() as interrupt:
            thread = threading.Thread(target=self._renew, args=(done, deadline_seconds, interrupt), daemon=True)
            thread.start()
            try:
                yield
            finally:
                done.set()
                thread.join()

    def _renew(self, done: threading.Event, deadline_seconds: float, interrupt: Callable[[Exception], None]) -> None:
        end = time.monotonic() + deadline_seconds
        while not done.wait(settings.LEASE_SECONDS / 6):
            if time.monotonic() > end:
                interrupt(JobStumbled("deadline", f"It was not done within {deadline_seconds:.0f} s."))
                break
            try:
                self.save_progress(lease_until=in_seconds(settings.LEASE_SECONDS))
            except LeaseLost as error:
                interrupt(error)
                break
            except DatabaseError as error:
                logger.warning("the lease of %s %s could not be renewed: %s", self._meta.model_name, self.pk, error)
                connection.close()  # a new one for the next try, which is still in time
        connection.close()


def work(job: Job, do: Callable[[], None], *, deadline_seconds: float) -> None:
    """The outermost edge of every worker: do the work of a claimed job and write down how it ended.

    `do` ends the job itself when it succeeds. A django-q timeout is a SystemExit and passes: the sweep frees the job.
    """
    try:
        with job.kept_alive(deadline_seconds):
            try:
                _work(job, do)
            except AWAY:
                logger.exception("%s %s lost the database", job._meta.model_name, job.pk)
                connection.close()
                repeat_until_it_answers(job.step_back)
    except LeaseLost as error:
        logger.warning("%s", error)


def _work(job: Job, do: Callable[[], None]) -> None:
    try:
        do()
    except JobFailed as error:
        job.fail(error)
    except JobStumbled as error:
        job.stumble(error.code, error.detail)
    except NotYet as error:
        job.wait(error.reason, error.pause(job.waits), waits=models.F("waits") + 1)
    except CancelRequested:
        job.advance(job.Status.CANCELLED, reason="cancelled")
    except (LeaseLost, *AWAY):
        raise
    except Exception as error:  # noqa: BLE001 - the worker's edge
        if is_away(error):
            raise OperationalError from error
        logger.exception("%s %s stumbled", job._meta.model_name, job.pk)
        job.stumble("server_error", "Something went wrong on our side; we have written it down.")


@contextmanager
def another_time(what: object) -> Iterator[None]:
    """What can't be done now is logged and left to the next sweep; it keeps nothing else from its turn."""
    try:
        yield
    except (NotYet, JobStumbled) as error:
        logger.warning("%s: the next sweep tries again: %s", what, error)


def free_lost(model: type[Job]) -> int:
    """Free the jobs whose worker died or whose whole instance is gone; returns how many."""
    return sum(_free(job) for job in model._default_manager.lost().select_related("holder"))


def release(model: type[Job], holder: clusters.ClusterHeartbeat) -> int:
    """Give back the jobs of an instance that is going away."""
    held = model._default_manager.running().filter(holder=holder)
    return sum(_requeue(job, f"{holder} stopped", refund=True) for job in held)


def _free(job: Job) -> bool:
    if not job.holder_alive and job.interruptions < job.MAX_INTERRUPTIONS:
        return _requeue(job, f"{job.holder or 'its cluster'} went away", refund=True)
    if job.attempts < job.MAX_ATTEMPTS:
        return _requeue(job, "its worker died", refund=False)
    detail = f"The worker died in each of {job.attempts} attempts; most often that means too little memory."
    return job.move(
        job.Status.RUNNING,
        job.Status.DEAD,
        fence=models.Q(lease_token=job.lease_token),
        reason="worker_died",
        lease_token=models.F("lease_token") + 1,
        finished_at=Now(),
        error_code="worker_died",
        error_detail=detail,
    )


def _requeue(job: Job, reason: str, *, refund: bool) -> bool:
    return job.move(
        job.Status.RUNNING,
        job.Status.QUEUED,
        fence=models.Q(lease_token=job.lease_token),
        reason=reason,
        lease_token=models.F("lease_token") + 1,
        lease_until=None,
        attempts=models.F("attempts") - int(refund),
        interruptions=models.F("interruptions") + int(refund),
    )


def all_models() -> list[type[Job]]:
    return [model for model in Job.__subclasses__() if not model._meta.abstract]


@retried
@transaction.atomic
def claim_next(queryset: JobQuerySet) -> Any | None:
    """The oldest due job of a queryset, claimed; None when there is none or others were faster."""
    for job in queryset.due().order_by("pk")[:10]:
        if job.claim():
            return job
    return None
