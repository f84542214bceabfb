"""JSON objects out of a file that nobody vouches for: bounded, strict, and with line numbers for the messages."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

Record = dict[str, Any]

MAX_LINE_BYTES = 1024 * 1024  # also of one object, however many lines it takes
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DECODER = msgspec.json.Decoder(Record | list[Record])
# A string to its closing quote, or to the end of the line; possessive, so that no input makes it slow.
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)')


class Unusable(ValueError):
    """Bytes that are not one good object: a short name of the broken rule, and a sentence."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule, self.detail = rule, detail


def numbered_lines(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank, without a byte order mark; a longer one than allowed ends the reading."""
    number, line = 1, source.readline(MAX_LINE_BYTES + 1).removeprefix(BYTE_ORDER_MARK)
    while line:
        if len(line) > MAX_LINE_BYTES:
            yield number, line
            return
        if not line.isspace():
            yield number, line
        number, line = number + 1, source.readline(MAX_LINE_BYTES + 1)


def cut_objects(source: BinaryIO) -> Iterator[tuple[int, bytearray]]:
    """The bytes of one JSON value after another, each with the number of its first line; too big ends the reading."""
    held, start, depth = bytearray(), 1, 0
    for number, line in numbered_lines(source):
        start = start if held else number
        held += line
        depth += _depth(line)
        if depth <= 0 or len(held) > MAX_LINE_BYTES:
            yield start, held
            if len(held) > MAX_LINE_BYTES:
                return
            held, depth = bytearray(), 0
    if held:
        yield start, held


def _depth(line: bytes) -> int:
    """How many more brackets the line opens than it closes; a string that is left open makes the object end here."""
    if line.count(b"{") == line.count(b"}") == 1 and line.startswith(b"{"):
        return 0  # the usual line, at a tenth of the price
    bare, strings = STRING.subn(rb"\1", line)
    if bare.count(b'"') != strings:
        return -MAX_LINE_BYTES
    return bare.count(b"{") + bare.count(b"[") - bare.count(b"}") - bare.count(b"]")


def decode(raw: bytes | bytearray) -> Record:
    """The one object in these bytes, also from a list of one; raise Unusable when there is another or none."""
    if len(raw) > MAX_LINE_BYTES:
        raise Unusable("too_big", f"the object is longer than {MAX_LINE_BYTES} bytes; the rest was not read.")
    try:
        value = DECODER.decode(raw)
        record = _only(value) if isinstance(value, list) else value
        if raw.count(b":") > _count_keys(record):  # else no key can be there twice; msgspec keeps the last
            json.loads(raw, object_pairs_hook=_distinct)
    except RecursionError:
        raise Unusable("depth", "the object is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unusable("json", f"not a JSON object: {_explained(raw, error)}.") from error
    return record


def _only(records: list[Record]) -> Record:
    if len(records) != 1:
        raise Unusable("json", f"a list of {len(records)} objects; write one object a line.")
    return records[0]


def _count_keys(record: Record) -> int:
    return len(record) + sum(len(value) for value in record.values() if isinstance(value, dict))


def _distinct(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise Unusable("duplicate_key", f"the key {repeated!r:.60} is there twice.")
    return record


def _explained(raw: bytes | bytearray, error: Exception) -> str:
    if b"NaN" in raw or b"Infinity" in raw:
        return f"NaN and Infinity are no JSON numbers ({error})"
    return str(error)
