"""One command of ours to the operating system: its output drained, its limits watched, its end certain."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

from builds.sandboxes.folder import DiskWatch, left_over, marked_job
from builds.sandboxes.policy import MEBIBYTE, CappedLog, LimitExceeded, Log, SandboxError, SandboxPolicy

JOB_VARIABLE = "DYNABENCH_JOB"
POLL_SECONDS = 0.1
REAP_SECONDS = 5.0


def required(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        raise SandboxError(f"{tool} is not installed on this host.")
    return path


def limited(argv: Sequence[str], policy: SandboxPolicy, uid: int) -> list[str]:
    """`argv` under the operating system's own limits: the backstop of what `Supervised` watches."""
    limits = {
        "core": 0,
        "cpu": f"{policy.cpu_seconds}:{policy.cpu_seconds + 5}",
        "data": 2 * policy.memory,
        "fsize": policy.disk_mb * MEBIBYTE,
        "nproc": threads_of(uid) + 2 * policy.pids,
    }
    return [required("prlimit"), *(f"--{name}={value}" for name, value in limits.items()), "--", *argv]


def threads_of(uid: int) -> int:
    """How many threads the user has now: RLIMIT_NPROC counts them all."""
    found = psutil.process_iter(["uids", "num_threads"])
    return sum(p.info["num_threads"] or 0 for p in found if p.info["uids"] and p.info["uids"].real == uid)


def mark_of(process: psutil.Process) -> str | None:
    """The mark of ours that the process bears in its environment or arguments."""
    try:
        marks = [process.environ().get(JOB_VARIABLE, ""), *process.cmdline()]
    except psutil.Error:
        return None
    return next((mark for mark in marks if marked_job(mark) is not None), None)


def sweep_processes(live: Container[str]) -> list[str]:
    """Processes that dead workers left are killed; the names of their jobs."""
    swept = []
    for process in psutil.process_iter():
        mark = mark_of(process)
        if mark and (name := left_over(mark, live)) is not None:
            _kill(process)
            swept.append(name)
    return swept


class Supervised:
    """A running command; leaving the context kills it and all it started.

    `env` is its whole environment, `mark` is in it or in `argv`, `disk` watches what it may fill.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        policy: SandboxPolicy,
        log: Log,
        mark: str,
        disk: DiskWatch,
        cwd: Path | None = None,
    ) -> None:
        self.peak_memory = 0
        self.exceeded: LimitExceeded | None = None
        self._policy = policy
        self._mark = mark
        self._disk = disk
        self._log = CappedLog(log, policy.log_cap)
        self._end = time.monotonic() + policy.deadline
        self._popen = subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._drain, self._watch)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for thread in self._threads:
            thread.join(REAP_SECONDS)
        self._log.close()

    def alive(self) -> bool:
        return self._popen.poll() is None

    def finish(self) -> int:
        """The exit code once it has ended, 128 + n for signal n; raises the limit it went past."""
        self._threads[1].join()
        code = self._popen.wait()
        if self.exceeded:
            raise self.exceeded
        return code if code >= 0 else 128 - code

    def failure(self) -> str | None:
        """Why it ended, as a sentence; None while it lives."""
        if self.alive():
            return None
        return str(self.exceeded or f"It ended with exit code {self._popen.returncode}.")

    def kill(self) -> None:
        """Nothing of the job is left, also not what it moved into sessions of its own."""
        try:
            os.killpg(self._popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        until = time.monotonic() + REAP_SECONDS
        while (left := self._relatives()) and time.monotonic() < until:
            for process in left:
                _kill(process)
            time.sleep(0.01)
        self._popen.wait()

    def _drain(self) -> None:
        assert self._popen.stdout
        with self._popen.stdout as output:
            while chunk := os.read(output.fileno(), 65_536):
                self._log.write(chunk)

    def _watch(self) -> None:
        try:
            while self.alive() and not self.exceeded:
                self.exceeded = self._measure() or self._disk.exceeded()
                time.sleep(POLL_SECONDS)
            self.exceeded = self.exceeded or self._disk.exceeded(now=True)
            if self._popen.returncode in {-signal.SIGXCPU, 128 + signal.SIGXCPU}:
                self.exceeded = self._policy.too_busy()
        finally:
            self.kill()  # also when watching failed: nothing runs unwatched

    def _measure(self) -> LimitExceeded | None:
        memory, threads = _use(_family(self._popen.pid))
        self.peak_memory = max(self.peak_memory, memory)
        if time.monotonic() > self._end:
            return self._policy.too_slow()
        if memory > self._policy.memory:
            return self._policy.too_big()
        return self._policy.too_many() if threads > self._policy.pids else None

    def _relatives(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if mark_of(process) == self._mark]


def _family(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _use(family: list[psutil.Process]) -> tuple[int, int]:
    """Resident bytes and threads; a page that two processes share counts twice."""
    memory = threads = 0
    for process in family:
        try:
            memory += process.memory_info().rss
            threads += process.num_threads()
        except psutil.NoSuchProcess:
            continue
    return memory, threads


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass
