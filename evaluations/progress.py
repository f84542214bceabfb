"""How far a submission is, stage by stage, and what it waits for, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.template.defaultfilters import pluralize
from django.utils import timezone

from builds.models import Build
from dynabench_site.clusters import ClusterHeartbeat
from dynabench_site.jobs import Job
from dynabench_site.queue import BUILD_CLUSTER
from evaluations.models import Inference, Scoring
from submissions.models import Submission
from tasks_catalog.models import Dataset

STAGES = (Build, Inference, Scoring)
DONE, ACTIVE, WAITING, BROKEN, AHEAD = "done", "active", "waiting", "broken", "ahead"
STATES = {
    Job.Status.QUEUED: WAITING,
    Job.Status.RUNNING: ACTIVE,
    Job.Status.SUCCEEDED: DONE,
    Job.Status.CANCELLED: BROKEN,
    Job.Status.FAILED: BROKEN,
    Job.Status.DEAD: BROKEN,
}


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its name, its state (one of the words above), when it ended, how long it took, what to know."""

    label: str
    state: str
    at: datetime | None = None
    took: timedelta | None = None
    note: str = ""
    parts: list[Stage] = field(default_factory=list)


def timeline(submission: Submission, build: Build | None, parts: Sequence[Stage]) -> list[Stage]:
    """From Uploaded to Published; `parts` are the datasets' stages."""
    is_in = submission.status != Submission.Status.RECEIVING
    return [
        Stage("Uploaded", DONE if is_in else ACTIVE, submission.created_at),
        Stage("Checked", DONE if is_in else AHEAD, submission.touched_at if is_in else None),
        _built(build),
        _evaluated(submission, parts),
        Stage("Published", DONE if submission.is_published else AHEAD),
    ]


def _built(build: Build | None) -> Stage:
    if build is None:
        return Stage("Built", AHEAD)
    state = STATES[Job.Status(build.status)]
    label = "Building" if state == ACTIVE else "Built"
    return Stage(label, state, build.finished_at or build.started_at, _took(build), _note(build))


def _evaluated(submission: Submission, parts: Sequence[Stage]) -> Stage:
    times = [part.at for part in parts if part.at and part.state == DONE]
    if submission.status == Submission.Status.EVALUATED:
        return Stage("Evaluated", DONE, max(times, default=None), parts=list(parts))
    broken = submission.is_finished and any(part.state == BROKEN for part in parts)
    under_way = submission.status == Submission.Status.EVALUATING
    state = BROKEN if broken else ACTIVE if under_way else AHEAD
    return Stage("Evaluating" if under_way else "Evaluated", state, parts=list(parts))


def dataset_stages(
    datasets: Iterable[Dataset], inferences: Iterable[Inference], scorings: Iterable[Scoring]
) -> list[Stage]:
    """One stage for each dataset that has jobs; these come oldest first."""
    newest = {row.dataset_id: row for row in inferences}
    scoring = {row.inference_id: row for row in scorings}
    pairs = [(dataset.full_name, newest[dataset.pk]) for dataset in datasets if dataset.pk in newest]
    return [_of_jobs(label, inference, scoring.get(inference.pk)) for label, inference in pairs]


def _of_jobs(label: str, inference: Inference, scoring: Scoring | None) -> Stage:
    if inference.status != Job.Status.SUCCEEDED:
        return Stage(label, STATES[Job.Status(inference.status)], inference.finished_at, note=_note(inference))
    if scoring is None:
        return Stage(label, ACTIVE, inference.finished_at, note="predictions are in; scores come next")
    if scoring.status != Job.Status.SUCCEEDED:
        return Stage(label, STATES[Job.Status(scoring.status)], scoring.finished_at, note=f"scores: {_note(scoring)}")
    return Stage(label, DONE, scoring.finished_at, _took(inference), "scored")


def _took(job: Job) -> timedelta | None:
    return job.finished_at - job.started_at if job.finished_at and job.started_at else None


def _note(job: Job) -> str:
    if job.status == Job.Status.QUEUED:
        return f"waiting for {job.waiting_for}" if job.waiting_for else "in the queue"
    if job.status == Job.Status.SUCCEEDED:
        return ""
    return job.error_detail or job.get_status_display().lower()


def waiting_for(submission: Submission) -> str:
    """Words that follow "waiting for": why an unfinished submission doesn't go on; empty when it does, or has ended."""
    if submission.status not in Submission.UNFINISHED:
        return ""
    if submission.status == Submission.Status.EVALUATING and not submission.task.datasets.exists():
        return "a dataset: this task has none yet"
    jobs = _unfinished_jobs(submission) or [_next_job(submission)]
    queued = [job for job in jobs if job.status == Job.Status.QUEUED]
    absences = {name: _absence(name) for name in {job.cluster for job in queued}}
    obstacles = dict.fromkeys(filter(None, (_obstacle(job, absences[job.cluster]) for job in queued)))
    if obstacles or len(queued) < len(jobs):
        return "; ".join(obstacles)
    return _turn(queued[0])


def _unfinished_jobs(submission: Submission) -> list[Job]:
    return [job for stage in STAGES for job in stage.objects.unfinished().filter(submission=submission).order_by("pk")]


def _next_job(submission: Submission) -> Job:
    """The job that its next stage will make, not saved."""
    if submission.status == Submission.Status.EVALUATING:
        return Inference(cluster=submission.task.build_config.eval_server_id)
    return Build(cluster=BUILD_CLUSTER)


def _obstacle(job: Job, absence: str) -> str:
    """Why a queued job isn't taken: its own reason until it is due, then the cluster that should take it."""
    is_due = job.not_before is None or job.not_before <= timezone.now()
    return absence if absence and is_due else job.waiting_for or absence


def _absence(cluster: str) -> str:
    """Says that a cluster isn't running, and since when; empty when it is."""
    beats = ClusterHeartbeat.objects.filter(name=cluster)
    if beats.alive().exists():
        return ""
    last = beats.order_by("-last_seen").first()
    seen = f"last seen {last.last_seen:%Y-%m-%d %H:%M} UTC" if last else "never seen"
    server = "the build server" if cluster == BUILD_CLUSTER else f"eval server {cluster}"
    return f"{server}, which is not running ({seen})"


def _turn(job: Job) -> str:
    before = type(job).objects.unfinished().filter(cluster=job.cluster)
    count = (before.filter(pk__lt=job.pk) if job.pk else before).count()
    return f"its turn ({count} job{pluralize(count)} before it)" if count else "its turn (it is next)"
