"""Folders of the sandboxes: how a stage is mounted, folder images, and short-lived work folders."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from django.conf import settings

from builds.sandboxes.policy import MEBIBYTE, NOBODY, Command, LimitExceeded, SandboxError

READ_ONLY = ("/opt/dynabench", "/home/model-server")
# All that an install step may change; our runtime beside it stays ours.
WRITABLE = ("/opt/dynabench/packages", "/home/model-server/code")
SCRATCH = "/scratch"
SOCKET_FOLDER = "/run/dynabench"
SOCKET_NAME = "model.sock"
SOCKET_INSIDE = f"{SOCKET_FOLDER}/{SOCKET_NAME}"
# sun_path holds 108 bytes with its closing NUL.
LONGEST_SOCKET_PATH = 107
LONGEST_PATH = 3072
MARK = re.compile(r"dyna-(?P<installation>\w+):(?P<pid>\d+):\w+:(?P<name>.*)")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
JOB_FILE = "job"
# What a server may leave beside its socket, MiB.
SOCKET_FOLDER_MB = 16
# Walking a folder costs more than reading /proc.
DISK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder of the host and where a sandbox sees it."""

    host: Path
    inside: str
    writable: bool = False


def installation() -> str:
    """Tells this installation's leftovers from those of another on the same host."""
    return hashlib.sha256(os.fsencode(settings.VAR)).hexdigest()[:8]


def job_mark(name: str) -> str:
    """What all that one run of the job starts carries: our installation, this worker, the run, the job."""
    return f"dyna-{installation()}:{os.getpid()}:{secrets.token_hex(4)}:{name}"


def marked_job(mark: str) -> str | None:
    """The job's name; None when the mark is not of this installation."""
    found = MARK.fullmatch(mark)
    return found["name"] if found and found["installation"] == installation() else None


def is_running(pid: int) -> bool:
    """Whether the process lives; one that nobody has waited for yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left_over(mark: str, live: Container[str]) -> str | None:
    """The name of the job that left this behind; None when it is live, its worker is, or it is not ours."""
    name, found = marked_job(mark), MARK.fullmatch(mark)
    is_left = name is not None and name not in live and found and not is_running(int(found["pid"]))
    return name if is_left else None


def at(root: Path, inside: str) -> Path:
    return root / inside.lstrip("/")


def stage_mounts(command: Command, scratch: Path) -> list[Mount]:
    """What an install step sees; the writable folders exist and belong to the user it runs as."""
    writable = [Mount(at(command.stage, inside), inside, True) for inside in WRITABLE] + [Mount(scratch, SCRATCH, True)]
    for mount in writable:
        mount.host.mkdir(parents=True, exist_ok=True)
        hand_over(mount.host)
    read_only = [Mount(at(command.stage, inside), inside) for inside in READ_ONLY]
    return [*read_only, *writable, *(Mount(host, inside) for host, inside in command.mounts.items())]


def image_mounts(image: Path, sockets: Path) -> list[Mount]:
    read_only = [Mount(at(image, inside), inside) for inside in READ_ONLY if at(image, inside).is_dir()]
    return [*read_only, Mount(sockets, SOCKET_FOLDER, True)]


def entries(root: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below `root`, links not followed; `LimitExceeded` where hostile code left what can't be walked."""
    folders = [str(root)]
    while folders:
        for entry in _listed(folders.pop()):
            if len(os.fsencode(entry.path)) > LONGEST_PATH:
                raise LimitExceeded(f"Folders are nested too deeply: {entry.path[-80:]}")
            yield entry
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)


