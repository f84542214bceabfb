"""Translation sets: shards by source language, directions as tags, and scores that are means of directions."""

from __future__ import annotations

import hashlib
import json

import pytest

from evaluations.datasets import DatasetError, Flores
from evaluations.spool import Spool
from tasks_catalog.demo_flores import TASK
from tasks_catalog.formats import parse
from tasks_catalog.models import Dataset
from tests.conftest import jsonl
from tests.evaluations.flores import records, store

FORMAT = parse(TASK["io_yaml"])
RECORD = {
    "uid": "0-eng-est-own",
    "sourceLanguage": "eng",
    "targetLanguage": "est",
    "sourceText": "A cat.",
    "targetText": "Kass.",
}


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
