"""The outbox against a mail server on loopback that speaks SMTP, and one that does not."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email import message_from_bytes
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP
from django.db.models.functions import Now

from dynabench_site import env, outbox
from dynabench_site.outbox import OutboxMail
from tests.conftest import in_cluster

HOST = "127.0.0.1"


class Inbox:
    """What a mail server does with what it is sent; `port` is where it listens."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.to: list[str] = []
        self.sessions: list[bool] = []
        self.port = free_port()

    async def handle_RCPT(self, server, session, envelope, address, options) -> str:
        if address.startswith("nobody"):
            return "550 5.1.1 No such user here"
        if address.startswith("later"):
            return "450 4.2.1 Come back later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope) -> str:
        self.ids.append(message_from_bytes(envelope.content)["Message-ID"])
        self.to += envelope.rcpt_tos
        self.sessions.append(session.ssl is not None)
        return self.answer(server)

    def answer(self, server: SMTP) -> str:
        return "250 Accepted"


class Vanishing(Inbox):
    """It takes the message, and is gone before it can say so."""

    def answer(self, server: SMTP) -> str:
        server.transport.abort()
        return "250 Accepted"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextmanager
def running(inbox: Inbox, **options: object) -> Iterator[Inbox]:
    controller = Controller(inbox, hostname=HOST, port=inbox.port, **options)
    controller.start()
    try:
        yield inbox
    finally:
        controller.stop()


@pytest.fixture
def by_smtp(settings):
    """Mail goes to that port, as DYNABENCH_MAIL_URL would have it."""

    def point_to(port: int, query: str = "") -> None:
        for name, value in env.mail(f"smtp://{HOST}:{port}{query}").items():
            setattr(settings, name, value)

    return point_to


@pytest.fixture
def inbox(by_smtp) -> Inbox:
    inbox = Inbox()
    by_smtp(inbox.port)
    return inbox


def letter(to: str = "ada") -> OutboxMail:
    return OutboxMail.objects.create(key=f"event-{to}", to=f"{to}@example.org", subject="Evaluated", text="It is.\n")


def send() -> int:
    with in_cluster("default"):
        return outbox.send_due()


def make_due() -> None:
    OutboxMail.objects.update(not_before=Now() - timedelta(seconds=1))


def pause(mail: OutboxMail) -> float:
    """Seconds until the next try, by the database's clock."""
    row = OutboxMail.objects.annotate(now=Now()).get(pk=mail.pk)
    return (row.not_before - row.now).total_seconds()


def test_a_server_that_is_down_is_tried_again_ever_later_and_then_gets_it_once(db, inbox):
    mail = letter()
    pauses = []
    for _ in range(3):
        make_due()
        assert send() == 0
        pauses.append(pause(mail))
    mail.refresh_from_db()
    assert (mail.status, mail.waiting_for, mail.attempts) == ("queued", "the mail server", 3)
    assert pauses == pytest.approx([10, 60, 300], abs=5)

    with running(inbox):
        make_due()
        assert (send(), send()) == (1, 0)

    assert inbox.ids == [mail.message_id]


@pytest.mark.parametrize("is_refused", [True, False])
def test_an_address_that_is_not_taken_keeps_nobody_else_from_their_mail(db, inbox, is_refused):
    bad, good = letter("nobody" if is_refused else "later"), letter("ada")

    with running(inbox):
        assert send() == 1

    bad.refresh_from_db()
    good.refresh_from_db()
    assert inbox.to == ["ada@example.org"]
    assert good.status == "succeeded"
    if is_refused:
        assert (bad.status, bad.attempts, bad.error_code) == ("failed", 1, "mail_refused")
        assert bad.error_detail == "The mail server: 550 5.1.1 No such user here"
    else:
        assert (bad.status, bad.waiting_for) == ("queued", "the mail server")
        assert "450, b'4.2.1 Come back later'" in bad.error_detail


def test_a_mail_that_cannot_be_written_keeps_nobody_else_from_theirs(db, inbox):
    broken = letter("ada")
    OutboxMail.objects.filter(pk=broken.pk).update(subject="two\nlines")
    letter("bob")

    with running(inbox):
        assert send() == 1

    broken.refresh_from_db()
    assert inbox.to == ["bob@example.org"]
    assert (broken.status, broken.attempts) == ("queued", 1)


def test_a_server_that_took_it_and_vanished_gets_the_same_id_again(db, by_smtp):
    vanishing = Vanishing()
    by_smtp(vanishing.port)
    mail = letter()
    with running(vanishing):
        assert send() == 0
    inbox = Inbox()
    by_smtp(inbox.port)

    with running(inbox):
        make_due()
        assert send() == 1

    assert vanishing.ids == inbox.ids == [mail.message_id]


def test_a_server_that_says_nothing_is_given_up(db, by_smtp, settings):
    with socket.create_server((HOST, 0)) as silent:
        by_smtp(silent.getsockname()[1])
        assert settings.EMAIL_TIMEOUT == 10
        settings.EMAIL_TIMEOUT = 1
        mail = letter()
        started = time.monotonic()

        assert send() == 0

    assert 0.9 < time.monotonic() - started < 8
    mail.refresh_from_db()
    assert (mail.status, mail.waiting_for) == ("queued", "the mail server")


@pytest.fixture
def certificate(tmp_path) -> Path:
    """A certificate for 127.0.0.1, signed by itself, and its key in one file."""
    file = tmp_path / "mail.pem"
    subject = ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=IP:{HOST}"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    made = subprocess.run([*command, "-keyout", "-", "-out", "-"], check=True, capture_output=True)
    file.write_bytes(made.stdout)
    return file


@pytest.mark.parametrize("is_known", [True, False])
def test_with_tls_it_goes_out_encrypted_to_a_known_server_or_not(db, by_smtp, certificate, monkeypatch, is_known):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if is_known:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    inbox = Inbox()
    by_smtp(inbox.port, "?tls=1")
    mail = letter()

    with running(inbox, tls_context=context, require_starttls=True):
        assert send() == int(is_known)

    mail.refresh_from_db()
    assert inbox.sessions == [True] * is_known
    assert mail.status == ("succeeded" if is_known else "queued")
