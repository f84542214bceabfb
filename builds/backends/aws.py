"""Images in ECR, models and endpoints of SageMaker, in the region that the build was made for."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from botocore.config import Config
from botocore.exceptions import ClientError
from django.conf import settings

from builds.backends import ModelFault
from builds.models import Build, Endpoint
from builds.sandboxes.engine import engine
from builds.sandboxes.policy import Log, SandboxError
from dynabench_site.backends import aws
from dynabench_site.jobs import JobFailed

PUSH_SECONDS = 1800
VARIANT = "AllTraffic"
MISSING = {"RepositoryNotFoundException", "ImageNotFoundException"}


class AwsDeployer:
    """Every name is made from ids: what is there already under it is ours, from an earlier try."""

    keeps_image = False

    def publish(self, build: Build, log: Log) -> str:
        ecr = _client("ecr", build)
        with aws.faults():
            address = _repository(ecr, build)
            login = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
        user, _, password = base64.b64decode(login).decode().partition(":")
        digest = _push(build.image, address, _tag(build), {"username": user, "password": password}, log)
        return f"{address}@{digest}"

    def register(self, build: Build) -> None:
        sagemaker = _client("sagemaker", build)
        wanted = {
            "ModelName": build.name,
            "PrimaryContainer": {"Image": build.image_uri},
            "ExecutionRoleArn": settings.SAGEMAKER_ROLE,
            "EnableNetworkIsolation": True,
        }
        with aws.faults():
            try:
                sagemaker.create_model(**wanted, Tags=_tags(build))
            except ClientError as error:
                if not _exists_already(error):
                    raise
                if sagemaker.describe_model(ModelName=build.name)["PrimaryContainer"]["Image"] != build.image_uri:
                    sagemaker.delete_model(ModelName=build.name)
                    sagemaker.create_model(**wanted, Tags=_tags(build))

    def remove(self, build: Build) -> None:
        ecr, repository = _client("ecr", build), {"repositoryName": _repository_name(build)}
        _unless_missing(_client("sagemaker", build).delete_model, ModelName=build.name)
        _unless_missing(ecr.batch_delete_image, **repository, imageIds=[{"imageTag": _tag(build)}])
        left = _unless_missing(ecr.list_images, **repository)
        if left is not None and not left["imageIds"]:
            _unless_missing(ecr.delete_repository, **repository)

    def start(self, endpoint: Endpoint) -> Literal["starting", "ready"]:
        sagemaker = _client("sagemaker", endpoint.build)
        found = _unless_missing(sagemaker.describe_endpoint, EndpointName=endpoint.name)
        if found is None:
            with aws.faults():
                _create_endpoint(sagemaker, endpoint)
            return "starting"
        if found["EndpointStatus"] == "Failed":
            self.stop(endpoint)
            raise JobFailed("endpoint_failed", found.get("FailureReason", "SageMaker does not say why."))
        return "ready" if found["EndpointStatus"] == "InService" else "starting"

    def stop(self, endpoint: Endpoint) -> None:
        sagemaker = _client("sagemaker", endpoint.build)
        _unless_missing(sagemaker.delete_endpoint, EndpointName=endpoint.name)
        _unless_missing(sagemaker.delete_endpoint_config, EndpointConfigName=endpoint.name)

    def invoke(self, endpoint: Endpoint, body: bytes, *, seconds: float) -> bytes:
        config = Config(connect_timeout=5, read_timeout=seconds, retries={"total_max_attempts": 1})
        runtime = aws.client("sagemaker-runtime", endpoint.build.config["aws_region"], config)
        with aws.faults():
            try:
                answer = runtime.invoke_endpoint(EndpointName=endpoint.name, ContentType="application/json", Body=body)
            except ClientError as error:
                if aws.code_of(error) == "ModelError":
                    raise ModelFault(error.response.get("OriginalMessage") or aws.message_of(error)) from error
                raise
            return answer["Body"].read()

    def is_idle(self, endpoint: Endpoint, *, hours: int) -> bool:
        now = datetime.now(UTC)
        since = now - timedelta(hours=hours)
        if endpoint.finished_at is None or endpoint.finished_at > since:
            return False
        names = {"EndpointName": endpoint.name, "VariantName": VARIANT}
        with aws.faults():
            found = _client("cloudwatch", endpoint.build).get_metric_statistics(
                Namespace="AWS/SageMaker",
                MetricName="Invocations",
                Dimensions=[{"Name": name, "Value": value} for name, value in names.items()],
                StartTime=since,
                EndTime=now + timedelta(minutes=1),  # whole seconds are sent, and the newest counts
                Period=3600,
                Statistics=["Sum"],
            )
        return not sum(point["Sum"] for point in found["Datapoints"])


def _client(service: str, build: Build) -> Any:
    return aws.client(service, build.config["aws_region"])


def _tags(build: Build) -> list[dict[str, str]]:
    return [{"Key": "dynabench:submission", "Value": str(build.submission_id)}]


def _tag(build: Build) -> str:
    return f"r{build.run}"


def _repository_name(build: Build) -> str:
    """As the submission, but ECR takes no two hyphens in a row."""
    return re.sub("-+", "-", build.submission.endpoint_name)


def _repository(ecr: Any, build: Build) -> str:
    """The address of the submission's repository, which is made when it is not there."""
    name = _repository_name(build)
    try:
        made = ecr.create_repository(repositoryName=name, imageScanningConfiguration={"scanOnPush": True})
    except ClientError as error:
        if aws.code_of(error) != "RepositoryAlreadyExistsException":
            raise
        return ecr.describe_repositories(repositoryNames=[name])["repositories"][0]["repositoryUri"]
    return made["repository"]["repositoryUri"]


def _push(image: str, address: str, tag: str, login: Mapping[str, str], log: Log) -> str:
    """The digest under which the registry has the image; the engine reports failures as events, not as errors."""
    with engine(timeout=PUSH_SECONDS) as client:
        client.images.get(image).tag(address, tag)
        digest = ""
        for event in client.api.push(address, tag, stream=True, decode=True, auth_config=dict(login)):
            if "error" in event:
                raise SandboxError(f"the push to {address} failed: {event['error']}")
            if event.get("status") == "Pushed":
                log(f"{event.get('id', '')} pushed\n".encode())
            digest = event.get("aux", {}).get("Digest", digest)
    if not digest:
        raise SandboxError(f"the push to {address} ended without a digest")
    log(f"{address}@{digest}\n".encode())
    return digest


def _create_endpoint(sagemaker: Any, endpoint: Endpoint) -> None:
    name, config = endpoint.name, endpoint.build.submission.task.build_config
    variant = {
        "VariantName": VARIANT,
        "ModelName": name,
        "InstanceType": config.instance_type_id,
        "InitialInstanceCount": config.instance_count,
    }
    _unless_missing(sagemaker.delete_endpoint_config, EndpointConfigName=name)  # its instance may be another now
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], Tags=_tags(endpoint.build))
    try:
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name, Tags=_tags(endpoint.build))
    except ClientError as error:
        if not _exists_already(error):
            raise


def _exists_already(error: ClientError) -> bool:
    return aws.code_of(error) == "ValidationException" and "already exist" in aws.message_of(error)


def _unless_missing(call: Callable[..., Any], **arguments: Any) -> Any:
    """What the call answers; None when what it is about does not exist."""
    with aws.faults():
        try:
            return call(**arguments)
        except ClientError as error:
            if aws.code_of(error) in MISSING or "Could not find" in aws.message_of(error):
                return None
            raise
