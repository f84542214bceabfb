"""Talks to a model server through its unix socket."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from typing import Any

from builds.sandboxes.policy import ModelServer

POLL_SECONDS = 0.05
LAST_WORDS_SECONDS = 5.0


class ModelError(Exception):
    """The model's own failure, in words for its owner."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


class _ServerConnection(http.client.HTTPConnection):
    def __init__(self, server: ModelServer, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.server, self.patience = server, timeout

    def connect(self) -> None:
        self.sock = self.server.connect(self.patience)


class ModelClient:
    """One keep-alive connection; every answer is waited for until the deadline (monotonic seconds)."""

    def __init__(self, server: ModelServer, *, deadline: float, max_answer_bytes: int) -> None:
        self.server, self.deadline, self.max_answer_bytes = server, deadline, max_answer_bytes
        self.connection: _ServerConnection | None = None

    def wait_until_ready(self) -> None:
        """Return once /ping is 200; raise ModelError when loading failed, ended or took too long."""
        while True:
            try:
                status, body = self._request("GET", "/ping")
            except (OSError, http.client.HTTPException):
                status, body = 0, b""
            if status == 200:
                return
            if status == 500:
                raise ModelError(
                    "model_load_failed", f"The model could not be loaded.\n{body.decode(errors='replace')}"
                )
            if not self.server.alive():
                raise self._died("while the model was loading")
            if time.monotonic() > self.deadline:
                raise ModelError("model_load_timeout", "The model was not loaded within its time limit.")
            time.sleep(POLL_SECONDS)

    def predict(self, example: dict[str, Any]) -> bytes:
        """The answer to one example."""
        return self.invoke(json.dumps(example).encode(), "application/json")

    def predict_lines(self, lines: Sequence[bytes]) -> bytes:
        """The answers to a batch of examples, a line each."""
        return self.invoke(b"".join(lines), "application/jsonlines")

    def invoke(self, body: bytes, content_type: str) -> bytes:
        """The answer to a body as it is."""
        try:
            status, answer = self._request("POST", "/invocations", body, content_type)
        except TimeoutError as error:
            raise ModelError("model_timeout", "The model did not answer within its time limit.") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._died("while it was answering") from error
        if status != 200:
            raise ModelError("model_error", f"The model failed.\n{answer.decode(errors='replace')}")
        return answer

    def _died(self, when: str) -> ModelError:
        until = time.monotonic() + LAST_WORDS_SECONDS
        while (reason := self.server.failure()) is None and time.monotonic() < until:
            time.sleep(POLL_SECONDS)  # its connection breaks before the sandbox knows why
        reason = reason or "It closed the connection without an answer."
        return ModelError("model_server_died", f"The model server ended {when}. {reason}")

    def _request(self, method: str, path: str, body: bytes = b"", content_type: str = "") -> tuple[int, bytes]:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if self.connection is None:
            self.connection = _ServerConnection(self.server, left)
        elif self.connection.sock:
            self.connection.sock.settimeout(left)
        try:
            self.connection.request(method, path, body or None, {"Content-Type": content_type} if body else {})
            response = self.connection.getresponse()
            return response.status, self._read(response)
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        answer = response.read(self.max_answer_bytes + 1)
        if len(answer) > self.max_answer_bytes:
            self.close()
            raise ModelError("answer_too_long", f"The model answered more than {self.max_answer_bytes} bytes.")
        return answer

    def close(self) -> None:
        if self.connection:
            self.connection.close()
        self.connection = None
