"""What tests stand on: a task with data, people, submissions, and a process that counts as a cluster's."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from builds.models import Build
from dynabench_site import clusters
from evaluations.computer import Computer
from evaluations.dataset_files import store_dataset_file
from evaluations.models import Inference
from evaluations.planning import wanted_inference, wanted_scoring
from submissions.models import Submission
from tasks_catalog.demo_flores import BUILD_CONFIG, TASK, make_model
from tasks_catalog.models import BuildConfig, Dataset, EvalServer, InstanceType, Task, TaskMetric

os.environ["PATH"] += ":/usr/sbin:/sbin"  # where Debian keeps servers, and a user's shell does not look
PARTS = {
    "docker": lambda: Path("/var/run/docker.sock").exists(),
    "bwrap": lambda: shutil.which("bwrap"),
    "mariadb": lambda: shutil.which("mariadbd"),
    "nginx": lambda: shutil.which("nginx"),
    "systemd": lambda: shutil.which("systemd-analyze"),
    "chromium": lambda: shutil.which("chromium"),
    "aws": lambda: Path("/var/run/docker.sock").exists() and shutil.which("docker-registry"),
}
IO_YAML = """
context: []
input:
  - {name: statement, type: string}
  - {name: label, type: multiclass, labels: [negative, positive, neutral]}
output:
  - {name: label}
  - {name: prob, type: prob, reference_name: label}
"""
EXAMPLES = [
    {"uid": "1", "statement": "It is great.", "label": "positive", "tags": ["short"]},
    {"uid": "2", "statement": "It is awful.", "label": "negative", "tags": ["short"]},
    {"uid": "3", "statement": "It is a table of some length.", "label": "neutral", "tags": ["long"]},
    {"uid": "4", "statement": "I like it more than the other.", "label": "positive", "tags": ["long"]},
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine lacks, unless all parts are required: then a missing part is an error."""
    is_required = os.environ.get("DYNABENCH_TEST_REQUIRE") == "all"
    for item in items:
        for name, is_there in PARTS.items():
            if item.get_closest_marker(name) and not is_required and not is_there():
                item.add_marker(pytest.mark.skip(reason=f"{name} is missing on this machine"))


@pytest.fixture(autouse=True)
def _own_files(settings, tmp_path):
    settings.VAR = tmp_path


@pytest.fixture
def shared_cache(settings, tmp_path_factory) -> None:
    """What is downloaded once serves all tests of a run."""
    shared = tmp_path_factory.getbasetemp().parent / "dynabench-cache"
    shared.mkdir(exist_ok=True)
    (settings.VAR / "cache").symlink_to(shared)


@pytest.fixture
def user(db) -> User:
    return User.objects.create_user("ada", "ada@example.org", "secret")


@pytest.fixture
def other_user(db) -> User:
    return User.objects.create_user("bob", "bob@example.org", "secret")


@pytest.fixture
def staff(eval_servers) -> User:
    return User.objects.create_superuser("staff", "staff@example.org", "secret")


@pytest.fixture
def eval_servers(db) -> None:
    """Those of the migrations, and the kinds of machines; tests with real transactions empty all tables."""
    InstanceType.objects.get_or_create(name="ml.m5.2xlarge", vcpus=8, memory_gib=32)
    for name in ("default", "flores101"):
        EvalServer.objects.get_or_create(name=name)


@pytest.fixture
def task(eval_servers) -> Task:
    task = Task.objects.create(code="sentiment", name="Sentiment", purpose="Say how it feels.", io_yaml=IO_YAML)
    BuildConfig.objects.create(task=task, memory_mb=2048)
    TaskMetric.objects.create(task=task, name="macro_f1", ranks=True, weight=4)
    TaskMetric.objects.create(task=task, name="accuracy", weight=0)
    TaskMetric.objects.create(task=task, name="examples_per_second", kind="job")
    TaskMetric.objects.create(task=task, name="memory_utilization", kind="job")
    return task


@pytest.fixture
def flores_task(eval_servers, tmp_path) -> Task:
    task = Task.objects.create(code="flores_small1", **TASK)
    BuildConfig.objects.create(task=task, eval_server_id="flores101", memory_mb=2048, **BUILD_CONFIG)
    make_model(tmp_path / "spm.model")
    options = {"sentencepiece_model": str(tmp_path / "spm.model")}
    TaskMetric.objects.create(task=task, name="sp_bleu", ranks=True, options=options)
    return task


def jsonl(records: list[dict]) -> io.BytesIO:
    return io.BytesIO(b"".join(json.dumps(record).encode() + b"\n" for record in records))


@pytest.fixture
def dataset(task) -> Dataset:
    dataset = Dataset(task=task, name="tweets")
    store_dataset_file(dataset, jsonl(EXAMPLES))
    return dataset


@pytest.fixture
def submission(user, task) -> Submission:
    submission = Submission.objects.create(owner=user, task=task, name="model-a", sha256="0" * 64)
    submission.advance(Submission.Status.UPLOADED)
    return submission


@contextmanager
def in_cluster(name: str) -> Iterator[clusters.ClusterHeartbeat]:
    """This process counts as a worker of that cluster."""
    instance = clusters.join(name)
    try:
        yield instance
    finally:
        clusters.leave()


def make_built(submission: Submission) -> Build:
    """A build that has succeeded, as if its image had been made."""
    with in_cluster("build"):
        build = Build.wanted(submission)
        assert build.claim()
        submission.advance(Submission.Status.BUILDING)
        build.advance(Build.Status.SUCCEEDED, image="sha256:" + "1" * 64, sandbox="process", model_server="asgi")
    submission.advance(Submission.Status.EVALUATING)
    return build


def make_predictions(build: Build, dataset: Dataset, answers: dict[str, str]) -> Inference:
    """An inference that has succeeded with these answers by uid."""
    submission = build.submission
    wanted = wanted_inference(build, dataset, submission.task.build_config)
    inference = submission.inferences.filter(fingerprint=wanted.fingerprint, dataset=dataset).first() or wanted
    inference.save()
    lines = jsonl([{"id": uid, "label": label} for uid, label in answers.items()])
    submission.task.storage().save(inference.predictions_keys[0], lines)
    with in_cluster("default"):
        assert inference.claim()
        inference.advance(
            Inference.Status.SUCCEEDED,
            predictions_sha256=hashlib.sha256(lines.getvalue()).hexdigest(),
            examples=len(answers),
            seconds=0.5,
            peak_memory_bytes=64 << 20,
        )
    return inference


def make_scores(inference: Inference) -> None:
    """Scores of that inference, computed."""
    task = inference.submission.task
    scoring = wanted_scoring(inference, None, task.metrics.all(), task.build_config)
    scoring.save()
    with in_cluster("default"):
        assert scoring.claim()
        Computer().score(scoring)


@pytest.fixture
def evaluated(submission, dataset) -> Submission:
    """Evaluated on one dataset, three of four right, and published."""
    answers = {"1": "positive", "2": "negative", "3": "neutral", "4": "neutral"}
    make_scores(make_predictions(make_built(submission), dataset, answers))
    submission.advance(Submission.Status.EVALUATED)
    Submission.objects.filter(pk=submission.pk).update(is_published=True)
    submission.refresh_from_db()
    return submission
