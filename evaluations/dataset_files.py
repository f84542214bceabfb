"""A dataset's file comes in as one jsonl with everything; the split into inputs and labels is ours."""

from __future__ import annotations

import tempfile
from typing import BinaryIO

from django.conf import settings
from django.core.files import File
from django.db import transaction

from evaluations.datasets import Summary, dataset_class
from evaluations.services import request_evaluation
from submissions.models import Submission
from tasks_catalog.models import Dataset


def store_dataset_file(dataset: Dataset, source: BinaryIO) -> Summary:
    """Check every line, store inputs and labels apart, and evaluate all models of the task on them.

    Raises DatasetError, with nothing changed, at the first bad line.
    """
    task, reader = dataset.task, dataset_class(dataset.format)
    with tempfile.TemporaryFile(dir=settings.VAR) as inputs, tempfile.TemporaryFile(dir=settings.VAR) as labels:
        summary = reader.split_upload(source, task.format, inputs, labels)
        storage = task.storage()
        for (key,), part in ((dataset.inputs_keys, inputs), (dataset.labels_keys, labels)):
            part.seek(0)
            storage.save(key, File(part))
    with transaction.atomic():
        dataset.examples = summary.examples
        dataset.inputs_sha256, dataset.labels_sha256 = summary.inputs_sha256, summary.labels_sha256
        dataset.save()
        request_evaluation(submissions=Submission.objects.filter(task=task), datasets=[dataset])
    return summary
