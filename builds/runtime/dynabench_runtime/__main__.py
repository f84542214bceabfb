"""Start the server; the model loads while `/ping` already answers."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import uvicorn

from dynabench_runtime.image import Image
from dynabench_runtime.server import ModelServer

PORT = 8080
GRACE_SECONDS = 1


def listen_options() -> dict[str, Any]:
    """Where to listen: the unix socket DYNABENCH_SOCKET if it is set, else port 8080 of all interfaces."""
    socket = os.environ.get("DYNABENCH_SOCKET")
    return {"uds": socket} if socket else {"host": "0.0.0.0", "port": PORT}  # noqa: S104


def serve(image: Image) -> None:
    """Serve until SIGTERM or SIGINT, then leave at once, whatever the handler is doing."""
    sys.path.insert(1, str(image.model_dir))  # after our shims, before everything else
    os.chdir(image.model_dir)  # handlers open their files by bare name, as in TorchServe
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # process 1 of a container has no default action
    config = uvicorn.Config(
        ModelServer(image),
        lifespan="off",
        loop="asyncio",
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        **listen_options(),
    )
    uvicorn.Server(config).run()
    os._exit(0)


if __name__ == "__main__":
    serve(Image.read(Path(os.environ.get("DYNABENCH_ROOT", "/"))))
