"""The site's pages: tasks, leaderboards, models, my submissions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import AnonymousUser, User
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from builds.endpoints import can_redeploy
from builds.log import culprit, numbered
from builds.models import Build
from dynabench_site.api import ApiError
from evaluations import services, talking
from evaluations.board import board, boards, weights_from
from evaluations.models import CurrentScores, Inference, Score, Scoring
from evaluations.progress import Stage, dataset_stages, timeline, waiting_for
from evaluations.try_it import ExampleForm
from submissions.models import Submission
from submissions.services import slots
from tasks_catalog.models import Dataset, Task, TaskMetric

PER_PAGE = 50
Viewer: TypeAlias = User | AnonymousUser

# What the page says when an action of `services.ACTIONS` is done.
DONE = {
    "publish": "Published: everybody can see this model and its scores now.",
    "unpublish": "Unpublished: only you, the task's owners and staff can see this model now.",
    "cancel": "Cancelling: whatever runs for this model is stopped.",
    "retry": "Trying again.",
    "redeploy": "Starting the live endpoint; that takes some minutes.",
}


def home(request: HttpRequest) -> HttpResponse:
    tasks = list(Task.objects.whole().visible_to(request.user))
    ranked = boards(tasks)
    return render(request, "evaluations/home.html", {"cards": [(task, ranked[task.pk]) for task in tasks]})


def task(request: HttpRequest, code: str) -> HttpResponse:
    """A task with its leaderboard, by the weights in the address."""
    task = get_object_or_404(Task.objects.whole().visible_to(request.user), code=code)
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
        "sees_all": task.unpublished_models_in_leaderboard and task.is_run_by(request.user),
        "base_url": settings.BASE_URL,
    }
    if request.user.is_authenticated:
        context["slots"] = slots(owner=request.user, task=task)
    return render(request, "evaluations/task.html", context, status=status)


def dataset(request: HttpRequest, code: str, name: str) -> HttpResponse:
    """What a dataset is, and who scored on it; never its contents."""
    task = get_object_or_404(Task.objects.whole().visible_to(request.user), code=code)
    found = next((row for row in task.datasets.all() if row.full_name == name), None)
    if found is None:
        raise Http404
    ranking = task.perf_metric()
    if found.variant != Dataset.Variant.BASE:
        ranking = next((row for row in task.metrics.all() if row.name == found.variant), None)
    is_open = found in task.datasets_for(request.user)
    scores = _scores_on(found, ranking, request.user) if is_open and ranking else []
    context = {
        "task": task,
        "dataset": found,
        "is_open": is_open,
        "tags": scores[0].by_tag if scores else {},
        "metric": ranking,
        "scores": scores,
    }
    return render(request, "evaluations/dataset.html", context)


def _scores_on(dataset: Dataset, metric: TaskMetric, viewer: Viewer) -> list[Score]:
    """A metric's scores on a dataset, best first, of the models that the viewer may see."""
    current = CurrentScores.objects.filter(dataset=dataset, submission__in=Submission.objects.visible_to(viewer))
    scores = Score.objects.filter(metric=metric.name, scoring__in=current.values("scoring"))
    return list(scores.select_related("scoring__submission__owner").order_by("-value", "pk"))


def _visible(viewer: Viewer) -> QuerySet[Submission]:
    return Submission.objects.visible_to(viewer).select_related("owner", "task__build_config")


@dataclass(frozen=True, slots=True)
class ScoreSet:
    """The current scores of a model on a dataset, by metric."""

    scoring: Scoring
    scores: dict[str, Score]

    @property
    def tags(self) -> list[tuple[str, int, dict[str, float]]]:
        """(tag, examples, value by metric), for the metrics that are computed by tag."""
        values: dict[str, dict[str, float]] = defaultdict(dict)
        examples: dict[str, int] = {}
        for name, score in self.scores.items():
            for tag, part in score.by_tag.items():
                values[tag][name], examples[tag] = part["value"], int(part["examples"])
        return [(tag, examples[tag], values[tag]) for tag in values]


