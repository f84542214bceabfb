"""What users send."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

from django.contrib.auth.models import AnonymousUser, User
from django.core.validators import RegexValidator
from django.db import models
from django.db.models.functions import Now

from dynabench_site.state import IllegalTransition, Stateful
from tasks_catalog.models import Task

if TYPE_CHECKING:
    from typing import Any, Self

MODEL_NAME = RegexValidator(r"\A[a-z0-9-]+\Z", "A model's name has small letters, digits and hyphens only.")
MAX_NAME = 63


class SubmissionQuerySet(models.QuerySet):
    def accepted(self) -> Self:
        return self.exclude(status=Submission.Status.RECEIVING)

    def unfinished(self) -> Self:
        return self.filter(status__in=Submission.UNFINISHED)

    def visible_to(self, user: User | AnonymousUser) -> Self:
        """Published ones for everybody; all for staff, their sender and the task's owners."""
        if user.is_staff:
            return self
        public = models.Q(is_published=True, task__is_hidden=False)
        if not user.is_authenticated:
            return self.filter(public)
        return self.filter(public | models.Q(owner_id=user.pk) | models.Q(task__in=Task.objects.owned_by(user)))


class Submission(Stateful):
    """A model that somebody sent to a task."""

    class Status(models.TextChoices):
        RECEIVING = "receiving"
        UPLOADED = "uploaded"
        BUILDING = "building"
        EVALUATING = "evaluating"
        EVALUATED = "evaluated"
        FAILED = "failed"
        DEAD = "dead"
        CANCELLED = "cancelled"
        TAKEN_DOWN = "taken_down"

    UNFINISHED = (Status.UPLOADED, Status.BUILDING, Status.EVALUATING)
    ENDS = {Status.FAILED, Status.DEAD, Status.CANCELLED}
    TRANSITIONS = {
        Status.RECEIVING: {Status.UPLOADED, *ENDS},
        Status.UPLOADED: {Status.BUILDING, *ENDS},
        Status.BUILDING: {Status.EVALUATING, Status.UPLOADED, *ENDS},
        Status.EVALUATING: {Status.EVALUATED, Status.BUILDING, *ENDS},
        Status.EVALUATED: {Status.EVALUATING, Status.BUILDING, Status.TAKEN_DOWN},
        Status.FAILED: {Status.BUILDING, Status.EVALUATING, Status.TAKEN_DOWN},
        Status.DEAD: {Status.BUILDING, Status.EVALUATING, Status.TAKEN_DOWN},
    }

    owner = models.ForeignKey(User, on_delete=models.PROTECT, related_name="submissions")
    task = models.ForeignKey(Task, on_delete=models.PROTECT, related_name="submissions")
    name = models.CharField(max_length=MAX_NAME, validators=[MODEL_NAME])
    status = models.CharField(max_length=12, choices=Status, default=Status.RECEIVING, db_index=True)
    is_published = models.BooleanField("published", default=False)
    cancel_requested = models.BooleanField(default=False)
    size = models.BigIntegerField("bytes", default=0)
    sha256 = models.CharField("archive's sha256", max_length=64, blank=True)
    content_digest = models.CharField(max_length=64, blank=True, help_text="Equal for the same project packed again.")
    setup_config = models.JSONField(default=dict)
    error_code = models.CharField(max_length=50, blank=True)
    error_detail = models.TextField(blank=True)
    created_at = models.DateTimeField(db_default=Now())
    touched_at = models.DateTimeField(db_default=Now(), help_text="When bytes of its upload last came in.")

    objects = SubmissionQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        indexes = [models.Index(fields=["owner", "task", "created_at"])]

    def __str__(self) -> str:
        return f"{self.endpoint_name} ({self.task})"

    @property
    def event_submission_pk(self) -> int:
        return self.pk

    @property
    def endpoint_name(self) -> str:
        """The name of everything made from it: images, archives, SageMaker models (at most 63 characters)."""
        return f"ts{self.pk}-{self.name}"[:63].rstrip("-")

    @property
    def archive_key(self) -> str:
        return f"torchserve/models/{self.task.code}/ts{self.pk}-{self.name}.tar.gz"

    @property
    def mar_archive_key(self) -> str:
        return f"torchserve/models/{self.task.code}/archive.ts{self.pk}-{self.name}.tar.gz"

    @property
    def is_finished(self) -> bool:
        return self.status not in {self.Status.RECEIVING, *self.UNFINISHED}

    @property
    def can_cancel(self) -> bool:
        return self.status in self.UNFINISHED and not self.cancel_requested

    @property
    def can_retry(self) -> bool:
        return self.status in {self.Status.FAILED, self.Status.DEAD}

    def belongs_to(self, user: User | AnonymousUser) -> bool:
        """Whether the user may act on it: its sender, or staff."""
        return user.is_staff or self.owner_id == user.pk

    def is_open_to(self, user: User | AnonymousUser) -> bool:
        """Whether the user may look inside: messages and build output can quote the model's files."""
        return self.belongs_to(user) or self.task.is_run_by(user)

    def advance(self, target: str, *, reason: str = "", **fields: Any) -> bool:
        """Move to `target` from wherever the row is; False when it is there already."""
        if target in {self.Status.EVALUATED, self.Status.FAILED, self.Status.DEAD}:
            fields.setdefault("cancel_requested", False)  # it came too late, and must not stop what is asked for later
        for _ in range(3):
            source = type(self).objects.values_list("status", flat=True).get(pk=self.pk)
            if source == target:
                return False
            if self.move(source, target, reason=reason, **fields):
                return True
        raise IllegalTransition(f"{self} kept moving while it should have become {target}.")


class SubmissionLock(models.Model):
    """The row that uploads of one user to one task lock, one after the other, to count slots."""

    user = models.ForeignKey(User, on_delete=models.CASCADE)
    task = models.ForeignKey(Task, on_delete=models.CASCADE)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "task"], name="one_lock_per_user_and_task")]

    def __str__(self) -> str:
        return f"{self.user} {self.task}"


class ApiTokenQuerySet(models.QuerySet):
    def valid(self) -> Self:
        return self.filter(models.Q(expires_at=None) | models.Q(expires_at__gt=Now()), revoked_at=None)


class ApiToken(models.Model):
    """A long-lived secret of a user's CLI, stored as a hash."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=60)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    prefix = models.CharField(max_length=6, editable=False)
    created_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @staticmethod
    def hash(token: str) -> str:
        return hashlib.sha256(token.encode()).hexdigest()

    @classmethod
    def make(cls, *, user: User, name: str, **fields: Any) -> tuple[ApiToken, str]:
        """A new row and its secret, which nobody can read again."""
        token = secrets.token_hex(32)
        row = cls.objects.create(user=user, name=name, digest=cls.hash(token), prefix=token[:6], **fields)
        return row, token
