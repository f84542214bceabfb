from __future__ import annotations

import pytest
from django.http import QueryDict

from evaluations.board import board, weights_from
from evaluations.dataset_files import store_dataset_file
from evaluations.models import CurrentScores, Inference, Score, Scoring
from submissions.models import Submission
from tasks_catalog.models import Dataset, TaskMetric
from tests.conftest import EXAMPLES, jsonl, make_built

# The reference's golden case: one dataset, 32 GiB of memory, weights 4 1 1 1 1.
GOLDEN = {
    "model-a": {"accuracy": 80, "examples_per_second": 10, "memory_utilization": 6, "fairness": 95, "robustness": 70},
    "model-b": {"accuracy": 70, "examples_per_second": 20, "memory_utilization": 4, "fairness": 90, "robustness": 65},
    "model-c": {"accuracy": 60, "examples_per_second": 40, "memory_utilization": 2, "fairness": 93, "robustness": 60},
}
VARIANT_OF = {"fairness": "fairness", "robustness": "robustness"}


@pytest.fixture
def golden_task(task):
    task.metrics.all().delete()
    TaskMetric.objects.create(task=task, name="accuracy", ranks=True, weight=4)
    for name in ("examples_per_second", "memory_utilization"):
        TaskMetric.objects.create(task=task, name=name, kind="job")
    for name in ("fairness", "robustness"):
        TaskMetric.objects.create(task=task, name=name, kind="perturbation")
    task.build_config.memory_mb = 32 * 1024
    task.build_config.save()
    for variant in ("base", "fairness", "robustness"):
        Dataset.objects.create(task=task, name="tweets", variant=variant)
    return task


def rank(submission, dataset, values: dict[str, float]) -> None:
    """Current scores with these values, as if computed."""
    inference = Inference.objects.create(
        submission=submission, build=submission.builds.get(), dataset=dataset, cluster="default", fingerprint="x"
    )
    scoring = Scoring.objects.create(
        submission=submission, inference=inference, dataset=dataset, cluster="default", fingerprint="x"
    )
    Score.objects.bulk_create(Score(scoring=scoring, metric=name, value=value) for name, value in values.items())
    CurrentScores.objects.create(submission=submission, dataset=dataset, scoring=scoring)


def model(user, task, name: str, *, is_published: bool = True) -> Submission:
    submission = Submission.objects.create(owner=user, task=task, name=name, is_published=is_published)
    submission.advance(Submission.Status.UPLOADED)
    make_built(submission)
    return submission


@pytest.fixture
def models(user, golden_task) -> dict[str, Submission]:
    found = {}
    for name, values in GOLDEN.items():
        found[name] = model(user, golden_task, name)
        for dataset in golden_task.datasets.all():
            own = {key: value for key, value in values.items() if VARIANT_OF.get(key, "base") == dataset.variant}
            rank(found[name], dataset, own)
    return found


def test_the_golden_case_comes_out_through_the_rows(models, golden_task):
    rows = board(golden_task).rows

    assert [row.submission.name for row in rows] == ["model-a", "model-b", "model-c"]
    assert [row.score for row in rows] == pytest.approx([104.2708333333, 98.5416666667, 96.1458333333], abs=1e-9)


def test_the_readers_weights_change_the_order(models, golden_task):
    rows = board(golden_task, metric_weights={"accuracy": 0, "fairness": 0, "robustness": 0}).rows

    assert [row.submission.name for row in rows] == ["model-c", "model-b", "model-a"]


def test_a_model_that_lacks_a_score_is_listed_below_with_what_it_lacks(models, golden_task, user):
    newcomer = model(user, golden_task, "model-d")
    rank(newcomer, golden_task.datasets.get(variant="base"), {"accuracy": 99.0, "examples_per_second": 1.0})

    found = board(golden_task)

    assert len(found.rows) == 3
    assert [(row.submission.name, row.missing) for row in found.lacking] == [
        ("model-d", ["tweets: memory_utilization, fairness, robustness"])
    ]


def test_a_metric_without_weight_is_shown_and_not_needed(models, golden_task):
    Score.objects.filter(metric="robustness", scoring__submission=models["model-a"]).delete()
    TaskMetric.objects.filter(name="robustness").update(weight=0)

    rows = board(golden_task).rows

    assert len(rows) == 3
    assert "robustness" not in rows[0].averages


def test_an_unpublished_model_is_not_ranked_but_can_see_its_place(models, golden_task):
    Submission.objects.filter(name="model-b").update(is_published=False)

    assert [row.submission.name for row in board(golden_task).rows] == ["model-a", "model-c"]
    assert board(golden_task, also=models["model-b"]).rows[1].submission.name == "model-b"


def test_a_competition_ranks_unpublished_models_without_their_names(models, golden_task):
    Submission.objects.filter(name="model-b").update(is_published=False)
    golden_task.unpublished_models_in_leaderboard = True
    golden_task.save()

    assert [row.is_anonymous for row in board(golden_task).rows] == [False, True, False]


def test_ties_go_to_the_earlier_submission(user, golden_task):
    for name in ("second", "first"):
        submission = model(user, golden_task, name)
        for dataset in golden_task.datasets.all():
            rank(submission, dataset, GOLDEN["model-a"])

    assert [row.submission.name for row in board(golden_task).rows] == ["second", "first"]


def test_a_board_without_models_or_weights_is_no_error(golden_task, models):
    assert all(row.score == 0 for row in board(golden_task, metric_weights=dict.fromkeys(GOLDEN["model-a"], 0)).rows)
    Submission.objects.update(is_published=False)
    assert board(golden_task).rows == []


@pytest.mark.parametrize("count", [3, 30])
def test_the_board_costs_the_same_queries_at_any_size(models, golden_task, user, count, django_assert_max_num_queries):
    for number in range(count):
        submission = model(user, golden_task, f"more-{number}")
        rank(submission, golden_task.datasets.get(variant="base"), GOLDEN["model-a"])

    with django_assert_max_num_queries(6):
        board(golden_task)


def test_weights_come_from_the_address():
    assert weights_from(QueryDict("m.accuracy=2&d.tweets=0.5&other=x")) == ({"accuracy": 2.0}, {"tweets": 0.5})


def test_a_second_dataset_counts_by_its_weight(evaluated, task):
    other = Dataset(task=task, name="movies", weight=0)
    store_dataset_file(other, jsonl(EXAMPLES[:2]))
    rank(evaluated, other, {"macro_f1": 0, "accuracy": 0, "examples_per_second": 0, "memory_utilization": 0})

    even = board(task, dataset_weights={"movies": 5}).rows[0].averages["accuracy"]

    assert (board(task).rows[0].averages["accuracy"], even) == (75.0, 37.5)
