"""Translation sets of a few languages."""

from __future__ import annotations

from evaluations.dataset_files import store_dataset_file
from tasks_catalog.demo_flores import flores_dataset
from tasks_catalog.models import Dataset
from tests.conftest import jsonl


def records(*languages):
    return [r for r in flores_dataset() if {r["sourceLanguage"], r["targetLanguage"]} <= set(languages)]


def store(task, name, *languages):
    dataset = task.datasets.filter(name=name).first() or Dataset(task=task, name=name, format="Flores")
    store_dataset_file(dataset, jsonl(records(*languages)))
    return dataset
