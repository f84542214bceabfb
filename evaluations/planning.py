"""What has to be computed, and what needn't: fingerprints of everything that predictions and scores depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from builds.models import Build
from evaluations.backends import runner
from evaluations.models import Inference, Scoring
from submissions.models import Submission
from tasks_catalog.models import BuildConfig, Dataset, Task, TaskMetric

Stage = Literal["", "scores", "inference", "build"]

# Goes up when the reading of predictions or labels changes in a way that changes numbers.
SCORING_CODE_VERSION = "1"


def fingerprint(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def wanted_inference(build: Build, dataset: Dataset, config: BuildConfig) -> Inference:
    """The inference that the current image, inputs and limits ask for, not saved.

    The run of the build counts too: whoever asks for a rebuild asks for what follows, even from equal bytes.
    """
    limits = runner().limits(config, dataset.examples)
    return Inference(
        submission_id=build.submission_id,
        build=build,
        dataset=dataset,
        cluster=config.eval_server_id,
        inputs_sha256=dataset.inputs_sha256,
        shards=dataset.shards,
        limits=limits,
        fingerprint=fingerprint(build.image, build.run, build.model_server, dataset.inputs_sha256, limits),
    )


def wanted_scoring(
    inference: Inference, base: Inference | None, metrics: Iterable[TaskMetric], config: BuildConfig
) -> Scoring:
    """The scoring that the current metrics and labels ask for, not saved. `base` is needed for perturbed variants."""
    dataset = inference.dataset
    pins = pinned(metrics, dataset)
    base_sha256 = base.predictions_sha256 if base and dataset.variant != Dataset.Variant.BASE else ""
    made_from = (inference.predictions_sha256, base_sha256, dataset.labels_sha256, pins, SCORING_CODE_VERSION)
    return Scoring(
        submission_id=inference.submission_id,
        inference=inference,
        dataset=dataset,
        cluster=config.eval_server_id,
        labels_sha256=dataset.labels_sha256,
        base_sha256=base_sha256,
        metrics=pins,
        code_version=SCORING_CODE_VERSION,
        fingerprint=fingerprint(*made_from),
    )


def pinned(metrics: Iterable[TaskMetric], dataset: Dataset) -> list[dict[str, Any]]:
    """What the scores on a dataset depend on, in an order that doesn't: a perturbation metric also on what ranks."""
    rows = sorted(metrics, key=lambda metric: metric.name)
    ranking = [metric.pinned() for metric in rows if metric.ranks]
    return [
        metric.pinned() | ({"perf": ranking[0]} if ranking and metric.kind == TaskMetric.Kind.PERTURBATION else {})
        for metric in rows
        if applies(metric, dataset)
    ]


def applies(metric: TaskMetric, dataset: Dataset) -> bool:
    """Performance and job metrics are of base datasets; a perturbation metric is of the variant it is named after."""
    if metric.kind == TaskMetric.Kind.PERTURBATION:
        return metric.name == dataset.variant
    return dataset.variant == Dataset.Variant.BASE


@dataclass
class Plan:
    """The rows to make; `superseded` ones are still under way for what is no longer wanted.

    Whatever is up to date already, or on its way, is not in it.
    """

    builds: list[Submission] = field(default_factory=list)
    inferences: list[Inference] = field(default_factory=list)
    scorings: list[Scoring] = field(default_factory=list)
    revived: list[Inference | Scoring] = field(default_factory=list)
    superseded: list[Inference] = field(default_factory=list)
    following: int = 0  # inferences that come with the builds

    @property
    def jobs(self) -> list[Inference | Scoring]:
        return [*self.inferences, *self.scorings, *self.revived]

    @property
    def submission_pks(self) -> list[int]:
        return sorted({job.submission_id for job in self.jobs} | {submission.pk for submission in self.builds})

    def as_json(self, *, dry_run: bool) -> dict[str, Any]:
        """Counts of jobs: `scores` are sets of scores, those that follow the inferences included."""
        inferences = self.following + sum(isinstance(job, Inference) for job in self.jobs)
        scorings = sum(isinstance(job, Scoring) for job in self.jobs)
        return {
            "dry_run": dry_run,
            "builds": len(self.builds),
            "inferences": inferences,
            "scores": scorings + inferences,
            "models": self.submission_pks,
            "queued": 0 if dry_run else len(self.builds) + len(self.jobs),
        }


