from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from evaluations.datasets import Flores
from tasks_catalog import demo_data, formats
from tasks_catalog.demo_data import TASKS, DemoDataError, nli_dataset, sentiment_datasets
from tasks_catalog.demo_flores import flores_dataset

NOWHERE = "http://127.0.0.1:9/simple"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def rated(cache) -> dict[str, list[dict]]:
    try:
        return sentiment_datasets(cache, index_url=os.environ.get("DYNABENCH_INDEX_URL", ""))
    except DemoDataError as missing:
        if os.environ.get("DYNABENCH_TEST_REQUIRE") == "all":
            raise
        pytest.skip(str(missing))


def test_the_four_rated_sets_have_the_labels_of_their_ratings(rated):
    labels = {name: Counter(record["label"] for record in records) for name, records in rated.items()}

    assert labels == {
        "tweets": {"positive": 2646, "negative": 1195, "neutral": 359},
        "movies": {"positive": 5157, "negative": 5245, "neutral": 203},
        "amazon": {"positive": 1905, "negative": 1336, "neutral": 467},
        "nyt": {"positive": 1641, "negative": 2260, "neutral": 1289},
    }


def test_every_rated_sentence_has_its_own_uid_and_a_text(rated):
    records = [record for records in rated.values() for record in records]

    assert len({record["uid"] for record in records}) == len(records) == 23_703
    assert all(record["statement"].strip() for record in records)


def test_a_second_call_needs_no_network(rated, cache):
    assert sentiment_datasets(cache, index_url=NOWHERE) == rated


@pytest.fixture
def no_other_index(monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for option in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(option, raising=False)


def test_a_failed_fetch_says_why_and_what_to_do(tmp_path, no_other_index):
    with pytest.raises(DemoDataError) as failure:
        sentiment_datasets(tmp_path, index_url=NOWHERE)

    assert "could not be fetched (pip: " in str(failure.value)
    assert f"put {demo_data.SDIST} (sha256 {demo_data.SDIST_SHA256}) into {tmp_path} yourself" in str(failure.value)


def test_a_damaged_file_in_the_cache_is_not_used(tmp_path, no_other_index):
    (tmp_path / demo_data.SDIST).write_bytes(b"not the archive")

    with pytest.raises(DemoDataError):
        sentiment_datasets(tmp_path, index_url=NOWHERE)


@pytest.mark.parametrize(
    ("statement", "tags"),
    [
        ("Good phone.", ["short"]),
        ("I can't recommend it.", ["short", "negation"]),
        ("One word " * 5, ["medium"]),
        ("Nothing " + "happens " * 25, ["long", "negation"]),
        ("A notable knot.", ["short"]),
    ],
)
def test_tags_say_how_long_a_sentence_is_and_whether_it_negates(statement, tags):
    assert demo_data._tags(statement) == tags


@pytest.mark.parametrize(
    ("valence", "label"), [(0.2, "neutral"), (0.21, "positive"), (-0.2, "neutral"), (-0.21, "negative")]
)
def test_a_mean_of_exactly_the_threshold_is_neutral(valence, label):
    assert demo_data._label(valence) == label


def test_the_nli_set_is_balanced_and_its_uids_do_not_tell_the_label():
    records = nli_dataset()

    assert Counter(record["label"] for record in records) == dict.fromkeys(("entailed", "neutral", "contradictory"), 30)
    assert [record["uid"] for record in records] == [f"nli-{number:03d}" for number in range(1, 91)]
    assert all(record["tags"] for record in records)


def test_the_flores_set_has_eight_sentences_in_each_of_thirty_directions():
    records = flores_dataset()

    directions = Counter((record["sourceLanguage"], record["targetLanguage"]) for record in records)
    assert sorted({source for source, _ in directions}) == ["eng", "est", "hrv", "hun", "mkd", "srp"]
    assert (len(directions), set(directions.values())) == (30, {8})
    assert len({record["uid"] for record in records}) == 240


@pytest.mark.parametrize("code", TASKS)
def test_each_task_text_is_complete(code):
    task = TASKS[code]

    assert all(task[key] for key in ("name", "purpose", "description"))
    assert "MIT licence" in task["description"].split("\n\n")[1]


def test_every_record_fits_the_format_of_its_task(rated):
    sentiment, nli, flores = (formats.parse(TASKS[code]["io_yaml"]) for code in ("sentiment", "nli", "flores_small1"))

    assert all(sentiment.check_example(record) for records in rated.values() for record in records)
    assert all(nli.check_example(record) for record in nli_dataset())
    assert all(Flores.check_example(record, flores) for record in flores_dataset())
    assert sentiment.input_names == ("uid", "statement")
    assert nli.input_names == ("uid", "context", "hypothesis")
    assert flores.input_names == ("uid", "sourceLanguage", "targetLanguage", "sourceText")
