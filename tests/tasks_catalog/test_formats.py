import copy
import json
import math

import pytest
import yaml

from tasks_catalog.fields import MAX_UID_CHARACTERS, FormatError
from tasks_catalog.formats import MAX_ANSWER_BYTES, parse, render_config

NLI = """
context:
  - {name: context, type: string, placeholder: A fact}
input:
  - {name: hypothesis, type: string}
  - {name: label, type: multiclass, labels: [entailed, neutral, contradictory], as_goal_message: true}
output:
  - name: label
  - {name: prob, type: prob, reference_name: label}
"""
QA = """
context: [{name: passage, type: string}]
input: [{name: question, type: string}, {name: answer, type: string}]
output: [{name: answer}, {name: conf, type: prob, single_prob: true}]
"""
EXAMPLE = {"uid": "e1", "context": "It rains.", "hypothesis": "Rain falls.", "label": "entailed"}
ANSWER = {"id": "e1", "label": "entailed"}
PROB = {"entailed": 0.5, "neutral": 0.3, "contradictory": 0.2}
LABELS = "labels: [entailed, neutral, contradictory]"


@pytest.fixture
def nli():
    return parse(NLI)


def test_a_model_sees_uid_context_and_input_without_labels(nli):
    assert nli.input_names == ("uid", "context", "hypothesis")
    assert nli.label_names == ("label",)
    assert nli.output_names == ("label", "prob")


def test_parsing_the_same_text_again_costs_nothing():
    assert parse(NLI) is parse(NLI)


def test_a_label_may_be_written_out_again_in_output(nli):
    again = NLI.replace("- name: label\n", f"- {{name: label, type: multiclass, {LABELS}}}\n")

    assert parse(again) == nli


@pytest.mark.parametrize(
    ("old", "new", "field", "message"),
    [
        ("context:\n", "contexts:\n", "", "'contexts' does not belong here"),
        ("context:\n", "perf_metric: {}\ncontext:\n", "", "'perf_metric' does not belong here"),
        ("context:\n", "context: [\n", "", "not valid YAML"),
        ("context:\n", "context: *a\ncontexts:\n", "", "aliases .* are not allowed"),
        ("type: string}\n", "type: string, type: string}\n", "", "'type' is written twice"),
        ("name: hypothesis, type: string", "name: hypothesis, type: image", "hypothesis", "string, multiclass, prob"),
        ("name: hypothesis, type: string", "name: hypothesis", "hypothesis", "type of hypothesis must be one of"),
        ("name: hypothesis, type: string", "name: hypothesis, type: 3", "hypothesis", "must be a text"),
        ("name: hypothesis", "name: uid", "uid", "used by Dynabench itself"),
        ("name: hypothesis", "name: input_id", "input_id", "used by Dynabench itself"),
        ("name: hypothesis", "name: signature", "signature", "used by Dynabench itself"),
        ("name: hypothesis", "name: context", "context", "twice in context and input"),
        ("name: hypothesis", "name: 'a b'", "", "input, entry 1: name must be a letter"),
        ("{name: hypothesis, type: string}", "hypothesis", "", "input must be a list of fields"),
        ("hypothesis, type: string", "hypothesis, type: string, lable: x", "hypothesis", "unknown key 'lable'"),
        ("hypothesis, type: string", "hypothesis, type: string, labels: [a]", "hypothesis", "other types have none"),
        ("hypothesis, type: string", "hypothesis, type: prob, reference_name: label", "hypothesis", "only output"),
        ("as_goal_message: true", "as_goal_message: 1", "label", "must be true or false"),
        (LABELS, "labels: []", "label", "needs labels"),
        (LABELS, "labels: entailed", "label", "must be a list of texts"),
        (LABELS, "labels: [yes, no]", "label", "A label of label is True .*put them in quotes"),
        (LABELS, "labels: [1, 2]", "label", "put them in quotes"),
        (LABELS, "labels: [a, a]", "label", "must differ"),
        ("- name: label", "- name: lable", "lable", "type of lable must be one of"),
        ("- name: label", "- {name: label, type: string}", "label", "defined above in another way"),
        ("- name: label", "- {name: other, type: string}", "prob", None),
        ("reference_name: label", "reference_name: context", "prob", "set reference_name to a multiclass"),
        (", reference_name: label", "", "prob", "or single_prob to true"),
    ],
)
def test_a_wrong_format_is_refused_with_its_field(old, new, field, message):
    assert old in NLI

    if message is None:  # prob may refer to a label that is not an output, but then nothing is scored
        field, message = "", "No field is in both input and output"
    with pytest.raises(FormatError, match=message) as refusal:
        parse(NLI.replace(old, new))

    assert refusal.value.field == field


