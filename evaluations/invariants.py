"""What must always hold between the rows, and between rows and files, whatever crashed when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import Any

from django.apps import apps
from django.conf import settings
from django.db.models import BooleanField, Count, Exists, ExpressionWrapper, F, Max, Model, OuterRef, Q, Subquery
from django.db.models.functions import Now

from builds.models import Build
from dynabench_site.jobs import Job, all_models
from dynabench_site.outbox import OutboxMail
from dynabench_site.state import Stateful, StatusEvent
from evaluations.models import CurrentScores, Inference, Score, Scoring
from submissions.models import Submission
from tasks_catalog.models import Dataset, Task, TaskMetric

# A bell, or the sweep, brings a model from one stage to the next within this many rounds.
ROUNDS_BETWEEN_STAGES = 2


@dataclass(frozen=True, slots=True)
class Violation:
    id: str
    object: str
    detail: str


Finding = tuple[object, str]


def violations() -> list[Violation]:
    """All that is wrong, in the order of the invariants."""
    return [
        Violation(name, _name_of(culprit), detail) for name, check in INVARIANTS.items() for culprit, detail in check()
    ]


def _name_of(culprit: Any) -> str:
    return culprit if isinstance(culprit, str) else f"{culprit._meta.model_name} {culprit.pk}"


def nothing_is_silent() -> Iterator[Finding]:
    """An accepted submission has ended, has an unfinished job, or its task has no dataset to wait for."""
    rows = Submission.objects.unfinished()
    for model in (Build, Inference, Scoring):
        rows = rows.exclude(Exists(model.objects.unfinished().filter(submission=OuterRef("pk"))))
    has_datasets = Exists(Dataset.objects.filter(task=OuterRef("task")))
    for row in rows.filter(has_datasets | ~Q(status=Submission.Status.EVALUATING)):
        if not _is_between_stages(row):
            yield row, f"is {row.status}, but no job of it is queued or running"


def _is_between_stages(submission: Submission) -> bool:
    """Whether it came to its status so recently that the sweep may still bring the next job."""
    events = StatusEvent.objects.filter(model="submission", object_pk=submission.pk).order_by("-pk")
    last = events.annotate(is_recent=_is_recent()).first()
    return last is not None and last.target == submission.status and last.is_recent


def _is_recent() -> ExpressionWrapper:
    since = Now() - timedelta(seconds=ROUNDS_BETWEEN_STAGES * settings.HEARTBEAT_SECONDS)
    return ExpressionWrapper(Q(at__gt=since), output_field=BooleanField())


def current_scores_are_the_newest() -> Iterator[Finding]:
    """Each submission and dataset with a succeeded scoring points to the newest one, and that one is complete."""
    newest = Scoring.objects.filter(status=Scoring.Status.SUCCEEDED).order_by()
    wanted = {tuple(row[:2]): row[2] for row in newest.values_list("submission", "dataset").annotate(Max("pk"))}
    current = CurrentScores.objects.select_related("scoring").annotate(scores=Count("scoring__scores"))
    for row in current:
        scoring = row.scoring
        if wanted.pop((row.submission_id, row.dataset_id), None) != scoring.pk:
            yield row, f"points to scoring {scoring.pk}, which isn't the newest that succeeded"
        elif row.scores != len(scoring.metrics):
            yield row, f"points to {row.scores} scores instead of {len(scoring.metrics)}"
    for (submission, dataset), scoring in wanted.items():
        yield f"scoring {scoring}", f"submission {submission} on dataset {dataset} has no current scores"


def history_is_legal() -> Iterator[Finding]:
    """Each event is an edge of its table, starts where the one before ended, and the last is where the row is."""
    models = {model._meta.model_name: model for model in apps.get_models() if issubclass(model, Stateful)}
    events = StatusEvent.objects.order_by("model", "object_pk", "pk").iterator()
    for (name, pk), group in groupby(events, key=lambda event: (event.model, event.object_pk)):
        yield from _check_history(models[name], pk, list(group))


def _check_history(model: type[Stateful], pk: int, events: list[StatusEvent]) -> Iterator[Finding]:
    before = events[0].source
    for event in events:
        if event.target not in model.TRANSITIONS.get(event.source, ()):
            yield event, f"{event} is no legal transition"
        if event.source != before:
            yield event, f"{event} starts at {event.source}, but the one before ended at {before}"
        before = event.target
    # Row and event in one statement, or a row that moves meanwhile would look wrong.
    last = StatusEvent.objects.filter(model=events[0].model, object_pk=OuterRef("pk")).order_by("-pk").values("target")
    rows = model._base_manager.filter(pk=pk).annotate(last=Subquery(last[:1])).exclude(status=F("last"))
    for status, target in rows.values_list("status", "last"):
        yield f"{events[0].model} {pk}", f"is {status}, but its last event ended at {target}"


def scores_are_pinned() -> Iterator[Finding]:
    """No score without all that it was made from."""
    pins = {
        "scoring__inference__build__image": "image digest",
        "scoring__inference__predictions_sha256": "sha256 of the predictions",
        "scoring__labels_sha256": "sha256 of the labels",
        "scoring__code_version": "code version",
    }
    for field, label in pins.items():
        for score in Score.objects.filter(**{field: ""}):
            yield score, f"has no {label}"
    for score in Score.objects.select_related("scoring").iterator():
        if not score.pinned.get("version"):
            yield score, "has no version of its metric"
        if score.pinned.get("kind") == TaskMetric.Kind.PERTURBATION and not score.scoring.base_sha256:
            yield score, "has no sha256 of the base predictions"


def limits_are_kept() -> Iterator[Finding]:
    """No window holds more accepted uploads of a user to a task than the limit of now; our own failures don't count."""
    ours = StatusEvent.objects.filter(model="submission", target=Submission.Status.DEAD).values("object_pk")
    rows = Submission.objects.accepted().exclude(status=Submission.Status.DEAD).exclude(pk__in=ours)
    rows = rows.select_related("task").order_by("owner_id", "task_id", "created_at")
    for _, group in groupby(rows, key=lambda row: (row.owner_id, row.task_id)):
        sent = list(group)
        limit, hours = sent[0].task.submission_limit, sent[0].task.limit_hours
        for first, beyond in zip(sent, sent[limit:], strict=False):
            if beyond.created_at - first.created_at < timedelta(hours=hours):
                yield beyond, f"is one more than {limit} of its owner in {hours} hours for task {beyond.task}"


