"""Real processes on the test database: clusters that can be killed, and models sent to them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core.files.base import ContentFile
from django.db import connection

from dynabench_site.processes import die_with_parent
from examples.pack import EXAMPLES, archive_bytes
from submissions import services
from submissions.archives import check
from submissions.models import Submission
from tasks_catalog.models import Task

LEASE_SECONDS = "4"


def database_url(name: str = "") -> str:
    database = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite://{database['NAME']}"
    login = f"{quote(database['USER'])}:{quote(database['PASSWORD'])}"
    return f"mysql://{login}@/{name or database['NAME']}?unix_socket={database['HOST']}"


class ClusterProcess:
    """`manage.py cluster NAME` in a process group of its own."""

    def __init__(self, name: str, environment: dict[str, str], log: Path) -> None:
        self.name, self.environment, self.log = name, environment, log
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "cluster", self.name],
                cwd=django_settings.BASE_DIR,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        assert self.process.stdout
        assert self.process.stdout.readline() == f"cluster {self.name} ready\n".encode(), self.log.read_text()

    def kill(self) -> None:
        """kill -9 of the whole group, as a host that goes away does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_main_process(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=20)


@pytest.fixture
def start_cluster(transactional_db, eval_servers, settings, tmp_path) -> Iterator[Callable[..., ClusterProcess]]:
    started: list[ClusterProcess] = []

    def start(name: str, **environment: str) -> ClusterProcess:
        own = {
            "DYNABENCH_DATABASE_URL": database_url(),
            "DYNABENCH_VAR": str(settings.VAR),
            "DYNABENCH_SECRET_KEY": settings.SECRET_KEY,
            "DYNABENCH_LEASE_SECONDS": LEASE_SECONDS,
            "DYNABENCH_SANDBOX": "bwrap" if shutil.which("bwrap") else "process",
            "DYNABENCH_ALLOW_UNSANDBOXED": "1",
        }
        cluster = ClusterProcess(name, {**os.environ, **own, **environment}, tmp_path / f"cluster-{name}.log")
        started.append(cluster)
        return cluster

    yield start
    for cluster in started:
        if cluster.process.poll() is None:
            cluster.kill()


@pytest.fixture(autouse=True)
def _warm_caches(shared_cache):
    """Downloads are shared by the tests of a run."""


def send(owner: User, task: Task, archive: bytes, name: str) -> Submission:
    """Accept an archive as the upload does once it has been checked."""
    submission = services.reserve(owner=owner, task=task, name=name)
    task.storage().save(submission.archive_key, ContentFile(archive))
    manifest = check(io.BytesIO(archive), model_name=name, task_code=task.code)
    return services.accept(submission, manifest, size=len(archive), sha256=hashlib.sha256(archive).hexdigest())


def trivial_archive(name: str, folder: Path, *, task: str = "sentiment") -> bytes:
    """The majority model under another name, for any task with its labels."""
    project = folder / name
    shutil.copytree(EXAMPLES / "majority", project)
    (project / ".dynalab/majority").rename(project / ".dynalab" / name)
    config = project / ".dynalab" / name / "setup_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"task": task}))
    return archive_bytes(project)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return condition()
