from __future__ import annotations

import pytest

from builds import services as builds
from builds.models import Build
from dynabench_site.api import Conflict
from dynabench_site.outbox import OutboxMail
from evaluations import services
from evaluations.dataset_files import store_dataset_file
from evaluations.models import CurrentScores, Inference, Score, Scoring
from submissions.models import Submission
from submissions.services import cancel
from tasks_catalog.models import Dataset, TaskMetric
from tests.conftest import EXAMPLES, in_cluster, jsonl, make_built, make_predictions, make_scores

RIGHT = {example["uid"]: example["label"] for example in EXAMPLES}


def ask(**more):
    return services.request_evaluation(submissions=Submission.objects.all(), **more)


def run_scorings():
    with in_cluster("default"):
        services.run_scorings(Dataset.objects.first().task.build_config.eval_server)


@pytest.fixture
def second_dataset(task) -> Dataset:
    dataset = Dataset(task=task, name="movies")
    store_dataset_file(dataset, jsonl(EXAMPLES[:2]))
    return dataset


def test_three_models_and_two_datasets_asked_for_twice_are_six_inferences(user, task, dataset, second_dataset):
    for name in ("a", "b", "c"):
        submission = Submission.objects.create(owner=user, task=task, name=name)
        submission.advance(Submission.Status.UPLOADED)
        make_built(submission)

    ask()
    ask()

    assert Inference.objects.count() == 6


def test_a_new_dataset_evaluates_the_models_that_are_there(evaluated, task):
    added = Dataset(task=task, name="movies")
    store_dataset_file(added, jsonl(EXAMPLES[:2]))

    assert list(Inference.objects.filter(dataset=added).values_list("submission_id", flat=True)) == [evaluated.pk]
    evaluated.refresh_from_db()
    assert evaluated.status == "evaluating"


def test_scores_are_computed_overall_and_by_tag(evaluated, dataset):
    scores = {score.metric: score for score in Score.objects.all()}

    assert scores["accuracy"].value == 75.0
    assert scores["accuracy"].by_tag == {
        "long": {"value": 50.0, "examples": 2},
        "short": {"value": 100.0, "examples": 2},
    }
    assert scores["examples_per_second"].value == 8.0
    assert scores["memory_utilization"].value == 0.06


def test_changing_a_metric_scores_again_without_an_inference(evaluated, task):
    TaskMetric.objects.filter(task=task, name="macro_f1").update(name="precision")

    plan = ask()
    run_scorings()

    assert plan.as_json(dry_run=False) == {
        "dry_run": False,
        "builds": 0,
        "inferences": 0,
        "scores": 1,
        "models": [evaluated.pk],
        "queued": 1,
    }
    current = CurrentScores.objects.get(submission=evaluated)
    assert set(current.scoring.scores.values_list("metric", flat=True)) >= {"precision", "accuracy"}
    evaluated.refresh_from_db()
    assert evaluated.status == "evaluated"
    assert Scoring.objects.count() == 2, "the old scores are kept"


def test_changing_a_weight_computes_nothing(evaluated, task):
    TaskMetric.objects.filter(task=task).update(weight=2)

    assert ask().submission_pks == []


def test_new_labels_score_again_and_new_inputs_infer_again(evaluated, dataset):
    relabelled = [{**EXAMPLES[0], "label": "neutral"}, *EXAMPLES[1:]]
    store_dataset_file(dataset, jsonl(relabelled))
    assert (Inference.objects.count(), Scoring.objects.count()) == (1, 2)

    store_dataset_file(dataset, jsonl([{**EXAMPLES[0], "statement": "Another."}, *EXAMPLES[1:]]))
    assert Inference.objects.count() == 2


def test_an_inference_that_is_no_longer_wanted_is_cancelled(submission, dataset):
    make_built(submission)
    ask()

    store_dataset_file(dataset, jsonl([{**EXAMPLES[0], "statement": "Another."}, *EXAMPLES[1:]]))

    assert list(Inference.objects.order_by("pk").values_list("status", flat=True)) == ["cancelled", "queued"]


def test_forcing_repeats_a_stage_and_what_follows(evaluated):
    assert ask(force="scores").as_json(dry_run=False)["scores"] == 1
    run_scorings()
    assert ask(force="inference").as_json(dry_run=False)["inferences"] == 1
    Inference.objects.filter(status="queued").delete()
    forced = ask(force="build").as_json(dry_run=False)
    assert (forced["builds"], forced["inferences"], forced["scores"], forced["queued"]) == (1, 1, 1, 1)
    assert Build.objects.filter(run=2).exists()


def test_a_submission_with_all_scores_is_evaluated_and_its_owner_told(submission, dataset):
    inference = make_predictions(make_built(submission), dataset, RIGHT)
    make_scores(inference)

    services.settle(submission)
    services.settle(submission)

    assert submission.status == "evaluated"
    assert OutboxMail.objects.filter(to="ada@example.org").count() == 1


