"""Asking a model one example: who may, what may be asked, and every way in which there is no answer."""

from __future__ import annotations

import json
import logging
import re
import shutil

import pytest
from django.test import Client

from builds import sandboxes
from builds.backends import ModelFault
from builds.backends.local import LocalDeployer
from builds.models import Build, Endpoint
from builds.sandboxes.folder import erase, image_folder
from dynabench_site.api import ApiError
from dynabench_site.faults import NotYet
from dynabench_site.jobs import JobStumbled
from evaluations import talking
from examples.pack import EXAMPLES, archive_bytes
from submissions.models import ApiToken, Submission
from tasks_catalog.models import BuildConfig, Task
from tests.builds.test_services import build, uploaded
from tests.conftest import in_cluster, make_built
from tests.examples.broken import CRASH_WORD, broken_project

QUESTION = {"statement": "It rains."}
FAKE_IMAGE = "sha256:" + "1" * 64
SLOW = {**QUESTION, "statement": "slow"}
SLOW_HANDLER = """\
import time
from dynalab.handler.base_handler import BaseDynaHandler


class Handler(BaseDynaHandler):
    initialized = True


_service = Handler()


def handle(data, context):
    if data is None:
        return None
    example = _service._read_data(data)
    if example["statement"] == "slow":
        time.sleep(3600)
    return [{"id": example["uid"], "label": "neutral"}]
"""


class RemoteDeployer(LocalDeployer):
    """Endpoints elsewhere; each test says what they answer."""

    keeps_image = False
    asked: list[tuple[str, dict, float]] = []
    answer: bytes | Exception = b""

    def invoke(self, endpoint, body, *, seconds):
        self.asked.append((endpoint.name, json.loads(body), seconds))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture(autouse=True)
def _own_counters(settings, tmp_path):
    """What other tests asked does not count here."""
    memory = "django.core.cache.backends.locmem.LocMemCache"
    settings.CACHES = {"default": {"BACKEND": memory, "LOCATION": str(tmp_path)}}


@pytest.fixture
def _process_sandbox(settings, shared_cache):
    settings.SANDBOX, settings.ALLOW_UNSANDBOXED = "process", True


@pytest.fixture
def majority(_process_sandbox, user, task) -> Submission:
    return made(uploaded(user, task, archive_bytes(EXAMPLES / "majority"), "majority"))


def made(submission: Submission) -> Submission:
    assert build(submission).status == Build.Status.SUCCEEDED, submission.error_detail
    return submission


def address(submission):
    return f"/api/v1/models/{submission.pk}/predict"


def page_of(submission):
    return f"/models/{submission.pk}/try/"


def ask(client, submission, example=QUESTION, **options):
    return client.post(address(submission), example, content_type="application/json", **options)


def problem(response):
    assert response.headers["Content-Type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


def test_its_owner_asks_and_gets_the_models_answer(majority, user, client, caplog):
    caplog.set_level(logging.INFO)
    client.force_login(user)

    response = ask(client, majority, {"statement": "a secret sentence", "uid": 7})

    assert response.status_code == 200, response.json()
    found = response.json()
    assert found.keys() == {"answer", "seconds", "answered_by"}
    assert (found["answer"]["id"], found["answer"]["label"]) == ("7", "positive")
    assert 0 < found["seconds"] < talking.MAX_SECONDS
    assert found["answered_by"] == "image"
    assert f"model {majority.pk} answered: its image took" in caplog.text
    assert "secret sentence" not in caplog.text


@pytest.mark.parametrize(
    "sandbox", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("bwrap", "docker")]
)
def test_the_image_answers_in_the_sandbox_that_it_was_made_for(sandbox, settings, shared_cache, user, task, client):
    settings.SANDBOX = sandbox
    submission = made(uploaded(user, task, archive_bytes(EXAMPLES / "majority"), "majority"))
    client.force_login(user)

    response = ask(client, submission)

    sandboxes.by_name(sandbox).remove(Build.newest(submission).image)
    assert response.status_code == 200, response.json()
    assert Build.newest(submission).sandbox == sandbox
    assert response.json()["answer"]["label"] == "positive"


