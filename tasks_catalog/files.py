"""Objects of a storage as one file: read one after another, and known to be what was stored."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from django.core.files.storage import Storage

from dynabench_site.jobs import JobStumbled

READ_BYTES = 1 << 20


@contextmanager
def opened(storage: Storage, keys: Sequence[str], *, sha256: str) -> Iterator[BinaryIO]:
    """A file of all these objects' lines; reading it to its end raises JobStumbled unless its sha256 is that."""
    with io.BufferedReader(_Objects(storage, keys, sha256), READ_BYTES) as source:
        yield cast(BinaryIO, source)


def opened_each(storage: Storage, keys: Sequence[str], *, sha256: str) -> Iterator[Iterator[bytes]]:
    """The lines of one object after another; JobStumbled at their end unless the sha256 of all bytes is that."""
    digest = hashlib.sha256()
    for key in keys:
        with storage.open(key) as source:
            yield _hashed(iter(source.readline, b""), digest)
    if digest.hexdigest() != sha256:
        raise _damaged(keys)


def _hashed(lines: Iterable[bytes], digest: Any) -> Iterator[bytes]:
    for line in lines:
        digest.update(line)
        yield line


def _damaged(keys: Sequence[str]) -> JobStumbled:
    return JobStumbled("damaged_file", f"{', '.join(keys)} is not what was stored: its sha256 is another.")


def joined(storage: Storage, keys: Sequence[str]) -> Iterator[bytes]:
    """The bytes of the objects, one after another; a last line without its end gets one, as another file follows."""
    for key in keys:
        last = b"\n"
        with storage.open(key) as source:
            while chunk := source.read(READ_BYTES):
                last = chunk[-1:]
                yield chunk
        if last != b"\n" and key != keys[-1]:
            yield b"\n"


class _Objects(io.RawIOBase):
    def __init__(self, storage: Storage, keys: Sequence[str], sha256: str) -> None:
        self._chunks, self._rest = joined(storage, keys), memoryview(b"")
        self._keys, self._expected, self._hash = keys, sha256, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
            self._hash.update(self._rest)
            if not self._rest and self._hash.hexdigest() != self._expected:
                raise _damaged(self._keys)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def close(self) -> None:
        self._chunks.close()
        super().close()
