from __future__ import annotations

import errno

import pytest
from django.db import OperationalError
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


@pytest.mark.parametrize(("error", "status"), [(OperationalError("database is locked"), 503), (ValueError(), 500)])
def test_a_page_says_so_too(rf, error, status):
    try:
        raise error
    except (OperationalError, ValueError):
        response = views.server_error(rf.get("/"))

    assert response.status_code == status
    assert ("Retry-After" in response.headers) == (status == 503)
