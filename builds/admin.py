from __future__ import annotations

from collections.abc import Iterable

from django.contrib import admin
from django.utils.html import format_html

from builds import services
from builds.models import Build, BuildStep
from dynabench_site.admin import ReadOnlyInline, for_each
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
