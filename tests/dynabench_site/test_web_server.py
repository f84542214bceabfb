from __future__ import annotations

import logging
import socket
from types import SimpleNamespace

import pytest

from dynabench_site import web_server


def test_a_connection_on_which_nothing_comes_gives_its_thread_back(monkeypatch):
    monkeypatch.setattr(web_server, "SILENT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        web_server.when_ready(SimpleNamespace(LISTENERS=[SimpleNamespace(sock=listener)]))
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            accepted.setblocking(True)

            with accepted, pytest.raises(BlockingIOError):
                accepted.recv(1)


def test_gunicorns_own_messages_have_no_query_string(caplog):
    logger = logging.getLogger("gunicorn.error")
    web_server.on_starting(None)

    logger.error("Error handling request %s", "/authenticate/refresh_from_api?api_token=secret")

    assert caplog.messages == ["Error handling request /authenticate/refresh_from_api"]
