"""What a sandbox holds, what it offers, and how it says no."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket as Socket
from typing import ClassVar, Protocol

MEBIBYTE = 1024 * 1024
# "nobody": user code runs as it in every sandbox that can change its user.
NOBODY = 65534
Log = Callable[[bytes], None]


class SandboxError(RuntimeError):
    """The sandbox itself failed: our side, not the submitter's."""


class SandboxUnavailable(SandboxError):
    """This sandbox can't be used on this host; the message says why."""


class NoSandbox(SandboxError):
    """No sandbox on this host may run this code."""


class ImageMissing(SandboxError):
    """The image is not on this host."""

    def __init__(self, image: str) -> None:
        super().__init__(f"Image {image} is not on this host: build it again.")


class LimitExceeded(RuntimeError):
    """The sandboxed code went past a limit; the sentence is for its author."""


@dataclass(frozen=True, slots=True)
class Command:
    """What runs: it sees `stage` at its in-image paths and `mounts`, further folders (host to inside), read-only."""

    argv: Sequence[str]
    stage: Path
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[Path, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SandboxPolicy:
    """The limits of one command. Sizes in MiB, times in seconds, `log_cap` in bytes."""

    memory_mb: int = 4096
    pids: int = 256
    cpus: float = 1.0
    cpu_seconds: int = 3600
    deadline: float = 3600.0
    tmpfs_mb: int = 1024
    disk_mb: int = 10_240
    log_cap: int = 10 * MEBIBYTE

    @property
    def memory(self) -> int:
        """Bytes."""
        return self.memory_mb * MEBIBYTE

    def too_slow(self) -> LimitExceeded:
        return LimitExceeded(f"It did not finish within {self.deadline:g} s and was stopped.")

    def too_busy(self) -> LimitExceeded:
        return LimitExceeded(f"It used more than {self.cpu_seconds} s of processor time and was stopped.")

    def too_big(self) -> LimitExceeded:
        return LimitExceeded(f"It used more than {self.memory_mb} MiB of memory and was stopped.")

    def too_many(self) -> LimitExceeded:
        return LimitExceeded(f"It started more than {self.pids} processes and threads and was stopped.")


INSTALL = SandboxPolicy(memory_mb=8192, pids=1024, disk_mb=30_720)


class CappedLog:
    """Passes output on until the cap, then counts what it drops; `close` says how much."""

    def __init__(self, sink: Log, cap: int) -> None:
        self._sink = sink
        self._left = cap
        self._dropped = 0
        self._lock = threading.Lock()

    def write(self, chunk: bytes) -> None:
        with self._lock:
            kept = chunk[: self._left]
            self._left -= len(kept)
            self._dropped += len(chunk) - len(kept)
            if kept:
                self._sink(kept)

    def close(self) -> None:
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            self._sink(f"\n... {max(1, dropped // MEBIBYTE)} MiB of output dropped\n".encode())


class ModelServer(Protocol):
    """A started model server; its caller waits for `/ping`."""

    socket: Path

    def connect(self, timeout: float) -> Socket:
        """A connection to the server; `OSError` while it does not listen."""

    def peak_memory(self) -> int:
        """Bytes, so far."""

    def log_tail(self) -> str:
        """The end of what it printed."""

    def alive(self) -> bool: ...

    def failure(self) -> str | None:
        """Why it ended, as a sentence; None while it lives."""


class Sandbox(Protocol):
    """A place where code of strangers runs: without network, secrets, or our files."""

    name: ClassVar[str]
    python: str  # "3.11": the version that wheels are chosen for

    def self_test(self) -> None:
        """Raises `SandboxUnavailable` unless a command runs here and finds the network closed."""

    def run(self, command: Command, *, policy: SandboxPolicy, log: Log, name: str) -> int:
        """The exit code, 128 + n for signal n; raises `LimitExceeded` or `SandboxError`."""

    def pack(self, stage: Path, *, name: str, labels: Mapping[str, str]) -> str:
        """The digest of the image made of `stage`, which is used up."""

    def serve(self, image: str, *, policy: SandboxPolicy, name: str) -> AbstractContextManager[ModelServer]:
        """Runs the image's model server until the context ends."""

    def remove(self, image: str) -> None:
        """The image is gone from this host, also when it was not there."""

    def sweep(self, live: Container[str]) -> list[str]:
        """Ends and removes what dead workers left of jobs not in `live`; the names of those jobs."""
