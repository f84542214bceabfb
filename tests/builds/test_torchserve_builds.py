"""From an upload to an image of the TorchServe flavour, with a model that computes with torch."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from django.core.management import call_command

from builds import sandboxes, torchserve_image
from builds.base_image import BaseImageError
from builds.sandboxes.policy import SandboxPolicy
from evaluations.backends.local import LocalRunner
from evaluations.planning import wanted_inference
from examples.pack import EXAMPLES, archive_bytes
from submissions.models import Submission
from tests.builds.conformance import Client, json_lines
from tests.builds.test_services import build, uploaded

pytestmark = pytest.mark.usefixtures("shared_cache")
in_docker = pytest.mark.docker
WEIGHTS = """
import torch
torch.save({"weight": torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.5, 0.5]]), "bias": torch.tensor([-1.0, -1.0, 0.0])},
           "/made/model.pt")
"""
HANDLER = """
import torch

from dynalab.handler.base_handler import BaseDynaHandler
from dynalab.tasks.task_io import TaskIO

LABELS = ["negative", "positive", "neutral"]


class Handler(BaseDynaHandler):
    def initialize(self, context):
        checkpoint, _, device = self._handler_initialize(context)
        self.model = torch.nn.Linear(2, 3).to(device).eval()
        self.model.load_state_dict(torch.load(checkpoint, map_location=device, weights_only=True))
        self.taskIO = TaskIO("sentiment")
        self.initialized = True

    def preprocess(self, data):
        text = self._read_data(data)["statement"]
        return torch.tensor([[float(text.count("awful")), float(text.count("great"))]])

    def inference(self, features):
        with torch.no_grad():
            return torch.softmax(self.model(features), -1)[0]

    def postprocess(self, probabilities, data):
        example = self._read_data(data)
        answer = {"id": example["uid"], "label": LABELS[int(probabilities.argmax())]}
        answer["prob"] = dict(zip(LABELS, probabilities.tolist()))
        return [self.taskIO.sign_response(answer, example)]


_service = Handler()


def handle(data, context):
    if not _service.initialized:
        _service.initialize(context)
    if data is None:
        return None
    return _service.postprocess(_service.inference(_service.preprocess(data)), data)
