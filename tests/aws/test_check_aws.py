"""`manage.py check_aws` finds what an account lacks, and says how to mend it."""

from __future__ import annotations

import json
import re

import pytest
from django.core.management import call_command

from dynabench_site import queue
from dynabench_site.backends.aws import SqsBroker
from evaluations.backends.aws import ROLES
from evaluations.services import cluster_pools
from tasks_catalog.models import BuildConfig
from tests.aws.hosts import ROLE
from tests.aws.policies import POLICIES

pytestmark = pytest.mark.aws
REGION = "us-west-2"


@pytest.fixture
def ready(stand, task, settings, monkeypatch):
    """An account with all that its installation needs; the task lives in another region than the queues."""
    for name, value in stand.environment().items():
        monkeypatch.setenv(name, value)
    settings.SAGEMAKER_ROLE = ROLE
    BuildConfig.objects.update(aws_region=REGION)
    for cluster in cluster_pools():
        SqsBroker(queue.queue_name(cluster)).create()


def wrong(capsys, *arguments: str) -> list[tuple[str, str, str]]:
    """What the command finds wrong: each with its problem and the remedy."""
    try:
        call_command("check_aws", "--json", *arguments)
        exit_code = 0
    except SystemExit as ended:
        exit_code = ended.code
    said = json.loads(capsys.readouterr().out)
    found = [tuple(finding.values()) for finding in said["findings"] if finding["problem"]]
    assert (exit_code, said["ok"]) == ((1, False) if found else (0, True))
    return found


def test_a_whole_account_is_in_order_and_nothing_is_left_in_it(ready, stand, capsys):
    before = len(stand.calls())

    assert wrong(capsys) == []

    calls = [call for call in stand.calls()[before:] if not call["action"].startswith(("Get", "List", "Describe"))]
    assert {call["action"] for call in calls} == {"PutObject", "DeleteObject", "InvokeEndpoint"}
    assert all(call["key"].startswith("check/") for call in calls if call["service"] == "s3")
    assert stand.client("s3", REGION).list_objects_v2(Bucket=f"sagemaker-{REGION}")["KeyCount"] == 0


def test_an_operator_reads_it_line_by_line(ready, stand, capsys):
    stand.client("sqs").delete_queue(
        QueueUrl=stand.client("sqs").get_queue_url(QueueName="dynabench-build")["QueueUrl"]
    )

    with pytest.raises(SystemExit):
        call_command("check_aws", "--role", "eval")

    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"ok     credentials: arn:aws:", lines[0])
    assert "WRONG  queue dynabench-build (us-west-1): it does not exist" in lines
    assert "       Run `manage.py create_queues`, with the operator's rights." in lines
    assert "ok     queue dynabench-eval-default (us-west-1)" in lines


def test_a_queue_without_the_one_for_unreadable_bells_is_wrong(ready, stand, capsys):
    sqs = stand.client("sqs")
    sqs.set_queue_attributes(
        QueueUrl=sqs.get_queue_url(QueueName="dynabench-build")["QueueUrl"], Attributes={"RedrivePolicy": ""}
    )

    [(what, _, remedy)] = wrong(capsys, "--role", "build")

    assert what.startswith("queue dynabench-build") and "create_queues" in remedy


def test_a_missing_bucket(ready, stand, capsys):
    stand.client("s3", REGION).delete_bucket(Bucket=f"sagemaker-{REGION}")

    [(what, problem, remedy)] = wrong(capsys, "--role", "web")

    assert (what, problem) == (f"bucket sagemaker-{REGION} ({REGION})", "it does not exist")
    assert f"aws s3 mb s3://sagemaker-{REGION} --region {REGION}" in remedy


def test_a_bucket_in_another_region(ready, capsys):
    BuildConfig.objects.update(s3_bucket="sagemaker-us-west-1")

    [(_, problem, remedy)] = wrong(capsys, "--role", "eval")

    assert problem == "it is in us-west-1"
    assert "name a bucket in us-west-2 or the region us-west-1" in remedy


def test_expired_credentials_end_the_check(ready, stand, capsys):
    stand.faults({"effect": "expired", "service": "sts"})

    [(what, problem, remedy)] = wrong(capsys)

    assert what == "credentials" and "ExpiredToken" in problem and "credentials that are valid" in remedy


def test_a_profile_that_nobody_wrote_is_no_credentials(ready, settings, monkeypatch, capsys):
    settings.AWS_REGION = "eu-north-1"  # where this process has no client yet
    monkeypatch.setenv("AWS_PROFILE", "nobody")

    [(what, problem, _)] = wrong(capsys)

    assert what == "credentials" and "nobody" in problem


@pytest.mark.parametrize(
    ("arn", "problem"),
    [
        ("", "is not set"),
        ("arn:aws:iam::123456789012:user/dynabench-models", "is not the ARN of a role"),
        ("arn:aws:iam::999999999999:role/dynabench-models", "belongs to another account"),
    ],
)
def test_a_models_role_that_cannot_be(ready, settings, capsys, arn, problem):
    settings.SAGEMAKER_ROLE = arn

    [(what, said, remedy)] = wrong(capsys, "--role", "build")

    assert what == "the models' role" and problem in said and "DYNABENCH_SAGEMAKER_ROLE" in remedy


def test_a_build_server_without_docker(ready, monkeypatch, capsys):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")

    [(what, _, remedy)] = wrong(capsys, "--role", "build")

    assert what == "docker engine" and "DOCKER_HOST" in remedy


def test_a_probe_that_cannot_be_read_is_removed_all_the_same(ready, stand, capsys):
    stand.faults({"effect": "denied", "action": "GetObject", "name": "check/"})

    [(what, _, remedy)] = wrong(capsys, "--role", "web")

    assert what.endswith("put, get, delete") and "statement Probes of deploy/iam/web.json" in remedy
    assert stand.client("s3", REGION).list_objects_v2(Bucket=f"sagemaker-{REGION}")["KeyCount"] == 0


@pytest.mark.parametrize(
    ("role", "statement"), [("web", "DatasetsByPrefix"), ("build", "Buckets"), ("eval", "Buckets")]
)
def test_a_bucket_that_may_not_be_listed(ready, stand, capsys, role, statement):
    stand.faults({"effect": "denied", "action": "ListObjectsV2"})

    [(_, _, remedy)] = wrong(capsys, "--role", role)

    assert remedy == f"Allow it: statement {statement} of deploy/iam/{role}.json."
    assert statement in {row["Sid"] for row in POLICIES[role] if "s3:ListBucket" in row["Action"]}


@pytest.mark.parametrize("role", ROLES)
def test_a_remedy_names_the_statement_that_allows_what_was_refused(ready, stand, capsys, role):
    services = ("sqs", "s3", "ecr", "sagemaker", "sagemaker-runtime", "logs", "cloudwatch")
    stand.faults(*({"effect": "denied", "service": service} for service in services))

    found = wrong(capsys, "--role", role)

    refused = [call["iam"] for call in stand.calls(fault="denied")]
    assert len(found) == len(refused)
    for (what, _, remedy), action in zip(found, refused, strict=True):
        [statement] = re.findall(rf"statement (\w+) of deploy/iam/{role}\.json", remedy)
        allowed = [row["Action"] for row in POLICIES[role] if row["Sid"] == statement]
        assert action in allowed[0], what
