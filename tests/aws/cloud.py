"""The stand's own clients: what SageMaker itself does in S3, CloudWatch and its logs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.aws.calls import OWN_ROLE


def now() -> datetime:
    return datetime.now(UTC)


def bucket_and_key(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")


class Cloud:
    """boto3 for the stand, with calls that are neither recorded nor disturbed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._clients: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    def client(self, service: str, region: str) -> Any:
        with self._lock:
            if (service, region) not in self._clients:
                self._clients[service, region] = boto3.Session(OWN_ROLE, "-").client(
                    service, region, endpoint_url=self.url, config=Config(max_pool_connections=20)
                )
            return self._clients[service, region]

    def keys(self, region: str, uri: str) -> Iterator[tuple[str, str]]:
        """Bucket and key of every object whose address starts so."""
        bucket, prefix = bucket_and_key(uri)
        for page in self.client("s3", region).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for found in page.get("Contents", ()):
                yield bucket, found["Key"]

    def read(self, region: str, bucket: str, key: str) -> bytes:
        return bytes(self.client("s3", region).get_object(Bucket=bucket, Key=key)["Body"].read())

    def write(self, region: str, uri: str, content: bytes) -> None:
        bucket, key = bucket_and_key(uri)
        self.client("s3", region).put_object(Bucket=bucket, Key=key, Body=content)

    def log(self, region: str, group: str, stream: str, text: str) -> None:
        logs = self.client("logs", region)
        with suppress(ClientError):  # it is there
            logs.create_log_group(logGroupName=group)
        logs.create_log_stream(logGroupName=group, logStreamName=stream)
        moment = int(now().timestamp() * 1000)
        events = [{"timestamp": moment, "message": line} for line in text.splitlines() if line.strip()]
        if events:
            logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)

    def measure(self, region: str, namespace: str, dimensions: dict[str, str], values: Iterable[tuple]) -> None:
        """Data points: name, value, unit and time."""
        self.client("cloudwatch", region).put_metric_data(
            Namespace=namespace,
            MetricData=[
                {
                    "MetricName": name,
                    "Value": value,
                    "Unit": unit,
                    "Timestamp": moment,
                    "Dimensions": [{"Name": key, "Value": of} for key, of in dimensions.items()],
                }
                for name, value, unit, moment in values
            ],
        )