def _listed(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except PermissionError as error:
        raise LimitExceeded(f"A folder can't be read: {folder[-80:]}") from error
    except (FileNotFoundError, NotADirectoryError):
        return []  # gone meanwhile


def size_of(folder: Path) -> int:
    """Bytes below the folder; what vanishes meanwhile does not count."""
    total = 0
    for entry in entries(folder):
        try:
            total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total


class DiskWatch:
    """Notices when folders have grown by more than `room_mb` MiB since it was made."""

    def __init__(self, folders: Sequence[Path], room_mb: int) -> None:
        self._folders = folders
        self._room_mb = room_mb
        self._full = sum(map(size_of, folders)) + room_mb * MEBIBYTE
        self._next = 0.0

    def exceeded(self, *, now: bool = False) -> LimitExceeded | None:
        """Looks only every DISK_SECONDS, unless `now`."""
        if time.monotonic() < self._next and not now:
            return None
        try:
            is_full = sum(map(size_of, self._folders)) > self._full
        except LimitExceeded as error:
            return error
        self._next = time.monotonic() + DISK_SECONDS
        return LimitExceeded(f"It wrote more than {self._room_mb} MiB and was stopped.") if is_full else None


def hand_over(folder: Path) -> None:
    """As root: the folder and all in it belong to the user that sandboxed code runs as."""
    if os.geteuid() == 0:
        os.lchown(folder, NOBODY, NOBODY)
        for entry in entries(folder):
            os.lchown(entry.path, NOBODY, NOBODY)


def seal(stage: Path, *, file_mode: int = 0o644, folder_mode: int = 0o755) -> None:
    """Plain modes, our ownership, no devices: what strangers' code left is only read from here on."""
    for entry in entries(stage):
        path, mode = Path(entry.path), entry.stat(follow_symlinks=False).st_mode
        if os.geteuid() == 0:
            os.lchown(path, 0, 0)
        if stat.S_ISDIR(mode):
            path.chmod(folder_mode)
        elif stat.S_ISREG(mode):
            path.chmod(file_mode | (0o111 if mode & 0o100 else 0))
        elif not stat.S_ISLNK(mode):
            path.unlink()  # a socket or pipe that an install step left


def digest_of(stage: Path) -> str:
    """`sha256:<hex>` over the sorted (path, mode, sha256) of all entries and the interpreter's version."""
    total = hashlib.sha256(f"{platform.python_implementation()} {platform.python_version()}\n".encode())
    for line in sorted(_manifest_line(stage, entry) for entry in entries(stage)):
        total.update(line)
    return f"sha256:{total.hexdigest()}"


def _manifest_line(stage: Path, entry: os.DirEntry[str]) -> bytes:
    path = os.fsencode(os.path.relpath(entry.path, stage))
    mode = entry.stat(follow_symlinks=False).st_mode
    return b"%s\0%o\0%s\n" % (path, mode, _content_digest(Path(entry.path)).encode())


def _content_digest(path: Path) -> str:
    if path.is_symlink():
        return hashlib.sha256(os.fsencode(path.readlink())).hexdigest()
    if path.is_dir():
        return "-"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def image_folder(image: str) -> Path:
    if not DIGEST.fullmatch(image):
        raise SandboxError(f"{image!r} is not the digest of a folder image.")
    return settings.VAR / "images" / image.removeprefix("sha256:")


def store(stage: Path) -> str:
    """The digest of the folder image that `stage` became; an equal one is adopted."""
    seal(stage, file_mode=0o444, folder_mode=0o555)
    image = digest_of(stage)
    folder = image_folder(image)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        stage.rename(folder)
    else:
        erase(stage)
    return image


def erase(folder: Path) -> None:
    """The folder is gone, read-only parts too."""
    if folder.exists():
        # Not shutil.rmtree: it gives up on folders that hostile code has nested a thousand deep.
        subprocess.run(["chmod", "-R", "u+rwX", "--", folder], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["rm", "-rf", "--", folder], check=True)


@contextmanager
def scratch_for(stage: Path) -> Iterator[Path]:
    """A folder for temporary files, on the stage's disk: a tmpfs would count as memory."""
    folder = Path(tempfile.mkdtemp(prefix=".scratch-", dir=stage.parent))
    try:
        yield folder
    finally:
        erase(folder)


@contextmanager
def socket_folder(mark: str) -> Iterator[Path]:
    """A folder where only this job's server and we meet; its path is short enough for a Unix socket."""
    root = Path(tempfile.mkdtemp(prefix=f"dyna-{installation()}-"))
    try:
        (root / JOB_FILE).write_text(mark)
        folder = root / "run"
        folder.mkdir()
        # Its parent is ours alone, so only the server inside the sandbox gains from this.
        folder.chmod(0o777)
        if len(os.fsencode(folder / SOCKET_NAME)) > LONGEST_SOCKET_PATH:
            raise SandboxError(f"{folder} is too long for a Unix socket: set TMPDIR to a shorter path.")
        yield folder
    finally:
        erase(root)


def sweep_folders(live: Container[str]) -> list[str]:
    """Work folders of jobs that are not live are gone; the names of those jobs."""
    swept = []
    for root in Path(tempfile.gettempdir()).glob(f"dyna-{installation()}-*"):
        job = root / JOB_FILE
        is_ours = root.stat().st_uid == os.geteuid() and job.is_file()
        if is_ours and (name := left_over(job.read_text(), live)) is not None:
            erase(root)
            swept.append(name)
    return swept


def connect(path: Path, timeout: float) -> socket.socket:
    """A connection to the server's socket and to nothing else: a link that it left there is not followed."""
    handle = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            connection.connect(f"/proc/self/fd/{handle}")
        except OSError:
            connection.close()
            raise
        return connection
    finally:
        os.close(handle)
