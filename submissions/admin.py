"""Tokens, and what the admin pages of all jobs of a submission share."""

from __future__ import annotations

from django.contrib import admin
from django.db.models.functions import Now

from dynabench_site.admin import JobAdmin, OperationsAdmin, for_each
from dynabench_site.api import Conflict
from dynabench_site.jobs import Job
from submissions import services
from submissions.models import ApiToken


class SubmissionJobAdmin(JobAdmin):
    """A job of a submission: cancelling it alone would only make the next sweep ask for it again."""

    list_select_related = ["submission__task", "holder"]
    list_filter = [*JobAdmin.list_filter, "submission__task"]
    search_fields = ["=pk", "=submission__pk", "submission__name", "submission__owner__username"]

    def cancel_one(self, job: Job, by: str) -> None:
        services.cancel(job.submission, by=by)


@admin.register(ApiToken)
class ApiTokenAdmin(OperationsAdmin):
    list_display = ["user", "name", "prefix", "created_at", "last_used_at", "expires_at", "revoked_at"]
    list_filter = ["created_at", "last_used_at"]
    list_select_related = ["user"]
    search_fields = ["name", "prefix", "user__username", "user__email"]
    fields = ["user", "name", "prefix", "created_at", "last_used_at", "expires_at", "revoked_at"]
    actions = ["revoke"]

    def offers(self, token: ApiToken) -> list[str]:
        return [] if token.revoked_at else ["revoke"]

    revoke = for_each("Revoke", "Revoked", lambda token, by: _revoke(token))


def _revoke(token: ApiToken) -> None:
    if not ApiToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=Now()):
        raise Conflict("revoked", "It was revoked before.")
