"""What the machine made: models on their way, inferences, scores. Read-only; actions move them."""

from __future__ import annotations

from collections.abc import Iterable

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse

from builds import endpoints
from builds import services as builds
from builds.endpoints import can_redeploy
from builds.models import Build
from dynabench_site.admin import OperationsAdmin, ReadOnlyInline, for_each
from evaluations import services
from evaluations.admin.configuration import amounts
from evaluations.models import CurrentScores, Inference, Score, Scoring
from submissions.admin import SubmissionJobAdmin
from submissions.models import Submission
from submissions.services import cancel
from tasks_catalog.models import Dataset


class BuildInline(ReadOnlyInline):
    model = Build
    fields = ["run", "status", "attempts", "waiting_for", "error_code", "started_at", "finished_at"]


class InferenceInline(ReadOnlyInline):
    model = Inference
    fields = ["dataset", "status", "attempts", "waiting_for", "error_code", "seconds", "finished_at"]


class CurrentScoresInline(ReadOnlyInline):
    model = CurrentScores
    show_change_link = False
    fields = readonly_fields = ["dataset", "values"]

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        rows = super().get_queryset(request).select_related("submission__task", "dataset")
        return rows.prefetch_related("scoring__scores")

    def values(self, current: CurrentScores) -> str:
        return ", ".join(f"{score.metric} {score.value:.4g}" for score in current.scoring.scores.all())


@admin.register(Submission)
class SubmissionAdmin(OperationsAdmin):
    list_display = ["pk", "name", "task", "owner", "status", "is_published", "error_code", "created_at"]
    list_display_links = ["pk", "name"]
    list_filter = ["status", "task", "is_published", "created_at"]
    list_select_related = ["task", "owner"]
    search_fields = ["=pk", "name", "owner__username", "owner__email", "sha256"]
    inlines = [BuildInline, InferenceInline, CurrentScoresInline]
    actions = ["retry", "cancel", "rebuild", "re_evaluate", "publish", "unpublish", "redeploy", "take_down"]

    def view_on_site(self, submission: Submission) -> str:
        return reverse("model", args=[submission.pk])

    def offers(self, submission: Submission) -> Iterable[str]:
        fitting = {
            "retry": submission.can_retry,
            "cancel": submission.can_cancel,
            "rebuild": submission.is_finished,
            "re_evaluate": submission.status in services.EVALUABLE,
            "publish": not submission.is_published,
            "unpublish": submission.is_published,
            "redeploy": can_redeploy(submission),
            "take_down": submission.status in services.ENDED,
        }
        return [name for name, fits in fitting.items() if fits]

    retry = for_each("Retry what failed", "Re-queued", lambda row, by: services.retry(row, by=by))
    cancel = for_each("Cancel", "Asked to stop", lambda row, by: cancel(row, by=by))
    rebuild = for_each("Rebuild the image", "Asked for a rebuild of", lambda row, by: builds.rebuild(row))
    publish = for_each("Publish", "Published", lambda row, by: services.publish(row))
    unpublish = for_each("Unpublish", "Unpublished", lambda row, by: services.unpublish(row))

    redeploy = for_each("Start the live endpoint", "Asked for the endpoint of", lambda row, by: endpoints.redeploy(row))
    take_down = for_each("Take down", "Taken down", lambda row, by: services.take_down(row))

    @admin.action(description="Re-evaluate what is missing or outdated")
    def re_evaluate(self, request: HttpRequest, queryset: QuerySet) -> None:
        plan = services.request_evaluation(submissions=Submission.objects.filter(pk__in=queryset.values("pk")))
        self.message_user(request, f"Queued: {amounts(plan)}.", messages.SUCCESS)


class EvaluationJobAdmin(SubmissionJobAdmin):
    list_filter = [*SubmissionJobAdmin.list_filter, "dataset__access_type"]
    list_select_related = ["submission__task", "dataset", "holder"]

    def retry_one(self, job: Inference | Scoring, by: str) -> None:
        services.retry(job.submission, by=by)


@admin.register(Inference)
class InferenceAdmin(EvaluationJobAdmin):
    list_display = ["pk", "submission", "dataset", *SubmissionJobAdmin.list_display[1:]]


class ScoreInline(ReadOnlyInline):
    model = Score
    fields = ["metric", "value", "pinned", "created_at"]


@admin.register(Scoring)
class ScoringAdmin(EvaluationJobAdmin):
    list_display = ["pk", "submission", "dataset", *SubmissionJobAdmin.list_display[1:]]
    list_select_related = [*EvaluationJobAdmin.list_select_related, "inference__submission__task", "inference__dataset"]
    inlines = [ScoreInline]


@admin.register(Score)
class ScoreAdmin(OperationsAdmin):
    list_display = ["metric", "value", "submission", "dataset", "created_at"]
    list_filter = ["metric", "scoring__submission__task", "created_at"]
    list_select_related = ["scoring__submission__task", "scoring__dataset"]
    search_fields = ["=scoring__submission__pk", "scoring__submission__name", "metric"]

    @admin.display
    def submission(self, score: Score) -> Submission:
        return score.scoring.submission

    @admin.display
    def dataset(self, score: Score) -> Dataset:
        return score.scoring.dataset
