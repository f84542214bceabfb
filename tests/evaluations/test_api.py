from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from builds.models import Build
from submissions.models import Submission
from tasks_catalog.models import BuildConfig, Dataset, Task
from tests.conftest import in_cluster

MINE = "/api/v1/submissions/"
FIELDS = ["id", "task", "name", "status", "waiting_for", "error", "is_published", "scores", "created_at"]
ACTIONS = ["publish", "unpublish", "cancel", "retry"]
BOARD = "/api/v1/tasks/sentiment/leaderboard/"


def address(submission, action=""):
    return f"{MINE}{submission.pk}/" + (f"{action}/" if action else "")


def problem(response):
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["detail"]
    return response.status_code, response.json()["code"]


def test_a_submission_has_exactly_the_promised_fields(evaluated, user, client):
    client.force_login(user)

    found = client.get(address(evaluated)).json()

    assert list(found) == FIELDS
    assert (found["id"], found["task"], found["name"]) == (evaluated.pk, "sentiment", "model-a")
    assert (found["status"], found["waiting_for"], found["error"]) == ("evaluated", "", None)
    assert found["is_published"] is True
    assert found["scores"]["tweets"]["accuracy"] == 75.0
    assert found["scores"]["tweets"].keys() == {"macro_f1", "accuracy", "examples_per_second", "memory_utilization"}
    assert found["created_at"].endswith("Z")


def test_a_failed_submission_says_why(submission, user, client):
    submission.advance(Submission.Status.FAILED, error_code="no_handler", error_detail="handler.py is missing.")
    client.force_login(user)

    found = client.get(address(submission)).json()

    assert found["error"] == {"code": "no_handler", "detail": "handler.py is missing."}


def test_what_went_wrong_is_for_those_who_may_look_inside(evaluated, other_user, task, client):
    Submission.objects.update(error_code="bad_answer", error_detail="line 3 of my secret file")
    client.force_login(other_user)

    before = client.get(address(evaluated)).json()["error"]
    task.owners.add(other_user)

    assert before is None
    assert client.get(address(evaluated)).json()["error"]["code"] == "bad_answer"


def test_nothing_is_sent_again_until_something_changes(submission, user, client):
    client.force_login(user)
    tag = client.get(address(submission)).headers["ETag"]

    same = client.get(address(submission), headers={"If-None-Match": tag})
    submission.advance(Submission.Status.BUILDING)
    changed = client.get(address(submission), headers={"If-None-Match": tag})

    assert (same.status_code, same.content) == (304, b"")
    assert changed.status_code == 200
    assert changed.headers["ETag"] != tag


def test_my_submissions_are_mine_newest_first(submission, user, other_user, task, client):
    newer = Submission.objects.create(owner=user, task=task, name="newer")
    Submission.objects.create(owner=other_user, task=task, name="theirs")
    client.force_login(user)

    found = client.get(MINE).json()

    assert found["count"] == 2
    assert [row["id"] for row in found["results"]] == [newer.pk, submission.pk]
    assert list(found["results"][0]) == FIELDS


def test_my_submissions_are_filtered_and_paged(submission, user, task, client):
    other = BuildConfig.objects.create(task=Task.objects.create(code="nli", name="NLI")).task
    for code in (task, other):
        Submission.objects.create(owner=user, task=code, name="model-b")
    client.force_login(user)

    def names(**query):
        return [(row["task"], row["name"]) for row in client.get(MINE, query).json()["results"]]

    assert names(task="nli") == [("nli", "model-b")]
    assert names(name="model-b") == [("nli", "model-b"), ("sentiment", "model-b")]
    assert names(task="sentiment", name="model-a") == [("sentiment", "model-a")]
    assert names(task="nothing") == []
    assert names(limit=1, offset=1) == [("sentiment", "model-b")]


def test_a_list_takes_the_same_few_queries_whatever_its_length(evaluated, user, task, client):
    client.force_login(user)

    def queries():
        with CaptureQueriesContext(connection) as captured:
            client.get(MINE)
        return len(captured)

    one = queries()
    for number in range(5):
        Submission.objects.create(owner=user, task=task, name=f"m{number}", status="failed", error_code="x")

    assert queries() == one


def test_scores_on_hidden_datasets_are_for_staff_and_task_owners(evaluated, user, other_user, staff, task, client):
    Dataset.objects.update(access_type=Dataset.Access.HIDDEN)

    def scores(viewer):
        client.force_login(viewer)
        return client.get(address(evaluated)).json()["scores"]

    assert scores(user) == {}
    assert scores(staff)["tweets"]
    task.owners.add(other_user)
    assert scores(other_user)["tweets"]
    assert client.get(MINE).json()["results"] == []


@pytest.mark.parametrize(
    ("who", "published", "hidden", "status"),
    [
        ("owner", False, False, 200),
        ("staff", False, False, 200),
        ("task_owner", False, False, 200),
        ("stranger", False, False, 404),
        ("stranger", True, False, 200),
        ("stranger", True, True, 404),
        ("nobody", False, False, 401),
        ("nobody", True, False, 401),
    ],
)
def test_who_sees_a_submission(who, published, hidden, status, evaluated, people, task, client):
    Submission.objects.update(is_published=published)
    Task.objects.update(is_hidden=hidden)
    people(who)

    assert client.get(address(evaluated)).status_code == status


