"""Inference as SageMaker batch transform jobs, in the region of the task; no worker waits for one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from botocore.exceptions import ClientError

from builds.steps import readable
from dynabench_site.backends import aws
from dynabench_site.faults import NotYet
from evaluations.backends import Outcome
from evaluations.models import Inference
from tasks_catalog.files import joined
from tasks_catalog.models import BuildConfig, InstanceType

NAMESPACE = LOG_GROUP = "/aws/sagemaker/TransformJobs"
LOG_LINES = 100
INVOCATION_SECONDS = 3600  # the most that SageMaker allows for one request
FILTER_LENGTH = 63  # the most that SageMaker allows; a file of inputs holds nothing else anyway
OUTPUT_DELAY = timedelta(minutes=5)
METRICS_DELAY = timedelta(minutes=15)
BYTES_PER_GIB = 1 << 30
ENDED = ("Completed", "Failed", "Stopped")


class SageMakerRunner:
    """A job's name comes from ids: what is there already under it was started by an earlier try."""

    def limits(self, config: BuildConfig, examples: int) -> dict[str, Any]:
        return {
            "deadline_seconds": config.deadline_seconds(examples),
            "instance_type": config.instance_type_id,
            "instance_count": config.instance_count,
            "batch_strategy": config.batch_strategy,
            "max_payload_mb": config.max_payload_mb,
        }

    def start(self, inference: Inference) -> str:
        if inference.handle:
            return inference.handle
        wanted, sagemaker = _request(inference), _client("sagemaker", inference)
        with aws.faults():
            try:
                sagemaker.create_transform_job(**wanted, Tags=_tags(inference))
            except ClientError as error:
                if aws.code_of(error) != "ResourceInUse":
                    raise
                found = sagemaker.describe_transform_job(TransformJobName=inference.name)
                if any(found[key] != wanted[key] for key in ("ModelName", "TransformOutput")):
                    inference.save_progress(tries=inference.tries + 1)
                    raise NotYet("a free name for its batch transform job", 1) from error
        return inference.name

    def link(self, inference: Inference) -> str:
        region = _region(inference)
        return (
            f"https://{region}.console.aws.amazon.com/sagemaker/home?region={region}#/transform-jobs/{inference.name}"
        )

    def poll(self, inference: Inference) -> Outcome:
        with aws.faults():
            job = _client("sagemaker", inference).describe_transform_job(TransformJobName=inference.handle)
        status = job["TransformJobStatus"]
        if status == "Completed":
            return _completed(inference, job)
        if status == "Failed":
            return _failed(inference, job.get("FailureReason", ""))
        if status == "Stopped":
            return Outcome("lost", code="transform_stopped", detail="The batch transform job was stopped on AWS.")
        if _is_late(inference, job):
            self.stop(inference)
            limit = inference.limits["deadline_seconds"]
            return Outcome("failed", code="model_timeout", detail=f"It took longer than {limit} s and was stopped.")
        return Outcome("running")

    def stop(self, inference: Inference) -> None:
        with aws.faults():
            try:
                _client("sagemaker", inference).stop_transform_job(TransformJobName=inference.handle)
            except ClientError as error:
                if aws.code_of(error) not in {"ValidationException", "ResourceNotFound"}:
                    raise  # else it has ended, or never was


def _region(inference: Inference) -> str:
    return inference.build.config["aws_region"]


def _client(service: str, inference: Inference) -> Any:
    return aws.client(service, _region(inference))


def _tags(inference: Inference) -> list[dict[str, str]]:
    return [{"Key": "dynabench:inference", "Value": str(inference.pk)}]


def _request(inference: Inference) -> dict[str, Any]:
    task, limits = inference.submission.task, inference.limits
    # Only these reach the model, whatever else a file may hold.
    names = ",".join(f"'{name}'" for name in task.format.input_names)
    input_filter = f"$[{names}]"
    bucket = task.storage().bucket_name
    return {
        "TransformJobName": inference.name,
        "ModelName": inference.build.name,
        "MaxConcurrentTransforms": 1,
        "MaxPayloadInMB": limits["max_payload_mb"],
        "BatchStrategy": limits["batch_strategy"],
        "ModelClientConfig": {"InvocationsTimeoutInSeconds": INVOCATION_SECONDS, "InvocationsMaxRetries": 0},
        "TransformInput": {
            "DataSource": {
                "S3DataSource": {
                    "S3DataType": "S3Prefix",
                    "S3Uri": f"s3://{bucket}/{inference.dataset.inputs_prefix}",
                }
            },
            "ContentType": "application/json",
            "SplitType": "Line",
        },
        "TransformOutput": {
            "S3OutputPath": f"s3://{bucket}/{inference.predictions_folder}",
            "Accept": "application/json",
            "AssembleWith": "Line",
        },
        "TransformResources": {
            "InstanceType": limits["instance_type"],
            "InstanceCount": limits["instance_count"],
        },
        **({"DataProcessing": {"InputFilter": input_filter}} if len(input_filter) <= FILTER_LENGTH else {}),
    }


