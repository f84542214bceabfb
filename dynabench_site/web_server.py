"""What gunicorn does besides its options: `gunicorn -c python:dynabench_site.web_server`."""

from __future__ import annotations

import socket
import struct
from typing import Any

SILENT_SECONDS = 20


def when_ready(server: Any) -> None:
    """A client that neither sends nor takes anything loses its connection: it must not keep a thread."""
    timeout = struct.pack("ll", SILENT_SECONDS, 0)
    for listener in server.LISTENERS:  # what they accept inherits it
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
