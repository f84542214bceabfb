"""The board of a task: which models are ranked, on what, and who still lacks what."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Exists, OuterRef, Q
from django.http import QueryDict

from dynabench_site.api import ApiError
from evaluations.leaderboard import dynascore
from evaluations.models import CurrentScores
from submissions.models import Submission
from tasks_catalog import metrics
from tasks_catalog.models import Dataset, Task, TaskMetric

# {submission: {dataset name: {metric: value}}}: a perturbed variant's metric stands at its base dataset
Values = Mapping[int, Mapping[str, Mapping[str, float]]]
WeighedDatasets = Sequence[tuple[Dataset, float]]


@dataclass(frozen=True, slots=True)
class Column:
    """A metric on the board; `share` is its part of the score, 0..1."""

    name: str
    label: str
    unit: str
    direction: int
    weight: float
    share: float
    ranks: bool

    @property
    def counts(self) -> bool:
        return self.ranks or self.weight > 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A model on the board. Anonymous: don't show whose it is."""

    submission: Submission

    @property
    def is_anonymous(self) -> bool:
        return not self.submission.is_published


@dataclass(frozen=True, slots=True)
class Row(Entry):
    """A ranked model; `averages` by metric, `scores` by dataset and metric."""

    rank: int
    score: float
    averages: Mapping[str, float]
    scores: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Lacking(Entry):
    """A model that can't be ranked yet, and what it has no score on."""

    missing: list[str]


@dataclass(frozen=True, slots=True)
class Board:
    columns: list[Column]
    datasets: WeighedDatasets
    rows: list[Row]
    lacking: list[Lacking]

    @property
    def models(self) -> int:
        return len(self.rows) + len(self.lacking)


def board(
    task: Task,
    *,
    metric_weights: Mapping[str, float] | None = None,
    dataset_weights: Mapping[str, float] | None = None,
    also: Submission | None = None,
) -> Board:
    """The ranked models of a task, best first; weights that aren't given are the task's own.

    `also` is ranked among the published ones: the place it would take.
    """
    submissions = _ranked_submissions([task]) | ({also.pk: also} if also else {})
    return _board(task, submissions, _values([task], submissions), metric_weights or {}, dataset_weights or {})


def boards(tasks: Collection[Task]) -> dict[int, Board]:
    """The boards of several tasks by primary key, with their own weights and the queries of one."""
    submissions = _ranked_submissions(tasks)
    values = _values(tasks, submissions)
    of_task = {task.pk: {pk: row for pk, row in submissions.items() if row.task_id == task.pk} for task in tasks}
    return {task.pk: _board(task, of_task[task.pk], values, {}, {}) for task in tasks}


def weights_from(query: QueryDict) -> tuple[dict[str, float], dict[str, float]]:
    """Weights from an address: `m.<metric>` and `d.<dataset>`; refuses what isn't a number from 0."""
    chosen: dict[str, dict[str, float]] = {"m": {}, "d": {}}
    for key, text in query.items():
        kind, dot, name = key.partition(".")
        if dot and kind in chosen:
            chosen[kind][name] = _weight(key, text)
    return chosen["m"], chosen["d"]


