"""The policies in deploy/iam allow each role what it did in a recorded run, and nothing else."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import requests
from django.contrib.auth.models import User
from django.db.models.functions import Now
from django.test import Client

from builds.models import Build, Endpoint
from evaluations.dataset_files import store_dataset_file
from evaluations.models import Inference
from submissions.models import Submission
from tasks_catalog.models import Dataset, Task
from tests.aws.calls import ACCOUNT
from tests.aws.hosts import ROLE, Host, Installation
from tests.aws.policies import KEYS, POLICIES, allowed, allows, resources
from tests.aws.stand import wait_for
from tests.aws.test_production import PATIENCE, how_they_are, make_task, upload
from tests.conftest import EXAMPLES, jsonl
from tests.evaluations.flores import records
from tests.pipeline.conftest import archive_bytes, trivial_archive
from tests.submissions import cli

pytestmark = [pytest.mark.aws, pytest.mark.timeout(600)]

PUSHES = (
    *("BatchCheckLayerAvailability", "BatchGetImage", "InitiateLayerUpload"),
    *("UploadLayerPart", "CompleteLayerUpload", "PutImage"),
)
TAGS = "what is made with tags needs it too"
CHECK = "check_aws tries it"
MISSING = "without it S3 calls a missing object forbidden"
PLACE = {"s3:GetBucketLocation": CHECK}
READ_PLACE = PLACE | {"s3:ListBucket": MISSING}
# By role, what it may and hardly ever does.
UNSEEN = {
    "web": PLACE | {"sqs:GetQueueAttributes": CHECK},
    "build": READ_PLACE
    | dict.fromkeys((f"ecr:{name}" for name in PUSHES), "the docker engine asks the registry for it while it pushes")
    | {
        "iam:PassRole": "CreateModel needs it too",
        "sagemaker:AddTags": TAGS,
        "sagemaker:DescribeModel": "only when a build is tried again after its model was made",
        "s3:AbortMultipartUpload": "only when the upload of a large archive breaks off",
        "s3:DeleteObject": "check_aws, archives of builds that failed late, and uploads whose web server died",
    },
    "eval": READ_PLACE
    | {
        "sagemaker:AddTags": TAGS,
        "s3:PutObject": CHECK,
        "s3:DeleteObject": "check_aws, and uploads whose web server died",
    },
    "operator": READ_PLACE,
}
# Statements for what follows a web server's death, besides those with unseen actions alone.
UNSEEN_STATEMENTS = {"UploadsLeftBehind", "ModelsRole", "Tags", "Push"}
MOST_CHARACTERS = 6144  # that IAM takes of a managed policy, spaces not counted
NEEDS_NO_RIGHT = {"sts:GetCallerIdentity"}
# Amazon narrows these to nothing smaller than an account.
ANYWHERE = {"ecr:GetAuthorizationToken", "cloudwatch:GetMetricStatistics", "cloudwatch:PutMetricData"}


class Staff(requests.Session):
    """A member of staff at the admin of a web server."""

    def __init__(self, web: Host, user: User) -> None:
        super().__init__()
        browser = Client()
        browser.force_login(user)
        self.cookies.set("sessionid", browser.cookies["sessionid"].value)
        self.address = f"http://127.0.0.1:{web.port}/admin/tasks_catalog/dataset/"

    def store(self, task: Task, records: list[dict[str, Any]], page: str = "add/", **fields: str) -> Dataset:
        """Add a dataset, or give it another file on its own page."""
        self.get(self.address + page, timeout=60)
        form = {"task": task.pk, "access_type": "scoring", "weight": 1, "variant": "base", "format": "JsonLines"}
        form |= {"csrfmiddlewaretoken": self.cookies["csrftoken"]} | fields
        answer = self.post(self.address + page, form, files={"file": ("set.jsonl", jsonl(records))}, timeout=60)
        assert answer.url == self.address, answer.text
        return task.datasets.get(name=fields["name"], variant=form["variant"])


def ask(web: Host, user: User, path: str, body: Any = None) -> Any:
    headers = {"Authorization": cli.bearer(user)}
    answer = requests.post(f"http://127.0.0.1:{web.port}/api/v1/{path}", json=body, headers=headers, timeout=60)
    assert answer.ok, answer.text
    return answer


def status(pk: int) -> str:
    return Submission.objects.get(pk=pk).status


def until(condition: Any) -> None:
    assert wait_for(condition, PATIENCE), how_they_are()


def everything_once(production: Installation, user: User, staff: User, flores_task: Task, tmp_path: Path) -> None:
    """All that the roles do: datasets; models, one with an endpoint, one that fails, one cancelled; all taken down."""
    task = make_task("sentiment", region="us-west-2", eval_server="default")
    task.build_config.create_endpoint = True
    task.build_config.save()
    fatal = {"uid": "5", "statement": "die", "label": "neutral"}
    store_dataset_file(task.datasets.get(), jsonl([*EXAMPLES, fatal]))
    web, build = production.web("web"), production.cluster("build")
    production.cluster("default")
    admin = Staff(web, staff)
    # Its labels are compared with the base set's.
    perturbed = [example | {"uid": f"f{example['uid']}", "input_id": example["uid"]} for example in EXAMPLES]
    admin.store(task, perturbed, name="tweets", variant="fairness")
    own = admin.store(flores_task, records("eng", "hrv", "mkd"), name="own", format="Flores")
    # It has one shard less.
    admin.store(flores_task, records("eng", "hrv"), f"{own.pk}/change/", name="own", format="Flores")
    good = upload(web.port, user, task, "good", trivial_archive("good", tmp_path))
    mortal = upload(web.port, user, task, "obedient", archive_bytes(Path(__file__).parent / "model"))
    held = upload(web.port, user, task, "held", trivial_archive("held", tmp_path))
    production.stand.order({"outcome": "held", "name": f"ts{held}-", "seconds": 300})

    until(lambda: Inference.objects.filter(submission=held).exclude(handle="").exists())
    ask(web, user, f"submissions/{held}/cancel/")
    until(lambda: status(held) == "cancelled" and not Inference.objects.exclude(handle="").filter(submission=held))
    until(lambda: (status(good), status(mortal)) == ("evaluated", "failed"))
    until(lambda: Endpoint.objects.filter(build__submission=good, status="succeeded"))
    ask(web, user, f"models/{good}/predict", {"statement": "It rains."})

    with pytest.raises(HTTPError):
        upload(web.port, user, task, "refused", b"no archive")
    production.stand.faults({"effect": "error", "action": "UploadPart", "role": "AKIAWEB"})
    with pytest.raises(HTTPError):
        upload(web.port, user, task, "broken-off", cli.archive("broken-off", weights=os.urandom(9 << 20)))
    production.stand.faults()
    production.run("check_invariants")
    production.run("reevaluate", "--model", str(good), "--force", "build")
    until(lambda: Endpoint.objects.filter(build__submission=good, build__run=2, status="succeeded"))
    until(lambda: status(good) == "evaluated")
    Endpoint.objects.update(finished_at=Now() - timedelta(hours=2))
    production.run("takedown", "--idle", "1", "--failing", "--model", str(good))
    build.stop()
    build.start()
    until(lambda: not Build.objects.filter(is_deployed=True) and not Endpoint.objects.filter(is_deployed=True))


@dataclass
class Recording:
    """What was called by work, and by `check_aws` on each role's host."""

    work: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def kept() -> Recording:
    """The recorded run, once a test has made it."""
    return Recording()


