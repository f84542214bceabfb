"""The evaluation of submissions: what has to run is asked for, run, and followed by the submission's status."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import groupby

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet, Subquery

from builds import services as builds
from builds.endpoints import redeploy
from builds.models import Build
from dynabench_site import queue
from dynabench_site.api import Conflict
from dynabench_site.clusters import current
from dynabench_site.database import retried
from dynabench_site.jobs import Job, claim_next
from dynabench_site.outbox import write_mail
from evaluations.computer import Computer
from evaluations.models import CurrentScores, Inference, Scoring
from evaluations.planning import Plan, Planner, Stage
from evaluations.scheduler import Scheduler
from submissions.models import Submission
from submissions.services import cancel
from tasks_catalog.models import BuildConfig, Dataset, EvalServer

BUILD_PROCESSES = 2
SWEEP_BATCH = 200
SCORINGS_PER_BELL = 25
MESSAGES = ((queue.RUN_INFERENCES, Inference), (queue.RUN_SCORINGS, Scoring))
ENDED = (Submission.Status.EVALUATED, Submission.Status.FAILED, Submission.Status.DEAD)
EVALUABLE = (Submission.Status.EVALUATING, *ENDED)


def cluster_pools() -> dict[str, int]:
    """The clusters that can be started, with the size of their process pools."""
    return {queue.BUILD_CLUSTER: BUILD_PROCESSES} | dict(EvalServer.objects.values_list("name", "processes"))


def plan_evaluation(
    *, submissions: QuerySet[Submission], datasets: Collection[Dataset] | None = None, force: Stage = ""
) -> Plan:
    """What `request_evaluation` would ask for."""
    rows = submissions.filter(status__in=EVALUABLE).select_related("task__build_config").order_by("task_id", "pk")
    whole = Plan()
    for task, group in groupby(rows, key=lambda submission: submission.task):
        mine = None if datasets is None else [dataset for dataset in datasets if dataset.task_id == task.pk]
        Planner(task, group, mine).add_to(whole, force)
    return whole


@retried
def request_evaluation(
    *, submissions: QuerySet[Submission], datasets: Collection[Dataset] | None = None, force: Stage = ""
) -> Plan:
    """Ask for all that is missing or outdated of these submissions on these datasets (None: all), once."""
    with transaction.atomic():
        plan = plan_evaluation(submissions=submissions, datasets=datasets, force=force)
        for submission in plan.builds:
            builds.rebuild(submission)
        for inference in plan.superseded:
            inference.cancel(by="superseded")
        Inference.objects.bulk_create(plan.inferences, ignore_conflicts=True)
        Scoring.objects.bulk_create(plan.scorings, ignore_conflicts=True)
        for job in plan.revived:
            job.retry(by="evaluation asked for")
        for submission in Submission.objects.filter(pk__in=plan.submission_pks):
            if submission.status != Submission.Status.BUILDING:
                submission.advance(Submission.Status.EVALUATING, error_code="", error_detail="")
        _ring(plan.jobs)
    return plan


def _ring(jobs: Collection[Job]) -> None:
    """Ring each eval server once for its inferences, and once for its scorings."""
    for message, model in MESSAGES:
        for name in sorted({job.cluster for job in jobs if isinstance(job, model)}):
            queue.send(message, name, cluster=name)


def evaluate_submission(submission: Submission) -> None:
    """Ask for what its task wants of a submission with a new image, and let its status follow."""
    request_evaluation(submissions=Submission.objects.filter(pk=submission.pk))
    settle(submission)


def run_inferences(eval_server: EvalServer) -> None:
    """Run the next inference of an eval server; wake another worker for the one after it."""
    scheduler = Scheduler(eval_server)
    inference = scheduler.submit()
    if inference is None:
        return
    _wake(queue.RUN_INFERENCES, eval_server, Inference)
    scheduler.run(inference)
    inference.refresh_from_db()
    if inference.status == Inference.Status.SUCCEEDED:
        request_evaluation(submissions=Submission.objects.filter(pk=inference.submission_id))
    settle(inference.submission)
    _wake(queue.RUN_INFERENCES, eval_server, Inference)


def run_scorings(eval_server: EvalServer) -> None:
    """Compute the next scorings of an eval server."""
    rows = Scoring.objects.filter(cluster=eval_server.pk)
    rows = rows.select_related("inference__submission__task__build_config", "dataset__task__build_config")
    _wake(queue.RUN_SCORINGS, eval_server, Scoring, more_than=1)
    for _ in range(SCORINGS_PER_BELL):
        scoring = claim_next(rows)
        if scoring is None:
            return
        scoring.inference.dataset = scoring.dataset
        Computer().score(scoring)
        settle(scoring.inference.submission)
    _wake(queue.RUN_SCORINGS, eval_server, Scoring)


def _wake(message: str, eval_server: EvalServer, model: type[Job], *, more_than: int = 0) -> None:
    due = model.objects.due().filter(cluster=eval_server.pk)[: more_than + 1].count()
    if due > more_than:
        queue.ring_again(message, [eval_server.pk], cluster=eval_server.pk)


@retried
def settle(submission: Submission) -> None:
    """Let the submission follow its jobs: when none is left it is evaluated, failed or dead; tell its owner."""
    submission.refresh_from_db(fields=["status", "cancel_requested"])
    if submission.status != Submission.Status.EVALUATING:
        return
    if submission.cancel_requested:
        _cancel(submission)
        return
    newest = _newest_jobs(submission)
    if any(not job.is_finished for job in newest) or not newest:
        return
    ended = _worst(newest)
    if ended is None and missing_datasets(submission):
        return  # the sweep makes what is missing
    with transaction.atomic():
        if ended:
            detail = f"On dataset {ended.dataset}: {ended.error_detail}"
            moved = submission.advance(ended.status, error_code=ended.error_code, error_detail=detail)
        else:
            moved = submission.advance(Submission.Status.EVALUATED, error_code="", error_detail="")
        if moved:
            _tell_owner(submission, newest)


def _newest_jobs(submission: Submission) -> list[Job]:
    """The newest inference and the newest scoring on each dataset."""
    jobs = (submission.inferences, submission.scorings)
    newest = [{row.dataset_id: row for row in rows.select_related("dataset").order_by("pk")} for rows in jobs]
    return [job for by_dataset in newest for job in by_dataset.values()]


def _worst(jobs: Iterable[Job]) -> Job | None:
    """The job that decides for the submission: a failure on a scoring dataset, or one of ours anywhere."""
    dead = [job for job in jobs if job.status == job.Status.DEAD]
    failed = [job for job in jobs if job.status == job.Status.FAILED]
    counted = [job for job in failed if job.dataset.access_type == Dataset.Access.SCORING]
    return next(iter(counted + dead), None)


def _cancel(submission: Submission) -> None:
    for name in submission.inferences.order_by().values_list("cluster", flat=True).distinct():
        Scheduler(EvalServer(pk=name)).stop(submission)
    for scoring in submission.scorings.unfinished():
        scoring.cancel()
    if submission.current_scores.exists() and not missing_datasets(submission):
        submission.advance(Submission.Status.EVALUATED, reason="re-evaluation cancelled")  # its scores still stand
    else:
        submission.advance(Submission.Status.CANCELLED, error_code="cancelled", error_detail="Cancelled on request.")


def _tell_owner(submission: Submission, jobs: list[Job]) -> None:
    write_mail(
        f"evaluation_{submission.status}",
        to=submission.owner,
        key=f"evaluation-{submission.pk}-{max(job.pk for job in jobs)}-{submission.status}",
        context={"submission": submission},
    )


def missing_datasets(submission: Submission) -> list[Dataset]:
    """The scoring datasets that the submission has no scores on."""
    scored = CurrentScores.objects.filter(submission=submission, dataset=OuterRef("pk"))
    return list(submission.task.datasets.scoring().base().filter(~Exists(scored)))


def publish(submission: Submission) -> None:
    """Show it to everybody under its name; needs a score on every scoring dataset."""
    missing = missing_datasets(submission)
    if missing or not submission.task.datasets.scoring().exists():
        names = ", ".join(map(str, missing)) or "every dataset: the task has none yet"
        raise Conflict("scores_missing", f"{submission.name} can't be published yet. It has no score on {names}.")
    if submission.status in {Submission.Status.TAKEN_DOWN, Submission.Status.CANCELLED}:
        raise Conflict("not_publishable", f"{submission.name} is {submission.get_status_display()}.")
    Submission.objects.filter(pk=submission.pk).update(is_published=True)


def unpublish(submission: Submission) -> None:
    Submission.objects.filter(pk=submission.pk).update(is_published=False)


@retried
def retry(submission: Submission, *, by: str = "") -> None:
    """Try again what failed: the build, or the inferences and scorings."""
    if submission.status in {Submission.Status.CANCELLED, Submission.Status.TAKEN_DOWN}:
        raise Conflict("not_retryable", f"{submission.name} is {submission.get_status_display()}. Send it again.")
    build = Build.newest(submission)
    if build and build.can_retry:
        builds.retry(build, by=by)
        return
    jobs = [job for job in _newest_jobs(submission) if job.can_retry]
    if not jobs:
        raise Conflict("not_retryable", f"{submission.name} is {submission.status}: there is nothing to retry.")
    with transaction.atomic():
        for job in jobs:
            job.retry(by=by)
        submission.advance(
            Submission.Status.EVALUATING, reason="retry", cancel_requested=False, error_code="", error_detail=""
        )
        _ring(jobs)


def take_down(submission: Submission) -> None:
    """Take it off the leaderboard, and its image, model and endpoint away; the archive that was sent stays."""
    if submission.status not in ENDED:
        raise Conflict("not_finished", f"{submission.name} is {submission.status}: cancel it first, or wait.")
    submission.advance(Submission.Status.TAKEN_DOWN)


def failing_models() -> QuerySet[Submission]:
    """Those that could be built and then failed on the task's data: their images and models serve nobody."""
    built = Exists(Build.objects.succeeded().filter(submission=OuterRef("pk"), is_deployed=True))
    return Submission.objects.filter(built, status=Submission.Status.FAILED).order_by("pk")


