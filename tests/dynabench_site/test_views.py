from __future__ import annotations

import errno

import pytest
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.test import Client

from dynabench_site import views
from tasks_catalog.models import Task
from tests.submissions.cli import upload


@pytest.mark.parametrize("error", [OperationalError("database is locked"), OSError(errno.ENOSPC, "No space left")])
def test_an_upload_that_would_pass_a_little_later_is_told_to_come_back(user, task, monkeypatch, error):
    def storage(self):
        raise error

    monkeypatch.setattr(Task, "storage", storage)
    response = upload(Client(raise_request_exception=False), user)

    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert response.headers["Retry-After"] == views.RETRY_SECONDS


BARE = RuntimeError("from a cursor that closes")
BARE.__context__ = OperationalError(2013, "Lost connection to server during query")
ERRORS = [
    (BARE, 503),
    (OperationalError("database is locked"), 503),
    (OperationalError(2006, "Server has gone away"), 503),
    (InterfaceError(0, ""), 503),
    (ValueError(), 500),
]


def told(request: HttpRequest, error: Exception) -> HttpResponse:
    try:
        raise error
    except (OperationalError, InterfaceError, RuntimeError, ValueError):
        return views.server_error(request)


@pytest.mark.parametrize(("error", "status"), ERRORS)
def test_a_page_says_so_too(rf, error, status):
    response = told(rf.get("/"), error)

    assert response.status_code == status
    assert ("Retry-After" in response.headers) == (status == 503)


@pytest.mark.parametrize(("error", "status"), ERRORS)
@pytest.mark.parametrize("path", ["/tasks", "/tasks/submitable", "/authenticate/refresh_from_api", "/readyz"])
def test_programs_read_json_whatever_happens(rf, path, error, status):
    response = told(rf.get(path), error)

    assert (response.status_code, response.headers["Content-Type"]) == (status, "application/problem+json")
    assert ("Retry-After" in response.headers) == (status == 503)
