"""Amazon Web Services: one client a service and region, what their errors mean for a job, and the queue on SQS."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError
from django.conf import settings
from django_q.brokers import Broker

from dynabench_site.faults import NotYet, Throttled
from dynabench_site.jobs import JobStumbled

logger = logging.getLogger(__name__)
CONFIG = Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 3})
# A bell may be lost, but must not keep a request waiting.
BELL_CONFIG = Config(connect_timeout=1, read_timeout=2, retries={"total_max_attempts": 1})
THROTTLED = {
    "ThrottlingException",
    "Throttling",
    "ThrottledException",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
}
QUOTA = {"ResourceLimitExceeded", "LimitExceededException", "ServiceQuotaExceededException"}
RIGHTS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "AccessDenied",
    "AccessDeniedException",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "RequestExpired",
    *("400", "403"),  # the answer to a HEAD has no body to say more
}
NO_QUEUE = {"QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue"}
FIRST_PAUSE, LONGEST_PAUSE = 2, 300  # seconds
QUOTA_PAUSE = 10 * settings.LEASE_SECONDS


def client(service: str, region: str, config: Config = CONFIG) -> Any:
    """The client of a service in a region; each process has its own."""
    return _client(service, region, config, os.getpid())


@cache
def _client(service: str, region: str, config: Config, pid: int) -> Any:
    return Session().client(service, region_name=region, config=config)


@cache
def account() -> str:
    """The number of the account whose credentials we have."""
    with faults():
        return client("sts", settings.AWS_REGION).get_caller_identity()["Account"]


def code_of(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def message_of(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Message", "")


@contextmanager
def faults() -> Iterator[None]:
    """What AWS refuses for now is waited for without spending an attempt; any other refusal is a stumble."""
    try:
        yield
    except ClientError as error:
        raise _meaning(error) from error
    except NoCredentialsError as error:
        raise NotYet("AWS credentials, which this host has not", QUOTA_PAUSE) from error
    except ParamValidationError as error:
        raise JobStumbled("aws_refused", f"AWS would refuse it: {error}") from error
    except BotoCoreError as error:
        raise NotYet(f"AWS, which does not answer ({type(error).__name__})", FIRST_PAUSE, most=LONGEST_PAUSE) from error


def _meaning(error: ClientError) -> Exception:
    code, message = code_of(error), message_of(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in THROTTLED:
        return Throttled(f"AWS, which is throttling {error.operation_name}", FIRST_PAUSE, most=LONGEST_PAUSE)
    if code in QUOTA:
        return NotYet(f"an AWS quota: {message}", QUOTA_PAUSE)
    if code in RIGHTS:
        return NotYet(f"AWS rights for {error.operation_name} ({code})", FIRST_PAUSE, most=LONGEST_PAUSE)
    if status >= 500:
        return NotYet(f"AWS, whose {error.operation_name} fails ({code})", FIRST_PAUSE, most=LONGEST_PAUSE)
    return JobStumbled("aws_refused", f"AWS refused {error.operation_name}: {code}: {message}")


class Refusal(Exception):
    """AWS does not do what it was asked for, or does not answer; the code is its own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def asked(call: Callable[..., Any], **arguments: Any) -> Any:
    """What AWS answers to one call; raises Refusal, for those who only want to know."""
    try:
        return call(**arguments)
    except ClientError as error:
        raise Refusal(code_of(error), str(error)) from error
    except BotoCoreError as error:
        raise Refusal(type(error).__name__, str(error)) from error


class SqsBroker(Broker):
    """One queue for each cluster, in the main region. A bell that is not acknowledged comes back, a few times."""

    WAIT_SECONDS = 5
    # The longest that SQS knows: work that takes longer is rung for twice, which changes nothing.
    VISIBILITY_SECONDS = 12 * 3600
    MAX_RECEIVES = 5
    RETENTION_SECONDS = 4 * 24 * 3600

    def create(self) -> None:
        """The queue is there, and a second one for bells that nobody could read."""
        dead = self._create(f"{self.list_key}-dead", {})
        arn = _sqs().get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        redrive = {"deadLetterTargetArn": arn, "maxReceiveCount": self.MAX_RECEIVES}
        own = {
            "VisibilityTimeout": str(self.VISIBILITY_SECONDS),
            "ReceiveMessageWaitTimeSeconds": str(self.WAIT_SECONDS),
            "RedrivePolicy": json.dumps(redrive),
        }
        self._create(self.list_key, own)

    def _create(self, name: str, attributes: dict[str, str]) -> str:
        attributes = {"MessageRetentionPeriod": str(self.RETENTION_SECONDS), **attributes}
        with faults():
            url = _sqs().create_queue(QueueName=name)["QueueUrl"]  # by name alone, so that a second call finds it
            _sqs().set_queue_attributes(QueueUrl=url, Attributes=attributes)
        return url

    def enqueue(self, task: str) -> str:
        with faults():
            return _sqs(BELL_CONFIG).send_message(QueueUrl=self._url(BELL_CONFIG), MessageBody=task)["MessageId"]

    def dequeue(self) -> list[tuple[str, str]]:
        try:
            with faults():
                found = _sqs().receive_message(QueueUrl=self._url(), WaitTimeSeconds=self.WAIT_SECONDS)
        except (NotYet, JobStumbled):
            time.sleep(self.WAIT_SECONDS)  # the sweep finds what is due meanwhile
            return []
        return [(message["ReceiptHandle"], message["Body"]) for message in found.get("Messages", [])]

    def delete(self, task_id: str) -> None:
        """It is gone, or will come again: a second delivery changes nothing."""
        try:
            with faults():
                _sqs().delete_message(QueueUrl=self._url(), ReceiptHandle=task_id)
        except (NotYet, JobStumbled) as error:
            logger.warning("a bell of %s will ring again: %s", self.list_key, error)

    acknowledge = fail = delete

    def queue_size(self) -> int:
        name = "ApproximateNumberOfMessages"
        with faults():
            found = _sqs(BELL_CONFIG).get_queue_attributes(QueueUrl=self._url(BELL_CONFIG), AttributeNames=[name])
        return int(found["Attributes"][name])

    def purge_queue(self) -> None:
        with faults():
            _sqs().purge_queue(QueueUrl=self._url())

    def ping(self) -> bool:
        return True

    def info(self) -> str:
        return "AWS SQS"

    def _url(self, config: Config = CONFIG) -> str:
        return _queue_url(self.list_key, config)


def _sqs(config: Config = CONFIG) -> Any:
    return client("sqs", settings.AWS_REGION, config)


@cache
def _queue_url(name: str, config: Config) -> str:
    with faults():
        try:
            return _sqs(config).get_queue_url(QueueName=name)["QueueUrl"]
        except ClientError as error:
            if code_of(error) not in NO_QUEUE:
                raise
            raise NotYet(f"the queue {name}, which `manage.py create_queues` makes", QUOTA_PAUSE) from error
