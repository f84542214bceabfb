"""Endpoints: their model's container runs from CreateEndpoint to DeleteEndpoint and answers InvokeEndpoint."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack
from typing import Any

from werkzeug.wrappers import Response

from builds.model_client import ModelClient, ModelError
from tests.aws.calls import Refused
from tests.aws.cloud import Cloud, bucket_and_key, now
from tests.aws.containers import Host, Instance
from tests.aws.resources import Limits, Resources

LOAD_SECONDS = 300
INVOKE_SECONDS = 60
MAX_ANSWER_BYTES = 6 << 20


class Endpoints:
    def __init__(self, resources: Resources, limits: Limits, cloud: Cloud, host: Host) -> None:
        self.resources, self.limits, self.cloud, self.host = resources, limits, cloud, host
        self.running: dict[str, tuple[Instance, ExitStack]] = {}

    def create_endpoint_config(self, region: str, request: dict[str, Any]) -> dict[str, Any]:
        name = request["EndpointConfigName"]
        self.resources.refuse_second(region, "endpoint-config", name)
        for variant in request["ProductionVariants"]:
            self.resources.find(region, "model", variant["ModelName"])
        arn = self.resources.add(region, "endpoint-config", name, request)
        self.resources[arn]["EndpointConfigArn"] = arn
        return {"EndpointConfigArn": arn}

    def describe_endpoint_config(self, region: str, request: dict[str, Any]) -> dict[str, Any]:
        return self.resources.find(region, "endpoint-config", request["EndpointConfigName"])

    def list_endpoint_configs(self, region: str, request: dict[str, Any]) -> dict[str, Any]:
        return {"EndpointConfigs": self.resources.listed(region, "endpoint-config", request.get("NameContains"))}

    def delete_endpoint_config(self, region: str, request: dict[str, Any]) -> None:
        self.resources.find(region, "endpoint-config", request["EndpointConfigName"])
        del self.resources[self.resources.arn(region, "endpoint-config", request["EndpointConfigName"])]

    def create_endpoint(self, region: str, request: dict[str, Any]) -> dict[str, Any]:
        name = request["EndpointName"]
        self.resources.refuse_second(region, "endpoint", name)
        config = self.resources.find(region, "endpoint-config", request["EndpointConfigName"])
        variant = config["ProductionVariants"][0]
        model = self.resources.find(region, "model", variant["ModelName"])
        instance_type, count = variant.get("InstanceType", ""), variant.get("InitialInstanceCount", 1)
        used = sum(
            endpoint["InstanceCount"]
            for endpoint in self.resources.listed(region, "endpoint", None)
            if endpoint["InstanceType"] == instance_type
        )
        self.limits.claim(region, instance_type, "endpoint", used, count)
        kept = {"EndpointStatus": "Creating", "InstanceType": instance_type, "InstanceCount": count}
        arn = self.resources.add(region, "endpoint", name, request | kept)
        self.resources[arn]["EndpointArn"] = arn
        threading.Thread(target=self._start, args=(region, arn, model), daemon=True).start()
        return {"EndpointArn": arn}

    def describe_endpoint(self, region: str, request: dict[str, Any]) -> dict[str, Any]:
        return self.resources.find(region, "endpoint", request["EndpointName"])

    def list_endpoints(self, region: str, request: dict[str, Any]) -> dict[str, Any]:
        found = self.resources.listed(region, "endpoint", request.get("NameContains"))
        wanted = request.get("StatusEquals")
        return {"Endpoints": [endpoint for endpoint in found if wanted in (None, endpoint["EndpointStatus"])]}

    def delete_endpoint(self, region: str, request: dict[str, Any]) -> None:
        endpoint = self.resources.find(region, "endpoint", request["EndpointName"])
        if endpoint["EndpointStatus"] == "Creating":
            raise Refused("ValidationException", f'Cannot update in-progress endpoint "{endpoint["EndpointArn"]}".')
        del self.resources[endpoint["EndpointArn"]]
        self._stop(endpoint["EndpointArn"])

    def invoke(self, region: str, name: str, body: bytes, content_type: str) -> Response:
        """The model's own answer; ModelError when it has none."""
        arn = self.resources.arn(region, "endpoint", name)
        if arn not in self.running:
            raise Refused("ValidationError", f"Endpoint {name} of account is not in service.")
        instance, _ = self.running[arn]
        client = ModelClient(
            instance.server, deadline=time.monotonic() + INVOKE_SECONDS, max_answer_bytes=MAX_ANSWER_BYTES
        )
        try:
            answer = client.invoke(body, content_type)
        except ModelError as error:
            return model_error(error)
        finally:
            client.close()
            dimensions = {"EndpointName": name, "VariantName": "AllTraffic"}
            self.cloud.measure(region, "AWS/SageMaker", dimensions, [("Invocations", 1, "None", now())])
        return Response(
            answer, content_type="application/json", headers={"x-Amzn-Invoked-Production-Variant": "AllTraffic"}
        )

    def reset(self) -> None:
        for arn in list(self.running):
            self._stop(arn)

    def _start(self, region: str, arn: str, model: dict[str, Any]) -> None:
        endpoint, stack = self.resources[arn], ExitStack()
        try:
            uri = model["PrimaryContainer"].get("ModelDataUrl")
            data = self.cloud.read(region, *bucket_and_key(uri)) if uri else None
            instance = stack.enter_context(self.host.run(model, data, endpoint["EndpointName"]))
            self._wait_until_it_serves(region, endpoint["EndpointName"], instance)
        except Exception as error:  # noqa: BLE001
            stack.close()
            reason = f"The container did not pass the ping health check. {error}"
            with self.resources.lock:
                endpoint.update(EndpointStatus="Failed", FailureReason=reason[:1024], LastModifiedTime=now())
            return
        with self.resources.lock:
            self.running[arn] = instance, stack
            endpoint.update(EndpointStatus="InService", LastModifiedTime=now())
            if self.resources.get(arn) is not endpoint:
                self._stop(arn)  # the account was reset meanwhile

    def _wait_until_it_serves(self, region: str, name: str, instance: Instance) -> None:
        client = ModelClient(
            instance.server, deadline=time.monotonic() + LOAD_SECONDS, max_answer_bytes=MAX_ANSWER_BYTES
        )
        try:
            client.wait_until_ready()
        except ModelError:
            group, stream = f"/aws/sagemaker/Endpoints/{name}", f"AllTraffic/{instance.made.short_id}"
            self.cloud.log(region, group, stream, instance.server.log_tail())
            raise
        finally:
            client.close()

    def _stop(self, arn: str) -> None:
        _, stack = self.running.pop(arn, (None, ExitStack()))
        stack.close()


def model_error(error: ModelError) -> Response:
    text = {"Message": error.detail, "OriginalMessage": error.detail, "OriginalStatusCode": 500}
    return Response(json.dumps(text), 424, {"X-Amzn-Errortype": "ModelError"}, content_type="application/json")
