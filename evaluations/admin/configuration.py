"""What staff set: tasks with their build config and metrics, datasets, eval servers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.contrib import admin, messages
from django.db import models, transaction
from django.db.models import Count, Exists, OuterRef, QuerySet
from django.forms import BaseInlineFormSet, ModelForm
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html, format_html_join

from dynabench_site.admin import Buttons, StaffMay
from dynabench_site.clusters import ClusterHeartbeat
from evaluations.admin.forms import (
    EXAMPLE_FIELDS,
    BuildConfigForm,
    DatasetForm,
    ObjectField,
    TaskForm,
    TaskMetricForm,
    TaskMetricFormSet,
)
from evaluations.dataset_files import store_dataset_file
from evaluations.datasets import Summary
from evaluations.models import Inference
from evaluations.planning import Plan
from evaluations.services import plan_evaluation, request_evaluation
from submissions.models import Submission
from tasks_catalog.models import BuildConfig, Dataset, EvalServer, InstanceType, Task, TaskMetric

PLACES = {"aws_region", "s3_bucket"}
LARGEST_NUMBER = 1_000_000
FIELD_RULES = {
    models.JSONField: {"form_class": ObjectField},
    models.FloatField: {"max_value": LARGEST_NUMBER},
    models.URLField: {"assume_scheme": "https"},
}


class BuildConfigInline(StaffMay, admin.StackedInline):
    model = BuildConfig
    form = BuildConfigForm
    formfield_overrides = FIELD_RULES
    can_delete = False
    min_num = max_num = 1
    verbose_name_plural = "build config"
    fieldsets = [
        (
            None,
            {
                "fields": [
                    "eval_server",
                    ("instance_type", "instance_count", "gpu"),
                    ("seconds_per_example", "startup_seconds", "memory_mb"),
                ]
            },
        ),
        ("Build", {"fields": [("model_server", "build_minutes", "allow_sdists"), "torchserve_config"]}),
        (
            "AWS",
            {"fields": [("aws_region", "s3_bucket", "create_endpoint"), ("batch_strategy", "max_payload_mb")]},
        ),
    ]


class TaskMetricInline(StaffMay, admin.TabularInline):
    model = TaskMetric
    form = TaskMetricForm
    formset = TaskMetricFormSet
    fields = ["name", "reference", "options", "ranks", "weight"]
    formfield_overrides = FIELD_RULES
    extra = 0
    min_num = 1


@admin.register(InstanceType)
class InstanceTypeAdmin(StaffMay, admin.ModelAdmin):
    list_display = ["name", "vcpus", "memory_gib", "gpus", "price_per_hour"]
    search_fields = ["name"]

    def get_readonly_fields(self, request: HttpRequest, instance_type: InstanceType | None = None) -> list[str]:
        return ["name"] if instance_type else []


@admin.register(Task)
class TaskAdmin(Buttons, StaffMay, admin.ModelAdmin):
    form = TaskForm
    inlines = [BuildConfigInline, TaskMetricInline]
    autocomplete_fields = ["owners"]
    list_display = ["code", "name", "submitable", "models_sent", "metrics_summary", "eval_server"]
    list_filter = ["submitable", "is_hidden", "build_config__eval_server"]
    list_select_related = ["build_config"]
    search_fields = ["code", "name"]
    actions = ["re_evaluate"]
    fieldsets = [
        (None, {"fields": ["code", "name", "purpose", "description", "owners", "dataset_list"]}),
        ("Format", {"fields": ["io_yaml"]}),
        (
            "Rules",
            {
                "fields": [
                    "submitable",
                    "is_hidden",
                    "unpublished_models_in_leaderboard",
                    ("submission_limit", "limit_hours"),
                ]
            },
        ),
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        counted = Count("submissions", distinct=True)
        return super().get_queryset(request).annotate(models_sent=counted).prefetch_related("metrics")

    def get_readonly_fields(self, request: HttpRequest, task: Task | None = None) -> list[str]:
        is_in_use = task and (task.submissions.exists() or task.datasets.exists())
        return ["dataset_list", *(["code"] if is_in_use else [])]

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"io_yaml": EXAMPLE_FIELDS} | super().get_changeform_initial_data(request)

    def view_on_site(self, task: Task) -> str:
        return reverse("task", args=[task.code])

    @admin.display(description="models", ordering="models_sent")
    def models_sent(self, task: Any) -> int:
        return task.models_sent

    @admin.display(description="metrics")
    def metrics_summary(self, task: Task) -> str:
        return ", ".join(f"{row.name} (ranks)" if row.ranks else row.name for row in task.metrics.all())

    @admin.display(description="eval server", ordering="build_config__eval_server")
    def eval_server(self, task: Task) -> str:
        return task.build_config.eval_server_id

    @admin.display(description="datasets")
    def dataset_list(self, task: Task) -> str:
        if task.pk is None:
            return "Save the task first, then add its datasets here."
        rows = [
            (reverse("admin:tasks_catalog_dataset_change", args=[row.pk]), row, row.access_type, row.examples)
            for row in task.datasets.all()
        ]
        add = format_html('<a href="{}?task={}">Add a dataset</a>', reverse("admin:tasks_catalog_dataset_add"), task.pk)
        return format_html_join("", '<a href="{}">{}</a> ({}, {} examples)<br>', rows) + add

    def get_form(self, request: HttpRequest, obj: Task | None = None, **kwargs: Any) -> type[TaskForm]:
        form = super().get_form(request, obj, **kwargs)
        form.is_only_shown = getattr(request, "was_previewed", False)
        return form

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        response = super().changeform_view(request, *args, **kwargs)
        if getattr(request, "was_previewed", False):
            response = super().changeform_view(request, *args, **kwargs)
        return response

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        return super().render_change_form(request, context | {"has_preview": True}, *args, **kwargs)

    def response_change(self, request: HttpRequest, task: Task) -> HttpResponse:
        """After a preview, undo what was saved: the form is shown once more with what it would have changed."""
        if "_preview" not in request.POST:
            self.message_user(request, _consequences(task), messages.INFO)
            return super().response_change(request, task)
        self.message_user(request, f"Nothing is saved yet. {_consequences(task)}", messages.WARNING)
        transaction.set_rollback(True)
        request.was_previewed = True
        return HttpResponse()

    def save_model(self, request: HttpRequest, task: Task, form: ModelForm, change: bool) -> None:
        super().save_model(request, task, form, change)
        if change and "io_yaml" in form.changed_data and form.changes_format() and task.datasets.exists():
            names = ", ".join(map(str, task.datasets.all()))
            text = f"The datasets were uploaded for the old format. Upload these again if they don't fit: {names}."
            self.message_user(request, text, messages.WARNING)

    def save_formset(self, request: HttpRequest, form: ModelForm, formset: BaseInlineFormSet, change: bool) -> None:
        super().save_formset(request, form, formset, change)
        is_in_use = change and (form.instance.datasets.exists() or form.instance.submissions.exists())
        if is_in_use and any(PLACES.intersection(row.changed_data) for row in formset.forms):
            text = (
                "Files are not moved: copy the old bucket's files to the new one, or datasets and models are missing."
            )
            self.message_user(request, text, messages.WARNING)

    @admin.action(description="Re-evaluate what is missing or outdated")
    def re_evaluate(self, request: HttpRequest, queryset: QuerySet) -> None:
        plan = request_evaluation(submissions=Submission.objects.filter(task__in=queryset.values("pk")))
        self.message_user(request, f"Queued: {amounts(plan)}.", messages.SUCCESS)


def amounts(plan: Plan) -> str:
    """What a plan asks for, in words."""
    counts = plan.as_json(dry_run=True)
    jobs = f"{counts['builds']} builds, {counts['inferences']} inferences, {counts['scores']} sets of scores"
    return f"{jobs} of {len(counts['models'])} models"


def _consequences(task: Task) -> str:
    plan = plan_evaluation(submissions=Submission.objects.filter(task=task))
    if not plan.submission_pks:
        return "With these settings all scores are up to date."
    return f"With these settings, missing or outdated: {amounts(plan)}. “Re-evaluate” computes them."


@admin.register(Dataset)
class DatasetAdmin(StaffMay, admin.ModelAdmin):
    form = DatasetForm
    formfield_overrides = FIELD_RULES
    list_display = ["full_name", "task", "variant", "access_type", "weight", "examples", "created_at"]
    list_filter = ["task", "variant", "access_type"]
    list_select_related = ["task"]
    search_fields = ["name", "task__code", "task__name"]
    fields = ["task", "name", "variant", "format", "file", "access_type", "weight", "description", "source_url"]

    def get_readonly_fields(self, request: HttpRequest, dataset: Dataset | None = None) -> list[str]:
        return ["task", "name", "variant", "format", "examples", "created_at"] if dataset else []

    def get_fields(self, request: HttpRequest, dataset: Dataset | None = None) -> list[str]:
        return [*self.fields, "examples", "created_at"] if dataset else self.fields

    def save_model(self, request: HttpRequest, dataset: Dataset, form: ModelForm, change: bool) -> None:
        if file := form.cleaned_data.get("file"):
            file.seek(0)  # it was read to the end when it was checked
            summary = store_dataset_file(dataset, file)
            self.message_user(request, _welcome(dataset, summary), messages.SUCCESS)
        else:
            super().save_model(request, dataset, form, change)


def _welcome(dataset: Dataset, summary: Summary) -> str:
    found = Inference.objects.unfinished().filter(dataset=dataset, inputs_sha256=summary.inputs_sha256)
    count = found.values("submission").distinct().count()
    tags = ", ".join(f"{tag} ({number:,})" for tag, number in summary.tags.items()) or "none"
    noun = "model" if count == 1 else "models"
    return f"{summary.examples:,} examples; tags: {tags}. {count} {noun} will be evaluated on it."


@admin.register(EvalServer)
class EvalServerAdmin(StaffMay, admin.ModelAdmin):
    list_display = ["name", "is_running", "tasks", "processes", "max_inferences", "description"]
    search_fields = ["name", "description"]

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        alive = ClusterHeartbeat.objects.alive().filter(name=OuterRef("pk"))
        return super().get_queryset(request).annotate(alive=Exists(alive), tasks=Count("buildconfig"))

    def get_readonly_fields(self, request: HttpRequest, server: EvalServer | None = None) -> Iterable[str]:
        return ["name"] if server else []

    @admin.display(description="running", boolean=True)
    def is_running(self, server: Any) -> bool:
        return server.alive

    @admin.display(description="tasks")
    def tasks(self, server: Any) -> int:
        return server.tasks
