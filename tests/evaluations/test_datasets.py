import gzip
import hashlib
import io
import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluations.datasets import FORMATS, DatasetError, JsonLines, Label, PredictionsError, Summary, dataset_class
from evaluations.json_objects import MAX_LINE_BYTES
from evaluations.spool import Spool
from tasks_catalog.formats import parse

FORMAT = parse("""
input:
  - {name: statement, type: string}
  - {name: label, type: multiclass, labels: [negative, positive]}
output:
  - name: label
  - {name: prob, type: prob, reference_name: label}
""")
FREE = parse("input: [{name: question, type: string}, {name: answer, type: string}]\noutput: [{name: answer}]")
UIDS = ["e1", "e2", "e3"]
GOOD = [{"id": uid, "label": "positive"} for uid in UIDS]


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def example(uid, **more):
    return {"uid": uid, "statement": f"text {uid}", "label": "positive", **more}


GZIPPED = gzip.compress(lines(example("e1")), mtime=0)  # tests are named after it: the same in every process


def split(content, task_format=FORMAT):
    with Spool() as inputs, Spool() as labels:
        summary = JsonLines.split_upload(io.BytesIO(content), task_format, inputs, labels)
        with inputs.opened("") as shown, labels.opened("") as hidden:
            return summary, shown.read(), hidden.read()


def predictions(content, task_format=FORMAT, expected=UIDS):
    return JsonLines.read_predictions(io.BytesIO(content), task_format, dict.fromkeys(expected).keys())


def rules(content, **more):
    with pytest.raises(PredictionsError) as refusal:
        predictions(content, **more)
    return [(problem.line, problem.rule) for problem in refusal.value.problems]


def test_a_dataset_class_is_found_by_its_name():
    assert dataset_class("JsonLines") is JsonLines


def test_an_unknown_dataset_format_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no dataset format 'Csv'; choose one of .*JsonLines"):
        dataset_class("Csv")


def test_a_new_dataset_format_is_one_class():
    class Mirrored(JsonLines):
        pass

    assert dataset_class("Mirrored") is Mirrored
    del FORMATS["Mirrored"]


def test_an_upload_is_split_into_inputs_and_labels():
    summary, inputs, labels = split(
        lines(example("e1", tags=["short"]), example(2, tags=["short", "x"], input_id="e1"))
    )

    assert inputs == b'{"uid": "e1", "statement": "text e1"}\n{"uid": "2", "statement": "text 2"}\n'
    assert [json.loads(line) for line in labels.splitlines()] == [
        {"uid": "e1", "label": "positive", "tags": ["short"]},
        {"uid": "2", "label": "positive", "tags": ["short", "x"], "input_id": "e1"},
    ]
    assert summary == Summary(
        examples=2,
        inputs_sha256=hashlib.sha256(inputs).hexdigest(),
        labels_sha256=hashlib.sha256(labels).hexdigest(),
        tags={"short": 2, "x": 1},
    )


def test_the_labels_are_read_back():
    _, _, labels = split(
        lines(example("e1", tags=["short"], input_id=9), example("e2", label=["negative", "positive"]))
    )

    assert JsonLines.read_labels(io.BytesIO(labels), FORMAT) == {
        "e1": Label({"label": "positive"}, ("short",), "9"),
        "e2": Label({"label": ["negative", "positive"]}),
    }


def test_labels_from_before_a_change_of_the_format_are_refused():
    with pytest.raises(DatasetError, match="labels have no label: the task's format was changed since") as refusal:
        JsonLines.read_labels(io.BytesIO(b'{"uid":"e1","answer":"x"}\n'), FORMAT)

    assert refusal.value.line == 1


@given(st.lists(st.text(max_size=20), min_size=1, max_size=6))
def test_no_label_is_in_what_the_model_gets(secrets):
    hidden = [f"SECRET-{number}-{secret}" for number, secret in enumerate(secrets)]
    records = [{"uid": n, "question": "q", "answer": answer, "tags": ["SECRET"]} for n, answer in enumerate(hidden)]

    _, inputs, _ = split(lines(*records), FREE)

    assert b"SECRET" not in inputs
    assert len(inputs.splitlines()) == len(secrets)


@pytest.mark.parametrize(
    "dress",
    [
        lambda content: content,
        gzip.compress,
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: content + b"\n",
        lambda content: content.rstrip(b"\n"),
    ],
    ids=["plain", "gzip", "byte order mark", "CRLF", "blank last line", "no last newline"],
)
def test_an_upload_may_be_dressed_in_usual_ways(dress):
    content = lines(example("e1"), example("e2"))

    assert split(dress(content)) == split(content)


