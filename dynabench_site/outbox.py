"""Mail as rows: written with the event they tell of, sent by a cluster, retried with backoff."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from functools import partial
from smtplib import SMTPDataError, SMTPException, SMTPRecipientsRefused
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.core.mail import EmailMessage, EmailMultiAlternatives, get_connection
from django.core.mail.backends.base import BaseEmailBackend
from django.db import models
from django.template.loader import render_to_string

from dynabench_site import clusters
from dynabench_site.jobs import Job, JobFailed, in_seconds, work

logger = logging.getLogger(__name__)
BACKOFF_SECONDS = (10, 60, 300, 1800, 7200)
SENDING_SECONDS = 120  # each of the server's answers may take EMAIL_TIMEOUT
MAIL_SERVER = "the mail server"
PERMANENT = 500  # SMTP's codes from here on: asking again would change nothing


class OutboxMail(Job):
    """One message to one person about one event."""

    MAX_ATTEMPTS = 16

    key = models.CharField(max_length=100, unique=True, help_text="Event and recipient: the same is never sent twice.")
    to = models.EmailField()
    subject = models.CharField(max_length=200)
    text = models.TextField()
    html = models.TextField(blank=True)

    class Meta:
        app_label = "dynabench_site"
        verbose_name = "mail"

    def __str__(self) -> str:
        return f"{self.subject} ({self.to})"

    @property
    def message_id(self) -> str:
        return f"<{self.key}@{settings.BASE_URL.split('//')[-1].split(':')[0]}>"


class OutboxBackend(BaseEmailBackend):
    """Django's mail backend: whoever sends mail, a mail server that is down delays only the mail."""

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        for message in email_messages:
            html = [part for part, kind in getattr(message, "alternatives", []) if kind == "text/html"]
            for recipient in message.to:
                OutboxMail.objects.create(
                    key=uuid.uuid4().hex,
                    to=recipient,
                    subject=message.subject,
                    text=message.body,
                    html=html[0] if html else "",
                    cluster="mail",
                )
        return len(email_messages)


def write_mail(template: str, *, to: User, key: str, context: dict[str, Any]) -> None:
    """Put a message in the outbox; a second one with the same key is the first."""
    if not to.email:
        return
    context = {"base_url": settings.BASE_URL, "user": to, **context}
    subject, _, text = render_to_string(f"mail/{template}.txt", context).strip().partition("\n")
    OutboxMail.objects.get_or_create(
        key=f"{key}-{to.pk}",
        defaults={
            "to": to.email,
            "subject": subject.strip()[:200],
            "text": text.strip() + "\n",
            "html": render_to_string(f"mail/{template}.html", context),
            "cluster": "mail",
        },
    )


def send_due() -> int:
    """Send what is due, each row claimed first; returns how many went out."""
    return sum(_send(mail) for mail in OutboxMail.objects.due().order_by("pk")[:20])


def _send(mail: OutboxMail) -> bool:
    instance = clusters.current()
    if instance is None:
        return False
    OutboxMail.objects.filter(pk=mail.pk, status=OutboxMail.Status.QUEUED).update(cluster=instance.name)
    mail.cluster = instance.name
    if not mail.claim():
        return False
    work(mail, partial(_deliver, mail), deadline_seconds=SENDING_SECONDS)
    return mail.status == OutboxMail.Status.SUCCEEDED


def _deliver(mail: OutboxMail) -> None:
    try:
        _message(mail).send()
    except (OSError, SMTPException) as error:
        logger.warning("mail %s could not be sent: %s", mail.pk, error)
        if refusal := _refusal(error):
            raise JobFailed("mail_refused", refusal) from error
        if mail.attempts >= mail.MAX_ATTEMPTS:
            raise JobFailed("mail_undelivered", f"The mail server: {error}", theirs=False) from error
        pause = BACKOFF_SECONDS[min(mail.attempts, len(BACKOFF_SECONDS)) - 1]
        mail.advance(
            mail.Status.QUEUED,
            reason=str(error),
            error_detail=f"The mail server: {error}",
            not_before=in_seconds(pause),
            waiting_for=MAIL_SERVER,
        )
    else:
        mail.advance(mail.Status.SUCCEEDED)


def _message(mail: OutboxMail) -> EmailMessage:
    message = EmailMultiAlternatives(
        mail.subject,
        mail.text,
        to=[mail.to],
        headers={"Message-ID": mail.message_id},
        connection=get_connection(settings.MAIL_DELIVERY_BACKEND),
    )
    if mail.html:
        message.attach_alternative(mail.html, "text/html")
    return message


def _refusal(error: Exception) -> str:
    """The mail server's words when it will never take this message or this address; else nothing."""
    answer: tuple[int, Any] = (0, b"")
    if isinstance(error, SMTPRecipientsRefused):
        answer = next(iter(error.recipients.values()))
    elif isinstance(error, SMTPDataError):
        answer = error.smtp_code, error.smtp_error
    code, words = answer
    return f"The mail server: {code} {words.decode(errors='replace')}" if code >= PERMANENT else ""
