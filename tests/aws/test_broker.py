"""The queues on SQS: how they are made, and what a bell does when SQS is down."""

from __future__ import annotations

import json
import time

import pytest
from django.core.management import call_command
from django.db import transaction
from django_q.brokers import get_broker
from django_q.signing import SignedPackage

from builds import services
from dynabench_site import queue
from dynabench_site.backends.aws import SqsBroker
from dynabench_site.faults import NotYet
from dynabench_site.settings import PROFILES
from tests.conftest import in_cluster

pytestmark = [pytest.mark.aws, pytest.mark.timeout(600)]
CLUSTERS = {"build": "dynabench-build", "default": "dynabench-eval-default", "flores101": "dynabench-eval-flores101"}


@pytest.fixture
def sqs(on_aws, eval_servers, monkeypatch):
    """This process rings on SQS, where nothing is made yet."""
    monkeypatch.setattr("django_q.conf.Conf.BROKER_CLASS", PROFILES["production"]["BROKER"]["broker_class"])
    return on_aws.client("sqs")


@pytest.fixture
def queues(sqs):
    call_command("create_queues")
    return sqs


def attributes(sqs, name: str) -> dict[str, str]:
    url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    return sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]


def waiting(name: str) -> int:
    return SqsBroker(name).queue_size()


def test_each_cluster_has_a_queue_and_one_for_bells_that_nobody_can_read(queues):
    call_command("create_queues")

    urls = queues.list_queues()["QueueUrls"]
    names = sorted(url.rpartition("/")[2] for url in urls)
    assert names == sorted([*CLUSTERS.values(), *(f"{name}-dead" for name in CLUSTERS.values())])
    for name in CLUSTERS.values():
        own, dead = attributes(queues, name), attributes(queues, f"{name}-dead")
        policy = json.loads(own["RedrivePolicy"])
        assert (policy["deadLetterTargetArn"], int(policy["maxReceiveCount"])) == (dead["QueueArn"], 5)
        assert (own["VisibilityTimeout"], own["ReceiveMessageWaitTimeSeconds"]) == ("43200", "5")
        assert own["MessageRetentionPeriod"] == dead["MessageRetentionPeriod"] == str(4 * 24 * 3600)
        assert "RedrivePolicy" not in dead


def test_a_bell_is_read_once_acknowledged_and_gone(queues, transactional_db):
    queue.send(queue.BUILD_SUBMISSION, 7, cluster="build")
    broker = get_broker(CLUSTERS["build"])
    assert isinstance(broker, SqsBroker) and waiting(CLUSTERS["build"]) == 1

    ((receipt, package),) = broker.dequeue()
    assert waiting(CLUSTERS["build"]) == 0, "nobody else sees it meanwhile"
    broker.acknowledge(receipt)

    task = SignedPackage.loads(package)
    assert (task["func"], task["args"]) == (queue.BUILD_SUBMISSION, (7,))
    counts = attributes(queues, CLUSTERS["build"])
    assert counts["ApproximateNumberOfMessages"] == counts["ApproximateNumberOfMessagesNotVisible"] == "0"
    assert waiting(CLUSTERS["default"]) == 0


def test_a_rollback_rings_nothing(queues, transactional_db):
    with pytest.raises(KeyError), transaction.atomic():
        queue.send(queue.BUILD_SUBMISSION, 7, cluster="build")
        raise KeyError

    assert waiting(CLUSTERS["build"]) == 0


@pytest.mark.parametrize("effect", ["reset", "error", "throttle", "expired", "slow"])
def test_a_bell_that_cannot_be_rung_delays_nobody_and_is_rung_by_the_sweep(
    transactional_db, queues, on_aws, submission, effect
):
    on_aws.faults({"effect": effect, "service": "sqs", "seconds": 10})

    started = time.monotonic()
    queue.send(queue.BUILD_SUBMISSION, submission.pk, cluster="build")
    assert time.monotonic() - started < 5
    with in_cluster("build"):
        services.sweep()
    on_aws.faults()
    assert effect == "slow" or waiting(CLUSTERS["build"]) == 0
    with in_cluster("build"):
        services.sweep()

    assert waiting(CLUSTERS["build"]) == 1


def test_a_worker_whose_queue_cannot_be_read_goes_on(queues, on_aws):
    on_aws.faults({"effect": "error", "service": "sqs"})

    assert SqsBroker(CLUSTERS["build"]).dequeue() == []


def test_a_bell_that_cannot_be_acknowledged_ends_no_process(queues, on_aws, transactional_db):
    queue.send(queue.BUILD_SUBMISSION, 7, cluster="build")
    broker = SqsBroker(CLUSTERS["build"])
    ((receipt, _),) = broker.dequeue()
    on_aws.faults({"effect": "error", "service": "sqs"})

    broker.acknowledge(receipt)


def test_a_queue_that_was_not_made_is_named_and_stops_no_sweep(sqs, submission, transactional_db):
    with pytest.raises(NotYet, match="the queue dynabench-eval-new, which `manage.py create_queues` makes"):
        SqsBroker("dynabench-eval-new").enqueue("bell")

    queue.send(queue.RUN_INFERENCES, "new", cluster="new")
    queue.ring_again(queue.RUN_INFERENCES, ["new"], cluster="new")
