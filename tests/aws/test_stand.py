"""The stand itself, seen through plain boto3."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.aws
BUCKET = "sagemaker-us-west-1"


def test_calls_are_recorded_with_their_caller_region_and_resource(stand):
    stand.client("s3", role="AKIAWEB").put_object(Bucket=BUCKET, Key="a/b é", Body=b"x")
    stand.client("sqs", "us-west-2", "AKIABUILD").create_queue(QueueName="dynabench-build")

    put, create = stand.calls()
    assert (put["service"], put["action"], put["iam"], put["role"]) == ("s3", "PutObject", "s3:PutObject", "AKIAWEB")
    assert (put["bucket"], put["key"], put["status"], put["fault"]) == (BUCKET, "a/b é", 200, None)
    assert (create["service"], create["name"], create["region"]) == ("sqs", "dynabench-build", "us-west-2")
