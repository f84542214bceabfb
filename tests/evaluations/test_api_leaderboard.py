from __future__ import annotations

import pytest

from submissions.models import Submission
from tasks_catalog.models import Dataset, Task
from tests.conftest import make_built, make_predictions, make_scores

BOARD = "/api/v1/tasks/sentiment/leaderboard/"


def problem(response):
    assert response.headers["Content-Type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


def test_the_board_ranks_for_everybody(evaluated, client):
    found = client.get(BOARD).json()

    assert found.keys() == {"columns", "datasets", "rows", "lacking"}
    assert found["datasets"] == [{"name": "tweets", "weight": 5.0, "examples": 4}]
    assert [column["name"] for column in found["columns"]][0] == "macro_f1"
    (row,) = found["rows"]
    assert row.keys() == {"rank", "id", "name", "owner", "score", "averages", "scores"}
    assert (row["rank"], row["id"], row["name"], row["owner"]) == (1, evaluated.pk, "model-a", "ada")
    assert row["averages"]["accuracy"] == row["scores"]["tweets"]["accuracy"] == 75.0
    assert found["lacking"] == []


def test_the_reader_chooses_the_weights(evaluated, client):
    found = client.get(BOARD, {"m.accuracy": "4", "m.macro_f1": "0", "d.tweets": "2.5"}).json()

    shares = {column["name"]: column["weight"] for column in found["columns"]}
    assert (shares["accuracy"], shares["macro_f1"]) == (4, 0)
    assert found["datasets"][0]["weight"] == 2.5


def test_the_same_address_gives_the_same_bytes(evaluated, client):
    first, second = client.get(BOARD, {"m.accuracy": 3}), client.get(BOARD, {"m.accuracy": 3})

    assert first.content == second.content
    assert client.get(BOARD, {"m.accuracy": 3}, headers={"If-None-Match": first.headers["ETag"]}).status_code == 304


@pytest.mark.parametrize("weight", ["-1", "nan", "inf", "many", "", "1e7", "1e99", "0x1", "٣٣٣٣٣٣٣٣"])
def test_a_weight_that_is_no_weight_is_refused(weight, evaluated, client):
    assert problem(client.get(BOARD, {"m.accuracy": weight})) == (400, "bad_weight")


def test_a_model_that_lacks_scores_is_listed_below_with_what_it_lacks(evaluated, dataset, client):
    Dataset.objects.create(task=dataset.task, name="news")

    found = client.get(BOARD).json()

    assert found["rows"] == []
    assert found["lacking"] == [{"id": evaluated.pk, "name": "model-a", "owner": "ada", "missing": ["news"]}]


def test_competitors_stay_anonymous(evaluated, task, client):
    Submission.objects.update(is_published=False)
    Task.objects.update(unpublished_models_in_leaderboard=True)

    text = client.get(BOARD).content.decode()

    (row,) = client.get(BOARD).json()["rows"]
    assert (row["id"], row["name"], row["owner"]) == (None, None, None)
    assert "model-a" not in text
    assert "ada" not in text


@pytest.mark.parametrize(("who", "status"), [("nobody", 404), ("stranger", 404), ("task_owner", 200), ("staff", 200)])
def test_a_hidden_tasks_board_is_hidden(who, status, evaluated, other_user, staff, task, client):
    Task.objects.update(is_hidden=True)
    if who == "task_owner":
        task.owners.add(other_user)
    if who != "nobody":
        client.force_login(staff if who == "staff" else other_user)

    assert client.get(BOARD).status_code == status


def test_two_models_are_ranked_by_what_the_reader_values(evaluated, other_user, task, dataset, client):
    better = Submission.objects.create(owner=other_user, task=task, name="better")
    better.advance(Submission.Status.UPLOADED)
    make_scores(
        make_predictions(
            make_built(better), dataset, {"1": "positive", "2": "negative", "3": "neutral", "4": "positive"}
        )
    )
    better.advance(Submission.Status.EVALUATED, is_published=True)

    rows = client.get(BOARD).json()["rows"]

    assert [(row["rank"], row["name"]) for row in rows] == [(1, "better"), (2, "model-a")]
