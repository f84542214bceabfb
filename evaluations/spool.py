"""Lines for any number of files, held on disk while it is not known yet which files there will be."""

from __future__ import annotations

import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Self, cast

from django.conf import settings

HELD_BYTES = 1 << 16


class Spool:
    """Lines by shard in one nameless temporary file: whatever happens to the process, nothing is left of it."""

    def __enter__(self) -> Self:
        self.file = tempfile.TemporaryFile(dir=settings.VAR)
        self._held: dict[str, bytearray] = defaultdict(bytearray)
        self._places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    @property
    def shards(self) -> list[str]:
        """The names of the shards, in file order."""
        return sorted(self._held)

    def write(self, shard: str, line: bytes) -> None:
        held = self._held[shard]
        held += line
        if len(held) >= HELD_BYTES:
            self._places[shard].append((self.file.seek(0, 2), len(held)))
            self.file.write(held)
            held.clear()

    def sha256(self) -> str:
        """Of all shards' bytes in file order."""
        digest = hashlib.sha256()
        for shard in self.shards:
            for chunk in self._chunks(shard):
                digest.update(chunk)
        return digest.hexdigest()

    @contextmanager
    def opened(self, shard: str) -> Iterator[BinaryIO]:
        """A file of the shard's lines."""
        with tempfile.TemporaryFile(dir=settings.VAR) as part:
            part.writelines(self._chunks(shard))
            part.seek(0)
            yield cast(BinaryIO, part)

    def _chunks(self, shard: str) -> Iterator[bytes]:
        for place, size in self._places[shard]:
            self.file.seek(place)
            yield self.file.read(size)
        yield bytes(self._held[shard])
