"""Images over datasets, predictions, scores."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models.functions import Now

from builds.models import Build
from dynabench_site.jobs import Job, JobQuerySet
from submissions.models import Submission
from tasks_catalog.models import Dataset


class Inference(Job):
    """One image over one dataset variant."""

    submission = models.ForeignKey(Submission, on_delete=models.CASCADE, related_name="inferences")
    build = models.ForeignKey(Build, on_delete=models.CASCADE, related_name="inferences")
    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="inferences")
    fingerprint = models.CharField(max_length=64, help_text="Of all that its predictions depend on.")
    run = models.PositiveSmallIntegerField(default=1, help_text="Counts forced repetitions.")
    inputs_sha256 = models.CharField(max_length=64)
    shards = models.JSONField(default=list, help_text="Those of its inputs, and so of its predictions.")
    limits = models.JSONField(default=dict, help_text="Deadline in seconds and memory in MiB it ran under.")
    nth = models.PositiveSmallIntegerField(default=1, help_text="Counts the inferences of its build on its dataset.")
    tries = models.PositiveSmallIntegerField(default=0, help_text="Runs that ended without an answer.")
    handle = models.CharField(max_length=100, blank=True, help_text="The runner's name for it, while it may run.")
    link = models.URLField(max_length=300, blank=True, help_text="Where the runner shows it.")
    predictions_sha256 = models.CharField(max_length=64, blank=True)
    examples = models.PositiveIntegerField(default=0)
    seconds = models.FloatField(null=True, help_text="From the first example to the last answer, without start-up.")
    peak_memory_bytes = models.BigIntegerField(null=True)
    cost = models.DecimalField(max_digits=12, decimal_places=6, null=True, help_text="US$, where a price is known.")

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["submission", "dataset", "fingerprint", "run"], name="inference_once_per_run"
            )
        ]
        indexes = [models.Index(fields=["cluster", "status"])]

    def __str__(self) -> str:
        return f"inference {self.pk}: {self.submission} on {self.dataset}"

    @property
    def name(self) -> str:
        """Its name outside the database, made from ids: creating it again finds the same."""
        return f"ts{self.submission_id}-i{self.pk}-r{self.tries}"

    @property
    def predictions_folder(self) -> str:
        folder = f"predictions/{self.build.name}/raw/{self.submission.task.code}/"
        return folder if self.nth == 1 else f"{folder}{self.nth}/"

    @property
    def predictions_keys(self) -> list[str]:
        return [f"{self.predictions_folder}{name}.out" for name in self.dataset.file_names(self.shards)]


class Scoring(Job):
    """The computing of one complete set of scores from one inference."""

    submission = models.ForeignKey(Submission, on_delete=models.CASCADE, related_name="scorings")
    inference = models.ForeignKey(Inference, on_delete=models.CASCADE, related_name="scorings")
    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="scorings")
    fingerprint = models.CharField(max_length=64, help_text="Of predictions, labels, metrics, options and code.")
    run = models.PositiveSmallIntegerField(default=1)
    labels_sha256 = models.CharField(max_length=64)
    base_sha256 = models.CharField(max_length=64, blank=True, help_text="Of the base predictions, for perturbations.")
    metrics = models.JSONField(default=list, help_text="The metrics with options and versions it computes.")
    code_version = models.CharField(max_length=40)

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [models.UniqueConstraint(fields=["inference", "fingerprint", "run"], name="scoring_once_per_run")]
        indexes = [models.Index(fields=["cluster", "status"])]

    def __str__(self) -> str:
        return f"scoring {self.pk} of {self.inference}"


class Score(models.Model):
    """One metric's value for one inference."""

    scoring = models.ForeignKey(Scoring, on_delete=models.CASCADE, related_name="scores")
    metric = models.CharField(max_length=40)
    value = models.FloatField(help_text="Unrounded, in the metric's unit.")
    by_tag = models.JSONField(default=dict, help_text='{tag: {"value", "examples"}}')
    pinned: models.JSONField[dict[str, Any], dict[str, Any]] = models.JSONField(default=dict)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["pk"]
        constraints = [models.UniqueConstraint(fields=["scoring", "metric"], name="score_once_per_metric")]

    def __str__(self) -> str:
        return f"{self.metric} {self.value}"


class CurrentScoresQuerySet(models.QuerySet):
    def scores(self) -> models.QuerySet[Score]:
        rows = Score.objects.filter(scoring__in=self.values("scoring")).order_by("scoring__dataset_id", "pk")
        return rows.select_related("scoring__inference", "scoring__dataset")


class CurrentScores(models.Model):
    """Points to the newest complete set of scores of a submission on a dataset variant."""

    submission = models.ForeignKey(Submission, on_delete=models.CASCADE, related_name="current_scores")
    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="current_scores")
    scoring = models.ForeignKey(Scoring, on_delete=models.CASCADE, related_name="+")

    objects = CurrentScoresQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "current scores"
        constraints = [models.UniqueConstraint(fields=["submission", "dataset"], name="one_current_set")]

    def __str__(self) -> str:
        return f"{self.submission} on {self.dataset}"
