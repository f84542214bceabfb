"""The database goes away under load and comes back: who asks meanwhile is told to come again, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.auth.models import User

from dynabench_site.processes import die_with_parent
from evaluations.dataset_files import store_dataset_file
from examples.pack import archive_bytes
from submissions.models import ApiToken
from tasks_catalog.models import BuildConfig, Dataset, Task, TaskMetric
from tests.conftest import EXAMPLES, IO_YAML, jsonl
from tests.examples.broken import broken_project
from tests.mariadb import MariaDB
from tests.pipeline.conftest import trivial_archive, wait_for
from tests.pipeline.test_demo import free_port
from tests.submissions.cli import CONTENT_TYPE, UPLOAD, body

PAGES = ("/", "/tasks/sentiment/", "/tasks/submitable", "/api/v1/tasks/sentiment/leaderboard/", "/api/v1/submissions/")
REQUESTS_PER_SECOND, UPLOAD_EVERY = 20, 20
INFERENCES = "FROM dynabench.evaluations_inference"
LONGEST_SECONDS, RECOVERY_SECONDS = 30, 5


@dataclass(frozen=True, slots=True)
class Answer:
    path: str
    status: int
    headers: dict[str, str]
    text: bytes
    began: float
    ended: float


def prepare() -> str:
    """A task with data, and the token of somebody who may send it as many models as they like."""
    task = Task.objects.create(code="sentiment", name="Sentiment", io_yaml=IO_YAML, submission_limit=1000)
    BuildConfig.objects.create(task=task, memory_mb=2048)
    TaskMetric.objects.create(task=task, name="accuracy", ranks=True, weight=4)
    store_dataset_file(Dataset(task=task, name="tweets"), jsonl(EXAMPLES))
    return ApiToken.make(user=User.objects.create_user("ada", "ada@example.org"), name="test")[1]


class Site:
    """`manage.py serve` on a database of its own: gunicorn with two workers, and the clusters."""

    def __init__(self, database: MariaDB, var: Path, **environment: str) -> None:
        self.port = free_port()
        self.environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "dynabench_site.settings",
            "DYNABENCH_DATABASE_URL": f"{database.url()}&read_timeout=3",
            "DYNABENCH_VAR": str(var),
            "DYNABENCH_SECRET_KEY": "for this test only",
            "DYNABENCH_PORT": str(self.port),
            "DYNABENCH_LEASE_SECONDS": "12",
            "DYNABENCH_SANDBOX": "bwrap" if shutil.which("bwrap") else "process",
            "DYNABENCH_ALLOW_UNSANDBOXED": "1",
            **environment,
        }
        database.execute("CREATE DATABASE dynabench CHARACTER SET utf8mb4")
        self.manage("migrate", "--verbosity", "0")
        program = f"import django; django.setup(); from {__name__} import prepare; print(prepare())"
        self.token = self.run("-c", program).stdout.strip()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        run = subprocess.run(command, cwd=settings.BASE_DIR, env=self.environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        return run

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("manage.py", *arguments)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "manage.py", *arguments],
            cwd=settings.BASE_DIR,
            env=self.environment,
            stdout=subprocess.PIPE,
            preexec_fn=die_with_parent,
        )

    @contextmanager
    def serving(self) -> Iterator[None]:
        process = self.start("serve")
        try:
            assert process.stdout and b"Ctrl-C" in process.stdout.readline()
            yield
            assert process.poll() is None, "all of it outlives the outage"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)

    def ask(self, path: str, sent: bytes | None = None) -> Answer:
        headers = {"Authorization": f"Token {self.token}"} | ({"Content-Type": CONTENT_TYPE} if sent else {})
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=sent, headers=headers)
        began = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=2 * LONGEST_SECONDS) as response:
                status, found, text = response.status, dict(response.headers), response.read()
        except urllib.error.HTTPError as error:
            status, found, text = error.code, dict(error.headers), error.read()
        return Answer(path, status, found, text, began, time.monotonic())

    def upload(self, name: str, folder: Path) -> Answer:
        return self.ask(UPLOAD, body(name, trivial_archive(name, folder), task="sentiment"))

    def status(self, pk: str) -> str:
        return json.loads(self.ask(f"/api/v1/submissions/{pk}/").text)["status"]


@contextmanager
def load(site: Site, folder: Path) -> Iterator[list[Answer]]:
    """Requests at a steady pace from many clients, until the block ends; then all answers are in the list."""
    answers: list[Answer] = []
    with ThreadPoolExecutor(100) as clients, ThreadPoolExecutor(1) as clock:
        stopped = []

        def send() -> None:
            for number in count():
                if stopped:
                    break
                if number % UPLOAD_EVERY == 0:
                    waiting.append(clients.submit(site.upload, f"m{number}", folder))
                else:
                    waiting.append(clients.submit(site.ask, PAGES[number % len(PAGES)]))
                time.sleep(1 / REQUESTS_PER_SECOND)

        waiting: list = []
        pacing = clock.submit(send)
        try:
            yield answers
        finally:
            stopped.append(True)
            pacing.result()
        answers += [future.result() for future in waiting]


def answered_since(answers: list[Answer], moment: float) -> float:
    """Seconds from that moment until a page was there again."""
    return min(answer.ended for answer in answers if answer.status == 200 and answer.began > moment) - moment


@pytest.mark.mariadb
@pytest.mark.timeout(400)
def test_a_database_that_is_stopped_killed_or_hangs_loses_nothing(tmp_path):
    with MariaDB(durable=True) as database:
        site = Site(database, tmp_path / "var")
        outages = [(database.stop, 8, database.start), (database.kill, 4, database.start)]
        outages.append((database.hang, 8, database.go_on))
        back = []
        with site.serving():
            with load(site, tmp_path) as answers:
                for end, seconds, begin in outages:
                    time.sleep(4)
                    end()
                    time.sleep(seconds)
                    assert site.ask("/readyz").status == 503
                    begin()
                    back.append(time.monotonic())
                time.sleep(RECOVERY_SECONDS)
            taken = [answer.headers["X-Submission-Id"] for answer in answers if "X-Submission-Id" in answer.headers]
            print(summary(answers))

            assert {answer.status for answer in answers} == {200, 503}, refused(answers)
            assert all("Retry-After" in answer.headers for answer in answers if answer.status == 503)
            assert max(answer.ended - answer.began for answer in answers) < LONGEST_SECONDS
            assert max(answered_since(answers, moment) for moment in back) < RECOVERY_SECONDS
            assert len(taken) > 5
            assert wait_for(lambda: all(site.status(pk) == "evaluated" for pk in taken), 120)

        assert json.loads(site.manage("check_invariants", "--json").stdout) == {"ok": True, "violations": []}


@pytest.mark.mariadb
@pytest.mark.timeout(200)
def test_an_inference_goes_on_while_the_database_is_away_for_longer_than_its_lease(tmp_path):
    with MariaDB(durable=True) as database:
        site = Site(database, tmp_path / "var", DYNABENCH_LEASE_SECONDS="3")
        with site.serving():
            project = broken_project("never-answers", tmp_path / "slow", "slow")
            handler = project / "handler.py"
            handler.write_text(handler.read_text().replace("sleep(3600)", "sleep(4)"))
            sent = site.ask(UPLOAD, body("slow", archive_bytes(project), task="sentiment"))
            pk = sent.headers["X-Submission-Id"]
            assert wait_for(lambda: b"running" in database.query(f"SELECT status {INFERENCES}"), 60)
            database.stop()
            time.sleep(8)
            database.start()
            assert wait_for(lambda: site.status(pk) == "evaluated", 60)

        assert database.query(f"SELECT attempts, interruptions {INFERENCES}").split() == [b"1", b"0"]


@pytest.mark.mariadb
def test_a_cluster_may_start_before_its_database_and_end_after_it(tmp_path):
    with MariaDB(durable=True) as database:
        site = Site(database, tmp_path / "var")
        database.stop()
        cluster = site.start("cluster", "build")
        time.sleep(3)
        assert cluster.poll() is None
        database.start()
        assert cluster.stdout and cluster.stdout.readline() == b"cluster build ready\n"
        database.stop()
        began = time.monotonic()

        cluster.terminate()

        assert cluster.wait(20) == 0
        assert time.monotonic() - began < 10


def summary(answers: list[Answer]) -> dict[str, int]:
    kinds = [f"{answer.path} {answer.status}" for answer in answers]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def refused(answers: list[Answer]) -> list[str]:
    return [f"{answer.path} {answer.status}: {answer.text[:300]!r}" for answer in answers if answer.status >= 400]
