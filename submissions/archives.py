"""The archives that users send: accepted or refused with a reason, and unpacked.

As a program it checks what comes on standard input, or extracts `paths`, as its one argument, a JSON object, says. It
limits its own memory and time before it reads, and answers with a JSON object. No Django here.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Self

from submissions.tarballs import ArchiveError, Limits
from submissions.unpacking import Manifest, NewFolder, Nowhere, Reading

__all__ = ["ArchiveError", "Checker", "Limits", "Manifest", "check", "extract", "extract_apart"]

PROJECT = Path(__file__).resolve().parent.parent
MEMORY_BYTES = 512 * 1024**2
CPU_SECONDS = 120
CHECK_PATIENCE = 60.0
EXTRACT_PATIENCE = 600.0
DEFAULT_LIMITS = Limits()


def check(stream: BinaryIO, *, model_name: str, task_code: str, limits: Limits = DEFAULT_LIMITS) -> Manifest:
    """What is in the archive, read to its last byte; ArchiveError names the member and the rule it breaks."""
    return Reading(Nowhere(), model_name, limits).read(stream, task_code)


def extract(path: Path, dest: Path, *, model_name: str, task_code: str, limits: Limits = DEFAULT_LIMITS) -> Manifest:
    """The files of `path`, checked again, are in the new folder `dest` (mode 0700), or nothing is there.

    Raises FileExistsError when `dest` exists, ArchiveError when the archive is refused.
    """
    if os.path.lexists(dest):
        raise FileExistsError(f"{dest} exists already")
    partial = dest.with_name(f"{dest.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an attempt that was killed
    try:
        with path.open("rb") as stream, NewFolder(partial) as folder:
            manifest = Reading(folder, model_name, limits).read(stream, task_code)
        partial.rename(dest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def extract_apart(
    path: Path,
    dest: Path,
    *,
    model_name: str,
    task_code: str,
    limits: Limits = DEFAULT_LIMITS,
    patience: float = EXTRACT_PATIENCE,
) -> Manifest:
    """As `extract`, in a process with limited memory and time; at most `patience` seconds."""
    with Checker(
        model_name=model_name, task_code=task_code, limits=limits, patience=patience, paths=(path, dest)
    ) as checker:
        return checker.verdict()


class Checker:
    """Checks an archive in a process with limited memory and time, while it streams in.

    `patience`: how many seconds the process may leave a chunk untouched, or think after the last one. With `paths`, an
    archive and a new folder, it extracts the one to the other instead.
    """

    def __init__(
        self,
        *,
        model_name: str,
        task_code: str,
        limits: Limits = DEFAULT_LIMITS,
        patience: float = CHECK_PATIENCE,
        paths: Sequence[Path] = (),
    ) -> None:
        wanted = {"model_name": model_name, "task_code": task_code, "limits": asdict(limits)}
        wanted["paths"] = [str(path.absolute()) for path in paths]
        self._command = [sys.executable, "-m", "submissions.archives", json.dumps(wanted)]
        self._patience = patience
        self._listens = True

    def __enter__(self) -> Self:
        self._child = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=PROJECT, env={}
        )
        assert self._child.stdin
        self._input = self._child.stdin.fileno()
        os.set_blocking(self._input, False)
        self._poll = select.poll()
        self._poll.register(self._input, select.POLLOUT)
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()

    def write(self, chunk: bytes) -> bool:
        """Feed `chunk`; False once more is useless, because the verdict has been reached."""
        rest = memoryview(chunk)
        while rest and self._listens:
            if not self._poll.poll(self._patience * 1000):
                self._child.kill()
            try:
                rest = rest[os.write(self._input, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                self._listens = False
        return self._listens

    def verdict(self) -> Manifest:
        """What the archive holds; ArchiveError when it is refused or was not read in time."""
        try:
            answer, _ = self._child.communicate(timeout=self._patience)
        except subprocess.TimeoutExpired:
            self._child.kill()
            answer, _ = self._child.communicate()
        if self._child.returncode < 0:
            rule = f"The archive could not be read in {self._patience:.0f} s. Send fewer or smaller files."
            raise ArchiveError("archive_unreadable", rule)
        if not answer:
            raise RuntimeError(f"the archive checker ended with {self._child.returncode} and no verdict")
        return _from_verdict(json.loads(answer))


def _from_verdict(verdict: dict[str, Any]) -> Manifest:
    if verdict.pop("ok"):
        return Manifest(**verdict)
    error = ArchiveError(verdict["code"], verdict["detail"])
    error.member = verdict["member"]
    raise error


def _verdict(paths: Sequence[str], **wanted: Any) -> dict[str, Any]:
    try:
        manifest = extract(*map(Path, paths), **wanted) if paths else check(sys.stdin.buffer, **wanted)
    except ArchiveError as error:
        return {"ok": False, "code": error.code, "member": error.member, "detail": str(error)}
    except MemoryError:
        detail = f"The archive could not be read with {MEMORY_BYTES:,} bytes of memory. Send fewer files."
        return {"ok": False, "code": "archive_unreadable", "member": "", "detail": detail}
    return {"ok": True} | asdict(manifest)


def _limit_this_process(file_bytes: int) -> None:
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))


def main() -> int:
    """Exit code 0 when the archive is accepted, 1 when not; the verdict is on standard output."""
    wanted = json.loads(sys.argv[1])
    wanted["limits"] = Limits(**wanted["limits"])
    _limit_this_process(wanted["limits"].expanded)
    verdict = _verdict(**wanted)
    sys.stdout.write(json.dumps(verdict) + "\n")
    return 0 if verdict["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
