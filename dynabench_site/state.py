"""A status moves along an edge, in the database, or not at all; every move is written down."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from django.db import models, transaction
from django.db.models.functions import Now

from dynabench_site.database import retried


class IllegalTransition(Exception):
    """The table of transitions has no such edge from where the row is now."""


class StatusEvent(models.Model):
    """One transition of one row; only ever appended. The primary key is the order of events."""

    model = models.CharField(max_length=30)
    object_pk = models.BigIntegerField()
    submission_pk = models.BigIntegerField(null=True, db_index=True)
    source = models.CharField(max_length=20)
    target = models.CharField(max_length=20)
    reason = models.CharField(max_length=255, blank=True)
    cluster = models.CharField(max_length=80, blank=True)
    at = models.DateTimeField(db_default=Now())

    class Meta:
        app_label = "dynabench_site"
        indexes = [models.Index(fields=["model", "object_pk"])]

    def __str__(self) -> str:
        return f"{self.model} {self.object_pk}: {self.source} -> {self.target}"


class Stateful(models.Model):
    """A row with a status and a table of its legal moves."""

    TRANSITIONS: ClassVar[Mapping[str, Collection[str]]]
    status: models.CharField[str, str]

    class Meta:
        abstract = True

    @property
    def event_submission_pk(self) -> int | None:
        return getattr(self, "submission_id", None)

    @retried
    def move(
        self, source: str, target: str, *, fence: models.Q | None = None, reason: str = "", by: str = "", **fields: Any
    ) -> bool:
        """Move from `source` to `target` with one conditional UPDATE; False when the row is elsewhere or fenced off."""
        if target not in self.TRANSITIONS.get(source, ()):
            raise IllegalTransition(f"{self._meta.model_name} {self.pk} can't go from {source} to {target}.")
        with transaction.atomic():
            rows = type(self)._base_manager.filter(fence or models.Q(), pk=self.pk, status=source)
            if not rows.update(status=target, **fields):
                return False
            self.record(source, target, reason=reason, by=by)
        self.refresh_from_db(fields=["status", *fields])
        return True

    def record(self, source: str, target: str, *, reason: str = "", by: str = "") -> None:
        StatusEvent.objects.create(
            model=self._meta.model_name,
            object_pk=self.pk,
            submission_pk=self.event_submission_pk,
            source=source,
            target=target,
            reason=reason[:255],
            cluster=by[:80],
        )