@pytest.mark.parametrize(
    "text",
    ["", "- a", "just text", "a: 2020-13-45", "a: !!bool maybe", "a: !!timestamp x", "[" * 5000, "x: \x01", "? [a]: b"],
)
def test_yaml_of_any_other_kind_is_refused(text):
    with pytest.raises(FormatError):
        parse(text)


def test_a_very_long_format_is_refused():
    with pytest.raises(FormatError, match="longer than 65536 characters"):
        parse(NLI + "#" * 65_536)


def test_a_model_must_get_something_to_answer():
    with pytest.raises(FormatError, match="get only uid"):
        parse("input: [{name: a, type: string}]\noutput: [{name: a}]")


def test_an_example_is_returned_with_ids_as_text(nli):
    assert nli.check_example({**EXAMPLE, "uid": 7, "input_id": 3}) == {**EXAMPLE, "uid": "7", "input_id": "3"}


@pytest.mark.parametrize(
    "change",
    [{}, {"label": ["entailed", "neutral"]}, {"tags": ["short", "negation"]}, {"tags": []}, {"context": ""}],
)
def test_a_good_example_is_accepted(nli, change):
    assert nli.check_example({**EXAMPLE, **change}) == {**EXAMPLE, **change}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"label": "maybe"}, "label"),
        ({"label": []}, "label"),
        ({"label": ["entailed", "maybe"]}, "label"),
        ({"label": None}, "label"),
        ({"label": True}, "label"),
        ({"context": ["It rains."]}, "context"),
        ({"context": 3}, "context"),
        ({"context": "\ud800"}, "context"),
        ({"uid": ""}, "uid"),
        ({"uid": True}, "uid"),
        ({"uid": 1.5}, "uid"),
        ({"uid": 10**5000}, "uid"),
        ({"uid": "a\nb"}, "uid"),
        ({"uid": "x" * (MAX_UID_CHARACTERS + 1)}, "uid"),
        ({"input_id": None}, "input_id"),
        ({"tags": "short"}, "tags"),
        ({"tags": [1]}, "tags"),
        ({"prob": 1}, "prob"),
        ({"answer": "x"}, "answer"),
    ],
)
def test_a_wrong_example_is_refused_with_its_field(nli, change, field):
    with pytest.raises(FormatError) as refusal:
        nli.check_example({**EXAMPLE, **change})

    assert refusal.value.field == field
    assert field in str(refusal.value)


@pytest.mark.parametrize("name", EXAMPLE)
def test_an_example_with_a_missing_field_is_refused(nli, name):
    with pytest.raises(FormatError, match=f"The field {name} is missing"):
        nli.check_example({key: value for key, value in EXAMPLE.items() if key != name})


def test_labels_never_reach_the_model(nli):
    inputs, labels = nli.split({**EXAMPLE, "tags": ["t"], "input_id": "e0"})

    assert inputs == {"uid": "e1", "context": "It rains.", "hypothesis": "Rain falls."}
    assert labels == {"uid": "e1", "label": "entailed", "tags": ["t"], "input_id": "e0"}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"prob": PROB},
        {"prob": {"entailed": 1, "neutral": 0, "contradictory": 0}},
        {"signed": "abc"},
        {"signature": "abc"},
    ],
)
def test_a_good_prediction_is_accepted(nli, extra):
    assert nli.check_prediction({**ANSWER, **extra}) == {**ANSWER, **extra}


