"""The operators' console: what all admin pages share, and the rows that belong to no stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import django_q.admin  # noqa: F401 - so that it registers its pages now, not after they are taken away below
from allauth.account.decorators import secure_admin_login
from django.apps import apps
from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import User
from django.db.models import BooleanField, Exists, ExpressionWrapper, Model, OuterRef, Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from dynabench_site import jobs
from dynabench_site.api import ApiError, Conflict
from dynabench_site.clusters import ClusterHeartbeat
from dynabench_site.jobs import Job
from dynabench_site.outbox import OutboxMail
from dynabench_site.state import IllegalTransition, StatusEvent

admin.site.site_header = admin.site.site_title = "Dynabench operations"
admin.site.index_title = "Settings, models and jobs"
admin.site.login = secure_admin_login(admin.site.login)
# Messages are pickles: whoever could edit them here could run code on the clusters.
for message_model in apps.get_app_config("django_q").get_models():
    if admin.site.is_registered(message_model):
        admin.site.unregister(message_model)
admin.site.unregister(User)


class StaffMay:
    """Whoever is staff may do everything with rows of ours; there are no finer permissions."""

    def has_module_permission(self, request: HttpRequest) -> bool:
        return request.user.is_active and request.user.is_staff

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return self.has_module_permission(request)

    has_add_permission = has_change_permission = has_delete_permission = has_view_permission


class ReadOnly(StaffMay):
    """Rows that the machine owns: people look at them, actions move them."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    has_change_permission = has_delete_permission = has_add_permission


class ReadOnlyInline(ReadOnly, admin.TabularInline):
    extra = 0
    show_change_link = True


class Buttons:
    """The actions of a list are buttons on the page of each row too, as far as they make sense there."""

    change_form_template = "admin/change_form_with_buttons.html"

    def offers(self, obj: Any) -> Iterable[str]:
        """The names of the actions that make sense for this row now."""
        return self.actions

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> HttpResponse:
        actions = self.get_actions(request)
        if request.method == "POST" and request.POST.get("_button") in actions:
            actions[request.POST["_button"]][0](self, request, self.get_queryset(request).filter(pk=object_id))
            return redirect(request.get_full_path())
        return super().change_view(request, object_id, *args, **kwargs)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, obj: Any = None, **kwargs: Any
    ) -> HttpResponse:
        offered = self.offers(obj) if obj else ()
        buttons = [(name, label) for name, (_, _, label) in self.get_actions(request).items() if name in offered]
        return super().render_change_form(request, context | {"buttons": buttons}, *args, obj=obj, **kwargs)

    def do_for_each(self, request: HttpRequest, rows: Iterable[Any], do: Callable[[Any], object], verb: str) -> None:
        """Do it for each row; say how often it worked and why not the first time that it didn't."""
        rows, refusals = list(rows), []
        for row in rows:
            try:
                do(row)
                self.log_change(request, row, f"{verb}.")
            except (ApiError, IllegalTransition) as error:
                refusals.append(f" {row}: {error}")
        name = self.opts.verbose_name if len(rows) == 1 else self.opts.verbose_name_plural
        text = f"{verb} {len(rows) - len(refusals)} of {len(rows)} {name}."
        level = messages.WARNING if refusals else messages.SUCCESS
        self.message_user(request, text + "".join(refusals[:1]), level)


def for_each(label: str, verb: str, do: Callable[[Any, str], object]) -> Callable:
    """An action that does it for each row, given the row and who asked."""

    @admin.action(description=label)
    def action(page: Buttons, request: HttpRequest, queryset: QuerySet) -> None:
        page.do_for_each(request, queryset, lambda row: do(row, signed(request)), verb)

    return action


class OperationsAdmin(Buttons, ReadOnly, admin.ModelAdmin):
    list_per_page = 50
    show_full_result_count = False
    actions: list[str] = []


def with_signs_of_life(queryset: QuerySet) -> QuerySet:
    """Jobs with `is_served` (their cluster runs), `is_held` (so does the holder) and `is_expired` (the lease)."""
    alive = ClusterHeartbeat.objects.alive()
    any_cluster_will_do = queryset.model is OutboxMail
    return queryset.annotate(
        is_served=Exists(alive if any_cluster_will_do else alive.filter(name=OuterRef("cluster"))),
        is_held=Exists(alive.filter(pk=OuterRef("holder_id"))),
        is_expired=ExpressionWrapper(Q(lease_until__lt=Now()), output_field=BooleanField()),
    )


def stuck(queryset: QuerySet) -> QuerySet:
    """The jobs that don't move by themselves now, or wait for something."""
    lost = Q(is_expired=True) | Q(is_held=False)
    waiting = Q(is_served=False) | ~Q(waiting_for="")
    return with_signs_of_life(queryset).filter(
        Q(status=Job.Status.RUNNING) & lost | Q(status=Job.Status.QUEUED) & waiting
    )


