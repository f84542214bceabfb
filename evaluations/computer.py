"""From stored predictions and labels to scores, overall and by tag."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

from django.db import transaction

from dynabench_site import jobs
from dynabench_site.database import retried
from evaluations.datasets import DatasetError, Label, PredictionsError, dataset_class
from evaluations.models import CurrentScores, Inference, Score, Scoring
from tasks_catalog import metrics
from tasks_catalog.files import opened
from tasks_catalog.models import Dataset, TaskMetric

DEADLINE_SECONDS = 3600
BYTES_PER_GIB = 1 << 30


class Computer:
    """Computes one complete set of scores, or none."""

    def score(self, scoring: Scoring) -> None:
        """End a claimed scoring: its scores are written and current, or it says why not."""
        jobs.work(scoring, partial(self._score, scoring), deadline_seconds=DEADLINE_SECONDS)

    def _score(self, scoring: Scoring) -> None:
        try:
            scores = self.compute(scoring)
        except PredictionsError as error:
            raise jobs.JobFailed("bad_predictions", str(error)) from error
        except DatasetError as error:
            raise jobs.JobFailed("bad_dataset", f"The dataset's labels can't be read. {error}", theirs=False) from error
        except metrics.MetricError as error:
            raise jobs.JobFailed("metric_error", str(error), theirs=False) from error
        self._save(scoring, scores)

    def compute(self, scoring: Scoring) -> list[Score]:
        """A score of each pinned metric, not saved."""
        labels = _read_labels(scoring.dataset)
        predictions = _read_predictions(scoring.inference, labels)
        reader, tags = dataset_class(scoring.dataset.format), _uids_by_tag(labels)
        scores = [Score(scoring=scoring, metric=pin["name"], pinned=pin) for pin in scoring.metrics]
        for score in scores:
            if score.pinned["kind"] == TaskMetric.Kind.JOB:
                score.value = job_metric(score.metric, scoring.inference)
            elif score.pinned["kind"] == TaskMetric.Kind.PERTURBATION:
                score.value = self._perturbation(score.pinned, scoring, labels, predictions)
            else:
                _check_files(score.pinned)
                value_of = partial(_perf, score.pinned, labels, predictions)
                by_tag = {tag: value_of(uids) for tag, uids in tags.items()}
                score.value = reader.overall(by_tag, partial(value_of, labels))
                score.by_tag = {tag: {"value": value, "examples": len(tags[tag])} for tag, value in by_tag.items()}
        return scores

    def _perturbation(
        self, pin: dict[str, Any], scoring: Scoring, labels: dict[str, Label], predictions: dict[str, Any]
    ) -> float:
        """Agreement with the model's own answers to the unperturbed examples, by the task's ranking metric."""
        base_dataset = scoring.dataset.base()
        perf = pin.get("perf")
        if base_dataset is None or perf is None:
            raise metrics.MetricError(
                f"{pin['name']} needs a base dataset {scoring.dataset.name} and a ranking metric."
            )
        _check_files(perf)
        base = _read_predictions(_base_inference(scoring, base_dataset), _read_labels(base_dataset))
        variants: dict[str, list[Any]] = defaultdict(list)
        for uid, label in labels.items():
            variants[label.input_id or ""].append(predictions[uid][perf["field"]])
        if unknown := variants.keys() - base.keys():
            raise metrics.MetricError(f"input_id {min(unknown)!r} is not an example of {base_dataset.name}.")
        originals = [answer[perf["field"]] for answer in base.values()]
        return metrics.unperturbed_percent(perf["name"], [variants[uid] for uid in base], originals, **perf["options"])

    @retried
    def _save(self, scoring: Scoring, scores: list[Score]) -> None:
        with transaction.atomic():
            scoring.advance(Scoring.Status.SUCCEEDED)
            scoring.scores.all().delete()
            Score.objects.bulk_create(scores)
            make_current(scoring)


def _check_files(pin: dict[str, Any]) -> None:
    """What the metric reads here is what its scores were asked for with; raise MetricError when it is not, or gone."""
    metrics.check_options(pin["name"], pin["options"])
    if pin.get("files", {}) != metrics.file_hashes(pin["name"], pin["options"]):
        detail = f"A file that {pin['name']} reads is not the one that its scores were asked for with: re-evaluate."
        raise metrics.MetricError(detail)


def _perf(pin: dict[str, Any], labels: dict[str, Label], predictions: dict[str, Any], uids: Iterable[str]) -> float:
    answers = [predictions[uid][pin["field"]] for uid in uids]
    references = [labels[uid].answers[pin["field"]] for uid in uids]
    return metrics.compute(pin["name"], answers, references, **pin["options"])


def make_current(scoring: Scoring) -> None:
    """Point to this set, unless a newer one is current."""
    key = {"submission_id": scoring.submission_id, "dataset_id": scoring.dataset_id}
    pointer, _ = CurrentScores.objects.get_or_create(**key, defaults={"scoring": scoring})
    CurrentScores.objects.filter(pk=pointer.pk, scoring_id__lt=scoring.pk).update(scoring=scoring)


def job_metric(name: str, inference: Inference) -> float:
    """Examples per second, or GiB of memory at the peak, of the inference's own run.

    Two decimals are part of the definition: what is measured is no finer, and noise must not look like a trade.
    """
    if name == "examples_per_second":
        return round(inference.examples / max(inference.seconds or 0.0, 1e-6), 2)
    if name == "memory_utilization":
        if inference.peak_memory_bytes is None:
            raise metrics.MetricError(f"{inference} has no memory figures: run it again to measure them.")
        return round(inference.peak_memory_bytes / BYTES_PER_GIB, 2)
    raise metrics.MetricError(f"{name} is not a job metric.")


def _base_inference(scoring: Scoring, base_dataset: Dataset) -> Inference:
    found = Inference.objects.filter(
        submission_id=scoring.submission_id,
        dataset=base_dataset,
        status=Inference.Status.SUCCEEDED,
        predictions_sha256=scoring.base_sha256,
    ).last()
    if found is None:
        raise jobs.NotYet(f"the predictions on {base_dataset.name}", 60)
    return found


def _read_labels(dataset: Dataset) -> dict[str, Label]:
    with opened(dataset.task.storage(), dataset.labels_keys, sha256=dataset.labels_sha256) as source:
        return dataset_class(dataset.format).read_labels(source, dataset.task.format)


def _read_predictions(inference: Inference, labels: dict[str, Label]) -> dict[str, Any]:
    dataset = inference.dataset
    keys, sha256 = inference.predictions_keys, inference.predictions_sha256
    with opened(dataset.task.storage(), keys, sha256=sha256) as source:
        return dataset_class(dataset.format).read_predictions(source, dataset.task.format, labels.keys())


def _uids_by_tag(labels: dict[str, Label]) -> dict[str, list[str]]:
    uids: dict[str, list[str]] = defaultdict(list)
    for uid, label in labels.items():
        for tag in label.tags:
            uids[tag].append(uid)
    return dict(sorted(uids.items()))
