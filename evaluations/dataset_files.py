"""A dataset's file comes in as one jsonl with everything; the split into inputs and labels is ours."""

from __future__ import annotations

from typing import BinaryIO

from django.core.files import File
from django.core.files.storage import Storage
from django.db import transaction

from evaluations.datasets import Summary, dataset_class
from evaluations.services import request_evaluation
from evaluations.spool import Spool
from submissions.models import Submission
from tasks_catalog.models import Dataset


def store_dataset_file(dataset: Dataset, source: BinaryIO) -> Summary:
    """Check every line, store inputs and labels apart, and evaluate all models of the task on them.

    Raises DatasetError, with nothing changed, at the first bad line.
    """
    task, reader = dataset.task, dataset_class(dataset.format)
    with Spool() as inputs, Spool() as labels:
        summary = reader.split_upload(source, task.format, inputs, labels)
        dataset.shards = summary.shards
        _store(dataset, inputs, dataset.inputs_keys)
        _store(dataset, labels, dataset.labels_keys)
    with transaction.atomic():
        dataset.examples = summary.examples
        dataset.inputs_sha256, dataset.labels_sha256 = summary.inputs_sha256, summary.labels_sha256
        dataset.save()
        request_evaluation(submissions=Submission.objects.filter(task=task), datasets=[dataset])
    return summary


def _store(dataset: Dataset, spool: Spool, keys: list[str]) -> None:
    storage = dataset.task.storage()
    for key, shard in zip(keys, spool.shards, strict=True):
        with spool.opened(shard) as part:
            storage.save(key, File(part))
    if dataset.shards:
        _remove_other_shards(dataset, storage, keys)


def _remove_other_shards(dataset: Dataset, storage: Storage, keys: list[str]) -> None:
    """Shards of the file before are gone: a batch job takes all that begins with the dataset's name."""
    folder = keys[0].rpartition("/")[0]
    _, names = storage.listdir(folder)
    for name in names:
        if name.startswith(f"{dataset.full_name}-") and f"{folder}/{name}" not in keys:
            storage.delete(f"{folder}/{name}")
