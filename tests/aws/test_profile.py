"""The demonstration's models in the production profile: where everything lies, and the scores of one machine.

What AWS was asked is left in var/test-aws/requests.jsonl.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core.management import call_command

from builds.models import Build, BuildStep
from evaluations import demo
from evaluations.board import board
from evaluations.models import Inference, Score
from evaluations.services import publish
from examples.pack import EXAMPLES, archive_bytes
from submissions.models import Submission
from tasks_catalog.models import BuildConfig, Task
from tests.aws.hosts import ROLE, SECRET_KEY
from tests.aws.registry import PASSWORD
from tests.aws.stand import wait_for
from tests.aws.test_production import PATIENCE, all_ended, how_they_are, make_task, upload
from tests.builds.test_torchserve_builds import project
from tests.pipeline.test_demo import images_removed, run_demo

pytestmark = [pytest.mark.aws, pytest.mark.timeout(1800)]
RECORD = Path(django_settings.BASE_DIR) / "var/test-aws/requests.jsonl"
REGIONS = {"sentiment": "us-west-1", "nli": "us-west-1", "flores_small1": "us-west-2", "torch": "us-west-2"}
LABELS = {"label", "translatedText", "targetText", "tags"}
AWS_SECRET = "the-secret-access-key-of-these-hosts"


def embedded_scores(folder: Path) -> dict[tuple[str, str], dict]:
    """What `manage.py demo` computes on one machine, by task and model."""
    folder.mkdir()
    (folder / "cache").symlink_to((django_settings.VAR / "cache").resolve())
    with images_removed(folder):
        result = run_demo(folder, {"DYNABENCH_SANDBOX": "docker"})
    tasks = [{"task": "sentiment", "models": result["models"]}, *result["also"]]
    return {(task["task"], model["name"]): model["scores"] for task in tasks for model in task["models"]}


class Watch(threading.Thread):
    """Every command line that this machine runs, while it is entered."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue


@pytest.fixture
def ranked(production, stand, tmp_path) -> Iterator[Watch]:
    """The demonstration's models and one that TorchServe serves, sent over HTTP, on two clusters in two regions."""
    demo.load_tasks()
    make_task("torch", region="us-west-2", eval_server="flores101")
    BuildConfig.objects.update(model_server="asgi", batch_strategy="MultiRecord")
    BuildConfig.objects.filter(task__code="torch").update(model_server="", batch_strategy="SingleRecord")
    sender = User.objects.create_user("examples", "examples@example.org")
    webs = [production.web(f"web-{number}", AWS_SECRET_ACCESS_KEY=AWS_SECRET) for number in (1, 2)]
    for name in ("build", "default", "flores101"):
        production.cluster(name, AWS_SECRET_ACCESS_KEY=AWS_SECRET)
    watch = Watch()
    watch.start()
    for code, models in demo.MODELS.items():
        for number, name in enumerate(models):
            upload(webs[number % 2].port, sender, Task.objects.get(code=code), name, archive_bytes(EXAMPLES / name))
    torch = project(tmp_path / "torch", requirements="torch>=2,<3\n", task="torch")
    upload(webs[0].port, sender, Task.objects.get(code="torch"), "majority", archive_bytes(torch))
    assert wait_for(all_ended, PATIENCE), how_they_are()
    yield watch
    watch.ended.set()
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(stand.record, RECORD)


def test_the_models_of_the_demonstration_in_production(ranked, production, stand, tmp_path):
    assert set(Submission.objects.values_list("status", flat=True)) == {"evaluated"}, how_they_are()
    call_command("check_invariants")
    for submission in Submission.objects.all():
        publish(submission)
    for task in Task.objects.whole():
        assert [row.rank for row in board(task).rows] == list(range(1, 1 + task.submissions.count()))
    embedded = embedded_scores(tmp_path / "embedded")
    # Two servers, one handler: what the sandbox's tests show of torch's answers is that three of four are right.
    embedded["torch", "majority"] = {"tweets": {"accuracy": 75.0}}
    scores_are_those_of_one_machine(embedded)
    objects_have_their_keys(stand)
    regions_hold_only_their_tasks(stand)
    models_are_isolated_and_see_no_label(stand)
    nothing_secret_is_left(ranked, production, stand)


