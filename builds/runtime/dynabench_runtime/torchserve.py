"""TorchServe behind our own server, which starts it, waits for the model and asks it one example at a time."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from dynabench_runtime.answers import JSON_LINES
from dynabench_runtime.image import HandlerError, Image
from dynabench_runtime.listening import serve
from dynabench_runtime.server import ModelServer

HERE = Path(__file__).resolve().parent.parent / "torchserve"
MODEL = "model"
MANIFEST = {
    "runtime": "python",
    "model": {"modelName": MODEL, "handler": "dynabench_worker", "configFile": "config.yaml", "modelVersion": "1.0"},
    "archiverVersion": "0.12.0",
}
POLL_SECONDS = 0.1
DAY = 24 * 3600
MEBIBYTE = 1 << 20
# Sizes and the time to load are limited by who runs the image; the time for an answer is TorchServe's to limit.
DEFAULTS = {"max_request_size": 100 * MEBIBYTE, "max_response_size": 100 * MEBIBYTE}
ANSWER_SECONDS = 120
# A worker that has ended is started again, once, and must then load no slower than so many times the first time.
RETRY_SECONDS = 1
PATIENCE = 5
JAVA = ("java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError")
WORKER_DIED = b"Worker died"
# Where the control group counts, in its second and in its first version.
MEMORY_EVENTS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
KILLED = 128 + signal.SIGKILL


class TorchServe:
    """One TorchServe with one worker, in a process group of its own; nothing of it listens but in `folder`."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.folder = Path(tempfile.mkdtemp(prefix="torchserve-"))
        self.inference = Connection(self.folder / "inference.sock")
        (self.folder / "config.properties").write_text(self.properties())
        self.write_model(self.folder / "store" / MODEL)
        self.process = subprocess.Popen(
            self.command(), cwd=self.folder, env=self.environment(), stdin=subprocess.DEVNULL, start_new_session=True
        )

    def command(self) -> list[str]:
        package = Path(importlib.util.find_spec("ts").origin).parent
        frontend = package / "frontend"
        options = [
            f"-Djava.io.tmpdir={self.folder}",
            f"-Djava.library.path={frontend}",
            f"-Dlog4j.configurationFile=file://{HERE}/log4j2.xml",
            "-Dorg.apache.logging.log4j.simplelog.StatusLogger.level=OFF",
            f"-Dmodel_server_home={package.parent}",
        ]
        server = ["-cp", f"{frontend}/*", "org.pytorch.serve.ModelServer", "--python", sys.executable, "-ncs"]
        return [*JAVA, *options, *server, "-f", str(self.folder / "config.properties")]

    def environment(self) -> dict[str, str]:
        """TorchServe's own imports find the user's packages first, as the handler's will."""
        path = f"{HERE}:{self.image.root}/opt/dynabench/packages"
        return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore:Failed to initialize NumPy"}

    def properties(self) -> str:
        """The task's settings, and ours, which win."""
        ours = {f"{name}_address": f"unix:{self.folder}/{name}.sock" for name in ("inference", "management", "metrics")}
        ours |= {"model_store": self.folder / "store", "load_models": MODEL}
        ours |= {"disable_token_authorization": True, "disable_system_metrics": True}
        settings = {**DEFAULTS, **self.image.torchserve_config, **ours}
        return "".join(f"{key}={typed(value)}\n" for key, value in settings.items())

    def write_model(self, folder: Path) -> None:
        """What TorchServe takes for a model is our worker, which has the image's own model from `Image.here()`."""
        seconds = self.image.torchserve_config.get("default_response_timeout", ANSWER_SECONDS)
        config = {"responseTimeout": int(seconds), "startupTimeout": DAY, "maxRetryTimeoutInSec": RETRY_SECONDS}
        (folder / "MAR-INF").mkdir(parents=True)
        (folder / "MAR-INF/MANIFEST.json").write_text(json.dumps(MANIFEST))
        (folder / "config.yaml").write_text(json.dumps({**config, "minWorkers": 1, "maxWorkers": 1}))

    def load(self, _: Image) -> Callable[[Any], list[bytes]]:
        """Ask, once the worker has loaded the model.

        Raises:
            HandlerError: with what the worker said, or that it ended.
        """
        started = time.monotonic()
        management = Connection(self.folder / "management.sock")
        while not self.is_worker_ready(management):
            time.sleep(POLL_SECONDS)
        if error := self.ask(b""):
            raise HandlerError(error.decode())
        patience = PATIENCE * (time.monotonic() - started)
        threading.Thread(target=self.watch_worker, args=[patience], daemon=True).start()
        return lambda body: [self.ask(body)]

    def is_worker_ready(self, management: Connection) -> bool:
        try:
            is_healthy = self.is_healthy()
            _, description = management.exchange("GET", f"/models/{MODEL}")
        except OSError:
            return False  # it does not listen yet
        if not is_healthy:
            end_if_memory_was_short()
            raise HandlerError("The model's process ended while the model was loading; the log says more.")
        return re.search(rb'"status": *"READY"', description) is not None

    def is_healthy(self) -> bool:
        """Unless it has given up on its worker."""
        return Connection(self.inference.path).exchange("GET", "/ping")[0] == http.client.OK

    def ask(self, body: Any) -> bytes:
        """The worker's answer to one example (a dict), or to a batch of them (bytes)."""
        is_example = isinstance(body, dict)
        content = json.dumps(body).encode() if is_example else body
        content_type = "application/json" if is_example else JSON_LINES.decode()
        status, answer = self.inference.exchange("POST", f"/predictions/{MODEL}", content, content_type)
        if status == http.client.OK:
            return answer
        if WORKER_DIED not in answer:
            raise HandlerError(f"TorchServe answered {status}: {answer.decode(errors='replace')}")
        end_if_memory_was_short()
        raise HandlerError(
            "The model's process ended, or did not answer within TorchServe's default_response_timeout; "
            "it was started again for the next example."
        )

    def watch_worker(self, patience: float) -> None:
        """End this server when the worker stays away for so many seconds: questions to it would wait forever."""
        seen = time.monotonic()
        while time.monotonic() - seen < patience:
            time.sleep(1)
            seen = time.monotonic() if self.is_healthy() else seen
        end("TorchServe could not start the model's process again.", 1)

    def watch(self) -> None:
        code = self.process.wait()
        end(f"TorchServe ended with exit code {code}.", 1)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)