def test_a_prediction_may_give_a_single_prob():
    answer = {"id": "q1", "answer": "Rain", "conf": 0.25}

    assert parse(QA).check_prediction(answer) == answer


@pytest.mark.parametrize("prob", [0.5, {"yes": 0.5, "no": 0.5}])
def test_prob_is_accepted_also_where_the_format_has_none(prob):
    assert parse(QA).check_prediction({"id": 1, "answer": "", "prob": prob}) == {"id": "1", "answer": "", "prob": prob}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"label": "Entailed"}, "label"),
        ({"label": ["entailed"]}, "label"),
        ({"label": 1}, "label"),
        ({"id": None}, "id"),
        ({"uid": "e1"}, "uid"),
        ({"extra": 1}, "extra"),
        ({"context": "It rains."}, "context"),
        ({"signed": 1}, "signed"),
        ({"prob": 0.5}, "prob"),
        ({"prob": {"entailed": 1.0}}, "prob"),
        ({"prob": {**PROB, "entailed": 0.6}}, "prob"),
        ({"prob": {**PROB, "entailed": -0.5, "neutral": 1.3}}, "prob"),
        ({"prob": {**PROB, "entailed": math.nan}}, "prob"),
        ({"prob": {**PROB, "entailed": math.inf}}, "prob"),
        ({"prob": {**PROB, "entailed": "0.5"}}, "prob"),
        ({"prob": {**PROB, "entailed": True}}, "prob"),
    ],
)
def test_a_wrong_prediction_is_refused_with_its_field(nli, change, field):
    with pytest.raises(FormatError) as refusal:
        nli.check_prediction({**ANSWER, **change})

    assert refusal.value.field == field
    assert field in str(refusal.value)


@pytest.mark.parametrize("name", ["id", "label"])
def test_a_prediction_with_a_missing_field_is_refused(nli, name):
    with pytest.raises(FormatError, match=f"The field {name} is missing"):
        nli.check_prediction({key: value for key, value in ANSWER.items() if key != name})


def test_an_answer_is_capped_in_bytes():
    qa = parse(QA)
    longest = "é" * (MAX_ANSWER_BYTES // 2)

    assert qa.check_prediction({"id": "1", "answer": longest})["answer"] == longest
    with pytest.raises(FormatError, match="answer is 65537 bytes long; at most 65536"):
        qa.check_prediction({"id": "1", "answer": longest + "x"})


def test_samples_are_inputs_of_the_task_short_unicode_and_long(nli):
    samples = nli.sample_inputs(3)

    assert [tuple(sample) for sample in samples] == [nli.input_names] * 3
    assert len({sample["uid"] for sample in samples}) == 3
    assert not samples[1]["context"].isascii()
    assert 550 <= len(samples[2]["context"].split()) <= 650
    assert json.loads(json.dumps(samples)) == samples


def test_the_rendered_config_is_what_the_cli_reads(nli):
    text = render_config(nli, {"type": "accuracy", "reference_name": "label"}, ["fairness"], {"accuracy": 4})

    assert yaml.safe_load(text) == {
        "aggregation_metric": {"type": "dynascore", "default_weights": {"accuracy": 4}},
        "perf_metric": {"type": "accuracy", "reference_name": "label"},
        "delta_metrics": [{"type": "fairness"}],
        **yaml.safe_load(NLI),
    }


def test_the_rendered_config_has_the_same_bytes_each_time(nli):
    perf = {"type": "accuracy", "reference_name": "label"}

    assert render_config(nli, perf) == render_config(copy.deepcopy(nli), dict(reversed(perf.items())))


def test_quoted_yes_and_no_survive_rendering():
    made = parse(NLI.replace(LABELS, "labels: ['yes', 'no']"))

    config = yaml.safe_load(render_config(made, {"type": "accuracy", "reference_name": "label"}))

    assert config["input"][1]["labels"] == ["yes", "no"]
