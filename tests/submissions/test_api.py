from __future__ import annotations

import json

import pytest
import yaml

from submissions.api import UploadView
from submissions.models import ApiToken, Submission
from tasks_catalog.models import BuildConfig, Task
from tests.submissions.cli import CONTENT_TYPE, UPLOAD, archive, bearer, body, upload

FIELDS = {
    "id",
    "name",
    "task_code",
    "shortname",
    "desc",
    "config_yaml",
    "settings_json",
    "dynalab_hr_diff",
    "dynalab_threshold",
    "submitable",
    "instance_type",
    "instance_count",
    "aws_region",
    "create_endpoint",
    "gpu",
}


def problem(response):
    assert response.headers["Content-Type"] == "application/problem+json"
    found = response.json()
    assert found.keys() == {"type", "title", "status", "detail", "code"}
    assert found["status"] == response.status_code
    assert found["detail"]
    return response.status_code, found["code"]


def closed_task():
    return BuildConfig.objects.create(task=Task.objects.create(code="closed", name="Closed", submitable=False)).task


@pytest.mark.parametrize("address", ["/tasks", "/tasks/submitable"])
def test_tasks_are_a_list_that_both_generations_of_the_cli_can_read(address, task, client):
    task.submission_limit, task.limit_hours = 5, 12
    task.save()

    (found,) = client.get(address).json()

    assert found.keys() == FIELDS
    assert found["task_code"] == "sentiment"
    assert (found["dynalab_hr_diff"], found["dynalab_threshold"]) == (12, 5)
    assert json.loads(found["settings_json"]) == {"dynalab_hr_diff": 12, "dynalab_threshold": 5}
    config = yaml.safe_load(found["config_yaml"])
    assert [field["name"] for field in config["input"]] == ["statement", "label"]
    assert config["perf_metric"] == {"type": "macro_f1", "reference_name": "label"}


def test_closed_tasks_are_listed_but_not_as_submitable_and_hidden_ones_nowhere(task, client):
    closed_task()
    Task.objects.create(code="secret", name="Secret", is_hidden=True)

    assert {row["task_code"] for row in client.get("/tasks").json()} == {"sentiment", "closed"}
    assert [row["task_code"] for row in client.get("/tasks/submitable").json()] == ["sentiment"]


def test_an_old_token_in_the_header_does_not_hide_the_tasks(task, client):
    assert client.get("/tasks/submitable", headers={"Authorization": "Bearer old"}).status_code == 200


def test_tasks_take_the_same_few_queries_whatever_their_number(task, client, django_assert_num_queries):
    closed_task()

    with django_assert_num_queries(2):
        client.get("/tasks")


def test_an_upload_of_the_cli_is_accepted(user, task, client, tmp_path):
    tarball = archive("my-model")

    response = upload(client, user, tarball=tarball)

    submission = Submission.objects.get()
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["X-Submission-Id"] == str(submission.pk)
    assert (submission.owner, submission.name, submission.status) == (user, "my-model", "uploaded")
    assert (tmp_path / "files" / task.build_config.bucket / submission.archive_key).read_bytes() == tarball


def test_a_long_lived_token_in_the_header_may_upload_too(user, task, client):
    _, secret = ApiToken.make(user=user, name="script")
    header = {"Authorization": f"Token {secret}"}

    response = client.post(UPLOAD, body("m", archive("m")), content_type=CONTENT_TYPE, headers=header)

    assert response.status_code == 200


@pytest.mark.parametrize("name", ["a", "0-a", "-", "n" * 63])
def test_a_name_of_the_clis_alphabet_is_taken(name, user, task, client):
    assert upload(client, user, name).status_code == 200


@pytest.mark.parametrize(
    "name", ["", "A", "Model", "my_model", "my model", "m.tar", "../m", "é", "n" * 64, "m%00", "m\n", " m", "😀"]
)
def test_any_other_name_is_refused(name, user, task, client):
    assert problem(upload(client, user, name, archive("m"))) == (400, "bad_name")
    assert not Submission.objects.exists()


def test_an_upload_to_a_task_that_is_not_there_is_told_so(user, task, client):
    assert problem(upload(client, user, task="nothing")) == (404, "unknown_task")


def test_an_upload_to_a_closed_task_is_forbidden(user, client, db):
    closed_task()

    assert problem(upload(client, user, task="closed")) == (403, "task_not_submitable")


@pytest.mark.parametrize("code", ["submitable", "upload", "owners"])
def test_no_task_can_take_an_address_of_the_site(code, task):
    task.code = code

    with pytest.raises(Exception, match="is an address of the site"):
        task.full_clean()


def test_a_refused_archive_says_which_rule_it_breaks(user, task, client):
    status, code = problem(upload(client, user, tarball=b"not a gzip file"))

    assert (status, code) == (422, "archive_not_gzip")


def test_an_upload_under_way_refuses_its_twin(user, task, client):
    Submission.objects.create(owner=user, task=task, name="my-model")

    assert problem(upload(client, user)) == (409, "upload_in_progress")


def test_nobody_uploads_without_a_token(user, task, client):
    client.force_login(user)  # a browser's session is not enough, or any page could upload in its name

    response = client.post(UPLOAD, body("m", archive("m")), content_type=CONTENT_TYPE)

    assert problem(response) == (401, "not_authenticated")
    assert "WWW-Authenticate" in response.headers


class Untouchable:
    def read(self, *args):
        raise AssertionError("the body was read")


def test_a_stranger_is_sent_away_before_the_body_is_read(rf, task):
    request = rf.post(UPLOAD, b"", content_type=CONTENT_TYPE, headers={"Authorization": "Bearer forged"})
    request._stream = Untouchable()

    assert UploadView.as_view()(request).status_code == 401


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "multipart/form-data", ""])
def test_a_body_that_is_no_form_is_a_bad_request(content_type, user, task, client):
    response = client.post(UPLOAD, b"{}", content_type=content_type, headers={"Authorization": bearer(user)})

    assert problem(response) == (400, "bad_upload")


def test_wrong_methods_are_told_so(user, client, db):
    headers = {"Authorization": bearer(user)}

    assert problem(client.get(UPLOAD, headers=headers)) == (405, "method_not_allowed")
    assert problem(client.post("/tasks/submitable")) == (405, "method_not_allowed")


@pytest.mark.parametrize("address", ["/models/upload/s3/", "/models/upload/s4", "/authenticate/", "/api/v1/nothing"])
def test_unknown_addresses_are_problems_too(address, client, db):
    assert problem(client.get(address)) == (404, "not_found")