@pytest.mark.parametrize(
    ("who", "status", "code"),
    [
        ("owner", 409, "no_image"),  # they get as far as the image, which `make_built` only names
        ("staff", 409, "no_image"),
        ("task_owner", 404, "not_found"),
        ("stranger", 404, "not_found"),
        ("nobody", 401, "not_authenticated"),
    ],
)
@pytest.mark.parametrize("published", [True, False])
def test_who_may_ask(who, status, code, published, evaluated, user, other_user, staff, task, client):
    Submission.objects.update(is_published=published)
    if who == "task_owner":
        task.owners.add(other_user)
    if who != "nobody":
        client.force_login({"owner": user, "staff": staff}.get(who, other_user))

    assert problem(ask(client, evaluated)) == (status, code)
    assert client.post(page_of(evaluated)).status_code == (302 if who == "nobody" else status)


def test_a_token_asks_without_a_csrf_token_and_a_session_does_not(evaluated, user):
    client = Client(enforce_csrf_checks=True)
    _, secret = ApiToken.make(user=user, name="laptop")

    by_token = ask(client, evaluated, headers={"Authorization": f"Token {secret}"})
    client.force_login(user)
    by_session = ask(client, evaluated)

    assert problem(by_token) == (409, "no_image")
    assert by_session.status_code == 403
    assert client.post(page_of(evaluated), {"try-statement": "x"}).status_code == 403


def test_a_question_is_only_ever_posted(evaluated, user, client):
    client.force_login(user)

    assert client.get(address(evaluated)).status_code == 405


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ({}, "The field statement is missing: add it."),
        ({**QUESTION, "mood": "x"}, "There is no field 'mood' in this task; the fields are statement, uid."),
        ({"statement": 5}, "statement must be a text, not of type int."),
        ({**QUESTION, "label": "positive"}, "label is what the model answers: leave it out."),
        ({**QUESTION, "uid": None}, "uid must be 1 to 255 printable characters"),
        ([QUESTION], "Send one JSON object with statement."),
        ("text", "Send one JSON object with statement."),
    ],
)
def test_an_example_that_does_not_fit_the_task_is_refused_with_the_field_and_the_remedy(
    example, words, evaluated, user, client
):
    client.force_login(user)

    response = ask(client, evaluated, json.dumps(example))

    assert problem(response) == (400, "invalid_example")
    assert words in response.json()["detail"]


@pytest.mark.parametrize("body", ["{", "[" * 100_000, '{"statement": NaN}', b"\xff"])
def test_what_is_not_json_is_refused(body, evaluated, user, client):
    client.force_login(user)

    assert problem(ask(client, evaluated, body)) == (400, "parse_error")


def test_a_form_is_not_what_the_api_takes(evaluated, user, client):
    client.force_login(user)

    assert problem(client.post(address(evaluated), QUESTION)) == (415, "unsupported_media_type")


@pytest.mark.parametrize(("more", "status"), [(0, 409), (1, 413)])
def test_a_request_has_at_most_a_mebibyte(more, status, evaluated, user, client):
    client.force_login(user)
    frame = len(json.dumps({"statement": ""}))
    body = json.dumps({"statement": "x" * (talking.MAX_REQUEST_BYTES - frame + more)})

    assert ask(client, evaluated, body).status_code == status
    assert client.post(page_of(evaluated), {"try-statement": "x" * talking.MAX_REQUEST_BYTES}).status_code == 413


@pytest.mark.parametrize("status", [Submission.Status.CANCELLED, Submission.Status.TAKEN_DOWN])
def test_a_stopped_model_is_not_asked(status, evaluated, user, client):
    Submission.objects.update(status=status)
    client.force_login(user)

    assert problem(ask(client, evaluated)) == (409, "model_stopped")
    assert b"Try it" not in client.get(f"/models/{evaluated.pk}/").content


def test_a_model_without_an_image_is_not_asked(submission, user, client):
    client.force_login(user)

    response = ask(client, submission)

    assert problem(response) == (409, "no_image")
    assert "wait until its build has succeeded" in response.json()["detail"]


def test_while_a_rebuild_runs_the_image_before_it_answers(majority, user, client):
    Build.objects.create(submission=majority, run=2, cluster="build")
    client.force_login(user)

    assert ask(client, majority).status_code == 200
    assert b"Ask it one example" in client.get(f"/models/{majority.pk}/").content


def test_an_image_that_is_gone_is_said_to_be(majority, user, client):
    erase(image_folder(Build.newest(majority).image))
    client.force_login(user)

    response = ask(client, majority)

    assert problem(response) == (409, "no_image")
    assert "not on the web server's host" in response.json()["detail"]