def _is_late(inference: Inference, job: Mapping[str, Any]) -> bool:
    started = job.get("TransformStartTime")
    limit = timedelta(seconds=inference.limits["deadline_seconds"])
    return started is not None and datetime.now(UTC) - started > limit


def _completed(inference: Inference, job: Mapping[str, Any]) -> Outcome:
    storage, ago = inference.submission.task.storage(), datetime.now(UTC) - job["TransformEndTime"]
    keys = inference.predictions_keys
    if missing := [key for key in keys if not storage.exists(key)]:
        if ago < OUTPUT_DELAY:
            return Outcome("running", detail="the job's output, which S3 does not show yet")
        return Outcome("lost", code="no_output", detail=f"The job completed without the output {missing[0]}.")
    memory_percent = _peak_memory_percent(inference, job)
    if memory_percent is None and ago < METRICS_DELAY:
        return Outcome("running", detail="the job's memory figures, which CloudWatch does not show yet")
    seconds = (job["TransformEndTime"] - job["TransformStartTime"]).total_seconds()
    instance = InstanceType.objects.get(pk=inference.limits["instance_type"])
    memory = None if memory_percent is None else int(memory_percent / 100 * instance.memory_gib * BYTES_PER_GIB)
    digest = hashlib.sha256()
    for chunk in joined(storage, keys):
        digest.update(chunk)
    return Outcome(
        "succeeded",
        predictions_sha256=digest.hexdigest(),
        examples=inference.dataset.examples,
        seconds=seconds,
        peak_memory_bytes=memory,
        cost=_cost(instance, inference.limits["instance_count"], seconds),
    )


def _cost(instance: InstanceType, count: int, seconds: float) -> Decimal | None:
    if instance.price_per_hour is None:
        return None
    return (instance.price_per_hour * count * Decimal(seconds) / 3600).quantize(Decimal("0.000001"))


def _peak_memory_percent(inference: Inference, job: Mapping[str, Any]) -> float | None:
    """Of the instance where it was highest; None while CloudWatch has no figures."""
    start, end = job["TransformStartTime"], job["TransformEndTime"]
    cloudwatch = _client("cloudwatch", inference)
    peaks = []
    with aws.faults():
        for stream in _log_streams(inference):
            found = cloudwatch.get_metric_statistics(
                Namespace=NAMESPACE,
                MetricName="MemoryUtilization",
                # A stream is named <job>/<instance>-<time>, a host <job>/<instance>.
                Dimensions=[{"Name": "Host", "Value": stream.rpartition("-")[0]}],
                StartTime=start.replace(second=0, microsecond=0) - timedelta(minutes=1),
                EndTime=end + timedelta(minutes=2),
                Period=_period(end - start),
                Statistics=["Maximum"],
            )
            peaks += [point["Maximum"] for point in found["Datapoints"]]
    return max(peaks, default=None)


def _period(took: timedelta) -> int:
    """Whole minutes, so that CloudWatch answers with no more than its 1,440 points."""
    return max(60, -(-int(took.total_seconds()) // 1400 // 60) * 60)


def _log_streams(inference: Inference) -> list[str]:
    """The streams in which the job's instances write what the container prints."""
    try:
        pages = (
            _client("logs", inference)
            .get_paginator("describe_log_streams")
            .paginate(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{inference.handle}/")
        )
        names = [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
    except ClientError as error:
        if aws.code_of(error) == "ResourceNotFoundException":
            return []
        raise
    return [name for name in names if name.count("/") == 1]


def _failed(inference: Inference, reason: str) -> Outcome:
    """The model is at fault where SageMaker says so; all else is tried again."""
    if not reason.startswith("AlgorithmError"):
        return Outcome("lost", code="transform_failed", detail=f"The batch transform job failed. {reason}")
    with aws.faults():
        tail = "".join(_log_tail(inference, stream) for stream in _log_streams(inference))
    return Outcome("failed", code="model_error", detail=f"{reason}\n{tail}".strip())


def _log_tail(inference: Inference, stream: str) -> str:
    found = _client("logs", inference).get_log_events(
        logGroupName=LOG_GROUP, logStreamName=stream, limit=LOG_LINES, startFromHead=False
    )
    return readable("".join(f"{event['message']}\n" for event in found["events"]).encode())