class Planner:
    """Plans for the submissions of one task with a fixed number of queries."""

    def __init__(self, task: Task, submissions: Iterable[Submission], datasets: Collection[Dataset] | None) -> None:
        self.task, self.config = task, task.build_config
        self.metrics = list(task.metrics.all())
        self.submissions = {submission.pk: submission for submission in submissions}
        self.datasets = list(task.datasets.all() if datasets is None else datasets)
        for row in self.datasets:
            row.task = task
        builds = Build.objects.filter(submission__in=self.submissions).exclude(status=Build.Status.CANCELLED)
        inferences = Inference.objects.filter(submission__in=self.submissions, dataset__task=task)
        self.builds, _ = self._newest(builds, "submission_id")
        self.inferences, self.inference_runs = self._newest(inferences, "submission_id", "dataset_id")
        scorings = Scoring.objects.filter(inference__in=[row.pk for row in self.inferences.values()])
        self.scorings, self.scoring_runs = self._newest(scorings, "inference_id")

    @staticmethod
    def _newest(rows: Any, *key: str) -> tuple[dict[Any, Any], dict[Any, int]]:
        """The newest row of each key, and the last run of each key and fingerprint."""
        newest, runs = {}, {}
        for row in rows.defer("error_detail").order_by("pk"):
            place = tuple(getattr(row, name) for name in key)
            newest[place] = row
            runs[*place, getattr(row, "fingerprint", "")] = row.run
        return newest, runs

    def add_to(self, plan: Plan, force: Stage) -> None:
        """The plan also holds what is missing or outdated of these submissions, and what `force` does again."""
        for pk, submission in self.submissions.items():
            build = self.builds.get((pk,))
            if force == "build" and build and build.is_finished:
                plan.builds.append(submission)
                plan.following += len(self.datasets)
            elif build and build.status == Build.Status.SUCCEEDED and not submission.cancel_requested:
                for dataset in self.datasets:
                    self._plan_dataset(plan, build, dataset, force)

    def _plan_dataset(self, plan: Plan, build: Build, dataset: Dataset, force: Stage) -> None:
        wanted = wanted_inference(build, dataset, self.config)
        found = self.inferences.get((build.submission_id, dataset.pk))
        if found is None or _is_stale(found, wanted, force == "inference"):
            wanted.run = 1 + self.inference_runs.get((build.submission_id, dataset.pk, wanted.fingerprint), 0)
            wanted.nth = 1 + (found.nth if found and found.build_id == build.pk else 0)
            plan.inferences.append(wanted)
            plan.superseded += [found] if found and not found.is_finished else []
        elif found.status == Inference.Status.DEAD:
            plan.revived.append(found)
        elif found.status == Inference.Status.SUCCEEDED:
            self._plan_scoring(plan, found, dataset, force)

    def _plan_scoring(self, plan: Plan, inference: Inference, dataset: Dataset, force: Stage) -> None:
        inference.dataset = dataset
        base = self._base_of(inference, dataset)
        if dataset.variant != Dataset.Variant.BASE and (base is None or base.status != Inference.Status.SUCCEEDED):
            return  # comes with the base's success
        wanted = wanted_scoring(inference, base, self.metrics, self.config)
        found = self.scorings.get((inference.pk,))
        if found is None or _is_stale(found, wanted, force == "scores"):
            wanted.run = 1 + self.scoring_runs.get((inference.pk, wanted.fingerprint), 0)
            plan.scorings.append(wanted)
        elif found.status == Scoring.Status.DEAD:
            plan.revived.append(found)

    def _base_of(self, inference: Inference, dataset: Dataset) -> Inference | None:
        bases = (row for row in self.task.datasets.all() if row.name == dataset.name)
        base = next((row for row in bases if row.variant == Dataset.Variant.BASE), None)
        return self.inferences.get((inference.submission_id, base.pk)) if base else None


def _is_stale(found: Inference | Scoring, wanted: Inference | Scoring, forced: bool) -> bool:
    if found.fingerprint != wanted.fingerprint or found.status == found.Status.CANCELLED:
        return True
    return forced and found.is_finished
