from __future__ import annotations

import io
import json

import pytest
from django.core.management import CommandError, call_command

from builds.models import Build
from evaluations.computer import Computer
from evaluations.dataset_files import store_dataset_file
from evaluations.management.commands import reevaluate
from evaluations.models import Inference, Score, Scoring
from evaluations.planning import pinned
from submissions.models import Submission
from tasks_catalog.models import BuildConfig, Dataset, Task, TaskMetric
from tests.conftest import EXAMPLES, IO_YAML, in_cluster, jsonl, make_built


def run(*arguments):
    out = io.StringIO()
    call_command("reevaluate", *arguments, "--json", stdout=out)
    return json.loads(out.getvalue())


def change_metric(**fields):
    TaskMetric.objects.filter(name="macro_f1").update(**fields)


def test_nothing_is_asked_for_when_all_is_up_to_date(evaluated):
    assert run() == {"dry_run": False, "builds": 0, "inferences": 0, "scores": 0, "models": [], "queued": 0}


def test_another_ranking_metric_needs_no_inference_and_no_score(evaluated):
    change_metric(ranks=False)
    TaskMetric.objects.filter(name="accuracy").update(ranks=True)

    answer = run("--dry-run")

    assert (answer["inferences"], answer["scores"]) == (0, 0)


def test_perturbation_scores_depend_on_the_metric_that_ranks(task):
    TaskMetric.objects.create(task=task, name="fairness", kind="perturbation")
    variant = Dataset(task=task, name="tweets", variant="fairness")
    before = pinned(task.metrics.all(), variant)

    change_metric(ranks=False)
    TaskMetric.objects.filter(name="accuracy").update(ranks=True)

    assert [before[0]["perf"]["name"], pinned(task.metrics.all(), variant)[0]["perf"]["name"]] == [
        "macro_f1",
        "accuracy",
    ]


def test_other_options_of_a_metric_ask_for_scores_only(evaluated):
    TaskMetric.objects.create(task=evaluated.task, name="precision", options={"average": "macro"})

    answer = run("--dry-run")

    assert answer == {
        "dry_run": True,
        "builds": 0,
        "inferences": 0,
        "scores": 1,
        "models": [evaluated.pk],
        "queued": 0,
    }
    assert Scoring.objects.unfinished().count() == 0


def test_asking_twice_queues_once(evaluated):
    TaskMetric.objects.create(task=evaluated.task, name="precision")

    assert [run()["queued"], run()["queued"]] == [1, 0]
    assert Score.objects.exists(), "old scores stay"


@pytest.mark.parametrize(
    ("force", "model", "counts"),
    [("scores", Scoring, (0, 0, 1)), ("inference", Inference, (0, 1, 1)), ("build", Build, (1, 1, 1))],
)
def test_force_does_the_stage_again(evaluated, force, model, counts):
    answer = run("--force", force)

    assert (answer["builds"], answer["inferences"], answer["scores"]) == counts
    assert model.objects.filter(run=2).count() == 1


def test_without_json_each_stage_is_one_line(evaluated):
    out = io.StringIO()

    call_command("reevaluate", "--dry-run", "--force", "inference", stdout=out)

    assert out.getvalue().split("\n")[:4] == [
        "     0 builds would be queued",
        "     1 inferences would be queued",
        "     1 sets of scores would be queued",
        "     1 models concerned",
    ]


def second_task():
    task = Task.objects.create(code="other", name="Other", io_yaml=IO_YAML)
    BuildConfig.objects.create(task=task, eval_server_id="flores101")
    TaskMetric.objects.create(task=task, name="accuracy", ranks=True)
    dataset = Dataset(task=task, name="reviews")
    store_dataset_file(dataset, jsonl(EXAMPLES))
    return task


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["model-a", "model-b"]),
        (["--task", "sentiment"], ["model-a"]),
        (["--task", "sentiment,other"], ["model-a", "model-b"]),
        (["--task", "sentiment", "--task", "other"], ["model-a", "model-b"]),
        (["--eval-server", "flores101"], ["model-b"]),
        (["--dataset", "reviews"], ["model-b"]),
        (["--task", "sentiment", "--eval-server", "flores101"], []),
    ],
)
def test_what_is_chosen_is_evaluated(evaluated, user, arguments, names):
    other = Submission.objects.create(owner=user, task=second_task(), name="model-b")
    other.advance("uploaded")
    make_built(other)

    answer = run("--force", "inference", "--dry-run", *arguments)

    chosen = Submission.objects.filter(pk__in=answer["models"]).order_by("name")
    assert [row.name for row in chosen] == names


def test_models_are_chosen_by_id(evaluated, user):
    other = Submission.objects.create(owner=user, task=evaluated.task, name="model-b")
    other.advance("uploaded")
    make_built(other)

    assert run("--force", "inference", "--dry-run", "--model", str(other.pk))["models"] == [other.pk]
    assert len(run("--force", "inference", "--dry-run", "--model", f"{other.pk}, {evaluated.pk}")["models"]) == 2


@pytest.mark.parametrize(
    ("option", "known"),
    [("--task", "sentiment"), ("--dataset", "tweets"), ("--eval-server", "default, flores101"), ("--model", "{pk}")],
)
def test_what_is_unknown_is_refused_with_the_known_ones(evaluated, option, known):
    with pytest.raises(CommandError, match=f"'nothing'. Known: {known.format(pk=evaluated.pk)}") as refused:
        run(option, "nothing")

    assert refused.value.returncode == 2


def test_wait_returns_at_once_when_nothing_is_unfinished(evaluated):
    assert run("--wait")["queued"] == 0


def test_wait_ends_with_the_last_job(evaluated, monkeypatch):
    TaskMetric.objects.create(task=evaluated.task, name="precision")
    rounds = []

    def work(seconds):
        rounds.append(seconds)
        with in_cluster("default"):
            scoring = Scoring.objects.queued().get()
            assert scoring.claim()
            scoring.advance("succeeded")
        evaluated.advance("evaluated")

    monkeypatch.setattr(reevaluate.time, "sleep", work)

    assert run("--wait")["queued"] == 1
    assert len(rounds) == 1


def test_an_interrupt_ends_the_waiting_only(evaluated, monkeypatch, capsys):
    TaskMetric.objects.create(task=evaluated.task, name="precision")

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(reevaluate.time, "sleep", interrupt)

    with pytest.raises(SystemExit) as ended:
        run("--wait")

    assert ended.value.code == 130
    assert Scoring.objects.queued().count() == 1


def test_undoing_a_change_of_options_asks_for_the_first_scores_again(evaluated):
    change_metric(options={})
    metric = TaskMetric.objects.create(task=evaluated.task, name="precision", options={"average": "macro"})
    run()
    finish_scorings(evaluated)
    TaskMetric.objects.filter(pk=metric.pk).update(options={"average": "micro"})
    run()
    finish_scorings(evaluated)

    TaskMetric.objects.filter(pk=metric.pk).update(options={"average": "macro"})
    answer = run()
    finish_scorings(evaluated)

    assert answer["scores"] == 1
    assert run("--dry-run")["scores"] == 0


def finish_scorings(submission):
    with in_cluster("default"):
        for scoring in Scoring.objects.queued():
            assert scoring.claim()
            Computer().score(scoring)
            scoring.refresh_from_db()
            assert scoring.status == "succeeded", scoring.error_detail
    submission.advance("evaluated")
