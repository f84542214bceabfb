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
from tasks_catalog.models import Dataset, Task, TaskMetric

# {submission: {(dataset name, metric): value}}: a perturbed variant's metric stands at its base dataset
Values = Mapping[int, Mapping[tuple[str, str], float]]


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


@dataclass(frozen=True, slots=True)
class Row:
    """A ranked model; `averages` by metric, `scores` by dataset and metric. Anonymous: don't show whose it is."""

    rank: int
    submission: Submission
    score: float
    averages: dict[str, float]
    scores: dict[str, dict[str, float]]

    @property
    def is_anonymous(self) -> bool:
        return not self.submission.is_published


@dataclass(frozen=True, slots=True)
class Lacking:
    """A model that can't be ranked yet, and what it has no score on."""

    submission: Submission
    missing: list[str]

    @property
    def is_anonymous(self) -> bool:
        return not self.submission.is_published


@dataclass(frozen=True, slots=True)
class Board:
    columns: list[Column]
    datasets: list[tuple[Dataset, float]]
    rows: list[Row]
    lacking: list[Lacking]


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
    submissions = _ranked_submissions([task], also)
    return _board(task, submissions, _values([task], submissions), metric_weights or {}, dataset_weights or {})


def boards(tasks: Collection[Task]) -> dict[int, Board]:
    """The boards of several tasks by primary key, with their own weights and the queries of one."""
    submissions = _ranked_submissions(tasks)
    values = _values(tasks, submissions)
    return {task.pk: _board(task, _of_task(task, submissions), values, {}, {}) for task in tasks}


def _of_task(task: Task, submissions: Mapping[int, Submission]) -> dict[int, Submission]:
    return {pk: row for pk, row in submissions.items() if row.task_id == task.pk}


def _board(
    task: Task,
    submissions: Mapping[int, Submission],
    values: Values,
    metric_weights: Mapping[str, float],
    dataset_weights: Mapping[str, float],
) -> Board:
    all_datasets = _scoring_datasets(task)
    datasets = [row for row in all_datasets if row.variant == Dataset.Variant.BASE]
    metrics = _metrics_on_board(task, all_datasets)
    columns = _columns(metrics, metric_weights)
    weights = [dataset_weights.get(row.name, row.weight) for row in datasets]
    needed = _needed(columns, metrics, datasets, all_datasets)
    missing = {pk: _missing(values.get(pk, {}), needed) for pk in submissions}
    complete = [pk for pk in sorted(submissions) if not missing[pk]]
    rows = _rows(complete, submissions, values, columns, metrics, list(zip(datasets, weights, strict=True)), task)
    lacking = [Lacking(submissions[pk], missing[pk]) for pk in sorted(submissions) if missing[pk]]
    return Board(columns, list(zip(datasets, weights, strict=True)), rows, lacking)


def weights_from(query: QueryDict) -> tuple[dict[str, float], dict[str, float]]:
    """Weights from an address: `m.<metric>` and `d.<dataset>`; refuses what isn't a number from 0."""
    chosen: dict[str, dict[str, float]] = {"m": {}, "d": {}}
    for key, text in query.items():
        kind, dot, name = key.partition(".")
        if dot and kind in chosen:
            chosen[kind][name] = _weight(key, text)
    return chosen["m"], chosen["d"]


def scores_of(submission: Submission, *, viewer: User | AnonymousUser) -> dict[str, dict[str, float]]:
    """The current scores by dataset and metric; those on hidden datasets for staff and the task's owners only."""
    return scores_of_all([submission], viewer=viewer).get(submission.pk, {})


def scores_of_all(
    submissions: Iterable[Submission], *, viewer: User | AnonymousUser
) -> dict[int, dict[str, dict[str, float]]]:
    """The same for several submissions, by their ids."""
    current = CurrentScores.objects.filter(submission__in=submissions)
    if not viewer.is_staff:
        owned = Task.owners.through.objects.filter(user_id=viewer.pk).values("task_id")
        current = current.exclude(~Q(dataset__task__in=owned), dataset__access_type=Dataset.Access.HIDDEN)
    found: dict[int, dict[str, dict[str, float]]] = defaultdict(dict)
    for row in current.select_related("dataset").prefetch_related("scoring__scores").order_by("dataset_id"):
        values = {score.metric: score.value for score in row.scoring.scores.all()}
        found[row.submission_id][row.dataset.full_name] = values
    return dict(found)


