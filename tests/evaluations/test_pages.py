"""The pages: what each shows, to whom, and what a click does."""

from __future__ import annotations

import re

import pytest
from django.core import mail
from django.urls import reverse

from builds import services as build_services
from builds.models import Build, BuildStep
from dynabench_site import outbox
from dynabench_site.jobs import JobFailed
from evaluations.models import CurrentScores, Inference, Scoring
from submissions.models import ApiToken, Submission
from tasks_catalog.models import Dataset, Task
from tests.conftest import EXAMPLES, in_cluster, make_built, make_predictions, make_scores

RIGHT = {example["uid"]: example["label"] for example in EXAMPLES}
TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "/home/model-server/code/handler.py", line 31, in postprocess\n'
    "    return names[index]\n"
    '  File "/usr/lib/python3.11/json/decoder.py", line 3, in get\n'
    "KeyError: 'neutrall'\n"
)


def text_of(response) -> str:
    """What a reader sees, in one line."""
    html = re.sub(r"<(script|style).*?</\1>", " ", response.content.decode(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def make_evaluated(owner, dataset, name, answers=RIGHT, *, published=True) -> Submission:
    submission = Submission.objects.create(owner=owner, task=dataset.task, name=name)
    submission.advance(Submission.Status.UPLOADED)
    make_scores(make_predictions(make_built(submission), dataset, answers))
    submission.advance(Submission.Status.EVALUATED)
    Submission.objects.filter(pk=submission.pk).update(is_published=published)
    submission.refresh_from_db()
    return submission


@pytest.fixture
def hidden_dataset(dataset, evaluated) -> Dataset:
    """A hidden dataset on which `evaluated` has a perfect score."""
    hidden = Dataset.objects.create(
        task=dataset.task, name="secret", access_type="hidden", examples=4, labels_sha256=dataset.labels_sha256
    )
    hidden.task.storage().save(hidden.labels_keys[0], hidden.task.storage().open(dataset.labels_keys[0]))
    make_scores(make_predictions(Build.newest(evaluated), hidden, RIGHT))
    return hidden


@pytest.fixture
def failed(submission) -> Submission:
    """Its build failed in the user's own handler."""
    with in_cluster("build"):
        build = Build.wanted(submission)
        assert build.claim()
        submission.advance(Submission.Status.BUILDING)
        BuildStep.objects.create(build=build, attempt=1, name="unpack", output="3 files\n", exit_code=0)
        BuildStep.objects.create(build=build, attempt=1, name="try one example", output=TRACEBACK, exit_code=1)
        build.fail(JobFailed("handler_failed", "The handler failed on one example."))
    build_services.settle(build)
    submission.refresh_from_db()
    return submission


def test_home_shows_each_task_with_its_best_model(client, evaluated, other_user, dataset):
    make_evaluated(other_user, dataset, "better")

    page = text_of(client.get("/"))

    assert "Sentiment" in page and "Say how it feels." in page
    assert "Models 2" in page and "better" in page and "open" in page


def test_home_without_tasks_says_who_adds_them(client, db):
    assert "Staff add tasks" in text_of(client.get("/"))


def test_a_hidden_task_is_there_for_owners_and_staff_only(client, user, other_user, staff, task):
    Task.objects.filter(pk=task.pk).update(is_hidden=True)
    task.owners.add(user)
    seen = {}
    for viewer in (None, other_user, user, staff):
        client.logout()
        if viewer:
            client.force_login(viewer)
        seen[str(viewer)] = (client.get("/tasks/sentiment/").status_code, "Sentiment" in text_of(client.get("/")))

    assert seen == {"None": (404, False), "bob": (404, False), "ada": (200, True), "staff": (200, True)}


def test_the_task_page_tells_how_to_submit_with_its_own_code(client, task):
    page = client.get("/tasks/sentiment/").content.decode()

    assert "dynalab-cli init -n my-model -t sentiment" in page
    assert "taskCode=sentiment" in page and "/models/upload/s3" in page


def test_the_weights_of_the_address_decide_the_order(client, evaluated, other_user, dataset):
    better = make_evaluated(other_user, dataset, "better")
    Inference.objects.filter(submission=better).update(seconds=500)
    speed = CurrentScores.objects.get(submission=better).scoring.scores.get(metric="examples_per_second")
    speed.value = 0.008
    speed.save()

    by_quality = text_of(client.get("/tasks/sentiment/"))
    by_speed = text_of(client.get("/tasks/sentiment/?m.macro_f1=0&m.examples_per_second=1&m.memory_utilization=0"))

    assert by_quality.index("better") < by_quality.index("model-a")
    assert by_speed.index("model-a") < by_speed.index("better")


def test_the_same_address_gives_the_same_page_byte_for_byte(client, evaluated, other_user, dataset):
    make_evaluated(other_user, dataset, "better")
    address = "/tasks/sentiment/?m.macro_f1=1&d.tweets=3"

    assert client.get(address).content == client.get(address).content


def test_a_weight_that_is_no_number_is_named_and_the_tasks_own_weights_are_used(client, evaluated):
    response = client.get("/tasks/sentiment/?m.macro_f1=much")

    assert response.status_code == 400
    assert "m.macro_f1 is" in text_of(response) and "model-a" in text_of(response)


def test_a_model_that_lacks_a_score_is_listed_below_with_what_it_lacks(client, evaluated, task):
    Dataset.objects.create(task=task, name="nyt", examples=4)

    assert "model-a has no score on nyt" in text_of(client.get("/tasks/sentiment/"))


def test_an_unpublished_model_of_a_competition_has_no_name(client, user, other_user, dataset):
    Task.objects.update(unpublished_models_in_leaderboard=True)
    make_evaluated(other_user, dataset, "secret-model", published=False)

    for_strangers = text_of(client.get("/tasks/sentiment/"))
    client.force_login(other_user)

    assert "secret-model" not in for_strangers and "bob" not in for_strangers and "anonymous" in for_strangers
    assert "secret-model" in text_of(client.get("/tasks/sentiment/"))


def test_who_may_see_an_unpublished_model(client, user, other_user, staff, submission):
    submission.task.owners.add(owner := type(user).objects.create_user("owner"))
    seen = {}
    for viewer in (None, other_user, owner, user, staff):
        client.logout()
        if viewer:
            client.force_login(viewer)
        codes = [client.get(f"/models/{submission.pk}/{tail}").status_code for tail in ("", "log")]
        seen[str(viewer)] = codes

    assert seen == {k: [404, 404] for k in ("None", "bob")} | {k: [200, 200] for k in ("owner", "ada", "staff")}


def test_a_published_model_shows_scores_and_what_they_were_made_from(client, evaluated):
    page = client.get(f"/models/{evaluated.pk}/")

    assert "Ranked 1 of 1" in text_of(page) and "75.00" in text_of(page)
    predictions_sha256 = Inference.objects.get().predictions_sha256
    assert predictions_sha256 in page.content.decode() and "sha256:" + "1" * 64 in page.content.decode()
    assert "macro_f1 v1" in text_of(page) and "short" in text_of(page)


def test_strangers_see_no_build_output_of_a_published_model(client, evaluated, other_user):
    BuildStep.objects.create(build=Build.newest(evaluated), attempt=1, name="install", output="a secret", exit_code=0)
    client.force_login(other_user)

    assert "a secret" not in text_of(client.get(f"/models/{evaluated.pk}/"))
    assert client.get(f"/models/{evaluated.pk}/log").status_code == 404


def test_scores_on_a_hidden_dataset_are_for_staff_and_the_tasks_owners(
    client, user, other_user, staff, hidden_dataset, evaluated
):
    evaluated.task.owners.add(other_user)
    seen = {}
    for viewer in (None, user, other_user, staff):
        client.logout()
        if viewer:
            client.force_login(viewer)
        model = "secret" in text_of(client.get(f"/models/{evaluated.pk}/"))
        dataset = "100.00" in text_of(client.get("/tasks/sentiment/datasets/secret/"))
        seen[str(viewer)] = (model, dataset)

    assert seen == {"None": (False, False), "ada": (False, False), "bob": (True, True), "staff": (True, True)}


def test_a_dataset_page_shows_who_scored_and_never_an_example(client, evaluated, dataset):
    page = text_of(client.get("/tasks/sentiment/datasets/tweets/"))

    assert "model-a" in page and "Examples 4" in page and "short 2 examples" in page
    assert all(example["statement"] not in page for example in EXAMPLES)
    assert dataset.inputs_sha256 in client.get("/tasks/sentiment/datasets/tweets/").content.decode()


def test_an_unpublished_model_is_told_the_place_it_would_take(client, user, other_user, evaluated, dataset):
    mine = make_evaluated(other_user, dataset, "better", published=False)
    client.force_login(other_user)

    assert "If published it would rank 1 of 2" in text_of(client.get(f"/models/{mine.pk}/"))


def test_a_failed_model_says_whose_fault_it_is_and_leads_to_the_line(client, user, failed):
    client.force_login(user)

    page = text_of(client.get(f"/models/{failed.pk}/"))
    log = client.get(f"/models/{failed.pk}/log").content.decode()

    assert "The model failed." in page and "handler_failed" in page and "exit code 1" in page
    assert "Go to the error (line 6)" in log
    assert '<p id="L6" class="output"><a href="#L6" aria-label="Line 6">6</a><code>  File &quot;/home/model-' in log


def test_the_log_is_also_plain_text(client, user, failed):
    client.force_login(user)

    response = client.get(f"/models/{failed.pk}/log?raw=1")

    assert response["Content-Type"].startswith("text/plain")
    assert response.content.decode().splitlines()[5] == TRACEBACK.splitlines()[1]


@pytest.mark.parametrize("query", ["run=9", "run=x", "run=99999999999999999999", "raw=1&run=2"])
def test_a_log_that_does_not_exist_is_empty(client, user, failed, query):
    client.force_login(user)

    assert client.get(f"/models/{failed.pk}/log?{query}").status_code == 200


def test_a_model_that_is_not_done_says_what_it_waits_for(client, user, submission, dataset):
    build = make_built(submission)
    inference = Inference.objects.create(
        submission=submission, build=build, dataset=dataset, cluster="default", fingerprint="f"
    )
    client.force_login(user)

    page = client.get(f"/models/{submission.pk}/")
    mine = text_of(client.get("/submissions/"))

    assert inference.status == "queued" and "eval server default" in text_of(page) and "in the queue" in text_of(page)
    assert f'data-live="/api/v1/submissions/{submission.pk}/"' in page.content.decode()
    assert "waiting for eval server default, which is not running" in mine


def test_a_failed_scoring_is_told_at_its_dataset(client, user, submission, dataset):
    inference = make_predictions(make_built(submission), dataset, RIGHT)
    Scoring.objects.create(
        submission=submission,
        inference=inference,
        dataset=dataset,
        cluster="default",
        fingerprint="f",
        status="dead",
        error_detail="The labels are gone.",
    )
    client.force_login(user)

    assert "scores: The labels are gone." in text_of(client.get(f"/models/{submission.pk}/"))


@pytest.mark.parametrize("action", ["publish", "unpublish"])
def test_an_owner_publishes_and_unpublishes(client, user, evaluated, action):
    Submission.objects.filter(pk=evaluated.pk).update(is_published=action == "unpublish")
    client.force_login(user)

    response = client.post(f"/models/{evaluated.pk}/{action}/", follow=True)

    evaluated.refresh_from_db()
    assert evaluated.is_published == (action == "publish")
    assert "ublished:" in text_of(response)


def test_a_refusal_is_said_on_the_page(client, user, submission, dataset):
    client.force_login(user)

    response = client.post(f"/models/{submission.pk}/publish/", follow=True)

    assert "no score on tweets" in text_of(response)


def test_cancel_and_retry_from_the_page(client, user, submission, failed):
    client.force_login(user)

    retried = client.post(f"/models/{failed.pk}/retry/", follow=True)
    cancelled = client.post(f"/models/{failed.pk}/cancel/", follow=True)

    failed.refresh_from_db()
    assert "Trying again." in text_of(retried) and "Cancelling" in text_of(cancelled)
    assert failed.cancel_requested


@pytest.mark.parametrize("action", ["publish", "unpublish", "cancel", "retry"])
def test_only_the_owner_and_staff_may_act(client, other_user, staff, evaluated, action):
    address = f"/models/{evaluated.pk}/{action}/"
    anonymous = client.post(address)
    client.force_login(other_user)
    stranger, got = client.post(address), client.get(address)
    client.force_login(staff)

    assert anonymous.url.startswith("/accounts/login/")
    assert (stranger.status_code, got.status_code, client.post(address).status_code) == (404, 405, 302)


def test_my_models_when_there_are_none_tells_what_to_do(client, user, task):
    client.force_login(user)

    page = text_of(client.get("/submissions/"))

    assert "You have not sent a model yet." in page and "3 of 3 slots left" in page


def test_my_models_shows_mine_with_status_reason_and_slots(client, user, other_user, failed, dataset):
    make_evaluated(other_user, dataset, "not-mine")
    client.force_login(user)

    page = text_of(client.get("/submissions/"))

    assert "model-a" in page and "failed" in page and "The handler failed on one example." in page
    assert "2 of 3 slots left" in page and "not-mine" not in page


def test_a_model_that_died_through_our_fault_takes_no_slot(client, user, task):
    for name in ("a", "b", "c"):
        Submission.objects.create(owner=user, task=task, name=name, status="dead" if name == "a" else "failed")
    client.force_login(user)

    assert "1 of 3 slots left" in text_of(client.get("/submissions/"))


def test_a_token_is_shown_once(client, user):
    client.force_login(user)

    made = client.post("/generate_api_token", {"name": "laptop", "days": "30"})
    secret = re.search(r"\b[0-9a-f]{64}\b", text_of(made)).group()
    again = client.get("/generate_api_token")

    row = ApiToken.objects.get(user=user)
    assert row.digest == ApiToken.hash(secret) and row.name == "laptop" and row.expires_at
    assert secret not in again.content.decode() and row.digest not in again.content.decode()
    assert "laptop" in text_of(again) and "no-store" in made["Cache-Control"]


def test_a_token_needs_no_name_and_a_bad_length_is_refused_at_its_field(client, user):
    client.force_login(user)
    client.post("/generate_api_token")
    refused = client.post("/generate_api_token", {"name": "x" * 61, "days": "7"})

    assert [(token.name, bool(token.expires_at)) for token in ApiToken.objects.all()] == [("my computer", True)]
    assert "at most 60 characters" in text_of(refused) and "7 is not one of the available choices" in text_of(refused)


def test_tokens_need_a_sign_in(client, db):
    assert client.get("/generate_api_token").url == "/accounts/login/?next=/generate_api_token"


def test_only_its_user_revokes_a_token(client, user, other_user):
    token, _ = ApiToken.make(user=user, name="laptop")
    client.force_login(other_user)
    stranger = client.post(f"/generate_api_token/{token.pk}/revoke")
    client.force_login(user)
    client.post(f"/generate_api_token/{token.pk}/revoke")

    assert stranger.status_code == 404
    assert not ApiToken.objects.valid().exists()


def test_pages_that_do_not_exist_are_404_with_a_way_on(client, db):
    for address in ("/nowhere/", "/tasks/none/", "/models/99/", "/models/99/log", "/tasks/none/datasets/x/"):
        response = client.get(address)

        assert response.status_code == 404 and "All tasks" in text_of(response)


def test_our_own_error_has_a_page(client, evaluated, monkeypatch):
    client.raise_request_exception = False
    monkeypatch.setattr("evaluations.pages.boards", lambda tasks: 1 / 0)

    response = client.get("/")

    assert response.status_code == 500 and "on our side" in text_of(response)


def test_no_page_has_inline_script_or_style(client, user, failed, dataset):
    client.force_login(user)
    pages = ["/", "/tasks/sentiment/", f"/models/{failed.pk}/", f"/models/{failed.pk}/log", "/submissions/"]
    pages += ["/generate_api_token", "/tasks/sentiment/datasets/tweets/", "/accounts/password/change/", "/nowhere/"]

    for page in pages:
        html = client.get(page).content.decode()
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html), page


@pytest.mark.parametrize("name", ["account_login", "account_signup", "account_reset_password"])
def test_account_pages_wear_the_sites_dress(client, db, name):
    page = client.get(reverse(name)).content.decode()

    assert 'class="brand"' in page and 'class="panel"' in page


def test_a_page_costs_few_queries_however_many_models_there_are(
    client, other_user, user, dataset, evaluated, django_assert_max_num_queries
):
    for number in range(5):
        make_evaluated(other_user, dataset, f"model-{number}")
    pages = ["/", "/tasks/sentiment/", "/tasks/sentiment/datasets/tweets/", f"/models/{evaluated.pk}/"]
    for page in pages:
        with django_assert_max_num_queries(8):
            assert client.get(page).status_code == 200
    client.force_login(user)
    for page in [*pages[:3], "/submissions/", "/generate_api_token"]:
        with django_assert_max_num_queries(8):
            assert client.get(page).status_code == 200
    with django_assert_max_num_queries(10):  # the owner's own: session, user and build steps come on top
        assert client.get(pages[3]).status_code == 200


def test_the_failure_mail_leads_to_the_line_of_the_senders_file(failed, client, user):
    with in_cluster("build"):
        outbox.send_due()

    message = mail.outbox[-1]
    assert message.subject == "model-a could not be built"
    assert "because of something in it" in message.body and "KeyError: 'neutrall'" in message.body
    assert f"/models/{failed.pk}/log?run=1#L6" in message.body
    assert f"/models/{failed.pk}/log?run=1#L6" in message.alternatives[0][0]


@pytest.mark.parametrize(
    "name", ["build_succeeded", "build_dead", "evaluation_evaluated", "evaluation_failed", "evaluation_dead"]
)
def test_every_mail_has_a_subject_and_leads_to_the_model(submission, name):
    build = Build.wanted(submission)
    build.error_detail = submission.error_detail = "It's <gone>."
    context = {"submission": submission, "build": build, "step": None}
    outbox.write_mail(name, to=submission.owner, key=name, context=context)

    row = outbox.OutboxMail.objects.get()
    assert row.subject.startswith("model-a ") and "\n\n\n" not in row.text
    assert f"/models/{submission.pk}/" in row.text and f"/models/{submission.pk}/" in row.html
    assert ("our fault" in row.text) == name.endswith("dead")
    assert ("It's <gone>." in row.text) == name.endswith(("dead", "failed"))
    assert "<gone>" not in row.html