# What its owner, or staff, can do with a submission.
ACTIONS: dict[str, Callable[[Submission], None]] = {
    "publish": publish,
    "unpublish": unpublish,
    "cancel": cancel,
    "retry": retry,
    "redeploy": redeploy,
}


def sweep() -> None:
    """Ask for what is missing, settle what has ended, ring the right eval server for what nobody picked up."""
    for model in (Inference, Scoring):
        _follow_configs(model)
    idle = Q(cancel_requested=True) | ~(Exists(_unfinished(Inference)) | Exists(_unfinished(Scoring)))
    for submission in Submission.objects.filter(idle, status=Submission.Status.EVALUATING).order_by("pk")[:SWEEP_BATCH]:
        evaluate_submission(submission)
    if (instance := current()) and instance.name != queue.BUILD_CLUSTER:
        Scheduler(EvalServer(pk=instance.name)).end_runs()
    for message, model in MESSAGES:
        for name in model.objects.due().order_by("cluster").values_list("cluster", flat=True).distinct():
            queue.ring_again(message, [name], cluster=name)


def _follow_configs(model: type[Inference] | type[Scoring]) -> None:
    """What is queued is for the eval server that its task names now; the one before may be gone for good."""
    server = BuildConfig.objects.filter(task__submissions=OuterRef("submission")).values("eval_server")[:1]
    model.objects.queued().exclude(cluster=Subquery(server)).update(cluster=Subquery(server))


def _unfinished(model: type[Inference] | type[Scoring]) -> QuerySet:
    return model.objects.unfinished().filter(submission=OuterRef("pk"))