@pytest.fixture
def recording(kept, production, user, staff, flores_task, tmp_path) -> Recording:
    if not kept.work:
        everything_once(production, user, staff, flores_task, tmp_path)
        for host in production.hosts.values():
            host.kill()
        kept.work = production.stand.calls()
        for role, key in KEYS.items():
            production.run("check_aws", "--role", role, role=key)
        kept.checks = production.stand.calls()[len(kept.work) :]
    return kept


def actions(calls: list[dict[str, Any]], role: str) -> set[str]:
    return {call["iam"] for call in calls if call["role"] == KEYS[role]} - NEEDS_NO_RIGHT


def test_each_policy_allows_what_its_role_does_and_nothing_else(recording):
    used = {role: actions(recording.work, role) for role in KEYS}
    tried = {role: actions(recording.checks, role) for role in KEYS}
    nothing = dict.fromkeys(KEYS, set())

    assert {role: allowed(role) - used[role] - set(UNSEEN[role]) for role in KEYS} == nothing
    assert {role: set(UNSEEN[role]) - allowed(role) for role in KEYS} == nothing
    assert {role: used[role] - allowed(role) for role in KEYS} == nothing
    assert {role: tried[role] - allowed(role) for role in KEYS} == nothing


def test_they_allow_it_on_the_resources_that_are_used_and_each_statement_has_its_use(recording):
    for role, key in KEYS.items():
        mine = [call for call in recording.work + recording.checks if call["role"] == key]
        asked = {(call["iam"], arn) for call in mine if call["iam"] not in NEEDS_NO_RIGHT for arn in resources(call)}
        refused = [one for one in asked if not any(allows(row, *one) for row in POLICIES[role])]
        used = {row["Sid"] for row in POLICIES[role] if any(allows(row, *one) for one in asked)}

        assert refused == [], role
        assert {row["Sid"] for row in POLICIES[role]} - used <= UNSEEN_STATEMENTS, role


