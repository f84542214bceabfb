"""The site's pages: tasks, leaderboards, models, my submissions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import AnonymousUser, User
from django.core.paginator import Paginator
from django.db.models import CharField, Exists, F, OuterRef, Q, QuerySet, Subquery, Value
from django.db.models.functions import Coalesce
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_POST

from builds.log import culprit, numbered
from builds.models import Build
from dynabench_site.api import ApiError
from dynabench_site.clusters import ClusterHeartbeat
from dynabench_site.queue import BUILD_CLUSTER
from evaluations import services
from evaluations.board import Board, Row, board, boards, weights_from
from evaluations.models import CurrentScores, Inference, Score, Scoring
from evaluations.progress import waiting_for
from evaluations.timeline import Stage, dataset_stages, timeline
from submissions.models import Submission
from submissions.services import cancel, free_slots, slots
from tasks_catalog.models import Dataset, Task

PER_PAGE = 50
Viewer: TypeAlias = User | AnonymousUser

# What an owner can do with a model, and what the page says when it is done.
ACTIONS: dict[str, tuple[Callable[[Submission], None], str]] = {
    "publish": (services.publish, "Published: everybody can see this model and its scores now."),
    "unpublish": (services.unpublish, "Unpublished: only you, the task's owners and staff can see this model now."),
    "cancel": (cancel, "Cancelling: whatever runs for this model is stopped."),
    "retry": (services.retry, "Trying again."),
}


def tasks_for(viewer: Viewer) -> QuerySet[Task]:
    """The tasks that a viewer may see, each with `is_owned`."""
    owned = Task.owners.through.objects.filter(task_id=OuterRef("pk"), user_id=viewer.pk)
    tasks = Task.objects.annotate(is_owned=Exists(owned)).select_related("build_config")
    tasks = tasks.prefetch_related("metrics", "datasets")
    return tasks if viewer.is_staff else tasks.filter(Q(is_hidden=False) | Q(is_owned=True))


@dataclass(frozen=True, slots=True)
class Card:
    """A task among the others; `best` is its first-ranked model."""

    task: Task
    models: int
    best: Row | None


def _card(task: Task, its_board: Board) -> Card:
    best = next(iter(its_board.rows), None)
    return Card(task, len(its_board.rows) + len(its_board.lacking), best)


def home(request: HttpRequest) -> HttpResponse:
    tasks = list(tasks_for(request.user))
    ranked = boards(tasks)
    return render(request, "evaluations/home.html", {"cards": [_card(task, ranked[task.pk]) for task in tasks]})


def task(request: HttpRequest, code: str) -> HttpResponse:
    """A task with its leaderboard, by the weights in the address."""
    task = get_object_or_404(tasks_for(request.user), code=code)
    status, chosen = 200, ({}, {})
    try:
        chosen = weights_from(request.GET)
    except ApiError as error:
        status = error.status
        messages.error(request, f"{error.detail} Here is the leaderboard with the task's own weights.")
    context = {
        "task": task,
        "board": board(task, metric_weights=chosen[0], dataset_weights=chosen[1]),
        "is_weighed": any(chosen),
        "sees_all": request.user.is_staff or task.is_owned,
        "base_url": settings.BASE_URL,
    }
    if request.user.is_authenticated:
        context["slots"] = slots(owner=request.user, task=task)
    return render(request, "evaluations/task.html", context, status=status)


def dataset(request: HttpRequest, code: str, name: str) -> HttpResponse:
    """What a dataset is, and who scored on it; never its contents."""
    task = get_object_or_404(tasks_for(request.user), code=code)
    found = next((row for row in task.datasets.all() if row.full_name == name), None)
    if found is None:
        raise Http404
    is_open = found.access_type != Dataset.Access.HIDDEN or request.user.is_staff or task.is_owned
    scores = _scores_on(found, request.user) if is_open else []
    perf = task.perf_metric()
    name = perf.name if perf and found.variant == Dataset.Variant.BASE else found.variant
    context = {
        "task": task,
        "dataset": found,
        "is_open": is_open,
        "tags": scores[0].by_tag if scores else {},
        "metric": next((row for row in task.metrics.all() if row.name == name), None),
        "scores": scores,
    }
    return render(request, "evaluations/dataset.html", context)


def _scores_on(dataset: Dataset, viewer: Viewer) -> list[Score]:
    """The ranking metric's scores on a dataset, best first, of the models that the viewer may see."""
    perf = dataset.task.perf_metric()
    name = perf.name if perf and dataset.variant == Dataset.Variant.BASE else dataset.variant
    current = CurrentScores.objects.filter(dataset=dataset, submission__in=Submission.objects.visible_to(viewer))
    scores = Score.objects.filter(metric=name, scoring__in=current.values("scoring"))
    return list(scores.select_related("scoring__submission__owner").order_by("-value", "pk"))