def _weight(key: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= 1e6:
        raise ApiError(400, "bad_weight", f"{key} is {text!r}: a weight is a number from 0 to 1,000,000.")
    return weight


def _metrics_on_board(task: Task, datasets: Iterable[Dataset]) -> list[TaskMetric]:
    """The task's metrics; a perturbation metric only where there is a dataset to take it from."""
    variants = {row.variant for row in datasets}
    rows = task.metrics.all()
    return [row for row in rows if row.kind != TaskMetric.Kind.PERTURBATION or row.name in variants]


def _columns(metrics: Sequence[TaskMetric], chosen: Mapping[str, float]) -> list[Column]:
    weights = [chosen.get(row.name, row.weight) for row in metrics]
    total = sum(weights) or 1.0
    return [
        Column(
            row.name,
            row.definition.label,
            row.definition.unit,
            row.definition.direction,
            weight,
            weight / total,
            row.ranks,
        )
        for row, weight in zip(metrics, weights, strict=True)
    ]


def _scoring_datasets(task: Task) -> list[Dataset]:
    return [row for row in task.datasets.all() if row.access_type == Dataset.Access.SCORING]


def _ranked_submissions(tasks: Collection[Task], also: Submission | None = None) -> dict[int, Submission]:
    scored = Exists(CurrentScores.objects.filter(submission=OuterRef("pk")))
    competing = Q(task__unpublished_models_in_leaderboard=True) & Q(scored)
    rows = Submission.objects.filter(Q(is_published=True) | competing, task__in=tasks)
    rows = rows.exclude(status=Submission.Status.TAKEN_DOWN)
    found = {row.pk: row for row in rows.select_related("owner").defer("error_detail", "setup_config")}
    return found | ({also.pk: also} if also else {})


def _values(tasks: Collection[Task], submissions: Mapping[int, Submission]) -> Values:
    names = {row.pk: row.name for task in tasks for row in _scoring_datasets(task)}
    current = CurrentScores.objects.filter(dataset__in=names, submission__task__in=tasks)
    found: dict[int, dict[tuple[str, str], float]] = defaultdict(dict)
    for pk, dataset, metric, value in current.values_list(
        "submission_id", "dataset_id", "scoring__scores__metric", "scoring__scores__value"
    ):
        if pk in submissions and metric is not None:
            found[pk][names[dataset], metric] = value
    return found


def _needed(
    columns: Sequence[Column],
    metrics: Sequence[TaskMetric],
    datasets: Sequence[Dataset],
    all_datasets: Sequence[Dataset],
) -> list[tuple[str, str]]:
    """What a model must have to be ranked: metrics that count, on each dataset that has them."""
    variants = {(row.name, row.variant) for row in all_datasets}
    return [
        (dataset.name, column.name)
        for dataset in datasets
        for column, metric in zip(columns, metrics, strict=True)
        if (column.weight or column.ranks)
        and (metric.kind != TaskMetric.Kind.PERTURBATION or (dataset.name, metric.name) in variants)
    ]


def _missing(mine: Mapping[tuple[str, str], float], needed: Sequence[tuple[str, str]]) -> list[str]:
    lacks: dict[str, list[str]] = defaultdict(list)
    for dataset, metric in needed:
        if (dataset, metric) not in mine:
            lacks[dataset].append(metric)
    present = {dataset for dataset, _ in mine}
    return [name if name not in present else f"{name}: {', '.join(names)}" for name, names in lacks.items()]


def _rows(
    pks: Sequence[int],
    submissions: Mapping[int, Submission],
    values: Values,
    columns: Sequence[Column],
    metrics: Sequence[TaskMetric],
    datasets: Sequence[tuple[Dataset, float]],
    task: Task,
) -> list[Row]:
    averages = {pk: {column.name: _average(values[pk], column.name, datasets) for column in columns} for pk in pks}
    counted = [index for index, column in enumerate(columns) if column.weight or column.ranks]
    perf = next((place for place, index in enumerate(counted) if columns[index].ranks), None)
    if not pks or perf is None:
        return []
    memory = task.build_config.memory_gib
    points = dynascore(
        [[averages[pk][columns[index].name] or 0.0 for index in counted] for pk in pks],
        weights=[columns[index].weight for index in counted],
        directions=[columns[index].direction for index in counted],
        offsets=[metrics[index].definition.offset_for(memory) for index in counted],
        perf=perf,
    )
    ranking = columns[counted[perf]].name
    direction = columns[counted[perf]].direction
    score_of = dict(zip(pks, points.tolist(), strict=True))
    order = sorted(pks, key=lambda pk: (-score_of[pk], -direction * (averages[pk][ranking] or 0.0), pk))
    return [
        Row(rank, submissions[pk], score_of[pk], _known(averages[pk]), _by_dataset(values[pk], datasets))
        for rank, pk in enumerate(order, start=1)
    ]


def _average(
    mine: Mapping[tuple[str, str], float], metric: str, datasets: Sequence[tuple[Dataset, float]]
) -> float | None:
    """The weighted mean over the datasets that have this metric; weights that are all zero give 0."""
    pairs = [(mine[row.name, metric], weight) for row, weight in datasets if (row.name, metric) in mine]
    if not pairs:
        return None
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else 0.0


def _known(averages: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in averages.items() if value is not None}


def _by_dataset(
    mine: Mapping[tuple[str, str], float], datasets: Sequence[tuple[Dataset, float]]
) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {row.name: {} for row, _ in datasets}
    for (dataset, metric), value in mine.items():
        if dataset in scores:
            scores[dataset][metric] = value
    return scores