def scores_are_those_of_one_machine(embedded: dict[tuple[str, str], dict]) -> None:
    for submission in Submission.objects.select_related("task"):
        rows = Score.objects.filter(scoring__submission=submission).select_related("scoring__dataset")
        for row in rows:
            if row.pinned["kind"] == "job":
                assert row.value > 0, row
            else:
                expected = embedded[submission.task.code, submission.name][row.scoring.dataset.name][row.metric]
                assert row.value == expected, (submission, row.scoring.dataset, row)


def objects_have_their_keys(stand) -> None:
    """Exactly what the addresses promise, for every model and dataset."""
    for region in ("us-west-1", "us-west-2"):
        pages = stand.client("s3", region).get_paginator("list_objects_v2").paginate(Bucket=f"sagemaker-{region}")
        found = {row["Key"] for page in pages for row in page.get("Contents", [])}
        assert found == set(expected_keys(region))


def expected_keys(region: str) -> Iterator[str]:
    for code in (code for code, place in REGIONS.items() if place == region):
        task = Task.objects.get(code=code)
        for dataset in task.datasets.all():
            folder = f"flores/{code}" if dataset.format == "Flores" else code
            names = [f"{dataset.name}-{shard}" for shard in dataset.shards] or [dataset.name]
            yield from (f"{kind}/{folder}/{name}.jsonl" for kind in ("datasets", "labels") for name in names)
            for row in task.submissions.all():
                endpoint = f"ts{row.pk}-{row.name}"
                yield from (f"predictions/{endpoint}/raw/{code}/{name}.jsonl.out" for name in names)
        for row in task.submissions.all():
            yield f"torchserve/models/{code}/ts{row.pk}-{row.name}.tar.gz"
            yield f"torchserve/models/{code}/archive.ts{row.pk}-{row.name}.tar.gz"


def regions_hold_only_their_tasks(stand) -> None:
    """Queues live in the main region only; images, models and jobs of a task in its own only."""
    far = {f"ts{row.pk}-" for row in Submission.objects.filter(task__build_config__aws_region="us-west-2")}
    for call in stand.calls():
        if call["service"] == "sqs":
            assert call["region"] == "us-west-1", call
        if call["bucket"]:
            assert call["bucket"] == f"sagemaker-{call['region']}", call
        if call["service"] in {"ecr", "sagemaker"} and call["name"]:
            is_far = any(call["name"].startswith(mark) for mark in far)
            assert call["region"] == ("us-west-2" if is_far else "us-west-1"), call


def models_are_isolated_and_see_no_label(stand) -> None:
    made = stand.calls(action="CreateModel")
    assert len(made) == Submission.objects.count() and all(call["isolation"] is True for call in made)
    jobs = stand.calls(action="CreateTransformJob")
    assert len(jobs) == Inference.objects.count()
    for call in jobs:
        address = call["request"]["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"]
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        s3 = stand.client("s3", call["region"])
        for row in s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]:
            for line in s3.get_object(Bucket=bucket, Key=row["Key"])["Body"].iter_lines():
                assert not LABELS & json.loads(line).keys()
        filtered = call["request"]["DataProcessing"]["InputFilter"]
        assert not [name for name in LABELS if f"'{name}'" in filtered]


def nothing_secret_is_left(watch: Watch, production, stand) -> None:
    """Not in images, logs, what steps printed, or what any process was called with."""
    secrets = [AWS_SECRET, PASSWORD, SECRET_KEY, "QVdTOg"]  # the last is how ECR's log-in begins
    printed = [host.log.read_text(errors="replace") for host in production.hosts.values()]
    printed += list(BuildStep.objects.values_list("output", flat=True))
    printed += [line.decode(errors="replace") for line in watch.seen]
    engine = docker.from_env()
    for uri in Build.objects.values_list("image_uri", flat=True):
        image = engine.images.pull(uri, auth_config={"username": "AWS", "password": PASSWORD})
        printed += [json.dumps(image.history()), json.dumps(image.attrs)]
        engine.images.remove(image.id, force=True)
    for secret in secrets:
        assert not [text[:500] for text in printed if secret in text], secret
    assert ROLE not in "".join(line.decode(errors="replace") for line in watch.seen)
