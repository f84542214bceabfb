"""One example through a model: when its build ends, and when somebody asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from builds.model_client import ModelClient, ModelError
from builds.sandboxes.policy import ModelServer
from tasks_catalog.formats import FormatError, TaskFormat

MAX_ANSWER_BYTES = 1 << 20


def ask(server: ModelServer, example: dict[str, Any], *, deadline: float) -> bytes:
    """The answer of a server that is starting, by then (monotonic seconds); a ModelError ends with what it printed."""
    client = ModelClient(server, deadline=deadline, max_answer_bytes=MAX_ANSWER_BYTES)
    try:
        client.wait_until_ready()
        return client.predict(example)
    except ModelError as error:
        raise ModelError(error.code, f"{error.detail}\n{server.log_tail()}".strip()) from error
    finally:
        client.close()


def checked(answer: bytes, example: Mapping[str, Any], task_format: TaskFormat) -> dict[str, Any]:
    """The answer as the task wants it; ModelError says what is wrong with it."""
    try:
        record = msgspec.json.decode(answer)
        record = record[0] if isinstance(record, list) and len(record) == 1 else record
        if not isinstance(record, dict):
            raise FormatError("it is not one JSON object.")
        if "dynabench_error" in record:
            raise ModelError("handler_failed", f"The handler failed on one example:\n{record['dynabench_error']}")
        record = task_format.check_prediction(record)
    except (msgspec.DecodeError, FormatError) as error:
        raise ModelError("bad_answer", f"The handler's answer does not fit the task: {error}") from error
    if record["id"] != example["uid"]:
        detail = f"The handler answered id {record['id']!r} to the example with uid {example['uid']!r}."
        raise ModelError("wrong_id", detail + " Answer with the uid of the example as `id`.")
    return record
