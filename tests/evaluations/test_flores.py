"""Translation sets: shards by source language, directions as tags, and scores that are means of directions."""

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
from evaluations.dataset_files import store_dataset_file
from evaluations.datasets import DatasetError, Flores, dataset_class
from evaluations.invariants import files_exist
from evaluations.models import Inference, Score, Scoring
from evaluations.planning import wanted_inference, wanted_scoring
from evaluations.spool import HELD_BYTES, Spool
from examples.pack import EXAMPLES, pack
from submissions.models import Submission
from tasks_catalog import metrics
from tasks_catalog.demo_flores import BUILD_CONFIG, TASK, flores_dataset, make_model, train_sentencepiece
from tasks_catalog.files import opened_each
from tasks_catalog.formats import parse
from tasks_catalog.models import BuildConfig, Dataset, Task, TaskMetric
from tests.conftest import in_cluster, jsonl, make_built

FORMAT = parse(TASK["io_yaml"])
RECORD = {
    "uid": "0-eng-est-own",
    "sourceLanguage": "eng",
    "targetLanguage": "est",
    "sourceText": "A cat.",
    "targetText": "Kass.",
}

OTHER_MODEL = train_sentencepiece((record["sourceText"] for record in flores_dataset()), 120)


def records(*languages):
    return [r for r in flores_dataset() if {r["sourceLanguage"], r["targetLanguage"]} <= set(languages)]


@pytest.fixture
def flores_task(eval_servers, tmp_path) -> Task:
    task = Task.objects.create(code="flores_small1", **TASK)
    BuildConfig.objects.create(task=task, eval_server_id="flores101", memory_mb=2048, **BUILD_CONFIG)
    make_model(tmp_path / "spm.model")
    options = {"sentencepiece_model": str(tmp_path / "spm.model")}
    TaskMetric.objects.create(task=task, name="sp_bleu", ranks=True, options=options)
    return task


def store(task, name, *languages):
    dataset = task.datasets.filter(name=name).first() or Dataset(task=task, name=name, format="Flores")
    store_dataset_file(dataset, jsonl(records(*languages)))
    return dataset


@pytest.fixture
def translations(flores_task) -> Dataset:
    return store(flores_task, "own", "srp", "eng", "hrv")


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


def split(*lines):
    with Spool() as inputs, Spool() as labels:
        return Flores.split_upload(jsonl(lines), FORMAT, inputs, labels)


def test_an_upload_needs_no_tags_and_calls_the_answer_by_its_own_name(translations):
    storage, [eng, hrv, srp] = translations.task.storage(), translations.labels_keys

    first = json.loads(storage.open(eng).readline())

    assert first == {
        "uid": "0-eng-hrv-own",
        "translatedText": "Mačka spava na stolici.",
        "tags": ["eng-hrv"],
    }
    assert {json.loads(line)["tags"][0] for line in storage.open(srp)} == {"srp-eng", "srp-hrv"}
    assert b"translatedText" not in storage.open(translations.inputs_keys[1]).read()
    assert hrv.endswith("own-hrv.jsonl")


def test_the_field_that_models_predict_may_stand_in_the_upload_itself():
    renamed = {**RECORD, "translatedText": RECORD["targetText"]}
    del renamed["targetText"]

    assert split(renamed) == split(RECORD)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sourceLanguage": "../x"}, "sourceLanguage must be a code like eng or zho_simp, not '../x'"),
        ({"targetLanguage": "es-t"}, "targetLanguage must be a code"),
        ({"targetLanguage": 5}, "targetLanguage must be a code"),
        ({"targetLanguage": "eng"}, "are both eng"),
        ({"tags": ["short"]}, "Leave tags out"),
        ({"sourceText": None}, "sourceText"),
        ({"more": "x"}, "no field 'more'"),
    ],
)
def test_what_is_no_translation_is_refused_with_its_line(change, said):
    with pytest.raises(DatasetError, match=said) as refusal:
        split(RECORD, {**RECORD, "uid": "2", **change})

    assert (refusal.value.line, refusal.value.rule) == (2, "field")


