"""The production profile on real processes: hosts that share database, S3 and SQS, in two regions."""

from __future__ import annotations

import urllib.request
from collections import Counter

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command

from builds.models import Build
from dynabench_site.state import StatusEvent
from evaluations.dataset_files import store_dataset_file
from evaluations.models import Inference
from submissions.models import Submission
from tasks_catalog.models import BuildConfig, Dataset, Task, TaskMetric
from tests.aws.stand import wait_for
from tests.conftest import EXAMPLES, IO_YAML, jsonl
from tests.pipeline.conftest import trivial_archive
from tests.submissions import cli

pytestmark = [pytest.mark.aws, pytest.mark.timeout(600)]
PATIENCE = 240


def make_task(code: str, *, region: str, eval_server: str) -> Task:
    task = Task.objects.create(code=code, name=code, io_yaml=IO_YAML, submission_limit=100)
    BuildConfig.objects.create(
        task=task,
        memory_mb=2048,
        aws_region=region,
        eval_server_id=eval_server,
        model_server="asgi",
        batch_strategy="MultiRecord",
    )
    for name, kind in (("accuracy", "perf"), ("examples_per_second", "job"), ("memory_utilization", "job")):
        TaskMetric.objects.create(task=task, name=name, kind=kind, ranks=name == "accuracy")
    store_dataset_file(Dataset(task=task, name="tweets"), jsonl(EXAMPLES))
    return task


def upload(port: int, user: User, task: Task, name: str, archive: bytes) -> int:
    """One upload as the CLI sends it; the submission's id."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{cli.UPLOAD}",
        cli.body(name, archive, task=task.code),
        {"Authorization": cli.bearer(user), "Content-Type": cli.CONTENT_TYPE},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return int(answer.headers["X-Submission-Id"])


def all_ended() -> bool:
    return not Submission.objects.filter(status__in=["receiving", *Submission.UNFINISHED]).exists()


def how_they_are() -> str:
    rows = [str((row.pk, row.status, row.error_code, row.error_detail[:300])) for row in Submission.objects.all()]
    for model in (Build, Inference):
        rows += [str((str(row), row.status, row.waiting_for, row.error_detail[:300])) for row in model.objects.all()]
    return "\n".join(rows)


def test_ten_models_in_two_regions_on_five_hosts_that_share_database_files_and_queues(production, user, tmp_path):
    near = make_task("sentiment", region="us-west-1", eval_server="default")
    far = make_task("sentiment-far", region="us-west-2", eval_server="flores101")
    webs = [production.web("web-1"), production.web("web-2")]
    for name in ("build", "default", "flores101"):
        production.cluster(name)

    for number in range(10):
        task, name = (near, far)[number % 2], f"model-{number}"
        upload(webs[number // 2 % 2].port, user, task, name, trivial_archive(name, tmp_path, task=task.code))

    assert wait_for(all_ended, PATIENCE), how_they_are()
    assert Counter(Submission.objects.values_list("status", flat=True)) == {"evaluated": 10}, how_they_are()
    doers = Counter(
        (event.model, event.cluster.split(" (")[0])
        for event in StatusEvent.objects.filter(target="succeeded").exclude(model="outboxmail")
    )
    assert doers == {
        ("build", "build on host-build"): 10,
        ("inference", "default on host-default"): 5,
        ("inference", "flores101 on host-flores101"): 5,
        ("scoring", "default on host-default"): 5,
        ("scoring", "flores101 on host-flores101"): 5,
    }
    call_command("check_invariants")
