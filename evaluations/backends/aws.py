"""What an installation needs of its AWS account, tried with its own credentials; nothing is made that costs.

A name that can't exist shows whether we may ask for it: AWS looks at rights first, and only then for the thing.
"""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from django.conf import settings

from builds.sandboxes.engine import engine
from builds.sandboxes.policy import SandboxError
from dynabench_site import queue
from dynabench_site.backends import aws
from dynabench_site.backends.aws import Refusal, asked
from evaluations.backends.sagemaker import LOG_GROUP
from evaluations.services import cluster_pools
from tasks_catalog.models import BuildConfig

ROLES = ("web", "build", "eval", "operator")
NOBODYS_NAME = "ts0-check"  # no submission has the id 0
ROLE_ARN = re.compile(r"arn:aws[a-z-]*:iam::(?P<account>\d{12}):role/[\w+=,.@/-]+")
LACKS_RIGHT = re.compile("AccessDenied|NotAuthorized|Unauthorized|Forbidden|403")
# Answers that come after the look at rights.
NOT_THERE = {"ValidationException", "ValidationError", "ResourceNotFound", "ResourceNotFoundException"}
MAKE_QUEUES = "Run `manage.py create_queues`, with the operator's rights."


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried; without a problem it is in order."""

    what: str
    problem: str = ""
    remedy: str = ""


def check_account(roles: Sequence[str] = ROLES) -> Iterator[Finding]:
    """Try all that these roles need; credentials first, as without them the rest says nothing."""
    try:
        identity = asked(lambda: aws.client("sts", settings.AWS_REGION).get_caller_identity())
    except Refusal as refusal:
        remedy = "Give the process credentials that are valid: an instance profile, or AWS_ACCESS_KEY_ID and its kin."
        yield Finding("credentials", str(refusal), remedy)
        return
    yield Finding(f"credentials: {identity['Arn']}")
    for check, needed_by in CHECKS:
        if concerned := [role for role in roles if role in needed_by]:
            yield from check(concerned, identity["Account"])


def _queues(roles: Sequence[str], account: str) -> Iterator[Finding]:
    sqs = aws.client("sqs", settings.AWS_REGION)
    for cluster in sorted(cluster_pools()):
        name = queue.queue_name(cluster)
        what = f"queue {name} ({settings.AWS_REGION})"
        try:
            url = asked(sqs.get_queue_url, QueueName=name)["QueueUrl"]
            found = asked(sqs.get_queue_attributes, QueueUrl=url, AttributeNames=["RedrivePolicy"])
        except Refusal as refusal:
            if refusal.code in aws.NO_QUEUE:
                yield Finding(what, "it does not exist", MAKE_QUEUES)
            else:
                yield Finding(what, str(refusal), _remedy(refusal, "Bells", roles))
            continue
        if "RedrivePolicy" in found.get("Attributes", {}):
            yield Finding(what)
        else:
            yield Finding(what, "bells that nobody can read would come back for ever", MAKE_QUEUES)


def _buckets(roles: Sequence[str], account: str) -> Iterator[Finding]:
    writers = [role for role in roles if role != "operator"]
    readers = [role for role in roles if role != "web"]
    for bucket, region in sorted({(_bucket(config, account), config.aws_region) for config in _build_configs()}):
        s3, what = aws.client("s3", region), f"bucket {bucket} ({region})"
        place = _place(s3, bucket, region, what, roles, account)
        yield place
        if place.problem:
            continue
        if writers:
            yield _tried(f"{what}: put, get, delete", partial(_probe, s3, bucket), "Probes", writers)
        listed = partial(s3.list_objects_v2, Bucket=bucket, MaxKeys=1)
        if "web" in roles:
            yield _tried(f"{what}: list datasets", partial(listed, Prefix="datasets/"), "DatasetsByPrefix", ["web"])
        if readers:
            # Without this right S3 calls a missing object forbidden.
            yield _tried(f"{what}: what is missing is told from what is forbidden", listed, "Buckets", readers)


def _place(s3: Any, bucket: str, region: str, what: str, roles: Sequence[str], account: str) -> Finding:
    """Whether the bucket is there, in its region, and ours."""
    try:
        found = asked(s3.get_bucket_location, Bucket=bucket, ExpectedBucketOwner=account)["LocationConstraint"]
    except Refusal as refusal:
        if refusal.code == "NoSuchBucket":
            make = f"Run `aws s3 mb s3://{bucket} --region {region}`, or name another one in the build config."
            return Finding(what, "it does not exist", make)
        hint = "Or the bucket is another account's, as names are global: then name one of your own."
        return Finding(what, str(refusal), f"{_remedy(refusal, 'Buckets', roles)} {hint}")
    found = found or "us-east-1"
    if found != region:
        remedy = f"In the task's build config, name a bucket in {region} or the region {found}."
        return Finding(what, f"it is in {found}", remedy)
    return Finding(what)


def _probe(s3: Any, bucket: str) -> None:
    """An object goes in and out unchanged, and is gone again."""
    body = uuid.uuid4().hex.encode()
    place = {"Bucket": bucket, "Key": f"check/{body.decode()}"}
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    asked(s3.put_object, **place, Body=body, ChecksumSHA256=digest)
    try:
        if asked(lambda: s3.get_object(**place, ChecksumMode="ENABLED")["Body"].read()) != body:
            raise Refusal("Damaged", f"What was read from {place['Key']} is not what was written.")
    finally:
        asked(s3.delete_object, **place)


def _endpoints(roles: Sequence[str], account: str) -> Iterator[Finding]:
    for region in _regions():
        runtime = aws.client("sagemaker-runtime", region)
        call = partial(runtime.invoke_endpoint, EndpointName=NOBODYS_NAME, Body=b"{}")
        yield _tried(f"asking live endpoints ({region})", call, "Endpoints", roles)


def _registry(roles: Sequence[str], account: str) -> Iterator[Finding]:
    for region in _regions():
        call = aws.client("ecr", region).get_authorization_token
        yield _tried(f"log-in to the image registry ({region})", call, "RegistryLogin", roles)


def _models(roles: Sequence[str], account: str) -> Iterator[Finding]:
    for region in _regions():
        sagemaker = aws.client("sagemaker", region)
        call = partial(sagemaker.describe_model, ModelName=NOBODYS_NAME)
        yield _tried(f"models of SageMaker ({region})", call, "Models", roles)
        call = partial(sagemaker.describe_endpoint, EndpointName=NOBODYS_NAME)
        yield _tried(f"endpoints of SageMaker ({region})", call, "Endpoints", roles)


def _models_role(roles: Sequence[str], account: str) -> Iterator[Finding]:
    """Whether it may be passed shows only with the first model."""
    arn, what = settings.SAGEMAKER_ROLE, "the models' role"
    wanted = f"Set DYNABENCH_SAGEMAKER_ROLE to the ARN of the role with deploy/iam/models.json, in account {account}."
    found = ROLE_ARN.fullmatch(arn)
    if not arn:
        yield Finding(what, "DYNABENCH_SAGEMAKER_ROLE is not set", wanted)
    elif not found:
        yield Finding(what, f"{arn} is not the ARN of a role", wanted)
    elif found["account"] != account:
        yield Finding(what, f"{arn} belongs to another account", wanted)
    else:
        yield Finding(f"{what}: {arn}")


def _docker(roles: Sequence[str], account: str) -> Iterator[Finding]:
    try:
        with engine(timeout=10) as client:
            client.ping()
    except SandboxError as error:
        yield Finding("docker engine", str(error), "Start docker here, and let this user reach it; or set DOCKER_HOST.")
    else:
        yield Finding("docker engine")


def _jobs(roles: Sequence[str], account: str) -> Iterator[Finding]:
    for region in _regions():
        sagemaker, logs = aws.client("sagemaker", region), aws.client("logs", region)
        call = partial(sagemaker.describe_transform_job, TransformJobName=NOBODYS_NAME)
        yield _tried(f"transform jobs of SageMaker ({region})", call, "Jobs", roles)
        call = partial(logs.describe_log_streams, logGroupName=LOG_GROUP, logStreamNamePrefix=NOBODYS_NAME)
        yield _tried(f"names of the jobs' logs ({region})", call, "Logs", roles)
        call = partial(logs.get_log_events, logGroupName=LOG_GROUP, logStreamName=NOBODYS_NAME)
        yield _tried(f"the jobs' logs ({region})", call, "Logs", roles)


def _metrics(roles: Sequence[str], account: str) -> Iterator[Finding]:
    now = datetime.now(UTC)
    about = {"Namespace": "AWS/SageMaker", "MetricName": "Invocations", "Statistics": ["Sum"]}
    period = {"StartTime": now - timedelta(hours=1), "EndTime": now, "Period": 3600}
    for region in _regions():
        call = partial(aws.client("cloudwatch", region).get_metric_statistics, **about, **period)
        yield _tried(f"metrics of CloudWatch ({region})", call, "Metrics", roles)


CHECKS: tuple[tuple[Callable[[Sequence[str], str], Iterator[Finding]], tuple[str, ...]], ...] = (
    (_queues, ROLES),
    (_buckets, ROLES),
    (_endpoints, ("web",)),
    (_docker, ("build",)),
    (_registry, ("build",)),
    (_models_role, ("build",)),
    (_models, ("build",)),
    (_jobs, ("eval",)),
    (_metrics, ("eval", "operator")),
)


def _tried(what: str, call: Callable[[], Any], statement: str, roles: Sequence[str]) -> Finding:
    try:
        asked(call)
    except Refusal as refusal:
        if refusal.code not in NOT_THERE:
            return Finding(what, str(refusal), _remedy(refusal, statement, roles))
    return Finding(what)


def _remedy(refusal: Refusal, statement: str, roles: Sequence[str]) -> str:
    if not LACKS_RIGHT.search(refusal.code):
        return "It is no matter of rights: AWS's words say what to mend."
    return f"Allow it: statement {statement} of {' and '.join(f'deploy/iam/{role}.json' for role in roles)}."


def _build_configs() -> list[BuildConfig]:
    """Those of the tasks; what a new task would get where there are none."""
    return list(BuildConfig.objects.all()) or [BuildConfig()]


def _regions() -> list[str]:
    return sorted({config.aws_region for config in _build_configs()})


def _bucket(config: BuildConfig, account: str) -> str:
    return config.bucket.replace("{account}", account)