def model(request: HttpRequest, pk: int) -> HttpResponse:
    """A model: how far it is, its scores, what they were made from; more for those it belongs to."""
    viewer = request.user
    submission = get_object_or_404(_visible(viewer).prefetch_related("task__metrics", "task__datasets"), pk=pk)
    task, build, sees_all = submission.task, Build.newest(submission), submission.is_open_to(viewer)
    datasets = task.datasets_for(viewer)
    sets = _score_sets(submission, datasets)
    computed = {name for one in sets for name in one.scores}
    context = {
        "submission": submission,
        "build": build,
        "stages": timeline(submission, build, _stages(submission, datasets, sets, with_jobs=sees_all)),
        "sets": sets,
        "metrics": [row for row in task.metrics.all() if row.name in computed],
        "sees_all": sees_all,
        "manages": submission.belongs_to(viewer),
        "is_theirs": submission.status == Submission.Status.FAILED,
        "is_ours": submission.status == Submission.Status.DEAD,
        "can_redeploy": submission.belongs_to(viewer) and can_redeploy(submission),
        "can_publish": submission.status == Submission.Status.EVALUATED and not submission.is_published,
        **(_place(submission) if sets else {}),
    }
    if context["manages"] and talking.can_be_asked(submission, build):
        context["try_form"] = ExampleForm(task)
    if sees_all:
        context["steps"] = list(build.steps.all()) if build else []
        context["waiting_for"] = waiting_for(submission)
    return render(request, "evaluations/model.html", context)


def _score_sets(submission: Submission, datasets: Sequence[Dataset]) -> list[ScoreSet]:
    found: dict[int, ScoreSet] = {}
    for score in CurrentScores.objects.filter(submission=submission, dataset__in=datasets).scores():
        found.setdefault(score.scoring_id, ScoreSet(score.scoring, {})).scores[score.metric] = score
    return list(found.values())


def _stages(
    submission: Submission, datasets: Sequence[Dataset], sets: Sequence[ScoreSet], *, with_jobs: bool
) -> list[Stage]:
    """Jobs are read only where scores don't tell all."""
    if not with_jobs or (submission.status == Submission.Status.EVALUATED and len(sets) == len(datasets)):
        return dataset_stages(datasets, [one.scoring.inference for one in sets], [one.scoring for one in sets])
    inferences = Inference.objects.filter(submission=submission).order_by("pk")
    return dataset_stages(datasets, inferences, Scoring.objects.filter(submission=submission).order_by("pk"))


def _place(submission: Submission) -> dict[str, Any]:
    """Its place among the published models, by the task's own weights."""
    ranked = board(submission.task, also=submission)
    row = next((row for row in ranked.rows if row.submission == submission), None)
    lacking = next((row.missing for row in ranked.lacking if row.submission == submission), [])
    return {"row": row, "lacking": lacking, "ranked": len(ranked.rows)}


def model_log(request: HttpRequest, pk: int) -> HttpResponse:
    """The build's whole log with numbered lines; `?raw=1` as plain text, `?run=N` of an earlier build."""
    submission = get_object_or_404(_visible(request.user), pk=pk)
    if not submission.is_open_to(request.user):
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
    if not submission.belongs_to(request.user):
        raise Http404
    try:
        services.ACTIONS[action](submission)
    except ApiError as error:
        messages.error(request, error.detail)
    else:
        messages.success(request, DONE[action])
    return redirect("model", pk)


@login_required
def my_submissions(request: HttpRequest) -> HttpResponse:
    """The viewer's models, newest first, each with why it stands where it does."""
    rows = Submission.objects.filter(owner=request.user).select_related("task__build_config")
    page = Paginator(rows, PER_PAGE).get_page(request.GET.get("page"))
    tasks = Task.objects.visible().submitable()
    context = {
        "page": page,
        "rows": [(row, _why(row)) for row in page],
        "quotas": [(task, *slots(owner=request.user, task=task)) for task in tasks],
    }
    return render(request, "evaluations/my_submissions.html", context)


def _why(submission: Submission) -> str:
    reason = waiting_for(submission)
    return f"waiting for {reason}" if reason else submission.error_detail
