"""Containers without network, capabilities or a writable root; images of the docker engine."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from django.conf import settings
from docker import DockerClient
from docker.errors import ImageNotFound, NotFound
from docker.models.containers import Container as DockerContainer
from docker.types import LogConfig, Ulimit

from builds import base_image
from builds.sandboxes import folder
from builds.sandboxes.engine import engine
from builds.sandboxes.folder import DiskWatch, Mount
from builds.sandboxes.policy import (
    MEBIBYTE,
    NOBODY,
    CappedLog,
    Command,
    ImageMissing,
    LimitExceeded,
    Log,
    ModelServer,
    SandboxError,
    SandboxPolicy,
    SandboxUnavailable,
)
from builds.sandboxes.probe import isolated

logger = logging.getLogger(__name__)

DOCKERFILE = Path(__file__).parent.parent / "dockerfiles" / "model.Dockerfile"
JOB_LABEL = "dyna.job"
BUILD_SECONDS = 1800
POLL_SECONDS = 0.2
DRAIN_SECONDS = 5.0
TAIL_LINES = 400
KILLED = 128 + 9
# Where control groups v2 keep what the engine's statistics leave out.
MEMORY_PEAKS = ("/sys/fs/cgroup/system.slice/docker-{}.scope/memory.peak", "/sys/fs/cgroup/docker/{}/memory.peak")


class DockerSandbox:
    """No network, no files but the mounted ones, user 65534, no capabilities, limits by control groups."""

    name: ClassVar[str] = "docker"
    python = "3.11"

    def __init__(self, base: str = "") -> None:
        self._base = base

    def on(self, base: str) -> DockerSandbox:
        """The same on another image, which must have the same Python."""
        other = DockerSandbox(base)
        other.python = self.python
        return other

    @property
    def base(self) -> str:
        """What commands run in and images are made from."""
        return self._base or settings.BASE_IMAGE

    def self_test(self) -> None:
        with engine(timeout=5) as client:
            client.ping()
        base_image.ensure(logger.info)
        finding = isolated(self)
        if finding.uid == 0:
            raise SandboxUnavailable("code in it runs as root")
        self.python = finding.version.rpartition(".")[0]

    def run(self, command: Command, *, policy: SandboxPolicy, log: Log, name: str) -> int:
        with folder.scratch_for(command.stage) as scratch, engine() as client:
            mounted = folder.stage_mounts(command, scratch)
            disk = DiskWatch([mount.host for mount in mounted if mount.writable], policy.disk_mb)
            options = limits(policy) | {
                "entrypoint": list(command.argv),
                "environment": {"HOME": folder.SCRATCH, "TMPDIR": folder.SCRATCH, "PYTHONUNBUFFERED": "1"}
                | dict(command.env),
                "log_config": LogConfig(type="none"),
                "tmpfs": {"/tmp": f"exec,nosuid,nodev,size={policy.tmpfs_mb}m"},
                "user": stage_user(),
            }
            with container(client, self.base, name, mounted, options) as made:
                return followed(made, policy, log, disk)

    def pack(self, stage: Path, *, name: str, labels: Mapping[str, str]) -> str:
        folder.seal(stage)
        with engine(timeout=BUILD_SECONDS) as client:
            image, _ = client.images.build(
                path=str(stage),
                dockerfile=str(DOCKERFILE),
                tag=f"dynabench-{folder.installation()}/{name.lower()}",
                buildargs={"BASE": self.base},
                labels={**labels, JOB_LABEL: folder.job_mark(name)},
                network_mode="none",
                rm=True,
                forcerm=True,
            )
        folder.erase(stage)
        return image.id

    @contextmanager
    def serve(self, image: str, *, policy: SandboxPolicy, name: str) -> Iterator[ModelServer]:
        options = limits(policy) | {
            "environment": {"DYNABENCH_SOCKET": folder.SOCKET_INSIDE},
            "log_config": LogConfig(type="json-file", config={"max-size": str(policy.log_cap), "max-file": "1"}),
            "tmpfs": {"/tmp": f"noexec,nosuid,nodev,size={policy.tmpfs_mb}m"},
            "user": f"{NOBODY}:{NOBODY}",
        }
        with folder.socket_folder(folder.job_mark(name)) as sockets, engine() as client:
            mounted = [Mount(sockets, folder.SOCKET_FOLDER, True)]
            with container(client, image, name, mounted, options) as made:
                made.start()
                with DockerServer(made, policy, sockets) as server:
                    yield server

    def remove(self, image: str) -> None:
        with engine() as client:
            try:
                client.images.remove(image, force=True)
            except ImageNotFound:
                return

    def sweep(self, live: Container[str]) -> list[str]:
        swept = set(folder.sweep_folders(live))
        with engine() as client:
            found = client.containers.list(all=True, filters={"label": JOB_LABEL}, ignore_removed=True)
        for left in found:
            if (job := folder.left_over(left.labels[JOB_LABEL], live)) is not None and swept_away(left.id):
                swept.add(job)
        return sorted(swept)


class DockerServer:
    """A model server in a container; a thread ends it at its deadline or when it fills its socket's folder."""

    def __init__(self, made: DockerContainer, policy: SandboxPolicy, sockets: Path) -> None:
        self.socket = sockets / folder.SOCKET_NAME
        self._made = made
        self._policy = policy
        self._disk = DiskWatch([sockets], folder.SOCKET_FOLDER_MB)
        self._end = time.monotonic() + policy.deadline
        self._exceeded: LimitExceeded | None = None
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> DockerServer:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()

    def connect(self, timeout: float) -> socket.socket:
        return folder.connect(self.socket, timeout)

    def alive(self) -> bool:
        return bool(state(self._made)["Running"])

    def failure(self) -> str | None:
        now = state(self._made)
        if now["Running"]:
            return None
        exceeded = self._exceeded or (self._policy.too_big() if now["OOMKilled"] else None)
        return str(exceeded or f"It ended with exit code {now['ExitCode']}.")

    def peak_memory(self) -> int:
        for pattern in MEMORY_PEAKS:
            if (file := Path(pattern.format(self._made.id))).is_file():
                return int(file.read_text())
        memory = self._made.client.api.stats(self._made.id, stream=False, one_shot=True).get("memory_stats", {})
        return memory.get("max_usage") or memory.get("usage") or 0

    def log_tail(self) -> str:
        return self._made.logs(tail=TAIL_LINES).decode(errors="replace")

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            late = self._policy.too_slow() if time.monotonic() > self._end else None
            self._exceeded = late or self._disk.exceeded()
            if self._exceeded:
                # A connection of its own: the server's is used by its caller.
                with engine() as client:
                    kill(client.containers.get(self._made.id))
                return