def test_no_model_is_made_that_could_reach_a_network_or_under_another_role(recording):
    statements = {row["Sid"]: row for row in POLICIES["build"]}
    made = [call for call in recording.work if call["action"] == "CreateModel"]

    assert made and all(call["isolation"] is True and call["role"] == KEYS["build"] for call in made)
    assert {call["request"]["ExecutionRoleArn"] for call in made} == set(statements["ModelsRole"]["Resource"]) == {ROLE}
    assert statements["ModelsRole"]["Condition"]["StringEquals"] == {"iam:PassedToService": "sagemaker.amazonaws.com"}
    assert statements["IsolatedModels"]["Condition"] == {"Bool": {"sagemaker:NetworkIsolation": "true"}}
    assert [row["Sid"] for row in POLICIES["build"] if "sagemaker:CreateModel" in row["Action"]] == ["IsolatedModels"]


@pytest.mark.parametrize("role", POLICIES)
def test_iam_takes_each_policy(stand, role):
    document = json.dumps({"Version": "2012-10-17", "Statement": POLICIES[role]})

    made = stand.client("iam").create_policy(PolicyName=role, PolicyDocument=document)

    assert made["Policy"]["PolicyName"] == role
    assert len(document.replace(" ", "")) <= MOST_CHARACTERS


@pytest.mark.parametrize("role", POLICIES)
def test_no_policy_is_wider_than_it_can_be(role):
    for statement in POLICIES[role]:
        assert statement["Effect"] == "Allow"
        assert all(re.fullmatch("[a-z0-9]+:[A-Za-z]+", action) for action in statement["Action"]), "no wildcards"
        assert ("*" in statement["Resource"]) == (set(statement["Action"]) <= ANYWHERE), statement["Sid"]
        if any(action.startswith("s3:") for action in statement["Action"]):
            assert statement["Condition"]["StringEquals"] == {"s3:ResourceAccount": ACCOUNT}, statement["Sid"]


@pytest.mark.parametrize(
    ("action", "key", "is_allowed"),
    [
        ("s3:GetObject", "datasets/sentiment/tweets.jsonl", True),
        ("s3:PutObject", "predictions/ts1-good/raw/sentiment/tweets.jsonl.out", True),
        ("s3:GetObject", "labels/sentiment/tweets.jsonl", False),
        ("s3:PutObject", "labels/sentiment/tweets.jsonl", False),
        ("s3:GetObject", "torchserve/models/sentiment/ts1-good.tar.gz", False),
        ("s3:GetObject", "predictions/ts1-good/raw/sentiment/tweets.jsonl.out", False),
        ("s3:PutObject", "datasets/sentiment/tweets.jsonl", False),
    ],
)
def test_models_read_inputs_and_write_predictions_and_see_no_label_and_no_archive(action, key, is_allowed):
    arn = f"arn:aws:s3:::sagemaker-us-west-1/{key}"

    assert any(allows(statement, action, arn) for statement in POLICIES["models"]) == is_allowed
