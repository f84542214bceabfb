"""Translation sets are scored by direction, and each shard of predictions is an object of its own."""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import contextmanager

import pytest
from django.core.files.base import ContentFile

from builds import sandboxes
from builds.image import ImageBuilder, new_workdir
from builds.models import Build
from dynabench_site.jobs import JobStumbled
from evaluations import services
from evaluations.backends.local import LocalRunner
from evaluations.datasets import dataset_class
from evaluations.invariants import files_exist
from evaluations.models import Inference, Score, Scoring
from evaluations.planning import wanted_inference, wanted_scoring
from examples.pack import EXAMPLES, pack
from submissions.models import Submission
from tasks_catalog import metrics
from tasks_catalog.demo_flores import flores_dataset, train_sentencepiece
from tasks_catalog.files import opened_each
from tasks_catalog.models import Dataset
from tests.conftest import in_cluster, jsonl, make_built
from tests.evaluations.flores import records, store

OTHER_MODEL = train_sentencepiece((record["sourceText"] for record in flores_dataset()), 120)


@pytest.fixture
def model(user, flores_task) -> Submission:
    submission = Submission.objects.create(owner=user, task=flores_task, name="flores-copy", sha256="0" * 64)
    submission.advance(Submission.Status.UPLOADED)
    flores_task.storage().save(submission.archive_key, ContentFile(b"archive"))
    return submission


def answer(build: Build, dataset: Dataset, wrong: str = "") -> Inference:
    """An inference that has answered right in all directions but one, whose texts it copied."""
    inference = wanted_inference(build, dataset, dataset.task.build_config)
    inference.save()
    digest, storage = hashlib.sha256(), dataset.task.storage()
    for *halves, key in zip(dataset.inputs_keys, dataset.labels_keys, inference.predictions_keys, strict=True):
        pairs = zip(*(map(json.loads, storage.open(half)) for half in halves), strict=True)
        texts = {
            shown["uid"]: shown["sourceText"] if wrong in hidden["tags"] else hidden["translatedText"]
            for shown, hidden in pairs
        }
        lines = jsonl([{"id": uid, "translatedText": text} for uid, text in texts.items()])
        digest.update(lines.getvalue())
        storage.save(key, lines)
    with in_cluster("flores101"):
        assert inference.claim()
        inference.advance("succeeded", predictions_sha256=digest.hexdigest(), examples=dataset.examples, seconds=1)
    return inference


def score(inference: Inference) -> Scoring:
    task = inference.submission.task
    scoring = wanted_scoring(inference, None, task.metrics.all(), task.build_config)
    scoring.save()
    with in_cluster("flores101"):
        services.run_scorings(task.build_config.eval_server)
    scoring.refresh_from_db()
    return scoring


def test_the_total_is_the_plain_mean_of_directions(model, translations):
    scoring = score(answer(make_built(model), translations, wrong="eng-hrv"))

    [found] = scoring.scores.all()
    copied = [r for r in records("eng", "hrv") if r["sourceLanguage"] == "eng"]
    texts = [[r[name] for r in copied] for name in ("sourceText", "targetText")]
    options = found.pinned["options"]
    expected = metrics.compute("sp_bleu", *texts, **options)
    assert set(found.by_tag) == {"eng-hrv", "eng-srp", "hrv-eng", "hrv-srp", "srp-eng", "srp-hrv"}
    assert found.by_tag.pop("eng-hrv") == {"value": expected, "examples": 8}
    assert {row["value"] for row in found.by_tag.values()} == {100.0}
    assert found.value == pytest.approx((5 * 100 + expected) / 6)


def test_the_mean_of_the_reference_example():
    values = dict(zip("abcdef", [28.43, 27.91, 32.46, 24.73, 32.12, 25.12], strict=True))

    assert dataset_class("Flores").overall(values, lambda: 27.59) == 28.461666666666666


def test_a_direction_without_all_its_answers_scores_nothing(model, translations):
    inference = answer(make_built(model), translations)
    shorter = b"".join(translations.task.storage().open(inference.predictions_keys[0]).readlines()[:-1])
    translations.task.storage().save(inference.predictions_keys[0], ContentFile(shorter))
    content = b"".join(translations.task.storage().open(key).read() for key in inference.predictions_keys)
    Inference.objects.update(predictions_sha256=hashlib.sha256(content).hexdigest())
    inference.refresh_from_db()

    scoring = score(inference)

    assert (scoring.status, scoring.error_code) == ("failed", "bad_predictions")
    assert "1 missing (first: 7-eng-srp-own)" in scoring.error_detail
    assert not Score.objects.exists()