class Connection(http.client.HTTPConnection):
    """Keeps one connection to a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))

    def exchange(self, method: str, address: str, body: bytes = b"", content_type: str = "") -> tuple[int, bytes]:
        """Status and body."""
        try:
            self.request(method, address, body, {"Content-Type": content_type} if content_type else {})
            reply = self.getresponse()
            return reply.status, reply.read()
        except (OSError, http.client.HTTPException):
            self.close()  # the next exchange connects anew
            raise


def typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def end_if_memory_was_short() -> None:
    """The kernel may kill the worker alone; whoever runs the image learns of it as he would of any server's end."""
    events = "".join(path.read_text() for path in MEMORY_EVENTS if path.is_file())
    if re.search(r"^oom_kill [1-9]", events, re.MULTILINE):
        end("The model's process was killed for want of memory.", KILLED)


def end(reason: str, code: int) -> NoReturn:
    sys.stderr.write(f"{reason}\n")
    os._exit(code)


def main() -> None:
    """Serve until SIGTERM, which also ends TorchServe and its worker."""
    image = Image.here()
    torchserve = TorchServe(image)
    threading.Thread(target=torchserve.watch, daemon=True).start()
    serve(ModelServer(image, torchserve.load), on_end=torchserve.kill)


if __name__ == "__main__":
    main()