def limits(policy: SandboxPolicy) -> dict[str, Any]:
    """What every container of ours is denied."""
    size = policy.disk_mb * MEBIBYTE
    return {
        "network_mode": "none",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "pids_limit": policy.pids,
        "mem_limit": policy.memory,
        "memswap_limit": policy.memory,
        "nano_cpus": int(policy.cpus * 1_000_000_000),
        "ulimits": [
            Ulimit(name="fsize", soft=size, hard=size),
            Ulimit(name="core", soft=0, hard=0),
        ],
        "working_dir": "/tmp",
    }


def stage_user() -> str:
    """Who may write in a stage: nobody, once root handed it over; else ourselves."""
    return f"{NOBODY}:{NOBODY}" if os.geteuid() == 0 else f"{os.getuid()}:{os.getgid()}"


@contextmanager
def container(
    client: DockerClient, image: str, name: str, mounts: Sequence[Mount], options: Mapping[str, Any]
) -> Iterator[DockerContainer]:
    """A created container of the job; it is gone when the context ends."""
    volumes = {str(mount.host): {"bind": mount.inside, "mode": "rw" if mount.writable else "ro"} for mount in mounts}
    try:
        made = client.containers.create(image, volumes=volumes, labels={JOB_LABEL: folder.job_mark(name)}, **options)
    except ImageNotFound as error:
        raise ImageMissing(image) from error
    try:
        yield made
    finally:
        remove(made)


def followed(made: DockerContainer, policy: SandboxPolicy, log: Log, disk: DiskWatch) -> int:
    """The exit code of a started container whose output went to `log`; raises the limit it went past."""
    capped = CappedLog(log, policy.log_cap)
    output = made.attach(stream=True, stdout=True, stderr=True)
    draining = threading.Thread(target=drain, args=(output, capped), daemon=True)
    draining.start()
    try:
        made.start()
        ended = until_ended(made, time.monotonic() + policy.deadline, policy, disk)
    finally:
        kill(made)
        draining.join(DRAIN_SECONDS)
        capped.close()
    if ended["OOMKilled"]:
        raise policy.too_big()
    return int(ended["ExitCode"])


def drain(output: Iterable[bytes], log: CappedLog) -> None:
    for chunk in output:
        log.write(chunk)


def until_ended(made: DockerContainer, end: float, policy: SandboxPolicy, disk: DiskWatch) -> dict[str, Any]:
    while (now := state(made))["Running"]:
        if time.monotonic() > end:
            raise policy.too_slow()
        if exceeded := disk.exceeded():
            raise exceeded
        time.sleep(POLL_SECONDS)
    if exceeded := disk.exceeded(now=True):
        raise exceeded
    if now["ExitCode"] == KILLED:
        time.sleep(POLL_SECONDS)  # The engine may learn a moment later that memory was the reason.
    return state(made)


def state(made: DockerContainer) -> dict[str, Any]:
    made.reload()
    return made.attrs["State"]


def kill(made: DockerContainer) -> None:
    if state(made)["Running"]:
        made.kill()


def swept_away(container_id: str) -> bool:
    """Whether the container is gone; one that the engine can't remove now must not keep the others."""
    try:
        with engine() as client:
            remove(client.containers.get(container_id))
    except SandboxError as error:
        logger.warning("container %s is left for the next round: %s", container_id, error)
        return False
    return True


def remove(made: DockerContainer) -> None:
    try:
        made.remove(force=True, v=True)
    except NotFound:
        return