def test_an_older_inference_keeps_its_files_when_the_languages_change(model, translations, flores_task):
    inference = answer(make_built(model), translations)

    store(flores_task, "own", "eng", "est")

    assert list(files_exist()) == []
    wanted = Inference.objects.get(status="queued")
    assert wanted.predictions_keys == [
        f"predictions/{wanted.build.name}/raw/flores_small1/2/own-{code}.jsonl.out" for code in ("eng", "est")
    ]
    assert len(Inference.objects.get(pk=inference.pk).predictions_keys) == 3


def test_another_sentencepiece_model_at_the_same_path_makes_scores_outdated(model, translations, tmp_path):
    inference = answer(make_built(model), translations)
    first = score(inference)
    path = tmp_path / "spm.model"
    asked = {"submissions": Submission.objects.all()}
    assert services.plan_evaluation(**asked).submission_pks == []
    path.write_bytes(OTHER_MODEL)

    plan = services.request_evaluation(**asked)

    assert [job.metrics[0]["files"] for job in plan.scorings] != [first.metrics[0]["files"]]
    assert plan.scorings[0].metrics[0]["files"] == {
        "sentencepiece_model": hashlib.sha256(path.read_bytes()).hexdigest()
    }


def test_a_host_without_the_file_plans_nothing_new(model, translations, tmp_path):
    row = translations.task.metrics.get()
    row.full_clean()
    row.save()
    score(answer(make_built(model), translations))

    (tmp_path / "spm.model").unlink()

    assert services.plan_evaluation(submissions=Submission.objects.all()).submission_pks == []


def test_a_scoring_without_its_file_says_which_is_missing(model, translations, tmp_path):
    inference = answer(make_built(model), translations)
    (tmp_path / "spm.model").unlink()

    scoring = score(inference)

    assert (scoring.status, scoring.error_code) == ("dead", "metric_error")
    assert f"{tmp_path / 'spm.model'} is missing" in scoring.error_detail


def test_a_scoring_with_another_file_than_asked_for_ends_without_scores(model, translations, tmp_path):
    inference = answer(make_built(model), translations)
    task = translations.task
    scoring = wanted_scoring(inference, None, task.metrics.all(), task.build_config)
    scoring.save()
    (tmp_path / "spm.model").write_bytes(OTHER_MODEL)

    with in_cluster("flores101"):
        services.run_scorings(task.build_config.eval_server)

    scoring.refresh_from_db()
    assert scoring.error_code == "metric_error"
    assert "A file that sp_bleu reads is not the one" in scoring.error_detail


def test_shards_that_are_not_what_was_stored_are_noticed_at_their_end(translations):
    storage, keys = translations.task.storage(), translations.inputs_keys
    whole = [list(lines) for lines in opened_each(storage, keys, sha256=translations.inputs_sha256)]
    assert [len(lines) for lines in whole] == [16, 16, 16]
    storage.save(keys[1], io.BytesIO(b"".join(whole[1][:-1])))

    with pytest.raises(JobStumbled, match="own-hrv.jsonl"):
        for lines in opened_each(storage, keys, sha256=translations.inputs_sha256):
            list(lines)


class Quiet:
    """A recorder that keeps nothing."""

    @contextmanager
    def step(self, name, command=""):
        yield lambda output: None


@pytest.mark.bwrap
def test_a_batching_model_answers_each_shard_in_an_object_of_its_own(model, translations, shared_cache):
    build, sandbox = make_built(model), sandboxes.by_name("bwrap")
    with new_workdir("flores-copy") as workdir:
        pack(EXAMPLES / "flores-copy", workdir / "model.tar.gz")
        image = ImageBuilder(sandbox, Quiet(), translations.task, "flores-copy", "ts1-flores-copy")
        build.image, build.sandbox = image.build(workdir / "model.tar.gz", workdir).digest, "bwrap"
    build.save()
    inference = wanted_inference(build, translations, translations.task.build_config)
    inference.save()
    runner = LocalRunner()

    try:
        runner.start(inference)
    finally:
        sandbox.remove(build.image)

    outcome, storage = runner.poll(inference), translations.task.storage()
    parts = [storage.open(key).read() for key in inference.predictions_keys]
    assert (outcome.state, outcome.examples) == ("succeeded", 48)
    assert outcome.predictions_sha256 == hashlib.sha256(b"".join(parts)).hexdigest()
    answers = [[json.loads(line) for line in part.splitlines()] for part in parts]
    assert [{row["id"].split("-")[1] for row in rows} for rows in answers] == [{"eng"}, {"hrv"}, {"srp"}]
    assert {row["id"]: row for row in answers[1]}["0-hrv-srp-own"]["translatedText"] == "Мачка спава на столици."
