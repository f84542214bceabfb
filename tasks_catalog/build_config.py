"""How models of a task are built, served and evaluated."""

from __future__ import annotations

import re

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models

from tasks_catalog.machines import DEFAULT_INSTANCE, EvalServer, InstanceType
from tasks_catalog.server_settings import check_server_setting

BUCKET = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9.-]*[a-z0-9]")


def main_region() -> str:
    return settings.AWS_REGION


class BuildConfig(models.Model):
    """How models of a task are built, served and evaluated."""

    class ModelServer(models.TextChoices):
        DEFAULT = "", "the profile's default"
        ASGI = "asgi", "asgi (small, starts at once)"
        TORCHSERVE = "torchserve", "TorchServe 0.12 (Java and torch in the image)"

    class BatchStrategy(models.TextChoices):
        SINGLE = "SingleRecord", "one example a request"
        MULTI = "MultiRecord", "as many examples a request as its size allows"

    task = models.OneToOneField("tasks_catalog.Task", on_delete=models.CASCADE, related_name="build_config")
    eval_server = models.ForeignKey(
        EvalServer,
        on_delete=models.PROTECT,
        default="default",
        help_text="The cluster that evaluates this task's models. It must be running, or they wait.",
    )
    aws_region = models.CharField(
        max_length=25,
        default=main_region,
        validators=[RegexValidator(r"^[a-z]{2}(-[a-z]+)+-\d$", "A region is written like us-west-1.")],
        help_text="Where the task's files, images and jobs live.",
    )
    instance_type = models.ForeignKey(
        InstanceType,
        on_delete=models.PROTECT,
        default=DEFAULT_INSTANCE,
        db_column="instance_type",
        help_text="SageMaker instance for transform jobs and endpoints. Change it when models need more memory.",
    )
    instance_count = models.PositiveSmallIntegerField(default=1, validators=[MinValueValidator(1)])
    batch_strategy = models.CharField(
        max_length=12,
        choices=BatchStrategy,
        default=BatchStrategy.SINGLE,
        help_text="How a transform job asks. Choose several examples a request when handlers answer line by line.",
    )
    max_payload_mb = models.PositiveSmallIntegerField(
        "payload (MB)",
        default=6,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="A request of a transform job has at most this size. Lower it when requests take too long.",
    )
    gpu = models.BooleanField("GPU", default=False, help_text="On: images are made for a GPU instance.")
    create_endpoint = models.BooleanField(default=False, help_text="On: each model gets a live endpoint, which costs.")
    s3_bucket = models.CharField(
        max_length=63, blank=True, help_text="Blank: the site's bucket. {region} and {account} are filled in."
    )
    model_server = models.CharField(max_length=10, choices=ModelServer, default=ModelServer.DEFAULT, blank=True)
    torchserve_config = models.JSONField(
        default=dict,
        blank=True,
        help_text='Extra settings of the model server, e.g. {"default_response_timeout": 1200}.',
    )
    allow_sdists = models.BooleanField(
        default=False, help_text="On: requirements without a wheel are built, in the sandbox, without network."
    )
    build_minutes = models.PositiveSmallIntegerField(
        default=60, validators=[MinValueValidator(1), MaxValueValidator(600)], help_text="A longer build fails."
    )
    seconds_per_example = models.FloatField(
        default=2.0,
        validators=[MinValueValidator(0.001)],
        help_text="A model may take this long for each example of a dataset, on average.",
    )
    startup_seconds = models.PositiveSmallIntegerField(
        default=300, validators=[MinValueValidator(1)], help_text="A model may take this long to load."
    )
    memory_mb = models.PositiveIntegerField(
        "memory (MiB)", default=4096, validators=[MinValueValidator(64)], help_text="A model that takes more is ended."
    )

    def __str__(self) -> str:
        return f"build config of {self.task}"

    def clean(self) -> None:
        if not isinstance(self.torchserve_config, dict):
            raise ValidationError({"torchserve_config": 'Write an object, like {"default_response_timeout": 1200}.'})
        for key, value in self.torchserve_config.items():
            try:
                check_server_setting(key, value)
            except ValueError as error:
                raise ValidationError({"torchserve_config": str(error)}) from error
        if self.gpu and self.instance_type_id and not self.instance_type.gpus:
            raise ValidationError({"gpu": f"{self.instance_type} has no GPU: choose an ml.p or ml.g instance."})
        if self.s3_bucket and not BUCKET.fullmatch(self.s3_bucket.replace("{region}", "r").replace("{account}", "a")):
            rule = "Small letters, digits, dots and hyphens; {region} and {account} are filled in."
            raise ValidationError({"s3_bucket": rule})

    @property
    def served_by(self) -> str:
        return self.model_server or settings.MODEL_SERVER

    @property
    def bucket(self) -> str:
        name = self.s3_bucket or settings.S3_BUCKET
        return name.replace("{region}", self.aws_region)

    @property
    def memory_gib(self) -> float:
        """What the memory metric counts down from."""
        return self.memory_mb / 1024

    def deadline_seconds(self, examples: int) -> int:
        """How long one inference over that many examples may take."""
        seconds = self.startup_seconds + int(examples * self.seconds_per_example) + 1
        return min(settings.MAX_DEADLINE_SECONDS, seconds)
