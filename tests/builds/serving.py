"""A model server for tests: an image folder with one handler, and the process that serves it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import click
import h11
import uvicorn

from builds import mar, torchserve_image
from tests.builds.conformance import Client, json_lines

RUNTIME = Path(mar.__file__).parent / "runtime"
HANDLERS = Path(__file__).parent / "handlers"
JSON_LINES = "application/jsonlines"
TASK = {
    "task": "nli",
    "config": {
        "context": [{"name": "context", "type": "string"}],
        "input": [
            {"name": "hypothesis", "type": "string"},
            {"name": "label", "type": "multiclass", "labels": ["entailed", "neutral", "contradictory"]},
        ],
        "output": [{"name": "label"}, {"name": "prob", "type": "prob", "reference_name": "label"}],
    },
}


def answers(client, *examples):
    status, body = client.invoke(json_lines(examples), JSON_LINES)
    assert status == 200
    return [json.loads(line) for line in body.decode().split("\n")[:-1]]


class Server:
    """An image folder with one handler, and the process that serves it."""

    def __init__(self, root):
        self.root = root
        self.code = root / "home/model-server/code"
        self.dynabench = root / "opt/dynabench"
        self.model = self.dynabench / "model"
        self.client = Client(str(root / "s"))
        self.process = None
        self.code.mkdir(parents=True)

    def pack(self, handler, *model_files, torchserve_config=None):
        """What a build does: project, model folder, archive, image.json, runtime and its libraries."""
        shutil.copy(HANDLERS / f"{handler}.py", self.code / "handler.py")
        (self.code / "checkpoint.pt").write_text("weights")
        (self.code / "words.py").write_text("def words_of(text):\n    return {w.strip('.') for w in text.split()}\n")
        (self.code / "nli.json").write_text(json.dumps(TASK))
        setup = {"checkpoint": "checkpoint.pt", "handler": "handler.py", "model_files": list(model_files)}
        mar.lay_out(self.code, setup, name="ts7-nli", folder=self.model)
        sha256 = mar.write_mar(self.model, self.root / "model.mar")
        facts = {"task_code": "nli", "archive_sha256": sha256, "model_name": "ts7-nli"}
        facts["torchserve_config"] = torchserve_config or {}
        (self.dynabench / "image.json").write_text(json.dumps(facts))
        shutil.copytree(RUNTIME, self.dynabench / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
        (self.dynabench / "lib").mkdir()
        for package in (uvicorn, h11, click):
            folder = Path(package.__file__).parent
            shutil.copytree(folder, self.dynabench / "lib" / folder.name)

    def start(self):
        """Serve with the interpreter below the virtual environment, so that only `lib` has the server's needs."""
        command = [sys._base_executable, str(self.dynabench / "runtime/serve.py"), "serve"]
        environment = {"DYNABENCH_ROOT": str(self.root), "DYNABENCH_SOCKET": self.client.address}
        return self.run(command, environment)

    def run(self, command, environment=None):
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=(self.root / "log").open("wb")
        )
        return self.client

    def serve(self, handler, *model_files, **options):
        self.pack(handler, *model_files, **options)
        self.start().wait_until_loaded()
        return self.client

    def log(self):
        return (self.root / "log").read_text()


class TorchServe(Server):
    """The same folder in a container of the TorchServe flavour, isolated as in production."""

    def __init__(self, root):
        super().__init__(root)
        self.name = root.parent.name
        self.client = Client(str(root / "run/s"), timeout=120, ready_seconds=120)

    def start(self, entrypoint=("python3", "/opt/dynabench/runtime/serve.py", "serve")):
        (self.root / "run").mkdir()
        (self.root / "run").chmod(0o777)
        for folder in (self.root.parent, self.root):
            folder.chmod(0o755)
        isolation = ["--network=none", "--read-only", "--user=65534:65534", "--cap-drop=ALL", "--memory=1g"]
        isolation += ["--security-opt=no-new-privileges", "--pids-limit=256", "--tmpfs=/tmp:noexec,nosuid,nodev"]
        folders = [self.root / "home", *(self.root / "opt").iterdir()]
        mounts = [f"-v={folder}:/{folder.relative_to(self.root)}:ro" for folder in folders]
        mounts += [f"-v={self.root}/run:/run/dynabench", "-e=DYNABENCH_SOCKET=/run/dynabench/s"]
        options = ["--rm", f"--name={self.name}", "--workdir=/tmp", "-e=HOME=/tmp", f"--entrypoint={entrypoint[0]}"]
        image = torchserve_image.tag_for(gpu=False)
        return self.run(["docker", "run", *options, *isolation, *mounts, image, *entrypoint[1:]])

    def inside(self, *command):
        """What another process in the container prints."""
        return subprocess.check_output(["docker", "exec", self.name, *command], text=True)