def _visible(viewer: Viewer) -> QuerySet[Submission]:
    owned = Task.owners.through.objects.filter(task_id=OuterRef("task_id"), user_id=viewer.pk)
    rows = Submission.objects.visible_to(viewer).annotate(is_task_owners=Exists(owned))
    return rows.select_related("owner", "task__build_config")


def _manages(viewer: Viewer, submission: Submission) -> bool:
    return viewer.is_staff or submission.owner_id == viewer.pk


@dataclass(frozen=True, slots=True)
class ScoreSet:
    """The current scores of a model on a dataset, by metric."""

    dataset: Dataset
    scoring: Scoring
    scores: dict[str, Score]

    @property
    def tags(self) -> list[tuple[str, int, dict[str, float]]]:
        """(tag, examples, value by metric), for the metrics that are computed by tag."""
        by_tag: dict[str, dict[str, float]] = defaultdict(dict)
        examples: dict[str, int] = {}
        for name, score in self.scores.items():
            for tag, part in score.by_tag.items():
                by_tag[tag][name], examples[tag] = part["value"], int(part["examples"])
        return [(tag, examples[tag], values) for tag, values in by_tag.items()]


def model(request: HttpRequest, pk: int) -> HttpResponse:
    """A model: how far it is, its scores, what they were made from; more for those it belongs to."""
    viewer = request.user
    submission = get_object_or_404(_visible(viewer).prefetch_related("task__metrics", "task__datasets"), pk=pk)
    manages = _manages(viewer, submission)
    sees_all = manages or submission.is_task_owners
    datasets = _datasets(submission, all_of_them=viewer.is_staff or submission.is_task_owners)
    sets = _score_sets(submission, datasets)
    build = Build.newest(submission)
    context = {
        "submission": submission,
        "build": build,
        "stages": timeline(submission, build, _stages(submission, datasets, sets, with_jobs=sees_all)),
        "sets": sets,
        "metrics": _metrics_in(submission.task, sets),
        "sees_all": sees_all,
        "manages": manages,
        "is_theirs": submission.status == Submission.Status.FAILED,
        "is_ours": submission.status == Submission.Status.DEAD,
        "can_publish": submission.status == Submission.Status.EVALUATED and not submission.is_published,
        **(_place(submission) if sets else {}),
    }
    if sees_all:
        context["steps"] = list(build.steps.all()) if build else []
        context["waiting_for"] = "" if submission.is_finished else waiting_for(submission)
    return render(request, "evaluations/model.html", context)


def _datasets(submission: Submission, *, all_of_them: bool) -> list[Dataset]:
    rows = submission.task.datasets.all()
    return [row for row in rows if all_of_them or row.access_type != Dataset.Access.HIDDEN]


def _score_sets(submission: Submission, datasets: Sequence[Dataset]) -> list[ScoreSet]:
    current = CurrentScores.objects.filter(submission=submission, dataset__in=datasets)
    found: dict[int, ScoreSet] = {}
    rows = {row.pk: row for row in datasets}
    scores = Score.objects.filter(scoring__in=current.values("scoring"))
    for score in scores.select_related("scoring__inference").order_by("scoring__dataset_id", "pk"):
        dataset = rows[score.scoring.dataset_id]
        found.setdefault(dataset.pk, ScoreSet(dataset, score.scoring, {})).scores[score.metric] = score
    return list(found.values())


def _metrics_in(task: Task, sets: Sequence[ScoreSet]) -> list[Any]:
    names = {name for one in sets for name in one.scores}
    return [row for row in task.metrics.all() if row.name in names]


def _stages(
    submission: Submission, datasets: Sequence[Dataset], sets: Sequence[ScoreSet], *, with_jobs: bool
) -> list[Stage]:
    """Jobs are read only where scores don't tell all."""
    scored = {one.dataset.pk: one.scoring for one in sets}
    if not with_jobs or (submission.status == Submission.Status.EVALUATED and len(scored) == len(datasets)):
        return dataset_stages(datasets, scored, [], [])
    inferences = Inference.objects.filter(submission=submission).order_by("pk")
    scorings = Scoring.objects.filter(submission=submission).order_by("pk")
    return dataset_stages(datasets, scored, inferences, scorings)