def inferences_run_once() -> Iterator[Finding]:
    """At most one inference runs for a submission on a dataset."""
    pairs = Inference.objects.running().order_by().values("submission", "dataset").annotate(count=Count("pk"))
    for pair in pairs.filter(count__gt=1):
        yield f"submission {pair['submission']}", f"{pair['count']} inferences run on dataset {pair['dataset']}"


def mail_is_claimed_before_it_goes() -> Iterator[Finding]:
    """A mail that was sent was claimed first, and sent once."""
    sent = StatusEvent.objects.filter(model="outboxmail", target=Job.Status.SUCCEEDED)
    for mail in OutboxMail.objects.filter(status=Job.Status.SUCCEEDED, lease_token=0):
        yield mail, "was sent without being claimed"
    for row in sent.order_by().values("object_pk").annotate(count=Count("pk")).filter(count__gt=1):
        yield f"outboxmail {row['object_pk']}", f"was sent {row['count']} times"


def files_exist() -> Iterator[Finding]:
    """Every file that a row stands for is in the storage of its task."""
    for row, task, key in _referenced_files():
        if not task.storage().exists(key):
            yield row, f"{key} is missing"


def _referenced_files() -> Iterator[tuple[Model, Task, str]]:
    kept = Submission.objects.accepted().exclude(status=Submission.Status.TAKEN_DOWN)
    for submission in kept.select_related("task__build_config"):
        yield submission, submission.task, submission.archive_key
    for dataset in Dataset.objects.exclude(inputs_sha256="").select_related("task__build_config"):
        for key in [*dataset.inputs_keys, *dataset.labels_keys]:
            yield dataset, dataset.task, key
    succeeded = Inference.objects.filter(status=Job.Status.SUCCEEDED, submission__in=kept)
    for inference in succeeded.select_related("build", "dataset", "submission__task__build_config"):
        for key in inference.predictions_keys:
            yield inference, inference.submission.task, key


def jobs_are_held_by_their_cluster() -> Iterator[Finding]:
    """A running job is held by an instance of its own cluster."""
    for model in all_models():
        for job in model.objects.running().exclude(holder__name=F("cluster")).select_related("holder"):
            yield job, f"belongs to cluster {job.cluster}, but is held by {job.holder or 'nobody'}"


def attempts_are_bounded() -> Iterator[Finding]:
    """No job was tried more often than its kind may be."""
    for model in all_models():
        for job in model.objects.filter(attempts__gt=model.MAX_ATTEMPTS):
            yield job, f"was tried {job.attempts} times instead of at most {model.MAX_ATTEMPTS}"


INVARIANTS: dict[str, Callable[[], Iterable[Finding]]] = {
    "I1": nothing_is_silent,
    "I2": current_scores_are_the_newest,
    "I3": history_is_legal,
    "I4": scores_are_pinned,
    "I5": limits_are_kept,
    "I6": inferences_run_once,
    "I7": mail_is_claimed_before_it_goes,
    "I8": files_exist,
    "I9": jobs_are_held_by_their_cluster,
    "I10": attempts_are_bounded,
}
