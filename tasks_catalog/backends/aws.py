"""Files in S3: what is stored is checked on the way in by S3, on the way out by those who know its sha256."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import IO, Any

from boto3.s3.transfer import TransferConfig
from django.core.files import File
from s3transfer.exceptions import RetriesExceededError
from storages.backends.s3 import S3Storage

from dynabench_site.backends import aws
from dynabench_site.faults import NotYet

PART_BYTES = 8 << 20
# Parts go one after another in the caller's thread: an upload is read from its request while it is sent on.
TRANSFER = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, use_threads=False)


class BucketStorage(S3Storage):
    """One bucket, in one region; saving a key again replaces it. Raises NotYet while S3 can't do it."""

    def __init__(self, bucket: str, region: str) -> None:
        super().__init__(
            bucket_name=bucket,
            region_name=region,
            max_memory_size=PART_BYTES,
            transfer_config=TRANSFER,
            client_config=aws.CONFIG,
        )

    def _open(self, name: str, mode: str = "rb") -> File:
        with _s3_faults():
            opened = super()._open(name, mode)
            opened.open()  # fetches it now, so that S3's errors are met here
            return opened

    def _save(self, name: str, content: IO[Any]) -> str:
        with _s3_faults():
            return super()._save(name, content)

    def delete(self, name: str) -> None:
        with _s3_faults():
            super().delete(name)

    def exists(self, name: str) -> bool:
        with _s3_faults():
            return super().exists(name)

    def size(self, name: str) -> int:
        with _s3_faults():
            return super().size(name)

    def listdir(self, name: str) -> tuple[list[str], list[str]]:
        with _s3_faults():
            return super().listdir(name)


@contextmanager
def _s3_faults() -> Iterator[None]:
    try:
        with aws.faults():
            yield
    except RetriesExceededError as error:
        raise NotYet("S3, which breaks off", aws.FIRST_PAUSE, most=aws.LONGEST_PAUSE) from error


def storage_for(bucket: str, region: str) -> BucketStorage:
    if "{account}" in bucket:
        bucket = bucket.replace("{account}", aws.account())
    return _storage(bucket, region, os.getpid())


@cache
def _storage(bucket: str, region: str, pid: int) -> BucketStorage:
    return BucketStorage(bucket, region)