def test_a_host_without_the_sandbox_says_so(evaluated, user, client):
    Build.objects.update(sandbox="")
    client.force_login(user)

    assert problem(ask(client, evaluated)) == (409, "no_sandbox")


def test_a_slow_model_is_ended_at_the_limit(_process_sandbox, user, task, tmp_path):
    project = shutil.copytree(EXAMPLES / "majority", tmp_path / "slow")
    (project / "handler.py").write_text(SLOW_HANDLER)
    submission = made(uploaded(user, task, archive_bytes(project), "majority"))

    with pytest.raises(ApiError) as refused:
        talking.predict(submission, SLOW, seconds=4)

    assert (refused.value.status, refused.value.code) == (504, "model_timeout")
    assert "within 4 s" in refused.value.detail
    assert talking.predict(submission, QUESTION)["answer"]["label"] == "neutral", "its place is free again"


def test_a_model_that_fails_is_quoted_to_its_owner(_process_sandbox, user, task, tmp_path, client):
    archive = archive_bytes(broken_project("crash-on-one", tmp_path / "project", "broken"))
    submission = made(uploaded(user, task, archive, "broken"))
    client.force_login(user)

    response = ask(client, submission, {"statement": CRASH_WORD})

    assert problem(response) == (422, "model_failed")
    assert "this example breaks me" in response.json()["detail"]


def test_a_third_image_at_once_is_too_many(majority, user, client):
    client.force_login(user)

    with talking.IMAGES, talking.IMAGES:
        refused = ask(client, majority)

    assert problem(refused) == (429, "models_busy")
    assert refused.headers["Retry-After"] == "10"
    assert ask(client, majority).status_code == 200


def test_a_user_asks_sixty_times_an_hour(evaluated, user, staff, client):
    client.force_login(user)
    for _ in range(60):
        assert ask(client, evaluated).status_code == 409

    refused = ask(client, evaluated)

    assert problem(refused) == (429, "throttled")
    assert 3500 < int(refused.headers["Retry-After"]) <= 3600
    assert client.post(page_of(evaluated), {"try-statement": "x"}).status_code == 429
    client.force_login(staff)
    assert ask(client, evaluated).status_code == 409


@pytest.fixture
def remote(settings, submission) -> Endpoint:
    """A model whose image is elsewhere, with a live endpoint."""
    settings.DEPLOYER = f"{__name__}.RemoteDeployer"
    RemoteDeployer.asked = []
    RemoteDeployer.answer = b'[{"id": "example", "label": "neutral"}]'
    BuildConfig.objects.update(create_endpoint=True)
    endpoint = Endpoint.objects.create(build=make_built(submission), cluster="build")
    with in_cluster("build"):
        assert endpoint.claim()
        endpoint.advance(Endpoint.Status.SUCCEEDED)
    return endpoint


def test_a_live_endpoint_answers(remote, submission, user, client):
    client.force_login(user)

    found = ask(client, submission).json()

    assert (found["answer"], found["answered_by"]) == ({"id": "example", "label": "neutral"}, "endpoint")
    asked = {"statement": "It rains.", "uid": "example"}
    assert RemoteDeployer.asked == [(f"ts{submission.pk}-model-a", asked, talking.MAX_SECONDS)]


@pytest.mark.parametrize(
    ("answer", "status", "code", "words"),
    [
        (ModelFault("CUDA ran out of memory"), 422, "model_failed", "CUDA ran out of memory"),
        (b'{"id": "example", "label": "good"}', 422, "model_failed", "label must be one of"),
        (b'{"id": "other", "label": "neutral"}', 422, "model_failed", "Answer with the uid"),
        (b'{"dynabench_error": "KeyError: 3"}', 422, "model_failed", "KeyError: 3"),
        (b"5", 422, "model_failed", "not one JSON object"),
        (b"<html>", 422, "model_failed", "does not fit the task"),
        (NotYet("AWS, which is throttling InvokeEndpoint", 5), 503, "unavailable", "Try again"),
        (JobStumbled("aws_refused", "The endpoint is gone."), 503, "unavailable", "Try again"),
    ],
)
def test_an_endpoint_without_a_good_answer(answer, status, code, words, remote, submission, user, client):
    RemoteDeployer.answer = answer
    client.force_login(user)

    response = ask(client, submission)

    assert problem(response) == (status, code)
    assert words in response.json()["detail"]


