"""Files: local folders and S3 keep the same promises, and S3's faults never become a short or a doubled file."""

from __future__ import annotations

import hashlib
import io

import pytest
from django.core.files.base import ContentFile, File

from dynabench_site.faults import NotYet
from dynabench_site.jobs import JobStumbled
from evaluations.dataset_files import store_dataset_file
from submissions.models import Submission
from tasks_catalog.backends import aws, local
from tasks_catalog.files import opened
from tasks_catalog.models import BuildConfig, Dataset, Task
from tests.aws.calls import OWN_ROLE
from tests.conftest import EXAMPLES, jsonl
from tests.pipeline.conftest import trivial_archive
from tests.submissions import cli

pytestmark = [pytest.mark.aws, pytest.mark.timeout(600)]
BUCKET, REGION, KEY = "sagemaker-us-west-1", "us-west-1", "torchserve/models/nli/ts1-a.tar.gz"
CONTENT = b"0123456789" * 1000


@pytest.fixture
def s3(on_aws):
    return aws.storage_for(BUCKET, REGION)


@pytest.fixture(params=["local", "s3"])
def storage(request):
    return local.storage_for(BUCKET, REGION) if request.param == "local" else request.getfixturevalue("s3")


class Stream(io.RawIOBase):
    """Bytes that come once, as from a network; `breaks_at` raises an error there."""

    def __init__(self, size: int, breaks_at: int | None = None) -> None:
        self.left, self.breaks_at, self.sha256 = size, breaks_at, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if self.breaks_at is not None and self.left <= self.breaks_at:
            raise ConnectionResetError("the sender is gone")
        size = min(len(buffer), self.left, 1 << 16)
        buffer[:size] = hashlib.sha256(str(self.left).encode()).digest()[:1] * size
        self.sha256.update(buffer[:size])
        self.left -= size
        return size


def read(storage, key: str = KEY) -> bytes:
    with storage.open(key) as source:
        return source.read()


def keys(stand, region: str = REGION) -> list[str]:
    found = stand.client("s3", region, OWN_ROLE).list_objects_v2(Bucket=f"sagemaker-{region}")
    return [row["Key"] for row in found.get("Contents", ())]


def test_what_is_saved_can_be_read_asked_for_and_replaced(storage):
    assert not storage.exists(KEY)
    assert storage.save(KEY, ContentFile(CONTENT)) == KEY
    assert (storage.exists(KEY), storage.size(KEY), read(storage)) == (True, len(CONTENT), CONTENT)

    assert storage.save(KEY, ContentFile(b"shorter")) == KEY

    assert (storage.size(KEY), read(storage)) == (7, b"shorter")


def test_what_was_deleted_is_gone_and_may_be_deleted_again(storage):
    storage.save(KEY, ContentFile(CONTENT))

    storage.delete(KEY)
    storage.delete(KEY)

    assert not storage.exists(KEY)


def test_a_file_that_is_not_there_is_missing(storage):
    with pytest.raises(FileNotFoundError):
        storage.open(KEY)


def test_twenty_megabytes_of_a_stream_arrive_whole(storage):
    stream = Stream(20 << 20)

    storage.save(KEY, File(io.BufferedReader(stream)))

    assert storage.size(KEY) == 20 << 20
    with opened(storage, [KEY], sha256=stream.sha256.hexdigest()) as source:
        while source.read(1 << 20):
            pass


@pytest.mark.parametrize("size", [1 << 20, 20 << 20])
def test_a_stream_that_breaks_leaves_no_file(storage, size):
    with pytest.raises(ConnectionResetError):
        storage.save(KEY, File(io.BufferedReader(Stream(size, breaks_at=size // 10))))

    assert not storage.exists(KEY)


def test_a_stream_that_breaks_leaves_no_parts_in_s3_either(on_aws, s3):
    with pytest.raises(ConnectionResetError):
        s3.save(KEY, File(io.BufferedReader(Stream(20 << 20, breaks_at=1 << 20))))

    assert on_aws.calls(action="UploadPart") and on_aws.calls(action="AbortMultipartUpload")
    assert on_aws.client("s3").list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []


@pytest.mark.parametrize("effect", ["throttle", "error", "reset", "truncated", "lost"])
def test_a_fault_or_two_are_tried_over(on_aws, s3, effect):
    on_aws.faults({"effect": effect, "access": "write", "times": 2})
    stream = Stream(20 << 20)
    s3.save(KEY, File(io.BufferedReader(stream)))
    on_aws.faults({"effect": effect, "access": "read", "times": 2})

    with opened(s3, [KEY], sha256=stream.sha256.hexdigest()) as source:
        while source.read(1 << 20):
            pass

    assert on_aws.fired() == [2]


@pytest.mark.parametrize("effect", ["throttle", "error", "reset", "truncated", "expired"])
def test_a_fault_that_stays_is_waited_for_and_gives_no_short_file(on_aws, s3, effect):
    s3.save(KEY, ContentFile(CONTENT))
    on_aws.faults({"effect": effect})

    with pytest.raises(NotYet):
        s3.open(KEY)


@pytest.mark.parametrize("effect", ["throttle", "error", "reset", "expired"])
def test_a_fault_that_stays_is_waited_for_by_all_that_asks_or_writes(on_aws, s3, effect):
    on_aws.faults({"effect": effect})

    for act in (s3.exists, s3.size, s3.delete, lambda key: s3.save(key, ContentFile(CONTENT))):
        with pytest.raises(NotYet):
            act(KEY)


def test_a_file_that_is_another_than_was_stored_is_noticed(storage):
    storage.save(KEY, ContentFile(CONTENT[:-1]))

    with (
        pytest.raises(JobStumbled, match="is not what was stored"),
        opened(storage, [KEY], sha256=hashlib.sha256(CONTENT).hexdigest()) as source,
    ):
        source.read()


def test_the_files_of_a_task_are_in_its_region_alone(on_aws, task):
    BuildConfig.objects.update(aws_region="us-west-2")

    store_dataset_file(Dataset(task=Task.objects.get(), name="tweets"), jsonl(EXAMPLES))

    assert keys(on_aws, "us-west-2") == ["datasets/sentiment/tweets.jsonl", "labels/sentiment/tweets.jsonl"]
    assert keys(on_aws, "us-west-1") == []
    assert {(call["region"], call["bucket"]) for call in on_aws.calls(service="s3")} == {
        ("us-west-2", "sagemaker-us-west-2")
    }


def test_an_upload_while_s3_is_down_can_be_sent_again(on_aws, client, user, task, tmp_path):
    archive = trivial_archive("model-a", tmp_path)

    def send():
        return client.post(
            cli.UPLOAD,
            cli.body("model-a", archive, task=task.code),
            content_type=cli.CONTENT_TYPE,
            headers={"Authorization": cli.bearer(user)},
        )

    on_aws.faults({"effect": "reset", "service": "s3"})
    refused = send()
    assert (refused.status_code, refused["Content-Type"]) == (503, "application/problem+json")
    assert int(refused["Retry-After"]) > 0 and refused.json()["code"] == "unavailable"
    assert not Submission.objects.exists()
    on_aws.faults()

    accepted = send()

    assert accepted.status_code == 200, accepted.content
    assert keys(on_aws) == [Submission.objects.get(pk=int(accepted["X-Submission-Id"])).archive_key]
