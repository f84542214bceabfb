"""What gunicorn does besides its options: `gunicorn -c python:dynabench_site.web_server`."""

from __future__ import annotations

import logging
import socket
import struct
from typing import Any

from dynabench_site.logs import StripQuery

SILENT_SECONDS = 20

worker_class = "gthread"
workers, threads, timeout = 2, 32, 120
graceful_timeout = 300  # uploads under way may end
control_socket_disable = True  # one in the home directory, which two servers would share
accesslog = "-"
access_log_format = '%(h)s "%(m)s %(U)s" %(s)s %(b)s %(L)s'  # without the query: the CLI sends its token in one


def on_starting(server: Any) -> None:
    """Gunicorn's own messages quote addresses; no query string may stand in them."""
    logging.getLogger("gunicorn.error").addFilter(StripQuery())


def when_ready(server: Any) -> None:
    """A client that neither sends nor takes anything loses its connection: it must not keep a thread."""
    timeout = struct.pack("ll", SILENT_SECONDS, 0)
    for listener in server.LISTENERS:  # what they accept inherits it
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
