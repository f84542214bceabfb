"""Sandboxes that run folder images on this host; the weakest of them holds resource limits and nothing else."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from builds.sandboxes import folder
from builds.sandboxes.folder import DiskWatch, Mount
from builds.sandboxes.policy import Command, ImageMissing, Log, ModelServer, SandboxPolicy
from builds.sandboxes.probe import probe
from builds.sandboxes.supervised import JOB_VARIABLE, Supervised, limited, sweep_processes

logger = logging.getLogger(__name__)

RUNTIME = ("python3", "/opt/dynabench/runtime/serve.py", "serve")
TAIL_BYTES = 65_536


class Tail:
    """The last bytes of what was written."""

    def __init__(self) -> None:
        self._kept = b""

    def write(self, chunk: bytes) -> None:
        self._kept = (self._kept + chunk)[-TAIL_BYTES:]

    def text(self) -> str:
        return self._kept.decode(errors="replace")


class LocalServer:
    """A model server in a process of this host."""

    def __init__(self, running: Supervised, path: Path, tail: Tail) -> None:
        self.socket = path
        self._running = running
        self.log_tail = tail.text
        self.alive = running.alive
        self.failure = running.failure

    def connect(self, timeout: float) -> socket.socket:
        return folder.connect(self.socket, timeout)

    def peak_memory(self) -> int:
        return self._running.peak_memory


def base_environment(scratch: str, mark: str) -> dict[str, str]:
    """All that sandboxed code gets from us: where python is, where it may write, whose it is."""
    return {
        "PATH": f"{sys.base_prefix}/bin:/usr/bin:/bin",
        "HOME": scratch,
        "TMPDIR": scratch,
        "USER": "nobody",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        JOB_VARIABLE: mark,
    }


class FolderSandbox:
    """What sandboxes on folder images share; `wrap` is where they differ."""

    python = f"{sys.version_info.major}.{sys.version_info.minor}"

    def wrap(
        self, command: Sequence[str], *, mounts: Sequence[Mount], env: Mapping[str, str], policy: SandboxPolicy
    ) -> tuple[list[str], dict[str, str]]:
        """The host's command and its environment that run `command` with `mounts` and `env`."""
        raise NotImplementedError

    def run(self, command: Command, *, policy: SandboxPolicy, log: Log, name: str) -> int:
        mark = folder.job_mark(name)
        with folder.scratch_for(command.stage) as scratch:
            mounted = folder.stage_mounts(command, scratch)
            inside = {**base_environment(folder.SCRATCH, mark), **command.env}
            argv, environment = self.wrap(command.argv, mounts=mounted, env=inside, policy=policy)
            disk = DiskWatch([mount.host for mount in mounted if mount.writable], policy.disk_mb)
            with Supervised(
                argv, env=environment, policy=policy, log=log, mark=mark, disk=disk, cwd=scratch
            ) as running:
                return running.finish()

    def pack(self, stage: Path, *, name: str, labels: Mapping[str, str]) -> str:
        return folder.store(stage)

    @contextmanager
    def serve(self, image: str, *, policy: SandboxPolicy, name: str) -> Iterator[ModelServer]:
        root = folder.image_folder(image)
        if not root.is_dir():
            raise ImageMissing(image)
        mark = folder.job_mark(name)
        with folder.socket_folder(mark) as sockets:
            tail = Tail()
            argv, environment = self.wrap(
                RUNTIME,
                mounts=folder.image_mounts(root, sockets),
                env=self.server_environment(root, mark),
                policy=policy,
            )
            disk = DiskWatch([sockets], folder.SOCKET_FOLDER_MB)
            with Supervised(
                argv, env=environment, policy=policy, log=tail.write, mark=mark, disk=disk, cwd=sockets
            ) as running:
                yield LocalServer(running, sockets / folder.SOCKET_NAME, tail)

    def server_environment(self, root: Path, mark: str) -> dict[str, str]:
        return base_environment("/tmp", mark) | {"DYNABENCH_SOCKET": folder.SOCKET_INSIDE}

    def remove(self, image: str) -> None:
        folder.erase(folder.image_folder(image))

    def sweep(self, live: Container[str]) -> list[str]:
        return sorted({*sweep_processes(live), *folder.sweep_folders(live)})


class ProcessSandbox(FolderSandbox):
    """Limits on memory, processes, time and output. It hides no file and closes no network: for code you trust."""

    name: ClassVar[str] = "process"

    def self_test(self) -> None:
        probe(self)
        logger.warning("sandbox process: code in it can read this user's files and reach the network")

    def wrap(
        self, command: Sequence[str], *, mounts: Sequence[Mount], env: Mapping[str, str], policy: SandboxPolicy
    ) -> tuple[list[str], dict[str, str]]:
        on_host = {mount.inside: str(mount.host) for mount in mounts}
        argv = limited([relocated(part, on_host) for part in command], policy, os.getuid())
        return argv, {key: relocated(value, on_host) for key, value in env.items()}

    def server_environment(self, root: Path, mark: str) -> dict[str, str]:
        return super().server_environment(root, mark) | {"DYNABENCH_ROOT": str(root)}


def relocated(text: str, on_host: Mapping[str, str]) -> str:
    """`text` with in-image paths replaced by the host's, as nothing is mounted here."""
    known = "|".join(re.escape(inside) for inside in sorted(on_host, key=len, reverse=True))
    return re.sub(rf"(?:{known})(?![\w-])", lambda found: on_host[found[0]], text)