@pytest.mark.parametrize(
    ("content", "line", "rule"),
    [
        (b"", 1, "empty"),
        (b"\n\n", 1, "empty"),
        (lines(example("e1"), example("e1")), 2, "duplicate_uid"),
        (lines(example("1"), example(1)), 2, "duplicate_uid"),
        (lines(example("e1"), example("e2", label="maybe")), 2, "field"),
        (lines(example("e1"), {"uid": "e2", "label": "positive"}), 2, "field"),
        (lines(example("e1"), example("e2", extra=1)), 2, "field"),
        (lines(example("e1")) + b"{\n", 2, "json"),
        (lines(example("e1")) + b'"text"\n', 2, "json"),
        (lines(example("e1")) + b'{"uid": NaN}\n', 2, "json"),
        (lines(example("e1")) + b'{"uid":"\xff"}\n', 2, "json"),
        (lines(example("e1")) + b'{"uid":"a","uid":"b","statement":"","label":"positive"}\n', 2, "duplicate_key"),
        (lines(example("e1"), example("e2", statement="x" * MAX_LINE_BYTES)), 2, "too_big"),
        (lines(example("e1")) + b" " * (2 * MAX_LINE_BYTES) + b"\n" + lines(example("e2")), 2, "too_big"),
        (b"\x1f\x8bnot gzip", 1, "gzip"),
        (GZIPPED[:-6], 2, "gzip"),
        (GZIPPED + b"more", 2, "gzip"),
    ],
)
def test_a_bad_upload_is_refused_with_line_and_rule(content, line, rule):
    with pytest.raises(DatasetError) as refusal:
        split(content)

    assert (refusal.value.line, refusal.value.rule) == (line, rule)
    assert str(refusal.value).startswith(f"Line {line} ({rule}): ")


def test_an_upload_reads_no_more_than_a_line_of_a_bomb():
    bomb = io.BytesIO(gzip.compress(b"x" * 50_000_000))

    with pytest.raises(DatasetError, match="too_big"), Spool() as inputs, Spool() as labels:
        JsonLines.split_upload(bomb, FORMAT, inputs, labels)


def test_predictions_come_back_by_uid():
    assert predictions(lines(*GOOD)) == {record["id"]: record for record in GOOD}


@pytest.mark.parametrize(
    "content",
    [
        lines(*GOOD[::-1]),
        "\n".join(json.dumps(record, indent=2) for record in GOOD).encode(),
        "\r\n".join(json.dumps(record, indent=2) for record in GOOD).encode(),
        "\n".join(json.dumps([record], indent=2) for record in GOOD).encode(),
        "\n".join(json.dumps([record]) for record in GOOD).encode(),
        b"\xef\xbb\xbf" + b"\n" + lines(*GOOD) + b"\n\n",
        b"".join(b'{\n"id":\n"%s"\n,"label":"positive"}\n' % uid.encode() for uid in UIDS),
    ],
    ids=["other order", "indented", "indented CRLF", "indented lists", "lists", "BOM and blank lines", "odd breaks"],
)
def test_predictions_may_be_printed_in_other_ways(content):
    assert predictions(content) == {record["id"]: record for record in GOOD}


def test_indented_predictions_with_brackets_in_their_texts_are_read():
    answers = {"e1": '}{ "[', "e2": "\\", "e3": '{\\"'}
    content = "\n".join(json.dumps({"id": uid, "answer": text}, indent=1) for uid, text in answers.items()).encode()

    found = predictions(content, task_format=FREE)

    assert {uid: record["answer"] for uid, record in found.items()} == answers


def test_colons_in_texts_are_no_repeated_keys():
    content = lines(*({"id": uid, "answer": '"a": 1, "a": 2'} for uid in UIDS))

    assert len(predictions(content, task_format=FREE)) == 3


def test_whole_number_ids_match_their_digits():
    assert predictions(lines({"id": 1, "label": "positive"}), expected=["1"])["1"]["id"] == "1"


def test_missing_and_unknown_ids_are_counted_and_the_first_named():
    content = lines(GOOD[1], {"id": "x8", "label": "positive"}, {"id": "x9", "label": "positive"})

    with pytest.raises(PredictionsError, match=r"2 missing \(first: e1\), 2 unknown \(first: x8\)") as refusal:
        predictions(content)

    assert "Answer each example once" in str(refusal.value)