def _place(submission: Submission) -> dict[str, Any]:
    """Its place among the published models, by the task's own weights."""
    ranked = board(submission.task, also=submission)
    row = next((row for row in ranked.rows if row.submission.pk == submission.pk), None)
    lacking = next((row.missing for row in ranked.lacking if row.submission.pk == submission.pk), [])
    return {"row": row, "lacking": lacking, "ranked": len(ranked.rows)}


def model_log(request: HttpRequest, pk: int) -> HttpResponse:
    """The build's whole log with numbered lines; `?raw=1` as plain text, `?run=N` of an earlier build."""
    submission = get_object_or_404(_visible(request.user), pk=pk)
    if not (_manages(request.user, submission) or submission.is_task_owners):
        raise Http404
    builds = Build.objects.filter(submission=submission).prefetch_related("steps").order_by("-run")
    run = request.GET.get("run", "")
    build = builds.filter(run=run).first() if run.isdecimal() and len(run) < 5 else builds.first()
    steps = list(build.steps.all()) if build else []
    lines = numbered(steps)
    if request.GET.get("raw"):
        return HttpResponse("".join(f"{line.text}\n" for line in lines), content_type="text/plain; charset=utf-8")
    guilty = [culprit(lines, step) for step in steps if step.has_failed]
    context = {"submission": submission, "build": build, "lines": lines, "culprit": next(reversed(guilty), None)}
    return render(request, "evaluations/log.html", context)


@login_required
@require_POST
def act(request: HttpRequest, pk: int, action: str) -> HttpResponse:
    """Do what an owner or staff asked for; a refusal is said on the model's page."""
    submission = get_object_or_404(_visible(request.user), pk=pk)
    if not _manages(request.user, submission):
        raise Http404
    do, done = ACTIONS[action]
    try:
        do(submission)
    except ApiError as error:
        messages.error(request, error.detail)
    else:
        messages.success(request, done)
    return redirect("model", pk)


@login_required
def my_submissions(request: HttpRequest) -> HttpResponse:
    """The viewer's models, newest first, each with why it stands where it does."""
    rows = Submission.objects.filter(owner=request.user).select_related("task__build_config")
    reasons = [_waits(stage) for stage in (Build, Inference, Scoring)]
    page = Paginator(rows.annotate(waits=Coalesce(*reasons, Value(""))), PER_PAGE).get_page(request.GET.get("page"))
    alive = set(ClusterHeartbeat.objects.alive().values_list("name", flat=True))
    context = {"page": page, "rows": [(row, _why(row, alive)) for row in page], "quotas": _quotas(request.user)}
    return render(request, "evaluations/my_submissions.html", context)


def _waits(stage: type[Build] | type[Inference] | type[Scoring]) -> Subquery:
    queued = stage.objects.queued().filter(submission=OuterRef("pk")).exclude(waiting_for="").order_by("pk")
    return Subquery(queued.values("waiting_for")[:1], output_field=CharField())


def _why(submission: Submission, alive: Collection[str]) -> str:
    if submission.is_finished or submission.status == Submission.Status.RECEIVING:
        return submission.error_detail
    is_built = submission.status == Submission.Status.EVALUATING
    cluster = submission.task.build_config.eval_server_id if is_built else BUILD_CLUSTER
    if cluster not in alive:
        server = f"eval server {cluster}" if is_built else "the build server"
        return f"waiting for {server}, which is not running"
    return f"waiting for {submission.waits}" if submission.waits else ""


def _quotas(owner: User) -> list[tuple[Task, int, Any]]:
    """(task, free slots, when the next is free) for every task that takes models."""
    tasks = list(Task.objects.visible().submitable())
    longest = max((task.limit_hours for task in tasks), default=0)
    now = timezone.now()
    taken = Submission.objects.filter(owner=owner, created_at__gt=now - timedelta(hours=longest))
    taken = taken.exclude(status=Submission.Status.DEAD).order_by("created_at")
    times: dict[int, list[Any]] = defaultdict(list)
    for task_pk, at, hours in taken.values_list("task_id", "created_at", F("task__limit_hours")):
        if at > now - timedelta(hours=hours):
            times[task_pk].append(at)
    return [(task, *free_slots(task, times[task.pk])) for task in tasks]