def _weight(key: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= 1e6:
        raise ApiError(400, "bad_weight", f"{key} is {text!r}: a weight is a number from 0 to 1,000,000.")
    return weight


def _ranked_submissions(tasks: Collection[Task]) -> dict[int, Submission]:
    scored = Exists(CurrentScores.objects.filter(submission=OuterRef("pk")))
    competing = Q(task__unpublished_models_in_leaderboard=True) & Q(scored)
    rows = Submission.objects.filter(Q(is_published=True) | competing, task__in=tasks)
    rows = rows.exclude(status=Submission.Status.TAKEN_DOWN)
    return {row.pk: row for row in rows.select_related("owner").defer("error_detail", "setup_config")}


def _values(tasks: Collection[Task], submissions: Mapping[int, Submission]) -> Values:
    names = {row.pk: row.name for task in tasks for row in _scoring_datasets(task)}
    current = CurrentScores.objects.filter(dataset__in=names, submission__task__in=tasks)
    found: dict[int, dict[str, dict[str, float]]] = {pk: defaultdict(dict) for pk in submissions}
    for pk, dataset, metric, value in current.values_list(
        "submission_id", "dataset_id", "scoring__scores__metric", "scoring__scores__value"
    ):
        if pk in found and metric is not None:
            found[pk][names[dataset]][metric] = value
    return found


def _scoring_datasets(task: Task) -> list[Dataset]:
    return [row for row in task.datasets.all() if row.access_type == Dataset.Access.SCORING]


def _board(
    task: Task,
    submissions: Mapping[int, Submission],
    values: Values,
    metric_weights: Mapping[str, float],
    dataset_weights: Mapping[str, float],
) -> Board:
    scoring = _scoring_datasets(task)
    bases = [row for row in scoring if row.variant == Dataset.Variant.BASE]
    datasets = [(row, dataset_weights.get(row.name, row.weight)) for row in bases]
    columns = _columns(task, scoring, metric_weights)
    needed = _needed(columns, scoring)
    missing = {pk: _missing(values[pk], needed) for pk in sorted(submissions)}
    complete = [submissions[pk] for pk, names in missing.items() if not names]
    lacking = [Lacking(submissions[pk], names) for pk, names in missing.items() if names]
    return Board(columns, datasets, _rows(task, complete, values, columns, datasets), lacking)


def _columns(task: Task, scoring: Sequence[Dataset], chosen: Mapping[str, float]) -> list[Column]:
    """The task's metrics; a perturbation metric only where there is a dataset to take it from."""
    variants = {row.variant for row in scoring}
    shown = [row for row in task.metrics.all() if row.kind != TaskMetric.Kind.PERTURBATION or row.name in variants]
    weights = {row.name: chosen.get(row.name, row.weight) for row in shown}
    total = sum(weights.values()) or 1.0
    columns = []
    for row in shown:
        definition, weight = row.definition, weights[row.name]
        columns.append(
            Column(row.name, definition.label, definition.unit, definition.direction, weight, weight / total, row.ranks)
        )
    return columns


def _needed(columns: Sequence[Column], scoring: Sequence[Dataset]) -> list[tuple[str, str]]:
    """What a model must have to be ranked: metrics that count, on each dataset that has them."""
    variants = {(row.name, row.variant) for row in scoring}
    return [
        (dataset.name, column.name)
        for dataset in scoring
        for column in columns
        if dataset.variant == Dataset.Variant.BASE
        and column.counts
        and (metrics.get(column.name).kind != TaskMetric.Kind.PERTURBATION or (dataset.name, column.name) in variants)
    ]


def _missing(mine: Mapping[str, Mapping[str, float]], needed: Sequence[tuple[str, str]]) -> list[str]:
    lacks: dict[str, list[str]] = defaultdict(list)
    for dataset, metric in needed:
        if metric not in mine.get(dataset, {}):
            lacks[dataset].append(metric)
    return [f"{name}: {', '.join(names)}" if mine.get(name) else name for name, names in lacks.items()]


def _rows(
    task: Task,
    submissions: Sequence[Submission],
    values: Values,
    columns: Sequence[Column],
    datasets: WeighedDatasets,
) -> list[Row]:
    """These submissions, in ascending order of their ids, best first."""
    counted = [column for column in columns if column.counts]
    ranking = next((column for column in counted if column.ranks), None)
    if not submissions or ranking is None:
        return []
    averages = {row.pk: _averages(values[row.pk], columns, datasets) for row in submissions}
    scores = dynascore(
        [[averages[row.pk].get(column.name, 0.0) for column in counted] for row in submissions],
        weights=[column.weight for column in counted],
        directions=[column.direction for column in counted],
        offsets=[metrics.get(column.name).offset_for(task.build_config.memory_gib) for column in counted],
        perf=counted.index(ranking),
    ).tolist()
    best_first = sorted(
        zip(submissions, scores, strict=True),
        key=lambda pair: (-pair[1], -ranking.direction * averages[pair[0].pk].get(ranking.name, 0.0), pair[0].pk),
    )
    return [
        Row(row, rank, score, averages[row.pk], {base.name: values[row.pk].get(base.name, {}) for base, _ in datasets})
        for rank, (row, score) in enumerate(best_first, start=1)
    ]


def _averages(
    mine: Mapping[str, Mapping[str, float]], columns: Sequence[Column], datasets: WeighedDatasets
) -> dict[str, float]:
    """By metric, the weighted mean over the datasets that have it; weights that are all zero give 0."""
    averages = {}
    for name in (column.name for column in columns):
        pairs = [(mine[row.name][name], weight) for row, weight in datasets if name in mine.get(row.name, {})]
        total = sum(weight for _, weight in pairs)
        if pairs:
            averages[name] = sum(value * weight for value, weight in pairs) / total if total else 0.0
    return averages


def scores_of(
    submissions: Iterable[Submission], *, viewer: User | AnonymousUser
) -> dict[int, dict[str, dict[str, float]]]:
    """By submission, the current scores by dataset and metric; of hidden datasets for staff and task owners only."""
    current = CurrentScores.objects.filter(submission__in=submissions)
    if not viewer.is_staff:
        theirs = Q(dataset__task__in=Task.objects.owned_by(viewer))
        current = current.exclude(~theirs, dataset__access_type=Dataset.Access.HIDDEN)
    found: dict[int, dict[str, dict[str, float]]] = defaultdict(dict)
    for score in current.scores():
        on_dataset = found[score.scoring.submission_id].setdefault(score.scoring.dataset.full_name, {})
        on_dataset[score.metric] = score.value
    return found
