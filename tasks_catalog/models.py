"""What can be submitted to, and how it is judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ValidationError
from django.core.files.storage import Storage
from django.core.validators import MinValueValidator, RegexValidator
from django.db import models
from django.db.models.functions import Now

from tasks_catalog import metrics
from tasks_catalog.backends import storage_for
from tasks_catalog.build_config import BuildConfig, main_region
from tasks_catalog.formats import FormatError, TaskFormat, parse, render_config
from tasks_catalog.machines import EvalServer, InstanceType

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "BuildConfig",
    "Dataset",
    "EvalServer",
    "InstanceType",
    "Task",
    "TaskMetric",
    "main_region",  # a migration names it here
]
TASK_CODE = RegexValidator(r"^[a-zA-Z0-9_-]*[a-zA-Z][a-zA-Z0-9_-]*$", "Letters, digits, _ and -, with a letter.")
DATASET_NAME = RegexValidator(r"^[a-zA-Z0-9-]{1,62}$", "Letters, digits and hyphens, at most 62.")
RESERVED_TASK_CODES = {"submitable", "upload", "owners"}


class TaskQuerySet(models.QuerySet):
    def visible(self) -> Self:
        return self.filter(is_hidden=False)

    def visible_to(self, user: User | AnonymousUser) -> Self:
        """Hidden ones for staff and their owners only."""
        if user.is_staff:
            return self
        return self.filter(models.Q(is_hidden=False) | models.Q(pk__in=Task.objects.owned_by(user)))

    def whole(self) -> Self:
        """With the rows that a leaderboard is made from."""
        return self.select_related("build_config").prefetch_related("metrics", "datasets")

    def owned_by(self, user: User | AnonymousUser) -> Self:
        return self.filter(pk__in=Task.owners.through.objects.filter(user_id=user.pk).values("task_id"))

    def submitable(self) -> Self:
        return self.filter(submitable=True)


class Task(models.Model):
    """A problem with an input and output format, datasets and metrics."""

    code = models.CharField(
        max_length=60,
        unique=True,
        validators=[TASK_CODE],
        help_text="Stands in addresses, in file names and in the CLI. Don't change it once models were sent.",
    )
    name = models.CharField(max_length=120, unique=True)
    purpose = models.CharField(max_length=200, blank=True, help_text="One line for the list of tasks.")
    description = models.TextField(blank=True, help_text="What a submitter wants to know; plain text.")
    io_yaml = models.TextField(
        "fields",
        help_text="The lists `context`, `input` and `output`. A field in both input and output is what models predict.",
    )
    submitable = models.BooleanField(default=True, help_text="Off: the task is shown, but takes no models.")
    is_hidden = models.BooleanField("hidden", default=False, help_text="On: only staff and owners see the task.")
    unpublished_models_in_leaderboard = models.BooleanField(
        default=False, help_text="On: unpublished models are ranked too, without name and owner (competitions)."
    )
    submission_limit = models.PositiveSmallIntegerField(
        default=3, validators=[MinValueValidator(1)], help_text="Models per user in the hours below."
    )
    limit_hours = models.PositiveSmallIntegerField(default=24, validators=[MinValueValidator(1)])
    owners = models.ManyToManyField(User, blank=True, related_name="owned_tasks", help_text="See all models of it.")
    created_at = models.DateTimeField(db_default=Now())

    objects = TaskQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.code

    def clean(self) -> None:
        if self.code.lower() in RESERVED_TASK_CODES:
            raise ValidationError({"code": f"{self.code} is an address of the site. Choose another code."})
        try:
            parse(self.io_yaml)
        except FormatError as error:
            raise ValidationError({"io_yaml": str(error)}) from error

    @property
    def format(self) -> TaskFormat:
        return parse(self.io_yaml)

    def perf_metric(self) -> TaskMetric | None:
        return next((metric for metric in self.metrics.all() if metric.ranks), None)

    def is_run_by(self, user: User | AnonymousUser) -> bool:
        """Whether the user sees all of it, hidden datasets too: its owners, and staff."""
        return user.is_staff or (user.is_authenticated and self.owners.filter(pk=user.pk).exists())

    def datasets_for(self, user: User | AnonymousUser) -> list[Dataset]:
        """The datasets whose scores the user may see."""
        rows = list(self.datasets.all())
        shown = [row for row in rows if row.access_type != Dataset.Access.HIDDEN]
        return rows if len(shown) < len(rows) and self.is_run_by(user) else shown

    @property
    def config_yaml(self) -> str:
        """The task's configuration in the original's language, made from the rows."""
        perf, rows = self.perf_metric(), self.metrics.all()
        if perf is None:
            return ""
        deltas = [row.name for row in rows if row.kind == TaskMetric.Kind.PERTURBATION]
        weights = {row.name: row.weight for row in rows}
        return render_config(self.format, {"type": perf.name, "reference_name": perf.field}, deltas, weights)

    def storage(self) -> Storage:
        config = self.build_config
        return storage_for(config.bucket, config.aws_region)


class TaskMetric(models.Model):
    """A metric of a task, with its options and its weight on the leaderboard."""

    class Kind(models.TextChoices):
        PERF = "perf", "performance"
        PERTURBATION = "perturbation"
        JOB = "job"

    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="metrics")
    kind = models.CharField(max_length=12, choices=Kind, default=Kind.PERF)
    name = models.CharField(max_length=40, help_text="The metric, as docs/metrics.md lists them.")
    reference = models.CharField(
        max_length=60, blank=True, help_text="The field it compares. Blank: the only one that models predict."
    )
    options = models.JSONField(default=dict, blank=True, help_text='For example {"average": "binary"}.')
    files = models.JSONField(default=dict, editable=False, help_text="The sha256 of files in the options when saved.")
    ranks = models.BooleanField(
        "ranks models", default=False, help_text="Exactly one performance metric of a task ranks."
    )
    weight = models.FloatField(
        default=1, validators=[MinValueValidator(0)], help_text="Default weight; 0 shows it without counting it."
    )

    class Meta:
        ordering = ["-ranks", "pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["task", "name"], name="metric_once_per_task", violation_error_message="Twice the same metric."
            )
        ]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        known = metrics.names(self.kind)
        if self.name not in known:
            raise ValidationError({"name": f"{self.kind} metrics are: {', '.join(known)}."})
        if self.ranks and self.kind != self.Kind.PERF:
            raise ValidationError({"ranks": "Only a performance metric can rank models."})
        try:
            metrics.check_options(self.name, self.options)
        except metrics.MetricError as error:
            raise ValidationError({"options": str(error)}) from error
        self.files = metrics.file_hashes(self.name, self.options)
        self._clean_reference()

    def _clean_reference(self) -> None:
        try:
            labels = self.task.format.label_names
        except (FormatError, Task.DoesNotExist):
            return  # said at the task's own field
        if self.reference and self.reference not in labels:
            raise ValidationError({"reference": f"Models predict: {', '.join(labels)}."})
        if not self.reference and self.kind == self.Kind.PERF and len(labels) > 1:
            raise ValidationError({"reference": f"Say which: {', '.join(labels)}."})

    @property
    def definition(self) -> metrics.Metric:
        return metrics.get(self.name)

    @property
    def field(self) -> str:
        return self.reference or self.task.format.label_names[0]

    def pinned(self) -> dict[str, Any]:
        """What a score of this metric depends on; of a file that this host can't read, the one it was saved with."""
        hashes = metrics.file_hashes(self.name, self.options)
        files = {option: sha256 or self.files.get(option, "") for option, sha256 in hashes.items()}
        return {
            "name": self.name,
            "kind": self.kind,
            "field": self.field,
            "options": self.options,
            "version": self.definition.version,
            **({"files": files} if files else {}),
        }


