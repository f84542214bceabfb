"""What a batch transform job sends: its input cut into records, filtered, batched, and the answers put together."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from typing import Any

from tests.aws.calls import Refused

DEFAULT_PAYLOAD_MB = 6


class TooLong(Exception):
    """A record that does not fit in one request."""


def check(job: dict[str, Any]) -> None:
    """Refuse what this stand does not do, instead of doing something else."""
    processing, source = job.get("DataProcessing", {}), job["TransformInput"]["DataSource"]["S3DataSource"]
    try:
        wanted_fields(processing.get("InputFilter", "$"))
    except (ValueError, SyntaxError) as error:
        raise Refused("ValidationException", f"Invalid InputFilter: {processing['InputFilter']}") from error
    unknown = (
        source["S3DataType"] != "S3Prefix"
        or job["TransformInput"].get("SplitType", "None") not in ("None", "Line")
        or job["TransformInput"].get("CompressionType", "None") != "None"
        or processing.get("OutputFilter", "$") != "$"
        or processing.get("JoinSource", "None") != "None"
    )
    if unknown:
        raise Refused("ValidationException", "The stand splits by line, reads plain S3 prefixes and joins nothing.")


def wanted_fields(path: str) -> list[str] | None:
    """The names in `$['uid','statement']`; None for `$`, which is all."""
    if path == "$":
        return None
    names = ast.literal_eval(path.removeprefix("$"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(path)
    return names


def requests(job: dict[str, Any], content: bytes) -> Iterator[bytes]:
    """The bodies that the model is sent for one object."""
    if job["TransformInput"].get("SplitType") != "Line":
        yield content
        return
    names = wanted_fields(job.get("DataProcessing", {}).get("InputFilter", "$"))
    lines = [filtered(line, names) for line in content.split(b"\n") if line.strip()]
    limit = (job.get("MaxPayloadInMB", DEFAULT_PAYLOAD_MB) or 100) << 20
    if (longest := max(map(len, lines), default=0)) > limit:
        raise TooLong(f"A record has {longest} bytes, and MaxPayloadInMB allows {limit}.")
    yield from lines if job.get("BatchStrategy", "MultiRecord") == "SingleRecord" else batches(lines, limit)


def filtered(line: bytes, names: list[str] | None) -> bytes:
    if names is None:
        return line
    record = json.loads(line)
    return json.dumps({name: record[name] for name in names if name in record}, ensure_ascii=False).encode()


def batches(lines: list[bytes], limit: int) -> Iterator[bytes]:
    """As many whole lines as fit."""
    batch = b""
    for line in lines:
        if batch and len(batch) + len(line) + 1 > limit:
            yield batch
            batch = b""
        batch += line + b"\n"
    if batch:
        yield batch


def assembled(job: dict[str, Any], answers: list[bytes]) -> bytes:
    if job["TransformOutput"].get("AssembleWith", "None") != "Line":
        return b"".join(answers)
    return b"".join(answer if answer.endswith(b"\n") else answer + b"\n" for answer in answers)
