"""Where models run: kinds of machines, and the clusters that evaluate."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models

from dynabench_site.queue import RESERVED_CLUSTERS

CLUSTER_NAME = RegexValidator(r"^[a-z0-9][a-z0-9-]{0,30}$", "Small letters, digits and hyphens, at most 31.")
DEFAULT_INSTANCE = "ml.m5.2xlarge"


class InstanceType(models.Model):
    """A kind of machine that models run on in production."""

    name = models.CharField(
        primary_key=True,
        max_length=40,
        validators=[RegexValidator(r"^ml\.[a-z0-9-]+\.[a-z0-9]+$", "A type is written like ml.m5.2xlarge.")],
        help_text="As SageMaker writes it. The name can't be changed afterwards.",
    )
    vcpus = models.PositiveSmallIntegerField("vCPUs", validators=[MinValueValidator(1)])
    memory_gib = models.FloatField(
        "memory (GiB)", validators=[MinValueValidator(0.5)], help_text="The memory metric counts down from it."
    )
    gpus = models.PositiveSmallIntegerField("GPUs", default=0)
    price_per_hour = models.DecimalField(
        "US$ an hour",
        max_digits=8,
        decimal_places=4,
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
        help_text="What your region charges. Blank: costs are not shown. Change it when AWS does; costs so far stay.",
    )

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @property
    def described(self) -> str:
        """What staff choose by."""
        gpus = f", {self.gpus} GPU" if self.gpus else ""
        price = f", US$ {self.price_per_hour.normalize():f} an hour" if self.price_per_hour is not None else ""
        return f"{self.name}: {self.vcpus} vCPU, {self.memory_gib:g} GiB{gpus}{price}"


class EvalServer(models.Model):
    """A django-q cluster with a name; tasks name the one that evaluates their models."""

    name = models.CharField(
        primary_key=True,
        max_length=31,
        validators=[CLUSTER_NAME],
        help_text="Start it with `manage.py cluster NAME`. The name can't be changed afterwards.",
    )
    description = models.CharField(max_length=200, blank=True)
    processes = models.PositiveSmallIntegerField(
        default=4,
        validators=[MinValueValidator(1), MaxValueValidator(256)],
        help_text="Worker processes: that many metric computations at once. Counts from the cluster's next start.",
    )
    max_inferences = models.PositiveSmallIntegerField(
        default=2,
        validators=[MinValueValidator(1)],
        help_text="Inferences running at once. Raise it on AWS, where they run elsewhere; here each takes memory.",
    )

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        if self.name in RESERVED_CLUSTERS:
            raise ValidationError({"name": f"{self.name} is reserved. Choose another name."})
