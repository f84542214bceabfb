"""What a submission waits for, in words."""

from __future__ import annotations

from django.template.defaultfilters import pluralize
from django.utils import timezone

from builds.models import Build
from dynabench_site.clusters import ClusterHeartbeat
from dynabench_site.jobs import Job
from dynabench_site.queue import BUILD_CLUSTER
from evaluations.models import Inference, Scoring
from submissions.models import Submission

STAGES = (Build, Inference, Scoring)


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