def why_stuck(job: Any) -> str:
    """What a job with signs of life waits for; "" when it moves."""
    if job.status == Job.Status.RUNNING and (job.is_expired or not job.is_held):
        return "its worker is gone; a running cluster frees it within seconds"
    if job.status != Job.Status.QUEUED:
        return ""
    if not job.is_served:
        return f"no cluster {job.cluster} is running: start it with `manage.py cluster {job.cluster}`"
    return f"waiting for {job.waiting_for}" if job.waiting_for else ""


class StuckFilter(admin.SimpleListFilter):
    title = parameter_name = "stuck"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        return [("yes", "Stuck or waiting")]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        return stuck(queryset) if self.value() else queryset


class JobAdmin(OperationsAdmin):
    """Jobs of any kind; a subclass says how a failed one is retried and how one is cancelled."""

    list_display = ["__str__", "status", "cluster", "attempts", "reason", "created_at"]
    list_filter = [StuckFilter, "status", "cluster", "created_at"]
    list_select_related = ["holder"]
    readonly_fields = ["reason"]
    actions = ["retry", "cancel"]

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        return with_signs_of_life(super().get_queryset(request))

    def get_fields(self, request: HttpRequest, job: Job | None = None) -> list[str]:
        return ["reason", *(name for name in super().get_fields(request, job) if name != "reason")]

    def offers(self, job: Job) -> Iterable[str]:
        return [
            name for name, fits in [("retry", job.can_retry or why_stuck(job)), ("cancel", not job.is_finished)] if fits
        ]

    @admin.display(description="why it doesn't move")
    def reason(self, job: Job) -> str:
        return why_stuck(job) or (job.error_detail or job.error_code)[:200] or "-"

    @admin.action(description="Retry now")
    def retry(self, request: HttpRequest, queryset: QuerySet) -> None:
        self.do_for_each(request, queryset, lambda job: self._requeue(job, signed(request)), "Re-queued")

    @admin.action(description="Cancel")
    def cancel(self, request: HttpRequest, queryset: QuerySet) -> None:
        self.do_for_each(request, queryset, lambda job: self.cancel_one(job, signed(request)), "Cancelled")

    def _requeue(self, job: Job, by: str) -> None:
        if job.status == Job.Status.QUEUED:
            self.model.objects.queued().filter(pk=job.pk).update(not_before=None, waiting_for="")
        elif job.status == Job.Status.RUNNING and why_stuck(job):
            jobs.free_lost(self.model)
        else:
            self.retry_one(job, by)

    def retry_one(self, job: Job, by: str) -> None:
        if not job.retry(by=by):
            raise Conflict("not_retryable", f"It is {job.status}: there is nothing to retry.")

    def cancel_one(self, job: Job, by: str) -> None:
        if not job.cancel(by=by):
            raise Conflict("not_cancellable", f"It is {job.status}: there is nothing to cancel.")


def signed(request: HttpRequest) -> str:
    """Who did it, for the history of statuses."""
    return f"{request.user} (admin)"


def stuck_jobs(most: int) -> list[tuple[Job, str, str]]:
    """Stuck jobs of every kind, oldest first, as (job, reason, address of its page)."""
    found = [job for model in jobs.all_models() for job in stuck(model.objects.order_by("pk"))[:most]]
    return [
        (job, why_stuck(job), reverse(f"admin:{job._meta.app_label}_{job._meta.model_name}_change", args=[job.pk]))
        for job in sorted(found, key=lambda job: job.created_at)[:most]
    ]


@admin.register(User)
class PeopleAdmin(UserAdmin):
    """Superusers edit people; other staff see the list, to choose owners of tasks from."""

    def has_view_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return super().has_view_permission(request, obj) or (obj is None and request.user.is_staff)


@admin.register(OutboxMail)
class OutboxMailAdmin(JobAdmin):
    search_fields = ["to", "subject", "key"]


@admin.register(ClusterHeartbeat)
class ClusterHeartbeatAdmin(OperationsAdmin):
    list_display = ["name", "is_alive", "host", "pid", "started_at", "last_seen", "ended_at"]
    list_filter = ["name"]
    search_fields = ["name", "host"]

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        alive = ClusterHeartbeat.objects.alive().filter(pk=OuterRef("pk"))
        return super().get_queryset(request).annotate(is_alive=Exists(alive))

    @admin.display(description="alive", boolean=True)
    def is_alive(self, instance: Any) -> bool:
        return instance.is_alive


@admin.register(StatusEvent)
class StatusEventAdmin(OperationsAdmin):
    list_display = ["at", "model", "object_pk", "submission_pk", "source", "target", "reason", "cluster"]
    list_filter = ["model", "target", "at"]
    search_fields = ["=submission_pk", "=object_pk", "reason"]
    ordering = ["-pk"]