def test_no_predictions_at_all_are_all_missing():
    with pytest.raises(PredictionsError, match=r"3 missing \(first: e1\)"):
        predictions(b"")


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (b'{"id":"e2","label":NaN}', "json"),
        (b'{"id":"e2","label":"positive","prob":{"negative":NaN,"positive":1}}', "json"),
        (b'{"id":"e2","label":"positive","prob":{"negative":-Infinity,"positive":1}}', "json"),
        (b'{"id":"e2","label":"positive","prob":{"negative":1e999,"positive":1}}', "json"),
        (b'{"id":' + b"9" * 5000 + b',"label":"positive"}', "json"),
        (b'{"id":' + b"9" * 4000 + b',"label":"positive"}', "field"),
        (b'{"id":"\\ud800","label":"positive"}', "json"),
        (b'{"id":"\xff","label":"positive"}', "json"),
        (b'{"id":"e2\x00","label":"positive"}', "json"),
        (b'{"id":"e2\\u0000","label":"positive"}', "field"),
        (b'{"id":"e2","id":"e2","label":"positive"}', "duplicate_key"),
        (b'{"id":"e2","label":"negative","label" :"positive"}', "duplicate_key"),
        (b'{"id":"e2","label":"positive","prob":{"negative":1,"negative":0,"positive":1}}', "duplicate_key"),
        (b'{"id":"e2","label":"positive","signed":' + b"[" * 5000 + b"]" * 5000 + b"}", "depth"),
        (b'{"id":"e2","label":"positive","signed":[[1]]}', "field"),
        (b'{"id":"e2","label":"maybe"}', "field"),
        (b'{"id":"e2","label":"positive","other":1}', "field"),
        (b'{"id":"e2"}', "field"),
        (b'{"label":"positive"}', "field"),
        (b'{"id":"e1","label":"positive"}', "duplicate_id"),
        (b'{"id":"e2","label":"positive"}{"id":"e9","label":"positive"}', "json"),
        (b'[{"id":"e2","label":"positive"},{"id":"e9","label":"positive"}]', "json"),
        (b"[]", "json"),
        (b'["e2"]', "json"),
        (b'"e2"', "json"),
        (b"null", "json"),
        (b"}", "json"),
        (b'{"id":"e2,"label":"positive"}', "json"),
        (b"{'id':'e2','label':'positive'}", "json"),
        (b'{"id":"e2","label":"positive",}', "json"),
        (b"Traceback (most recent call last):", "json"),
    ],
)
def test_a_bad_line_is_refused_with_its_number_and_rule_and_the_next_is_read(line, rule):
    assert rules(lines(GOOD[0]) + line + b"\n" + lines(GOOD[2])) == [(2, rule)]


def test_a_nan_is_explained():
    with pytest.raises(PredictionsError, match="NaN and Infinity are no JSON numbers"):
        predictions(b'{"id":"e1","label":NaN}\n')


def test_an_object_that_is_never_closed_is_reported_where_it_starts():
    assert rules(lines(GOOD[0]) + b'{"id":"e2",\n"label":"positive"\n' + lines(GOOD[2])) == [(2, "json")]


@pytest.mark.parametrize("filler", [b"x" * MAX_LINE_BYTES, b'",\n"' * MAX_LINE_BYTES])
def test_an_object_that_is_too_big_ends_the_reading(filler):
    content = lines(GOOD[0]) + b'{"id":"' + filler + b'"}\n' + lines(GOOD[2])

    found = rules(content)

    assert found[0][0] == 2
    assert found[-1][1] in ("too_big", "json")


def test_an_indented_object_that_is_too_big_ends_the_reading():
    content = b"{\n" + b'"a": [\n' * MAX_LINE_BYTES + lines(*GOOD)

    assert rules(content) == [(1, "too_big")]


def test_the_error_of_a_handler_is_quoted_with_its_example():
    content = lines(GOOD[0], {"id": "e2", "dynabench_error": "Traceback ...\nKeyError: 'statement'"}, GOOD[2])

    with pytest.raises(PredictionsError, match="example 'e2': Traceback ...\nKeyError: 'statement'$") as refusal:
        predictions(content)

    assert [(problem.line, problem.rule) for problem in refusal.value.problems] == [(2, "handler_error")]


def test_of_a_long_handler_error_the_end_is_kept():
    content = lines({"uid": "e1", "dynabench_error": "x" * 9000 + "ValueError: last"})

    with pytest.raises(PredictionsError) as refusal:
        predictions(content)

    assert str(refusal.value).endswith("ValueError: last")
    assert len(str(refusal.value)) < 1000


def test_the_first_twenty_problems_are_shown_and_all_are_counted():
    with pytest.raises(PredictionsError, match="25 of the model's answers cannot be used; the first 20:") as refusal:
        predictions(b"{}\n" * 25)

    assert refusal.value.count == 25
    assert len(refusal.value.problems) == 20


def test_hostile_quotes_take_no_longer_than_others():
    content = b'{"id":"' + b'\\"' * (MAX_LINE_BYTES // 2 - 50)

    started = time.perf_counter()

    assert rules(content) == [(1, "json")]
    assert time.perf_counter() - started < 2


@given(st.data())
def test_a_mutated_file_is_refused_or_gives_the_same_predictions(data):
    good = lines(*({**record, "prob": {"negative": 0.25, "positive": 0.75}} for record in GOOD))
    position = data.draw(st.integers(0, len(good) - 1))
    mutation = data.draw(st.binary(max_size=3))
    mutated = good[:position] + mutation + good[position + data.draw(st.integers(0, 2)) :]

    try:
        found = predictions(mutated)
    except PredictionsError as refusal:
        assert str(refusal)
    else:
        assert found.keys() == set(UIDS)
        assert all(FORMAT.check_prediction(record) == record for record in found.values())


def test_every_permutation_is_read_alike():
    rng = random.Random(7)
    expected = predictions(lines(*GOOD))

    for _ in range(20):
        assert predictions(lines(*rng.sample(GOOD, 3))) == expected
