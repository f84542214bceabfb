"""SageMaker with a memory: models, batch transform jobs and endpoints that really run their images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from botocore import xform_name
from botocore.exceptions import ClientError
from werkzeug.wrappers import Response

from tests.aws.calls import Call, Refused
from tests.aws.cloud import Cloud, bucket_and_key
from tests.aws.containers import Host
from tests.aws.endpoints import Endpoints
from tests.aws.resources import Limits, Resources, check
from tests.aws.transform import TransformJobs


class SageMaker:
    """Answers SageMaker's calls; all others go on to moto."""

    def __init__(self, app: Any, cloud: Cloud, host: Host, parallel: int) -> None:
        self.app = app
        self.resources, self.limits = Resources(), Limits()
        self.jobs = TransformJobs(self.resources, self.limits, cloud, host, parallel)
        self.endpoints = Endpoints(self.resources, self.limits, cloud, host)
        self.parts = (Models(self.resources, cloud, host.registry), self.jobs, self.endpoints)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        call = environ["stand.call"]
        try:
            if call.service == "sagemaker":
                answer = self._answer(call)
            elif call.service == "sagemaker-runtime":
                kind = environ.get("CONTENT_TYPE") or "application/octet-stream"
                answer = self.endpoints.invoke(call.region, call.name, environ["wsgi.input"].getvalue(), kind)
            else:
                answer = self.app
        except Refused as refused:
            answer = call.refusal(refused)
        return answer(environ, start_response)

    def _answer(self, call: Call) -> Response:
        action = xform_name(call.action)
        part = next((part for part in self.parts if hasattr(part, action)), None)
        if part is None:
            raise Refused("UnknownOperationException", f"The stand's SageMaker has no {call.action}.")
        check(call.action, call.request)
        with self.resources.lock:
            answer = json.dumps(getattr(part, action)(call.region, call.request) or {}, default=as_number)
        return Response(answer, content_type="application/x-amz-json-1.1")

    def reset(self) -> None:
        self.jobs.reset()  # without the lock, which jobs take as they end
        with self.resources.lock:
            self.endpoints.reset()
            self.resources.clear()
            self.limits.by_region = {}


class Models:
    """CreateModel and what belongs to it."""

    def __init__(self, resources: Resources, cloud: Cloud, registry: str) -> None:
        self.resources, self.cloud, self.registry = resources, cloud, registry

    def create_model(self, region: str, request: dict[str, Any]) -> dict[str, Any]:
        name, primary = request["ModelName"], request.get("PrimaryContainer", {})
        self.resources.refuse_second(region, "model", name)
        if "Image" not in primary or "ExecutionRoleArn" not in request:
            raise Refused("ValidationException", "A model needs PrimaryContainer.Image and ExecutionRoleArn.")
        self._require_repository(region, primary["Image"])
        if data := primary.get("ModelDataUrl"):
            self._require_data(region, data)
        arn = self.resources.add(region, "model", name, {"EnableNetworkIsolation": False} | request)
        self.resources[arn]["ModelArn"] = arn
        return {"ModelArn": arn}

    def describe_model(self, region: str, request: dict[str, Any]) -> dict[str, Any]:
        return self.resources.find(region, "model", request["ModelName"])

    def list_models(self, region: str, request: dict[str, Any]) -> dict[str, Any]:
        return {"Models": self.resources.listed(region, "model", request.get("NameContains"))}

    def delete_model(self, region: str, request: dict[str, Any]) -> None:
        self.resources.find(region, "model", request["ModelName"])
        del self.resources[self.resources.arn(region, "model", request["ModelName"])]

    def list_tags(self, region: str, request: dict[str, Any]) -> dict[str, Any]:
        return {"Tags": self.resources.get(request["ResourceArn"], {}).get("Tags", [])}

    def _require_repository(self, region: str, image: str) -> None:
        """The registry takes any name; ECR only what was made in the same region."""
        host, _, name = image.partition("/")
        if host != self.registry:
            return
        try:
            self.cloud.client("ecr", region).describe_repositories(repositoryNames=[re.split("[:@]", name)[0]])
        except ClientError as error:
            raise Refused("ValidationException", f"Requested image {image} not found.") from error

    def _require_data(self, region: str, uri: str) -> None:
        bucket, key = bucket_and_key(uri)
        try:
            self.cloud.client("s3", region).head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            raise Refused("ValidationException", f"Could not find model data at {uri}.") from error


def as_number(moment: Any) -> float:
    return float(moment.timestamp())