def test_answers_with_wrong_ids_fail_the_submission_with_the_reason(submission, dataset):
    make_predictions(make_built(submission), dataset, {"1": "positive", "nine": "positive"})
    ask()

    run_scorings()

    submission.refresh_from_db()
    assert (submission.status, submission.error_code) == ("failed", "bad_predictions")
    assert "tweets" in submission.error_detail
    assert "missing" in submission.error_detail
    assert not Score.objects.exists()


def test_a_failure_on_a_dataset_that_does_not_count_fails_nothing(submission, dataset, task):
    hidden = Dataset(task=task, name="extra", access_type=Dataset.Access.HIDDEN)
    store_dataset_file(hidden, jsonl(EXAMPLES))
    build = make_built(submission)
    make_scores(make_predictions(build, dataset, RIGHT))
    make_predictions(build, hidden, {"1": "positive"})
    ask()

    run_scorings()

    submission.refresh_from_db()
    assert submission.status == "evaluated"


def test_a_perturbed_variant_waits_for_its_base_and_measures_agreement(submission, dataset, task):
    TaskMetric.objects.create(task=task, name="fairness", kind="perturbation")
    variant = Dataset(task=task, name="tweets", variant="fairness")
    perturbed = [{**example, "uid": f"{example['uid']}x", "input_id": example["uid"]} for example in EXAMPLES[:2]]
    store_dataset_file(variant, jsonl(perturbed))
    build = make_built(submission)
    make_predictions(build, variant, {"1x": "negative", "2x": "negative"})
    assert not ask().scorings

    make_predictions(build, dataset, RIGHT)
    ask()
    run_scorings()

    fairness = Score.objects.get(metric="fairness")
    assert (fairness.value, fairness.scoring.dataset) == (50.0, variant)


def test_publishing_needs_a_score_on_every_scoring_dataset(evaluated, task):
    services.publish(evaluated)
    store_dataset_file(Dataset(task=task, name="movies"), jsonl(EXAMPLES))

    with pytest.raises(Conflict, match="movies"):
        services.publish(evaluated)


def test_a_cancelled_submission_ends_with_its_jobs(submission, dataset):
    make_built(submission)
    ask()
    Submission.objects.update(cancel_requested=True)

    services.sweep()

    submission.refresh_from_db()
    assert submission.status == "cancelled"
    assert Inference.objects.get().status == "cancelled"


@pytest.mark.parametrize("force", ["scores", "inference", "build"])
def test_a_cancelled_re_evaluation_leaves_the_model_as_it_was(evaluated, force):
    ask(force=force)
    evaluated.refresh_from_db()
    cancel(evaluated)

    builds.sweep()
    services.sweep()

    evaluated.refresh_from_db()
    assert (evaluated.status, evaluated.is_published, evaluated.cancel_requested) == ("evaluated", True, False)
    assert not Build.objects.unfinished().exists()
    assert not Inference.objects.unfinished().exists()
    assert not Scoring.objects.unfinished().exists()
    assert ask(force=force).submission_pks == [evaluated.pk], "and it can be asked for again"


def test_a_retry_repeats_what_failed(submission, dataset):
    make_predictions(make_built(submission), dataset, {"1": "positive"})
    ask()
    run_scorings()
    submission.refresh_from_db()

    services.retry(submission)

    assert submission.status == "evaluating"
    assert Scoring.objects.get().status == "queued"
    with pytest.raises(Conflict):
        services.retry(submission)


def test_the_sweep_makes_what_a_lost_message_would_have_made(submission, dataset):
    make_built(submission)

    services.sweep()

    assert Inference.objects.filter(submission=submission).exists()


def test_no_more_inferences_run_than_the_eval_server_allows(submission, dataset, task, second_dataset):
    server = task.build_config.eval_server
    server.max_inferences = 1
    server.save()
    make_built(submission)
    ask()
    scheduler = services.Scheduler(server)

    with in_cluster("default"):
        assert scheduler.submit()
        assert scheduler.submit() is None


def test_what_is_queued_follows_its_task_to_another_eval_server(submission, dataset, task):
    make_built(submission)
    ask()
    task.build_config.eval_server_id = "flores101"
    task.build_config.save()

    services.sweep()

    assert Inference.objects.get().cluster == "flores101"


def test_a_submission_whose_eval_server_is_gone_can_be_cancelled(submission, dataset):
    make_built(submission)
    ask()
    Inference.objects.update(cluster="gone")
    Submission.objects.update(cancel_requested=True)

    services.settle(submission)

    assert Submission.objects.get().status == "cancelled"


def test_a_cancellation_that_comes_too_late_does_not_stop_a_later_evaluation(evaluated, dataset):
    evaluated.advance(Submission.Status.EVALUATING)
    Submission.objects.update(cancel_requested=True)
    evaluated.advance(Submission.Status.EVALUATED)

    assert not Submission.objects.get().cancel_requested