class DatasetQuerySet(models.QuerySet):
    def scoring(self) -> Self:
        return self.filter(access_type=Dataset.Access.SCORING)

    def base(self) -> Self:
        return self.filter(variant=Dataset.Variant.BASE)


class Dataset(models.Model):
    """One evaluation set of a task, in one variant; inputs and labels are separate objects."""

    class Access(models.TextChoices):
        SCORING = "scoring", "scoring (counts on the leaderboard)"
        STANDARD = "standard", "standard (shown on the model's page)"
        HIDDEN = "hidden", "hidden (only owners of the task see its scores)"

    class Variant(models.TextChoices):
        BASE = "base"
        FAIRNESS = "fairness"
        ROBUSTNESS = "robustness"

    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="datasets")
    name = models.CharField(max_length=62, validators=[DATASET_NAME])
    variant = models.CharField(
        max_length=12,
        choices=Variant,
        default=Variant.BASE,
        help_text="Fairness and robustness are perturbed copies of the base set of the same name.",
    )
    format = models.CharField(max_length=30, default="JsonLines", help_text="The class that reads it.")
    access_type = models.CharField(max_length=10, choices=Access, default=Access.SCORING)
    weight = models.FloatField(default=5, validators=[MinValueValidator(0)], help_text="Default weight in averages.")
    description = models.TextField(blank=True)
    source_url = models.URLField(blank=True)
    examples = models.PositiveIntegerField(default=0, editable=False)
    inputs_sha256 = models.CharField(max_length=64, blank=True, editable=False)
    labels_sha256 = models.CharField(max_length=64, blank=True, editable=False)
    shards = models.JSONField(default=list, editable=False, help_text="Names of its parts; empty when it is one file.")
    created_at = models.DateTimeField(db_default=Now())

    objects = DatasetQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]
        constraints = [models.UniqueConstraint(fields=["task", "name", "variant"], name="dataset_once_per_task")]

    def __str__(self) -> str:
        return self.full_name

    @property
    def full_name(self) -> str:
        """The name with the variant's prefix, as in storage keys: `fairness-tweets`."""
        return self.name if self.variant == self.Variant.BASE else f"{self.variant}-{self.name}"

    def file_names(self, shards: Sequence[str]) -> list[str]:
        """The names of the files that so sharded inputs, labels or predictions are in: one for each shard."""
        names = [f"{self.full_name}-{shard}" for shard in shards] or [self.full_name]
        return [f"{name}.jsonl" for name in names]

    @property
    def folder(self) -> str:
        """Where its files lie; those of another format than JSON Lines are in a folder of that format's name."""
        return self.task.code if self.format == "JsonLines" else f"{self.format.lower()}/{self.task.code}"

    @property
    def inputs_keys(self) -> list[str]:
        return [f"datasets/{self.folder}/{name}" for name in self.file_names(self.shards)]

    @property
    def labels_keys(self) -> list[str]:
        return [f"labels/{self.folder}/{name}" for name in self.file_names(self.shards)]

    @property
    def inputs_prefix(self) -> str:
        """What the keys of all its inputs begin with, and no other dataset's."""
        return f"datasets/{self.folder}/{self.full_name}-" if self.shards else self.inputs_keys[0]

    def base(self) -> Dataset | None:
        return self.task.datasets.filter(name=self.name, variant=self.Variant.BASE).first()
