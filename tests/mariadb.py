"""A private MariaDB server. `python -m tests.mariadb COMMAND …` runs a command that has one as its database."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Self

from dynabench_site.processes import die_with_parent

START_SECONDS, STOP_SECONDS = 60, 60
MEMORY = Path("/dev/shm")
ROOM_BYTES = 2 << 30
SMALL = ["--innodb-log-file-size=64M", "--innodb-buffer-pool-size=256M", "--max-connections=400"]
# Nobody misses a test's rows after a crash of the host; what a killed server wrote the kernel still has.
FAST = ["--innodb-flush-method=nosync", "--innodb-doublewrite=0", "--innodb-flush-log-at-trx-commit=0"]
DURABLE = ["--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=2"]


class MariaDB:
    """A server on a socket in a directory of its own; both are gone afterwards."""

    def __init__(self, *, durable: bool = False) -> None:
        has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES
        # A short name: a socket's path may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="dbm-", dir=MEMORY if has_room else None))
        self.socket = self.folder / "s"
        self.options = ["--no-defaults", f"--datadir={self.folder / 'data'}", f"--user={getpass.getuser()}"]
        self.options += [*SMALL, *(DURABLE if durable else FAST)]

    def __enter__(self) -> Self:
        install = ["mariadb-install-db", *self.options, "--auth-root-authentication-method=normal", "--skip-test-db"]
        try:
            subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.kill()
        finally:
            shutil.rmtree(self.folder)

    def url(self, name: str = "dynabench") -> str:
        return f"mysql://root@/{name}?unix_socket={self.socket}"

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["mariadbd", *self.options, f"--socket={self.socket}", "--skip-networking"],
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the tests, which then end the server
                preexec_fn=die_with_parent,
            )
        deadline = time.monotonic() + START_SECONDS
        while self.execute("SELECT 1").returncode:
            assert time.monotonic() < deadline and self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.2)

    def stop(self) -> None:
        """As an operator does for an upgrade."""
        self.process.terminate()
        self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """As a host that goes away does."""
        if hasattr(self, "process"):
            self.process.kill()
            self.process.wait()

    def hang(self) -> None:
        """It keeps its connections, and says nothing more."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def query(self, statement: str) -> bytes:
        """The rows as text, without a heading."""
        return self.execute(statement, "--skip-column-names").stdout

    def execute(self, statement: str, *options: str) -> subprocess.CompletedProcess[bytes]:
        client = ["mariadb", "--no-defaults", f"--socket={self.socket}", "--user=root", *options, "-e", statement]
        return subprocess.run(client, capture_output=True)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(command: list[str]) -> int:
    """The command's exit code; the server ends whatever happens to the command."""
    signal.signal(signal.SIGTERM, _end)
    with MariaDB() as server:
        own = {"DYNABENCH_DATABASE_URL": server.url(), "DYNABENCH_SECRET_KEY": "for this run only"}
        return subprocess.run(command, env={**os.environ, **own}, preexec_fn=die_with_parent).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
