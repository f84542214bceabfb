from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from builds.models import Build
from dynabench_site.clusters import ClusterHeartbeat
from evaluations.models import Inference
from evaluations.progress import waiting_for
from submissions.models import Submission
from tasks_catalog.models import BuildConfig, Dataset, EvalServer, Task
from tests.conftest import in_cluster, make_built, make_predictions, make_scores

MINE = "/api/v1/submissions/"
FIELDS = ["id", "task", "name", "status", "waiting_for", "error", "is_published", "scores", "created_at"]
ACTIONS = ["publish", "unpublish", "cancel", "retry"]
BOARD = "/api/v1/tasks/sentiment/leaderboard/"
ANSWERS = {"1": "positive", "2": "negative", "3": "neutral", "4": "neutral"}


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
    assert found["scores"]["tweets"].keys() == {
        "macro_f1",
        "accuracy",
        "examples_per_second",
        "memory_utilization",
    }
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
        with CaptureQueriesContext(
            connection,
        ) as captured:
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


@pytest.mark.parametrize("weight", ["-1", "nan", "inf", "many", "", "1e7", "0x1", "٣٣٣٣٣٣٣٣"])
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
def test_a_hidden_tasks_board_is_hidden(who, status, evaluated, people, client):
    Task.objects.update(is_hidden=True)
    people(who)

    assert client.get(BOARD).status_code == status


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


def seen_last(name, *, minutes=0):
    return ClusterHeartbeat.objects.create(
        name=name, host="h", pid=1, last_seen=timezone.now() - timedelta(minutes=minutes)
    )


def test_an_upload_waits_for_the_build_server_that_was_never_started(submission):
    assert waiting_for(submission) == "the build server, which is not running (never seen)"


def test_an_upload_waits_for_the_build_server_that_is_away(submission):
    beat = seen_last("build", minutes=14)

    text = waiting_for(submission)

    assert text == f"the build server, which is not running (last seen {beat.last_seen:%Y-%m-%d %H:%M} UTC)"


def test_an_upload_waits_for_its_turn(submission, user, task):
    for number in range(2):
        Build.wanted(Submission.objects.create(owner=user, task=task, name=f"m{number}", status="uploaded"))
    mine = Build.wanted(submission)
    seen_last("build")

    assert waiting_for(submission) == "its turn (2 jobs before it)"
    Build.objects.exclude(pk=mine.pk).first().delete()
    assert waiting_for(submission) == "its turn (1 job before it)"


def test_a_build_that_stepped_back_says_what_it_waits_for(submission):
    with in_cluster("build"):
        build = Build.wanted(submission)
        assert build.claim()
        build.wait("no sandbox on this host", 60)

    assert waiting_for(submission) == "no sandbox on this host"

    Build.objects.update(not_before=timezone.now() - timedelta(seconds=1))
    assert waiting_for(submission).startswith("the build server, which is not running (last seen ")


def test_an_evaluation_waits_for_its_own_eval_server(submission, dataset, task):
    BuildConfig.objects.update(eval_server=EvalServer.objects.get(name="flores101"))
    seen_last("default")
    build = make_built(submission)
    submission = Submission.objects.get(pk=submission.pk)

    before = waiting_for(submission)
    Inference.objects.create(submission=submission, build=build, dataset=dataset, cluster="flores101")

    assert before == waiting_for(submission) == "eval server flores101, which is not running (never seen)"
    seen_last("flores101")
    assert waiting_for(submission) == "its turn (0 jobs before it)"


def test_several_datasets_that_wait_for_the_same_say_it_once(submission, dataset, task):
    build = make_built(submission)
    for number in range(3):
        Inference.objects.create(
            submission=submission,
            build=build,
            dataset=dataset,
            cluster="default",
            fingerprint=str(number),
            waiting_for="the instance quota",
            not_before=timezone.now() + timedelta(minutes=5),
        )

    assert waiting_for(submission) == "the instance quota"


def test_what_is_worked_on_waits_for_nothing(submission):
    with in_cluster("build"):
        assert Build.wanted(submission).claim()
        submission.advance(Submission.Status.BUILDING)

        assert waiting_for(submission) == ""


@pytest.mark.parametrize("status", ["receiving", "evaluated", "failed", "dead", "cancelled", "taken_down"])
def test_what_has_ended_waits_for_nothing(status, submission, django_assert_num_queries):
    submission.status = status

    with django_assert_num_queries(0):
        assert waiting_for(submission) == ""


def test_two_models_are_ranked_by_what_the_reader_values(evaluated, other_user, task, dataset, client):
    better = Submission.objects.create(owner=other_user, task=task, name="better")
    better.advance(Submission.Status.UPLOADED)
    make_scores(make_predictions(make_built(better), dataset, ANSWERS | {"4": "positive"}))
    better.advance(Submission.Status.EVALUATED, is_published=True)

    rows = client.get(BOARD).json()["rows"]

    assert [(row["rank"], row["name"]) for row in rows] == [(1, "better"), (2, "model-a")]