@pytest.mark.parametrize("status", set(Endpoint.Status) - {Endpoint.Status.SUCCEEDED})
def test_an_endpoint_that_is_not_up_is_waited_for(status, remote, submission, user, client):
    Endpoint.objects.update(status=status)
    client.force_login(user)

    response = ask(client, submission)

    assert problem(response) == (409, "endpoint_not_ready")
    assert f"Its live endpoint is {status}." in response.json()["detail"]
    assert not RemoteDeployer.asked


def test_without_live_endpoints_staff_can_switch_them_on(remote, submission, user, client):
    BuildConfig.objects.update(create_endpoint=False)
    client.force_login(user)

    response = ask(client, submission)

    assert problem(response) == (409, "no_endpoint")
    assert "Ask staff to switch on live endpoints" in response.json()["detail"]


def test_an_endpoint_is_of_the_newest_image(remote, submission, user, client):
    Build.objects.create(submission=submission, run=2, cluster="build", status="succeeded", image=FAKE_IMAGE)
    client.force_login(user)

    assert problem(ask(client, submission)) == (409, "endpoint_not_ready")


def test_the_models_page_has_a_filled_in_box_for_those_who_may_ask(evaluated, user, other_user, staff, task, client):
    task.owners.add(other_user)
    shown = {}
    for viewer in (user, staff, other_user):
        client.force_login(viewer)
        shown[viewer] = client.get(f"/models/{evaluated.pk}/").content.decode()

    assert "Try it" not in shown[other_user]
    for page in (shown[user], shown[staff]):
        assert '<label for="id_try-statement">statement</label>' in page
        assert re.search(r'<textarea[^>]* id="id_try-statement">\s*It rains.</textarea>', page)
        assert f'action="{page_of(evaluated)}"' in page
        assert "try-label" not in page


def test_the_box_shows_the_answer_without_javascript(majority, user, client):
    client.force_login(user)

    page = client.post(page_of(majority), {"try-statement": "two\r\nlines <b>"})

    assert page.status_code == 200
    text = page.content.decode()
    assert "Its answer" in text and "&quot;label&quot;: &quot;positive&quot;" in text
    assert "two\r\nlines &lt;b&gt;</textarea>" in text, "the question stays, to be changed and asked again"


def test_lines_of_the_box_end_as_in_datasets(remote, submission, user, client):
    client.force_login(user)

    client.post(page_of(submission), {"try-statement": "two\r\nlines"})

    assert RemoteDeployer.asked[0][1]["statement"] == "two\nlines"


def test_the_box_says_at_the_field_what_is_wrong_with_it(remote, submission, user, client):
    fields = "{name: tone, type: multiclass, labels: [calm, loud], display_name: Tone of voice}"
    Task.objects.update(io_yaml=submission.task.io_yaml.replace("context: []", f"context:\n  - {fields}"))
    client.force_login(user)

    page = client.post(page_of(submission), {"try-statement": "", "try-tone": "shrill"})

    assert page.status_code == 400
    text = page.content.decode()
    (field,) = re.findall(r'<input type="text"[^>]*>', text)
    assert 'aria-describedby="id_try-tone_helptext id_try-tone_error"' in field and 'aria-invalid="true"' in field
    assert re.search(r'id="id_try-tone_error"><strong class="wrong">tone must be one of calm, loud', text)
    assert '<small id="id_try-tone_helptext">One of calm, loud.</small>' in text
    assert '<label for="id_try-tone">Tone of voice</label>' in text
    assert not RemoteDeployer.asked


def test_the_box_says_why_there_is_no_answer(remote, submission, user, client):
    RemoteDeployer.answer = ModelFault("no <memory> left")
    client.force_login(user)

    page = client.post(page_of(submission), {"try-statement": "It rains."})

    assert page.status_code == 422
    text = page.content.decode()
    assert "no &lt;memory&gt; left" in text and 'id="refusal"' in text and 'aria-describedby="refusal"' in text


def test_the_box_has_a_page_of_its_own(evaluated, user, client):
    client.force_login(user)

    page = client.get(page_of(evaluated))

    assert page.status_code == 200
    assert b"It rains." in page.content and b"refusal" not in page.content and b"aria-invalid" not in page.content
