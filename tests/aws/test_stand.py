"""The stand itself, seen through plain boto3: the record, and every way in which a call can go wrong."""

from __future__ import annotations

import io
import time

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ResponseStreamingError

pytestmark = pytest.mark.aws
BUCKET = "sagemaker-us-west-1"
FIVE_MIB = 5 << 20


@pytest.fixture
def s3(stand):
    return stand.client("s3")


def put(s3, key="a", body=b"0123456789"):
    return s3.put_object(Bucket=BUCKET, Key=key, Body=body)


def get(s3, key="a"):
    return s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def code(call, *arguments, **more):
    with pytest.raises(ClientError) as refused:
        call(*arguments, **more)
    return refused.value.response["Error"]["Code"], refused.value.response["ResponseMetadata"]["HTTPStatusCode"]


def test_calls_are_recorded_with_their_caller_region_and_resource(stand):
    put(stand.client("s3", role="AKIAWEB"), "a/b é")
    queue = stand.client("sqs", "us-west-2", "AKIABUILD")
    queue.send_message(QueueUrl=queue.create_queue(QueueName="dynabench-build")["QueueUrl"], MessageBody="1")
    stand.client("sts").get_caller_identity()

    stored, created, sent, asked = stand.calls()
    assert (stored["service"], stored["iam"], stored["role"]) == ("s3", "s3:PutObject", "AKIAWEB")
    assert (stored["bucket"], stored["key"], stored["status"], stored["fault"]) == (BUCKET, "a/b é", 200, None)
    assert (created["service"], created["name"], created["region"]) == ("sqs", "dynabench-build", "us-west-2")
    assert (sent["action"], sent["name"], sent["role"]) == ("SendMessage", "dynabench-build", "AKIABUILD")
    assert asked["iam"] == "sts:GetCallerIdentity"


def test_a_file_in_parts_is_stored_and_each_part_recorded(stand, s3):
    body = bytes(range(256)) * 4096 * 6
    s3.upload_fileobj(io.BytesIO(body), BUCKET, "big", Config=TransferConfig(FIVE_MIB, multipart_chunksize=FIVE_MIB))
    s3.list_objects_v2(Bucket=BUCKET)
    s3.head_object(Bucket=BUCKET, Key="big")

    assert get(s3, "big") == body
    actions = [call["action"] for call in stand.calls()]
    assert actions[:4] == ["CreateMultipartUpload", "UploadPart", "UploadPart", "CompleteMultipartUpload"]
    allowed = {"s3:PutObject", "s3:ListBucket", "s3:GetObject"}
    assert {call["iam"] for call in stand.calls()} == allowed


@pytest.mark.parametrize(
    ("effect", "of_s3", "of_sqs"),
    [
        ("throttle", ("SlowDown", 503), ("ThrottlingException", 400)),
        ("error", ("InternalError", 500), ("InternalFailure", 500)),
        ("expired", ("ExpiredToken", 400), ("ExpiredTokenException", 400)),
        ("quota", ("ResourceLimitExceeded", 400), ("ResourceLimitExceeded", 400)),
    ],
)
def test_a_refusal_has_the_code_of_its_service(stand, s3, effect, of_s3, of_sqs):
    stand.faults({"effect": effect})

    assert code(put, s3) == of_s3
    assert code(stand.client("sqs").list_queues) == of_sqs
    assert [call["fault"] for call in stand.calls()] == [effect, effect]
    stand.faults()
    assert s3.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0


def test_a_reset_call_has_no_effect_and_a_lost_one_has(stand, s3):
    stand.faults({"effect": "reset", "name": "never"}, {"effect": "lost", "name": "stored"})

    for key in ("never", "stored"):
        with pytest.raises(ConnectionClosedError):
            put(s3, key)

    stand.faults()
    assert [found["Key"] for found in s3.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["stored"]
    assert [(call["fault"], call["status"]) for call in stand.calls(action="PutObject")] == [
        ("reset", None),
        ("lost", 200),
    ]


def test_a_truncated_answer_breaks_off_in_the_middle(stand, s3):
    put(s3)
    stand.faults({"effect": "truncated", "times": 1})

    with pytest.raises(ResponseStreamingError):
        get(s3)

    assert get(s3) == b"0123456789"
    assert stand.fired() == [1]


def test_a_slow_call_is_answered_late(stand, s3):
    stand.faults({"effect": "slow", "seconds": 0.5})
    started = time.monotonic()

    put(s3)

    assert time.monotonic() - started >= 0.5


def test_a_rule_disturbs_only_what_it_names(stand, s3):
    stand.faults({"effect": "error", "service": "s3", "access": "write", "role": "AKIAWEB", "name": "a"})

    assert code(put, stand.client("s3", role="AKIAWEB"))[0] == "InternalError"
    put(stand.client("s3", role="AKIAWEB"), "b")
    put(s3)
    get(stand.client("s3", role="AKIAWEB"))
    assert stand.fired() == [1]


def test_a_share_of_calls_fails_the_same_way_every_time(stand, s3):
    outcomes = []
    for _ in range(2):
        stand.faults({"effect": "throttle", "share": 0.2, "seed": 7})
        outcomes.append([succeeds(put, s3) for _ in range(100)])

    assert outcomes[0] == outcomes[1]
    assert 10 <= outcomes[0].count(False) <= 30


def succeeds(call, *arguments):
    try:
        call(*arguments)
    except ClientError:
        return False
    return True


def test_ordinary_retries_get_through(stand):
    patient = stand.client("s3", config=Config(retries={"mode": "standard", "total_max_attempts": 4}))
    stand.faults({"effect": "throttle", "times": 1}, {"effect": "reset", "times": 1})

    put(patient)

    assert get(patient) == b"0123456789"
    assert [call["fault"] for call in stand.calls(action="PutObject")] == ["throttle", "reset", None]
