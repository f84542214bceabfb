"""Examples in, lines out: one line of strict JSON for each example, whatever the handler does."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from concurrent.futures import thread
from pathlib import Path
from types import TracebackType
from typing import Any

from dynabench_runtime.image import Ask, HandlerError

JSON_LINES = b"application/jsonlines"
ERROR_LINES = 20
ERROR_CHARACTERS = 4000
SHOWN_CHARACTERS = 80
MACHINERY = (str(Path(__file__).parent.parent), importlib.__file__, "<frozen importlib", thread.__file__)


def parse_examples(body: bytes, is_jsonlines: bool) -> list[dict[str, Any]]:
    """One example from a JSON object, several from JSON lines (recognised without their content type, too).

    Raises:
        ValueError: the request is at fault; the message names the line.
    """
    if not is_jsonlines:
        try:
            return [as_object(json.loads(body))]
        except json.JSONDecodeError:
            pass
    lines = [(number, line) for number, line in enumerate(body.split(b"\n"), start=1) if line.strip()]
    if not lines:
        raise ValueError("The request has no example: send one JSON object, or one a line.")
    return [parse_line(number, line) for number, line in lines]


def parse_line(number: int, line: bytes) -> dict[str, Any]:
    try:
        return as_object(json.loads(line))
    except ValueError as error:
        raise ValueError(f"Line {number} of the request is not an example: {error}") from error


def as_object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"An example must be a JSON object, not a {type(value).__name__}.")
    return value


def answer_each(ask: Ask, examples: list[dict[str, Any]]) -> list[bytes]:
    """Ask for one example at a time; an example that fails gets an error line and the others go on."""
    return [answer_one(ask, example) for example in examples]


def answer_batch(ask: Ask, body: bytes, examples: list[dict[str, Any]]) -> list[bytes]:
    """Ask once with the bytes of all examples; the handler returns one text with a line for each."""
    try:
        lines = split_lines(ask(body), len(examples))
    except BaseException as error:  # noqa: BLE001  a handler may raise anything, SystemExit included
        text = describe(error)
        return [error_line(example, text) for example in examples]
    return [answer_one(lambda _, line=line: [line], example) for line, example in zip(lines, examples, strict=True)]


def answer_one(ask: Ask, example: dict[str, Any]) -> bytes:
    """The answer as a line without its end, or `{"id", "dynabench_error"}`."""
    try:
        return encode(the_answer(ask(example)))
    except BaseException as error:  # noqa: BLE001  a handler may raise anything, SystemExit included
        return error_line(example, describe(error))


def the_answer(returned: object) -> dict[str, Any]:
    """The one record in what the handler returned."""
    answer = the_element(returned)
    if isinstance(answer, (str, bytes, bytearray)):
        try:
            answer = json.loads(answer)
        except ValueError as error:
            raise HandlerError(f"The answer is text but not JSON: {answer[:SHOWN_CHARACTERS]!r} ({error}).") from error
    if not isinstance(answer, dict):
        raise HandlerError(f"An answer must be a dict with id and the task's output fields, not {shape(answer)}.")
    return answer


def the_element(returned: object) -> object:
    if not isinstance(returned, list) or len(returned) != 1:
        raise HandlerError(f"handle() must return a list with one element; it returned {shape(returned)}.")
    return returned[0]


def shape(value: object) -> str:
    kind = type(value).__name__
    return f"a list of {len(value)}" if isinstance(value, list) else f"{kind} {value!r}"[:SHOWN_CHARACTERS]


def split_lines(returned: object, expected: int) -> list[str]:
    """The lines of a batch's answer, as many as there are examples."""
    text = the_element(returned)
    if isinstance(text, (bytes, bytearray)):
        text = text.decode()
    if not isinstance(text, str):
        raise HandlerError(f"A batching handler must return [text] with one JSON object a line, not {shape(text)}.")
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) != expected:
        raise HandlerError(f"The handler answered {len(lines)} lines to {expected} examples; it must answer each once.")
    return lines


def encode(answer: dict[str, Any]) -> bytes:
    """One line of strict JSON: no NaN, no infinity, no lone surrogate."""
    try:
        return json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError) as error:
        raise HandlerError(
            f"The answer is not valid JSON: {error}. Use text, finite numbers, lists and dicts "
            "(float(x) for a number of numpy or torch)."
        ) from error


def error_line(example: dict[str, Any], text: str) -> bytes:
    tail = "\n".join(text.splitlines()[-ERROR_LINES:])[-ERROR_CHARACTERS:]
    return json.dumps({"id": example.get("uid"), "dynabench_error": tail}).encode()


def describe(error: BaseException) -> str:
    """The traceback from the user's first frame on, also written to the log; our own errors say all in a sentence."""
    if isinstance(error, HandlerError):
        text = str(error)
    else:
        text = "".join(traceback.format_exception(type(error), error, users_frames(error)))
    text = text.encode("utf-8", "replace").decode()
    sys.stderr.write(text + "\n")
    return text


def users_frames(error: BaseException) -> TracebackType | None:
    """The error's traceback without the frames of the server and of Python's import system at its top."""
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename.startswith(MACHINERY):
        frames = frames.tb_next
    return frames
