"""What differs between databases, and what a server does to two transactions that cross."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from django.contrib.auth.models import User
from django.db import DataError, IntegrityError, OperationalError, connection, transaction

from dynabench_site import database, jobs
from dynabench_site.database import retried
from dynabench_site.outbox import OutboxMail
from evaluations.models import Inference
from submissions.models import ApiToken, Submission
from tasks_catalog.models import Dataset, Task
from tests.conftest import in_cluster, make_built, make_predictions


def test_names_keep_every_character_and_times_every_microsecond(task):
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    Task.objects.filter(pk=task.pk).update(name="Gefühl 🙂 感情")
    mail = OutboxMail.objects.create(key="k", to="a@example.org", subject="🙂", text="🙂" * 20_000, not_before=at)

    mail.refresh_from_db()

    assert Task.objects.get().name == "Gefühl 🙂 感情"
    assert (mail.subject, len(mail.text), mail.not_before) == ("🙂", 20_000, at)


def test_objects_in_json_come_back_as_they_were(submission):
    config = {"z": 1, "a": {"emoji": "🙂", "float": 0.1, "none": None, "list": [1, "1"]}}
    Submission.objects.update(setup_config=config)

    found = Submission.objects.get().setup_config

    assert found == config
    assert list(found) == ["z", "a"]


def test_a_token_of_another_case_is_another_token(client, user):
    secret = ApiToken.make(user=user, name="laptop")[1]

    answers = [
        client.get("/api/v1/submissions/", headers={"Authorization": f"Token {word}"}).status_code
        for word in (secret, secret.upper())
    ]

    assert answers == [200, 401]


@pytest.mark.django_db
def test_what_does_not_fit_is_refused_and_not_cut_short():
    if connection.vendor == "mysql":
        with pytest.raises(DataError), transaction.atomic():
            User.objects.create(username="x" * 151)
    with pytest.raises(IntegrityError), transaction.atomic():
        Dataset.objects.create(task_id=10**6, name="of nothing")
        connection.check_constraints()


def test_the_clock_is_the_databases_and_speaks_utc(submission):
    with in_cluster("build"):
        build = make_built(submission)

    assert abs((datetime.now(UTC) - build.finished_at).total_seconds()) < 60


@pytest.mark.django_db(transaction=True)
def test_of_two_crossing_transactions_both_get_through():
    rows = [User.objects.create(username=name) for name in ("first", "second")]
    meeting, tries = threading.Barrier(2), []

    @retried
    @transaction.atomic
    def add_to(*order: User) -> None:
        for row in order:
            User.objects.filter(pk=row.pk).update(last_name="x")
            tries.append(row.pk)
            with suppress(threading.BrokenBarrierError):
                meeting.wait(1)  # each holds its first row; SQLite lets them in one after the other

    def run(*order: User) -> None:
        try:
            add_to(*order)
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(run, *rows), pool.submit(run, *reversed(rows))]:
            future.result()

    assert set(User.objects.values_list("last_name", flat=True)) == {"x"}
    assert len(tries) > 4 or connection.vendor == "sqlite", "one of them was done again"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("code", [database.DEADLOCK, database.LOCK_WAIT])
def test_after_five_retries_the_caller_is_told(code):
    tries = []

    @retried
    def never() -> None:
        tries.append(1)
        raise OperationalError(code, "try restarting transaction")

    with pytest.raises(OperationalError):
        never()

    assert len(tries) == 1 + database.RETRIES


@pytest.mark.django_db(transaction=True)
def test_within_a_larger_transaction_and_for_other_errors_nothing_is_done_twice():
    tries = []

    @retried
    def once(code: int) -> None:
        tries.append(code)
        raise OperationalError(code, "")

    with pytest.raises(OperationalError), transaction.atomic():
        once(database.DEADLOCK)
    with pytest.raises(OperationalError):
        once(2006)

    assert tries == [database.DEADLOCK, 2006]


@pytest.mark.django_db(transaction=True)
def test_work_that_lost_the_database_steps_back_without_spending_its_attempt(submission, dataset):
    inference = make_predictions(make_built(submission), dataset, {})
    Inference.objects.update(status="queued", attempts=0)
    inference.refresh_from_db()

    def lose_it() -> None:
        raise OperationalError(2013, "Lost connection to server during query")

    with in_cluster("default"):
        assert inference.claim()
        jobs.work(inference, lose_it, deadline_seconds=60)

    inference.refresh_from_db()
    assert (inference.status, inference.attempts, inference.interruptions) == ("queued", 0, 1)
    assert inference.waiting_for == "the database, which was away"