"""
SETUP = {"requirements": True, "checkpoint": "model.pt", "model_files": []}
STATEMENTS = ["It is awful.", "It is great, great.", "It is a table."]


@pytest.fixture
def task(task, settings):
    """Its models are served by TorchServe."""
    task.build_config.model_server = "torchserve"
    task.build_config.save()
    settings.SANDBOX, settings.ALLOW_UNSANDBOXED = "docker", True
    return task


def project(folder: Path, *, requirements: str, task: str = "sentiment") -> Path:
    """A project whose handler computes with torch."""
    shutil.copytree(EXAMPLES / "majority", folder)
    (setup_file,) = folder.glob(".dynalab/*/setup_config.json")
    setup = json.loads(setup_file.read_text())
    setup_file.write_text(json.dumps({**setup, **SETUP, "task": task}))
    (folder / "requirements.txt").write_text(requirements)
    (folder / setup["handler"]).write_text(HANDLER.replace('"sentiment"', f'"{task}"'))
    mount = f"-v={folder}:/made"
    image = torchserve_image.ensure(print).tag
    subprocess.run(["docker", "run", "--rm", "--network=none", mount, image, "python3", "-c", WEIGHTS], check=True)
    return folder


def ask_all(client: Client) -> list[dict]:
    assert client.wait_until_loaded()[0] == 200
    examples = [{"uid": str(n), "statement": text} for n, text in enumerate(STATEMENTS)]
    status, body = client.invoke(json_lines(examples), "application/jsonlines")
    assert status == 200
    return [json.loads(line) for line in body.splitlines()]


@in_docker
@pytest.mark.timeout(600)
def test_a_model_with_torch_is_built_and_answers_the_same_from_both_servers(transactional_db, user, task, tmp_path):
    archive = archive_bytes(project(tmp_path / "project", requirements="torch>=2,<3\n"))

    made = build(uploaded(user, task, archive, "majority"))

    assert (made.status, made.error_detail, made.model_server) == ("succeeded", "", "torchserve")
    assert "nothing is fetched" in made.steps.get(name="fetch requirements").output
    docker = sandboxes.by_name("docker")
    try:
        with docker.serve(made.image, policy=SandboxPolicy(memory_mb=2048), name="torchserve") as server:
            answers = ask_all(Client(str(server.socket), timeout=120, ready_seconds=120))
        assert [answer["label"] for answer in answers] == ["negative", "positive", "neutral"]
        assert answers == from_our_own_server(made.image, tmp_path)
    finally:
        docker.remove(made.image)


def from_our_own_server(image: str, tmp_path: Path) -> list[dict]:
    """The answers of the same image when our asgi runtime serves it."""
    sockets = tmp_path / "s"
    sockets.mkdir()
    sockets.chmod(0o777)
    options = ["--rm", "--network=none", "-e=DYNABENCH_MODEL_SERVER=asgi", "-e=DYNABENCH_SOCKET=/s/s"]
    server = subprocess.Popen(["docker", "run", *options, f"-v={sockets}:/s", image])
    try:
        return ask_all(Client(str(sockets / "s"), timeout=120, ready_seconds=120))
    finally:
        server.terminate()
        server.wait(30)


@in_docker
@pytest.mark.timeout(600)
def test_an_evaluation_gets_the_same_predictions_from_both_flavours(transactional_db, user, task, dataset):
    outcomes = []
    for model_server in ("asgi", "torchserve"):
        type(task.build_config).objects.update(model_server=model_server)
        submission = uploaded(user, task, archive_bytes(EXAMPLES / "majority"), "majority")
        made = build(Submission.objects.get(pk=submission.pk))
        inference = wanted_inference(made, dataset, made.submission.task.build_config)
        inference.save()
        runner = LocalRunner()
        try:
            runner.start(inference)
        finally:
            sandboxes.by_name("docker").remove(made.image)
        outcomes.append((made.model_server, runner.poll(inference)))

    (_, ours), (served_by, theirs) = outcomes
    assert served_by == "torchserve"
    assert (theirs.state, theirs.examples) == ("succeeded", 4)
    assert theirs.predictions_sha256 == ours.predictions_sha256


@in_docker
def test_another_torch_than_the_images_is_refused_with_its_line(transactional_db, user, task, tmp_path):
    archive = archive_bytes(project(tmp_path / "project", requirements="# ours\ntorch==1.13.1\n"))

    made = build(uploaded(user, task, archive, "majority"))

    assert (made.status, made.error_code) == ("failed", "bad_requirements")
    assert "line 2: torch==1.13.1" in made.error_detail
    assert "the image that models of this task are built on has torch 2." in made.error_detail


def test_without_docker_the_build_waits_and_says_what_to_do(transactional_db, user, task, settings):
    settings.SANDBOX = "process"

    waiting = build(uploaded(user, task, archive_bytes(EXAMPLES / "majority"), "majority"))

    assert (waiting.status, waiting.attempts) == ("queued", 0)
    assert "needs the docker sandbox" in waiting.waiting_for
    assert "choose asgi" in waiting.waiting_for


def test_without_apt_the_reason_says_what_else_would_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(BaseImageError, match="A base image that has Java 17 needs none"):
        torchserve_image.fetch_java(tmp_path)


@in_docker
def test_the_command_makes_the_image_and_names_it(capsys):
    call_command("base_image", "--model-server", "torchserve")

    assert capsys.readouterr().out.strip() == torchserve_image.tag_for(gpu=False)
    assert torchserve_image.ensure(print).offers["torchserve"] == "0.12.0"
    assert torchserve_image.labels_of("dynabench-no-such-image:1") == {}


def test_the_flavours_image_is_named_after_the_base(settings):
    settings.BASE_IMAGE = "registry.example:5000/our/python:3.11"
    assert torchserve_image.tag_for(gpu=False) == "registry.example:5000/our/python-torchserve:3.11"
    assert torchserve_image.tag_for(gpu=True) == "registry.example:5000/our/python-torchserve-gpu:3.11"

    settings.BASE_IMAGE = "registry.example:5000/python"
    assert torchserve_image.tag_for(gpu=False) == "registry.example:5000/python-torchserve:latest"
