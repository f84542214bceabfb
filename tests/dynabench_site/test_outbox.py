from __future__ import annotations

import smtplib
from datetime import timedelta

import pytest
from django.core import mail
from django.core.mail.backends.locmem import EmailBackend
from django.db.models.functions import Now

from dynabench_site import outbox
from dynabench_site.outbox import OutboxMail, send_due, write_mail
from tests.conftest import in_cluster


class Refusing(EmailBackend):
    def send_messages(self, messages):
        raise smtplib.SMTPServerDisconnected("the server is away")


@pytest.fixture
def letter(submission) -> OutboxMail:
    write_mail("build_succeeded", to=submission.owner, key="event-1", context={"submission": submission})
    return OutboxMail.objects.get()


def send() -> int:
    with in_cluster("default"):
        return send_due()


def test_a_mail_is_written_once_for_an_event_and_sent_once(letter, submission):
    write_mail("build_succeeded", to=submission.owner, key="event-1", context={"submission": submission})

    assert (send(), send()) == (1, 0)

    assert [message.to for message in mail.outbox] == [["ada@example.org"]]
    assert mail.outbox[0].extra_headers["Message-ID"] == letter.message_id
    assert mail.outbox[0].alternatives[0][1] == "text/html"


def test_a_mail_server_that_is_away_is_tried_again_later_with_the_same_id(letter, settings):
    settings.MAIL_DELIVERY_BACKEND = f"{__name__}.Refusing"
    assert send() == 0
    letter.refresh_from_db()
    assert (letter.status, letter.waiting_for, letter.attempts) == ("queued", "the mail server", 1)
    assert send() == 0, "not before its time"

    settings.MAIL_DELIVERY_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    OutboxMail.objects.update(not_before=Now() - timedelta(seconds=1))
    assert send() == 1

    assert mail.outbox[0].extra_headers["Message-ID"] == letter.message_id


def test_a_mail_that_nobody_takes_for_days_ends_with_the_reason(letter, settings):
    settings.MAIL_DELIVERY_BACKEND = f"{__name__}.Refusing"
    OutboxMail.objects.update(attempts=OutboxMail.MAX_ATTEMPTS - 1)

    send()

    letter.refresh_from_db()
    assert (letter.status, letter.error_code) == ("dead", "mail_undelivered")


def test_outside_a_cluster_nothing_is_sent(letter):
    assert send_due() == 0


def test_signing_up_writes_its_mail_to_the_outbox_too(client, db, settings):
    settings.EMAIL_BACKEND = "dynabench_site.outbox.OutboxBackend"  # Django's test runner puts another in its place
    password = "a long enough secret"
    form = {"email": "new@example.org", "username": "new", "password1": password, "password2": password}

    response = client.post("/accounts/signup/", form)

    assert response.status_code == 302
    assert OutboxMail.objects.get().to == "new@example.org"
    assert not mail.outbox


def test_the_same_person_gets_two_events_apart(letter, submission):
    write_mail("build_succeeded", to=submission.owner, key="event-2", context={"submission": submission})

    assert OutboxMail.objects.count() == 2
    assert outbox.BACKOFF_SECONDS[0] < outbox.BACKOFF_SECONDS[-1]
