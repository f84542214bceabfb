"""SageMaker's container contract as a plain ASGI application: `GET /ping`, `POST /invocations`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from dynabench_runtime.answers import JSON_LINES, answer_batch, answer_each, describe, parse_examples
from dynabench_runtime.image import Ask, Image

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Reply(NamedTuple):
    status: int
    content_type: bytes
    body: bytes


HEALTHY = Reply(200, JSON, b'{"status":"Healthy"}')
LOADING = Reply(503, JSON, b'{"status":"Loading"}')
NOT_FOUND = Reply(404, TEXT, b"Nothing here. Use GET /ping or POST /invocations.")


class ModelServer:
    """Loads the model and asks it in one thread, one request at a time; the event loop stays free for `/ping`."""

    def __init__(self, image: Image, load: Callable[[Image], Ask]) -> None:
        self.image = image
        self.predict_paths = {"/invocations", f"/predictions/{image.model_name}"}
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="handler")
        self.loading = self.thread.submit(load, image)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        reply = await self.reply(scope, receive)
        headers = [(b"content-type", reply.content_type), (b"content-length", b"%d" % len(reply.body))]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    async def reply(self, scope: dict[str, Any], receive: Receive) -> Reply:
        request = scope["method"], scope["path"]
        if request == ("GET", "/ping"):
            return self.health
        if request[0] != "POST" or request[1] not in self.predict_paths:
            return NOT_FOUND
        if self.health.status != HEALTHY.status:
            return self.health
        return await self.predict(dict(scope["headers"]).get(b"content-type", b""), receive)

    @property
    def health(self) -> Reply:
        """Healthy once the model has loaded, else what it waits for or died of."""
        return self.loaded if self.loading.done() else LOADING

    @functools.cached_property
    def loaded(self) -> Reply:
        error = self.loading.exception()
        return Reply(500, TEXT, describe(error).encode()) if error else HEALTHY

    async def predict(self, content_type: bytes, receive: Receive) -> Reply:
        """Answer every example of the body, in order; 400 and 413 are the sender's fault."""
        body = await read_body(receive, self.image.max_body_bytes)
        if body is None:
            return Reply(413, TEXT, b"The request is larger than max_request_size of this task's settings.")
        is_jsonlines = content_type.startswith(JSON_LINES)
        try:
            examples = parse_examples(body, is_jsonlines)
        except ValueError as error:
            return Reply(400, TEXT, str(error).encode())
        lines = await asyncio.get_running_loop().run_in_executor(self.thread, self.ask, body, examples)
        if len(lines) == 1 and not is_jsonlines:
            return Reply(200, JSON, lines[0])
        return Reply(200, JSON_LINES, b"".join(line + b"\n" for line in lines))

    def ask(self, body: bytes, examples: list[dict[str, Any]]) -> list[bytes]:
        handler = self.loading.result()
        return answer_batch(handler, body, examples) if self.image.is_batching else answer_each(handler, examples)


async def read_body(receive: Receive, limit: float) -> bytes | None:
    """The whole body, or None as soon as it is longer than `limit` bytes."""
    body = bytearray()
    has_more = True
    while has_more:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        has_more = message.get("more_body", False)
    return bytes(body)
