"""From an archive to an image."""

from __future__ import annotations

from typing import Self

from django.db import models
from django.db.models import Exists, OuterRef
from django.db.models.functions import Now

from dynabench_site.jobs import Job, JobQuerySet
from dynabench_site.queue import BUILD_CLUSTER
from submissions.models import Submission


class BuildQuerySet(JobQuerySet):
    def succeeded(self) -> Self:
        return self.filter(status=Build.Status.SUCCEEDED)


class Build(Job):
    """The making of one image; each attempt writes its own steps."""

    submission = models.ForeignKey(Submission, on_delete=models.CASCADE, related_name="builds")
    run = models.PositiveSmallIntegerField(default=1, help_text="Counts rebuilds of the same archive.")
    config = models.JSONField(default=dict, help_text="The build config it ran under.")
    sandbox = models.CharField(max_length=10, blank=True)
    model_server = models.CharField(max_length=10, blank=True)
    image = models.CharField("image digest", max_length=80, blank=True)
    is_image_kept = models.BooleanField(default=False, help_text="Off once the image was removed from its host.")
    image_uri = models.CharField(max_length=300, blank=True, help_text="Where other hosts get it, by its digest.")
    is_deployed = models.BooleanField(default=False, help_text="On while anything of it may exist outside its host.")
    mar_sha256 = models.CharField(max_length=64, blank=True)

    objects = BuildQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [models.UniqueConstraint(fields=["submission", "run"], name="build_once_per_run")]

    def __str__(self) -> str:
        return f"build {self.run} of {self.submission}"

    @property
    def name(self) -> str:
        """Its name outside the database, made from ids; a rebuild has one of its own (at most 63 characters)."""
        if self.run == 1:
            return self.submission.endpoint_name
        # Without a hyphen before the r: no model's name can make a first build's name of it.
        return f"ts{self.submission_id}r{self.run}-{self.submission.name}"[:63].rstrip("-")

    @staticmethod
    def is_replaced() -> Exists:
        """For a query of builds: a later one of the same submission has succeeded."""
        later = Build.objects.succeeded().filter(run__gt=OuterRef("run"))
        return Exists(later.filter(submission=OuterRef("submission")))

    @classmethod
    def newest(cls, submission: Submission) -> Build | None:
        return cls.objects.filter(submission=submission).order_by("-run").first()

    @classmethod
    def wanted(cls, submission: Submission) -> Build:
        """The build that a submission needs: its newest, or a first one."""
        defaults = {"cluster": BUILD_CLUSTER}
        return cls.newest(submission) or cls.objects.get_or_create(submission=submission, run=1, defaults=defaults)[0]


class BuildStep(models.Model):
    """One step of an attempt: what was done, what it printed, how it ended."""

    build = models.ForeignKey(Build, on_delete=models.CASCADE, related_name="steps")
    attempt = models.PositiveSmallIntegerField()
    name = models.CharField(max_length=40)
    command = models.TextField(blank=True)
    output = models.TextField(blank=True)
    exit_code = models.IntegerField(null=True)
    started_at = models.DateTimeField(db_default=Now())
    finished_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"{self.name} of {self.build}"

    @property
    def has_failed(self) -> bool:
        return self.exit_code not in {None, 0}


class Endpoint(Job):
    """A build that answers single examples on a machine of its own; *succeeded* means that it does."""

    TRANSITIONS = Job.TRANSITIONS | {
        Job.Status.SUCCEEDED: {Job.Status.CANCELLED, Job.Status.QUEUED},
        Job.Status.CANCELLED: {Job.Status.QUEUED},
    }

    build = models.OneToOneField(Build, on_delete=models.CASCADE, related_name="endpoint")
    is_deployed = models.BooleanField(default=False, help_text="On while it may exist, and cost.")

    objects = JobQuerySet.as_manager()

    def __str__(self) -> str:
        return f"endpoint {self.name}"

    @property
    def name(self) -> str:
        return self.build.name

    @property
    def event_submission_pk(self) -> int:
        return self.build.submission_id
