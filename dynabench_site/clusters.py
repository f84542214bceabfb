"""Which cluster instance this process belongs to, and which instances are alive."""

from __future__ import annotations

import os
import socket
import uuid
from datetime import timedelta
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models.functions import Now


class ClusterHeartbeatQuerySet(models.QuerySet["ClusterHeartbeat"]):
    def alive(self) -> Self:
        return self.filter(ended_at=None, last_seen__gte=Now() - timedelta(seconds=settings.GONE_SECONDS))


class ClusterHeartbeat(models.Model):
    """One run of `manage.py cluster NAME`: it holds leases while it beats."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=31, db_index=True)
    host = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    started_at = models.DateTimeField(db_default=Now())
    last_seen = models.DateTimeField(db_default=Now())
    ended_at = models.DateTimeField(null=True, blank=True)

    objects = ClusterHeartbeatQuerySet.as_manager()

    class Meta:
        app_label = "dynabench_site"
        ordering = ["-last_seen"]

    def __str__(self) -> str:
        return f"{self.name} on {self.host} ({self.pid})"


_current: ClusterHeartbeat | None = None


def join(name: str) -> ClusterHeartbeat:
    """Register this process, and all that it forks, as a new instance of the cluster `name`."""
    global _current
    _current = ClusterHeartbeat.objects.create(name=name, host=socket.gethostname(), pid=os.getpid())
    return _current


def leave() -> None:
    global _current
    if _current:
        ClusterHeartbeat.objects.filter(pk=_current.pk).update(ended_at=Now())
    _current = None


def current() -> ClusterHeartbeat | None:
    """The instance this process works for; None outside a cluster."""
    return _current


def is_of(name: str) -> bool:
    """Whether this process works for a cluster of that name."""
    return _current is not None and _current.name == name


def beat() -> None:
    if _current:
        ClusterHeartbeat.objects.filter(pk=_current.pk).update(last_seen=Now(), ended_at=None)
