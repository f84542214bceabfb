"""Where the server listens and how it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, NoReturn

import uvicorn

from dynabench_runtime.server import ModelServer

PORT = 8080
GRACE_SECONDS = 1


def listen_options() -> dict[str, Any]:
    """Where to listen: the unix socket DYNABENCH_SOCKET if it is set, else port 8080 of all interfaces."""
    socket = os.environ.get("DYNABENCH_SOCKET")
    return {"uds": socket} if socket else {"host": "0.0.0.0", "port": PORT}  # noqa: S104


def serve(server: ModelServer, on_end: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGTERM or SIGINT, then leave at once, whatever the handler is doing."""

    def leave(*_: object) -> NoReturn:
        on_end()
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)  # process 1 of a container has no default action
    config = uvicorn.Config(
        server,
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
    leave()
