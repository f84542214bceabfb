"""What goes wrong on AWS costs time, never a model, an attempt, or the price of a second job."""

from __future__ import annotations

import os
import time

import pytest
from django.core.management import call_command

from builds.models import Build
from dynabench_site.jobs import all_models
from dynabench_site.state import StatusEvent
from evaluations.dataset_files import store_dataset_file
from evaluations.models import Inference
from submissions.models import Submission
from tasks_catalog.models import Dataset, EvalServer
from tests.aws.stand import wait_for
from tests.aws.test_production import all_ended, how_they_are, make_task, upload
from tests.conftest import EXAMPLES, jsonl
from tests.pipeline.conftest import send, trivial_archive

pytestmark = [pytest.mark.aws, pytest.mark.timeout(3600)]
EVALUATIONS = int(os.environ.get("DYNABENCH_TEST_EVALUATIONS") or 30)
DATASETS = 5
OUTAGE_SECONDS = 60
# Together a fifth of all calls.
FAULTS = {"throttle": 0.06, "error": 0.04, "lost": 0.04, "reset": 0.03, "slow": 0.02, "truncated": 0.01}


def spent_attempts() -> list[tuple[str, str]]:
    """What jobs went back to the queue for, where that cost them an attempt."""
    rows = [(model._meta.model_name, job.pk) for model in all_models() for job in model.objects.filter(attempts__gt=1)]
    events = StatusEvent.objects.filter(source="running", target="queued").order_by("pk")
    return [(f"{name} {pk}", event.reason) for name, pk in rows for event in events.filter(model=name, object_pk=pk)]


def test_a_fifth_of_all_calls_fails_and_every_evaluation_ends_once(production, stand, user, tmp_path):
    task = make_task("sentiment", region="us-west-2", eval_server="default")
    for number in range(1, DATASETS):
        store_dataset_file(Dataset(task=task, name=f"tweets-{number}"), jsonl(EXAMPLES))
    EvalServer.objects.update(max_inferences=8)
    for number in range(EVALUATIONS // DATASETS):
        name = f"model-{number}"
        send(user, task, trivial_archive(name, tmp_path), name)
    stand.faults(
        *({"effect": effect, "share": share, "seed": seed} for seed, (effect, share) in enumerate(FAULTS.items())),
        {"effect": "quota", "action": "CreateTransformJob", "times": 3},
    )

    for name in ("build", "default"):
        production.cluster(name)

    assert wait_for(all_ended, 60 + 20 * EVALUATIONS), how_they_are()
    fired = stand.fired()
    stand.faults()
    assert all(fired), fired
    assert set(Submission.objects.values_list("status", flat=True)) == {"evaluated"}, how_they_are()
    assert Inference.objects.filter(status="succeeded").count() == EVALUATIONS
    assert stand.doubly_paid() == []
    assert {job["status"] for job in stand.jobs()} == {"Completed"} and len(stand.jobs()) == EVALUATIONS
    assert spent_attempts() == []
    assert Build.objects.count() == EVALUATIONS // DATASETS
    call_command("check_invariants")


def test_a_minute_without_queues_fails_no_upload_and_loses_none(production, stand, user, tmp_path):
    task = make_task("sentiment", region="us-west-1", eval_server="default")
    web = production.web("web-1")
    for name in ("build", "default"):
        production.cluster(name)
    stand.faults({"effect": "reset", "service": "sqs"})
    down_since = time.monotonic()

    for number in range(4):
        name = f"model-{number}"
        upload(web.port, user, task, name, trivial_archive(name, tmp_path))
    uploads_took = time.monotonic() - down_since
    time.sleep(max(0, OUTAGE_SECONDS - uploads_took))
    stand.faults()

    assert uploads_took < OUTAGE_SECONDS
    assert wait_for(all_ended, 240), how_they_are()
    assert list(Submission.objects.values_list("status", flat=True)) == ["evaluated"] * 4, how_they_are()
    assert spent_attempts() == []
    call_command("check_invariants")