def test_a_task_without_the_fields_of_translations_takes_none():
    other = parse("input: [{name: question, type: string}, {name: answer, type: string}]\noutput: [{name: answer}]")

    with Spool() as inputs, Spool() as labels, pytest.raises(DatasetError, match="no field 'sourceLanguage'"):
        Flores.split_upload(jsonl([RECORD]), other, inputs, labels)


def test_each_source_language_has_an_object_of_inputs_and_one_of_labels(translations):
    assert translations.shards == ["eng", "hrv", "srp"]
    assert translations.inputs_prefix == "datasets/flores/flores_small1/own-"
    assert translations.inputs_keys == [
        f"datasets/flores/flores_small1/own-{code}.jsonl" for code in translations.shards
    ]
    assert translations.labels_keys == [f"labels/flores/flores_small1/own-{code}.jsonl" for code in translations.shards]
    for keys, sha256 in (
        (translations.inputs_keys, translations.inputs_sha256),
        (translations.labels_keys, translations.labels_sha256),
    ):
        content = b"".join(translations.task.storage().open(key).read() for key in keys)
        assert hashlib.sha256(content).hexdigest() == sha256


def test_a_file_with_fewer_languages_leaves_nothing_of_the_others(translations, flores_task):
    store(flores_task, "owner", "eng", "hrv", "srp")

    store(flores_task, "own", "eng", "mkd")

    for half in ("datasets", "labels"):
        _, names = flores_task.storage().listdir(f"{half}/flores/flores_small1")
        assert sorted(names) == [
            *(f"own-{code}.jsonl" for code in ("eng", "mkd")),
            *(f"owner-{code}.jsonl" for code in ("eng", "hrv", "srp")),
        ]


def test_a_spool_gives_back_each_of_very_many_shards_in_order():
    line = b"x" * 1000 + b"\n"
    with Spool() as spool:
        for number in range(2 * HELD_BYTES // len(line)):
            for shard in ("b", "a"):
                spool.write(shard, f"{shard}{number}".encode() + line)
        for number in range(2000):
            spool.write(f"c{number}", line)

        with spool.opened("a") as part:
            found = part.readlines()
        assert [row.removesuffix(line) for row in found] == [f"a{n}".encode() for n in range(len(found))]
        assert len(found) == 2 * HELD_BYTES // len(line)
        assert spool.shards[:2] == ["a", "b"]
        assert len(spool.shards) == 2002


@pytest.fixture
def admin(client, staff):
    client.force_login(staff)
    return client


def add(admin, task, **changes):
    file = jsonl(records("eng", "est"))
    file.name = "flores.jsonl"
    form = {"task": task.pk, "name": "dev", "variant": "base", "format": "Flores", "access_type": "scoring"}
    response = admin.post("/admin/tasks_catalog/dataset/add/", form | {"weight": "5", "file": file} | changes)
    return dict(response.context["adminform"].form.errors) if response.status_code == 200 else {}


def test_staff_add_a_translation_set(admin, flores_task):
    assert add(admin, flores_task) == {}

    assert Dataset.objects.get().shards == ["eng", "est"]


@pytest.mark.parametrize(("first", "second"), [("own-eng", "own"), ("own", "own-eng")])
def test_a_name_that_begins_like_the_files_of_another_set_is_refused(admin, flores_task, first, second):
    assert add(admin, flores_task, name=first) == {}

    [said] = add(admin, flores_task, name=second)["name"]

    assert said == "The files of own begin with own-, which own-eng does too: choose a name that doesn't."
    assert add(admin, flores_task, name="owner") == {}


def test_the_predictions_on_a_set_in_one_file_are_apart_too(admin, flores_task):
    add(admin, flores_task, name="own")
    file = jsonl([{**{k: v for k, v in RECORD.items() if k != "targetText"}, "translatedText": "Kass."}])
    file.name = "one.jsonl"

    assert "begin with own-" in add(admin, flores_task, name="own-eng", format="JsonLines", file=file)["name"][0]


@pytest.mark.parametrize("format", ["Flores", "JsonLines"])
def test_translations_have_no_perturbed_variants(admin, translations, format):
    said = add(admin, translations.task, name="own", variant="fairness", format=format)["variant"]

    assert said == ["Flores datasets have no perturbed variants: choose base and another name."]


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
