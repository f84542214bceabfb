from __future__ import annotations

from collections.abc import Iterable

from django.contrib import admin
from django.utils.html import format_html

from builds import endpoints, services
from builds.models import Build, BuildStep, Endpoint
from dynabench_site.admin import JobAdmin, ReadOnlyInline, for_each
from submissions.admin import SubmissionJobAdmin

OUTPUT_SHOWN = 2000


class BuildStepInline(ReadOnlyInline):
    model = BuildStep
    show_change_link = False
    fields = readonly_fields = ["attempt", "name", "exit_code", "finished_at", "end_of_output"]

    @admin.display(description="end of its output")
    def end_of_output(self, step: BuildStep) -> str:
        return format_html("<pre>{}</pre>", step.output[-OUTPUT_SHOWN:])


@admin.register(Build)
class BuildAdmin(SubmissionJobAdmin):
    inlines = [BuildStepInline]
    actions = [*SubmissionJobAdmin.actions, "rebuild"]

    def offers(self, build: Build) -> Iterable[str]:
        return [*super().offers(build), *(["rebuild"] if build.is_finished else [])]

    def retry_one(self, build: Build, by: str) -> None:
        services.retry(build, by=by)

    rebuild = for_each("Rebuild the image", "Asked for a rebuild of", lambda row, by: services.rebuild(row.submission))


@admin.register(Endpoint)
class EndpointAdmin(JobAdmin):
    list_display = ["pk", "name", *JobAdmin.list_display[1:]]
    list_select_related = ["build__submission__task", "holder"]
    search_fields = ["=pk", "=build__submission__pk", "build__submission__name"]
    actions = ["retry", "end"]

    def offers(self, endpoint: Endpoint) -> Iterable[str]:
        is_live = endpoint.status not in {Endpoint.Status.FAILED, Endpoint.Status.DEAD, Endpoint.Status.CANCELLED}
        return [name for name in super().offers(endpoint) if name == "retry"] + (["end"] if is_live else [])

    end = for_each("End the endpoint", "Ended", lambda row, by: endpoints.end_endpoint(row, by=by))