@pytest.fixture
def people(user, other_user, staff, task, client):
    """Sign one of them in."""

    def sign_in(who):
        if who == "task_owner":
            task.owners.add(other_user)
        if who != "nobody":
            client.force_login({"owner": user, "staff": staff}.get(who, other_user))

    return sign_in


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(("who", "status"), [("stranger", 404), ("task_owner", 404), ("nobody", 401)])
def test_who_may_not_change_a_submission(who, status, action, evaluated, people, client):
    people(who)

    assert client.post(address(evaluated, action)).status_code == status
    evaluated.refresh_from_db()
    assert (evaluated.is_published, evaluated.status, evaluated.cancel_requested) == (True, "evaluated", False)


@pytest.mark.parametrize("who", ["owner", "staff"])
def test_its_owner_and_staff_hide_and_show_it(who, evaluated, people, client):
    people(who)

    hidden = client.post(address(evaluated, "unpublish"))
    shown = client.post(address(evaluated, "publish"))

    assert (hidden.status_code, hidden.json()["is_published"]) == (200, False)
    assert (shown.status_code, shown.json()["is_published"]) == (200, True)


@pytest.mark.parametrize("who", ["owner", "staff"])
def test_its_owner_and_staff_cancel_it(who, submission, people, client):
    people(who)

    assert client.post(address(submission, "cancel")).status_code == 200

    submission.refresh_from_db()
    assert submission.cancel_requested
    assert problem(client.post(address(submission, "cancel"))) == (409, "not_cancellable")


@pytest.mark.parametrize("who", ["owner", "staff"])
def test_its_owner_and_staff_retry_it(who, submission, people, client):
    with in_cluster("build"):
        build = Build.wanted(submission)
        assert build.claim()
        build.advance(Build.Status.FAILED, error_code="x", error_detail="y")
    submission.advance(Submission.Status.FAILED, error_code="x", error_detail="y")
    people(who)

    answer = client.post(address(submission, "retry"))

    assert (answer.status_code, answer.json()["status"], answer.json()["error"]) == (200, "building", None)


@pytest.mark.parametrize("status", Submission.Status.values[1:])
@pytest.mark.parametrize("action", ACTIONS)
def test_no_action_breaks_in_any_state(action, status, evaluated, user, client):
    Build.objects.update(status="failed")
    Submission.objects.update(status=status)
    client.force_login(user)

    assert client.post(address(evaluated, action)).status_code in {200, 409}


def test_a_model_without_all_scores_is_not_published(submission, dataset, user, client):
    client.force_login(user)

    answer = client.post(address(submission, "publish"))

    assert problem(answer) == (409, "scores_missing")
    assert "tweets" in answer.json()["detail"]


def test_a_page_of_another_site_can_do_nothing_with_a_session(evaluated, user, client):
    client.handler.enforce_csrf_checks = True
    client.force_login(user)

    assert problem(client.post(address(evaluated, "unpublish")))[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        f"{MINE}999999/",
        f"{MINE}{10**30}/",
        f"{MINE}-1/",
        f"{MINE}x/",
        f"{MINE}1/delete/",
        "/api/v1/tasks/nothing/leaderboard/",
        "/api/v1/tasks/%00/leaderboard/",
        "/api/v1/tasks/../leaderboard/",
        "/api/",
        "/api/v2/submissions/",
    ],
)
def test_what_is_not_there_is_a_problem(path, staff, client):
    client.force_login(staff)

    assert problem(client.get(path)) == (404, "not_found")


@pytest.mark.parametrize("method", ["put", "patch", "delete"])
def test_wrong_methods_are_problems(method, submission, staff, client):
    client.force_login(staff)

    for path in (MINE, address(submission), address(submission, "publish"), BOARD):
        assert problem(getattr(client, method)(path)) == (405, "method_not_allowed")
    assert problem(client.get(address(submission, "publish"))) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    "query", ["limit=1e9", "limit=-1", f"limit={10**30}", f"offset={10**30}", "offset=x", "task=%00"]
)
def test_nonsense_in_the_query_of_a_list_changes_nothing_worse(query, submission, user, client):
    client.force_login(user)

    assert client.get(f"{MINE}?{query}").status_code == 200


class Fuzz(TestCase):
    """Whatever a stranger writes in an address, the answer is never our failure."""

    @settings(max_examples=60, deadline=None)
    @given(key=st.text(max_size=20), value=st.text(max_size=30), code=st.text(max_size=20))
    def test_no_text_breaks_the_public_addresses(self, key, value, code):
        given = {key: value, "api_token": value, f"m.{key}": value, f"d.{key}": value}
        for path in (BOARD, "/tasks", "/tasks/submitable", "/authenticate/refresh_from_api"):
            assert self.client.get(path, given).status_code < 500
        assert self.client.get("/api/v1/tasks/" + code.replace("/", "") + "/leaderboard/").status_code < 500
