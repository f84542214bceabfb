"""What a worker of an eval server does, one bell at a time, and time that passes as fast as a test wants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db.models import F, Min
from django.utils import timezone

from evaluations import services
from evaluations.dataset_files import store_dataset_file
from evaluations.models import Inference
from tasks_catalog.models import Dataset, EvalServer, Task
from tests.aws.stand import wait_for
from tests.conftest import EXAMPLES, in_cluster, jsonl

BUCKET = "sagemaker-us-west-1"
NO_IMAGE = "example.org/model@sha256:" + "1" * 64  # enough for jobs that a test holds or ends
really = pytest.mark.usefixtures("pushed")  # the model itself answers


def add_dataset(task: Task, name: str = "tweets", examples: list[dict] | None = None) -> Inference:
    """The inference that is asked for with a new dataset."""
    store_dataset_file(Dataset(task=task, name=name), jsonl(examples or EXAMPLES))
    return Inference.objects.latest("pk")


def run_next() -> None:
    """What a worker of the eval server does when its bell rings."""
    with in_cluster("default"):
        services.run_inferences(EvalServer.objects.get(pk="default"))


def sweep() -> None:
    with in_cluster("default"):
        services.sweep()


def let_time_pass() -> None:
    """To the moment when the next job is due."""
    first = Inference.objects.unfinished().aggregate(at=Min("not_before"))["at"]
    if first and first > timezone.now():
        Inference.objects.exclude(not_before=None).update(not_before=F("not_before") - (first - timezone.now()))


def run_until(is_so: Callable[[Inference], bool], inference: Inference, seconds: float = 120) -> None:
    def tried() -> bool:
        let_time_pass()
        run_next()
        inference.refresh_from_db()
        return is_so(inference)

    assert wait_for(tried, seconds), (inference.status, inference.waiting_for, inference.error_detail)


def is_finished(inference: Inference) -> bool:
    return inference.is_finished


def names(stand) -> list[str]:
    return [job["name"] for job in stand.jobs()]
