from __future__ import annotations

from functools import lru_cache

from examples.pack import known_sha256

_shipped = lru_cache(known_sha256)


def is_shipped(sha256: str) -> bool:
    """Whether these are the very bytes of an example that ships with the project."""
    return sha256 in _shipped()
