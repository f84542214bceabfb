from __future__ import annotations

import http.client
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.utils import timezone

from submissions import services
from submissions.models import Submission
from tests.submissions.cli import CONTENT_TYPE, UPLOAD, archive, bearer, body, upload

HOUR = 3600


def at_the_limit(client, user, task):
    for number in range(task.submission_limit):
        assert upload(client, user, f"model-{number}").status_code == 200


def test_one_more_than_the_limit_is_refused_and_told_when_to_come_back(user, task, client):
    at_the_limit(client, user, task)

    response = upload(client, user, "one-more")

    assert (response.status_code, response.json()["code"]) == (429, "submission_limit")
    assert 23 * HOUR < int(response.headers["Retry-After"]) <= 24 * HOUR + 1
    text = response.json()["detail"]
    assert text.startswith("No more than 3 models every 24 hours for task sentiment.")
    oldest = Submission.objects.order_by("created_at").first()
    free_at = oldest.created_at + timedelta(hours=24)
    assert re.search(r"next slot is free at (.*) UTC", text)[1] == f"{free_at:%Y-%m-%d %H:%M}"


def test_the_limit_is_per_user_and_task(user, other_user, task, client):
    at_the_limit(client, user, task)

    assert upload(client, other_user, "theirs").status_code == 200


def test_a_slot_is_free_again_after_the_tasks_hours(user, task, client):
    at_the_limit(client, user, task)
    oldest = Submission.objects.order_by("pk").first()
    window = timedelta(hours=task.limit_hours)

    Submission.objects.filter(pk=oldest.pk).update(created_at=timezone.now() - window + timedelta(minutes=1))
    early = upload(client, user, "early")
    Submission.objects.filter(pk=oldest.pk).update(created_at=timezone.now() - window - timedelta(seconds=1))

    assert early.status_code == 429
    assert int(early.headers["Retry-After"]) <= 61
    assert upload(client, user, "in-time").status_code == 200
    assert upload(client, user, "too-early").status_code == 429


def test_a_limit_that_staff_lower_counts_at_once(user, task, client):
    at_the_limit(client, user, task)
    task.submission_limit = 1
    task.save()
    newest = Submission.objects.latest("created_at")
    Submission.objects.exclude(pk=newest.pk).update(created_at=timezone.now() - timedelta(hours=23))

    response = upload(client, user, "one-more")

    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) > 23 * HOUR


def test_the_same_archive_again_is_the_first_and_takes_no_slot(user, task, client):
    tarball = archive("again")

    answers = [upload(client, user, "again", tarball) for _ in range(5)]

    assert {answer.headers["X-Submission-Id"] for answer in answers} == {str(Submission.objects.get().pk)}
    assert services.slots(owner=user, task=task) == (2, None)


def test_even_at_the_limit_a_repetition_is_the_first(user, task, client):
    at_the_limit(client, user, task)

    response = upload(client, user, "model-1")

    assert response.status_code == 200
    assert response.headers["X-Submission-Id"] == str(Submission.objects.get(name="model-1").pk)


def test_at_the_limit_other_bytes_under_a_recent_name_are_refused(user, task, client, tmp_path):
    at_the_limit(client, user, task)
    stored = sorted(tmp_path.rglob("*.tar.gz"))

    response = upload(client, user, "model-1", archive("model-1", weights=b"better"))

    assert response.status_code == 429
    assert Submission.objects.count() == 3
    assert sorted(tmp_path.rglob("*.tar.gz")) == stored


def test_after_a_quarter_of_an_hour_the_same_archive_is_a_new_model(user, task, client):
    upload(client, user, "again")
    Submission.objects.update(created_at=timezone.now() - timedelta(minutes=15, seconds=1))

    assert upload(client, user, "again").status_code == 200
    assert Submission.objects.count() == 2


def test_a_refused_archive_gives_its_slot_back(user, task, client):
    for _ in range(task.submission_limit + 1):
        assert upload(client, user, "broken", b"broken").status_code == 422

    at_the_limit(client, user, task)


@pytest.mark.parametrize(("status", "answer"), [("dead", 200), ("failed", 429), ("cancelled", 429)])
def test_our_failures_give_the_slot_back_and_the_models_own_do_not(status, answer, user, task, client):
    at_the_limit(client, user, task)
    Submission.objects.filter(name="model-0").update(status=status)

    assert upload(client, user, "one-more").status_code == answer


def send(address, header, name):
    """One upload over a connection of its own."""
    connection = http.client.HTTPConnection(address, timeout=60)
    sent, headers = body(name, archive(name)), {"Authorization": header, "Content-Type": CONTENT_TYPE}
    connection.request("POST", UPLOAD, sent, headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def test_of_many_uploads_at_once_exactly_as_many_as_allowed_are_accepted(
    transactional_db, request, live_server, user, task
):
    address, header = live_server.url.removeprefix("http://"), bearer(user)

    with ThreadPoolExecutor(40) as pool:
        answers = Counter(pool.map(lambda number: send(address, header, f"model-{number}"), range(40)))

    assert answers == {200: 3, 429: 37}
    assert Submission.objects.filter(status="uploaded").count() == Submission.objects.count() == 3


def test_of_twins_sent_at_once_one_is_accepted(transactional_db, live_server, user, task):
    address, header = live_server.url.removeprefix("http://"), bearer(user)

    with ThreadPoolExecutor(10) as pool:
        answers = Counter(pool.map(lambda _: send(address, header, "twin"), range(10)))

    assert set(answers) <= {200, 409}
    assert answers[200] >= 1
    assert Submission.objects.count() == 1


def test_an_upload_that_was_accepted_is_not_undone_when_only_the_answer_was_lost(user, task, client):
    accepted = Submission.objects.get(pk=upload(client, user).headers["X-Submission-Id"])

    services.discard(accepted)  # as the upload does after a COMMIT that the database did and never confirmed

    assert Submission.objects.get() == accepted
    assert task.storage().exists(accepted.archive_key)
