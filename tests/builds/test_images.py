"""The same model in each sandbox: what was built answers as the conformance suite wants, and nothing is left behind."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest

from builds import sandboxes
from builds.image import ImageBuilder, new_workdir, sweep_workdirs
from builds.model_servers import equipped
from builds.sandboxes.policy import SandboxPolicy
from examples.pack import pack
from tasks_catalog.models import BuildConfig, Task, TaskMetric
from tests.builds.conformance import Client, check_server

HANDLERS = Path(__file__).parent / "handlers"
NLI_YAML = """
context: [{name: context, type: string}]
input:
  - {name: hypothesis, type: string}
  - {name: label, type: multiclass, labels: [entailed, neutral, contradictory]}
output:
  - {name: label}
  - {name: prob, type: prob, reference_name: label}
"""
pytestmark = pytest.mark.usefixtures("shared_cache")
SANDBOXES = [
    pytest.param("docker", "asgi", marks=pytest.mark.docker),
    pytest.param("docker", "torchserve", marks=pytest.mark.docker),
    pytest.param("bwrap", "asgi", marks=pytest.mark.bwrap),
    ("process", "asgi"),
]


class Quiet:
    """A recorder that keeps nothing."""

    @contextmanager
    def step(self, name, command=""):
        yield lambda output: None


@pytest.fixture
def nli_task(task):
    task = Task.objects.create(code="nli", name="NLI", io_yaml=NLI_YAML)
    BuildConfig.objects.create(task=task, memory_mb=1024)
    TaskMetric.objects.create(task=task, name="accuracy", ranks=True)
    return task


@pytest.fixture
def archive(tmp_path) -> Path:
    project = tmp_path / "project"
    (project / ".dynalab/conforming").mkdir(parents=True)
    (project / "handler.py").write_text((HANDLERS / "nli.py").read_text())
    (project / "checkpoint.pt").write_text("weights")
    (project / "words.py").write_text("def words_of(text):\n    return {w.strip('.') for w in text.split()}\n")
    setup = {"task": "nli", "checkpoint": "checkpoint.pt", "handler": "handler.py", "requirements": False}
    setup |= {"setup": False, "model_files": [], "exclude": []}
    (project / ".dynalab/conforming/setup_config.json").write_text(json.dumps(setup))
    pack(project, tmp_path / "conforming.tar.gz")
    return tmp_path / "conforming.tar.gz"


def built(archive, task, sandbox, model_server):
    task.build_config.model_server = model_server
    sandbox, offers = equipped(sandbox, task.build_config)
    with new_workdir("conforming") as workdir:
        return ImageBuilder(sandbox, Quiet(), task, "conforming", "ts1-conforming", offers).build(archive, workdir)


@pytest.mark.parametrize(("name", "model_server"), SANDBOXES)
def test_an_image_answers_as_the_conformance_suite_wants(nli_task, archive, settings, name, model_server):
    settings.ALLOW_UNSANDBOXED = True
    sandbox = sandboxes.by_name(name)

    image = built(archive, nli_task, sandbox, model_server)

    try:
        with sandbox.serve(image.digest, policy=SandboxPolicy(memory_mb=1024), name="conforming") as server:
            client = Client(str(server.socket), ready_seconds=120)
            client.wait_until_loaded()
            check_server(client)
    finally:
        sandbox.remove(image.digest)


@pytest.mark.docker
@pytest.mark.parametrize("model_server", ["asgi", "torchserve"])
def test_a_docker_image_is_complete_and_answers_on_port_8080(nli_task, archive, model_server):
    sandbox = sandboxes.by_name("docker")
    image = built(archive, nli_task, sandbox, model_server)
    engine = docker.from_env()
    container = engine.containers.run(image.digest, "serve", detach=True, network="none")
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/ping').status)"

    try:
        tries = (
            subprocess.run(["docker", "exec", container.id, "python3", "-c", ask], capture_output=True)
            for _ in range(200)
        )
        answer = next(run.stdout for run in tries if run.returncode == 0)
        labels = engine.images.get(image.digest).labels
    finally:
        container.remove(force=True)
        sandbox.remove(image.digest)

    assert answer == b"200\n"
    assert labels["dynabench.archive"] == image.mar_sha256


def test_directories_of_killed_builds_are_swept_and_those_of_living_ones_are_not(settings):
    folder = settings.VAR / "builds"
    (folder / "ts7-gone.999999999.abc").mkdir(parents=True)
    (folder / "ts8-elsewhere.999999999.abc").mkdir()

    with new_workdir("ts9-mine") as mine:
        assert sweep_workdirs({"ts8-elsewhere"}) == ["ts7-gone"]
        assert mine.is_dir()

    assert [path.name for path in folder.iterdir()] == ["ts8-elsewhere.999999999.abc"]
