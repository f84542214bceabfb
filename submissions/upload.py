"""An upload: the request's body flows to storage, a hash and the checker at once; no copy of it in memory or on disk.

The body is `multipart/form-data` with `name` and `taskCode` before `tarball`, so that we know whom and what we serve
before the first byte of the archive.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from django.contrib.auth.models import User
from django.core.files import File
from django.db.models.functions import Now
from django.http import HttpRequest
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from dynabench_site.api import ApiError
from dynabench_site.faults import NotYet
from submissions import services
from submissions.archives import DEFAULT_LIMITS, ArchiveError, Checker
from submissions.models import Submission

READ_BYTES = 64 * 1024
FIELD_MAX_BYTES = 256
MAX_PARTS = 8
FORM_MAX_BYTES = 64 * 1024  # all of the body but the archive
FIELDS = ("name", "taskCode")
ARCHIVE_FIELD = "tarball"
TOUCH_SECONDS = 5.0
PACE_SECONDS = 30.0
LEAST_BYTES_PER_SECOND = 1024
DRAIN_BYTES = 64 * 1024**2
DRAIN_SECONDS = 10.0


class ConnectionBroken(ApiError):
    """The client is gone, or has said nothing for too long: there is nothing more to read."""

    def __init__(self) -> None:
        super().__init__(400, "bad_upload", "The connection broke before the whole body had come.")


@dataclass(frozen=True, slots=True)
class UploadStream:
    """The form's fields, and the archive's bytes, which are read from the network as they are asked for."""

    name: str
    task_code: str
    chunks: Iterator[bytes]


def receive(request: HttpRequest, *, owner: User) -> Submission:
    """The archive in `request` is stored and its build asked for; returns the submission, or the one it repeats.

    Raises ApiError, after which nothing of the upload is left: no object, row or slot.
    """
    try:
        return _receive(read_fields(request), owner)
    except ConnectionBroken:
        raise
    except (ApiError, NotYet):
        drain(request)
        raise


def read_fields(request: HttpRequest, *, max_bytes: int = DEFAULT_LIMITS.compressed) -> UploadStream:
    """The fields before the archive, whose chunks are still to come; `max_bytes` is for the archive.

    Raises ApiError 400, 411 or 413; so does reading the chunks.
    """
    _check_length(request, max_bytes)
    events = _events(request)
    fields: dict[str, str] = {}
    for part in events:
        if part.name == ARCHIVE_FIELD:
            _check_fields(fields)
            return UploadStream(fields["name"], fields["taskCode"], _archive(events, max_bytes))
        if part.name in fields:
            raise ApiError(400, "bad_upload", f"The field {part.name} comes twice. Send it once.")
        fields[part.name] = _value(part, events)
    raise ApiError(400, "missing_field", f"The form needs the fields {', '.join(FIELDS)} and {ARCHIVE_FIELD} (a file).")


def drain(request: HttpRequest) -> None:
    """Read what is still coming, within reason: a client whose connection we reset never sees our answer."""
    end, left = time.monotonic() + DRAIN_SECONDS, DRAIN_BYTES
    try:
        while left > 0 and time.monotonic() < end and (chunk := request.read(READ_BYTES)):
            left -= len(chunk)
    except OSError:
        return  # the client is gone


class Arrival(io.RawIOBase):
    """The archive as a file to store: whoever reads it also hashes it, checks it and keeps its row alive."""

    def __init__(
        self, chunks: Iterator[bytes], submission: Submission, checker: Checker, *, pace_seconds: float = PACE_SECONDS
    ) -> None:
        self.size, self.sha256 = 0, hashlib.sha256()
        self._submission, self._checker = submission, checker
        self._chunks, self._rest = self._watch(chunks), memoryview(b"")
        self._pace_seconds, self._paced_size = pace_seconds, 0
        self._touched_at = self._paced_at = time.monotonic()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what comes next; 0 at the end, also when the checker wants no more."""
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def touch(self) -> None:
        """The sweep knows that the upload goes on; ApiError when it has given it up already."""
        row = Submission.objects.filter(pk=self._submission.pk, status=Submission.Status.RECEIVING)
        if not row.update(touched_at=Now()):
            raise ApiError(408, "upload_given_up", "Nothing came for minutes, so the upload was given up. Try again.")
        self._touched_at = time.monotonic()

    def _watch(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.size += len(chunk)
            self.sha256.update(chunk)
            self._keep_alive()
            if not self._checker.write(chunk):
                return
            yield chunk

    def _keep_alive(self) -> None:
        now = time.monotonic()
        seconds = now - self._paced_at
        if seconds >= self._pace_seconds:
            if self.size - self._paced_size < seconds * LEAST_BYTES_PER_SECOND:
                detail = f"An upload needs at least {LEAST_BYTES_PER_SECOND} bytes a second."
                raise ApiError(408, "upload_too_slow", detail)
            self._paced_at, self._paced_size = now, self.size
        if now - self._touched_at >= min(TOUCH_SECONDS, self._pace_seconds):
            self.touch()


def _receive(upload: UploadStream, owner: User) -> Submission:
    task = services.submitable_task(upload.task_code)
    submission = services.reserve(owner=owner, task=task, name=upload.name)
    with ExitStack() as undo:
        undo.callback(services.discard, submission)
        try:
            accepted = _store(upload, submission)
        except ArchiveError as error:
            raise ApiError(422, error.code, str(error)) from error
        undo.pop_all()
    return accepted


def _store(upload: UploadStream, submission: Submission) -> Submission:
    task = submission.task
    with Checker(model_name=submission.name, task_code=task.code) as checker:
        arrival = Arrival(upload.chunks, submission, checker)
        task.storage().save(submission.archive_key, File(io.BufferedReader(arrival, READ_BYTES)))
        manifest = checker.verdict()
    arrival.touch()
    return services.accept(submission, manifest, size=arrival.size, sha256=arrival.sha256.hexdigest())


def _check_length(request: HttpRequest, max_bytes: int) -> None:
    length = request.META.get("CONTENT_LENGTH") or ""
    if not (length.isascii() and length.isdigit()):
        raise ApiError(411, "length_required", "Say how long the body is: send a Content-Length, not chunks.")
    if int(length) > max_bytes + FORM_MAX_BYTES:
        raise _too_big(max_bytes)


def _too_big(max_bytes: int) -> ApiError:
    return ApiError(413, "archive_too_big", f"An archive has at most {max_bytes:,} bytes. Exclude what is not needed.")


def _events(request: HttpRequest) -> Iterator[Any]:
    """The parser's: a MultipartSegment when a part begins, its bytes, None when it has ended."""
    kind, options = parse_options_header(request.META.get("CONTENT_TYPE", ""))
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise ApiError(400, "bad_upload", "The body must be multipart/form-data with a boundary.")
    try:
        parser = PushMultipartParser(options["boundary"], max_segment_count=MAX_PARTS)
        while chunk := request.read(READ_BYTES):
            yield from parser.parse(chunk)
        parser.close()
    except MultipartError as error:
        raise ApiError(400, "bad_upload", f"The body is not complete multipart/form-data: {error}.") from error
    except OSError as error:
        raise ConnectionBroken from error


def _contents(events: Iterator[Any]) -> Iterator[bytes]:
    return takewhile(lambda event: event is not None, events)


def _value(part: MultipartSegment, events: Iterator[Any]) -> str:
    value = b""
    for piece in _contents(events):
        value += piece
        if len(value) > FIELD_MAX_BYTES:
            raise ApiError(400, "bad_upload", f"The field {part.name} has over {FIELD_MAX_BYTES} bytes.")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ApiError(400, "bad_upload", f"The field {part.name} is not UTF-8.") from error


def _check_fields(fields: dict[str, str]) -> None:
    missing = [key for key in FIELDS if key not in fields]
    if missing:
        detail = (
            f"Send {' and '.join(missing)} before {ARCHIVE_FIELD}: we look at the form while the archive streams in."
        )
        raise ApiError(400, "fields_first", detail)


def _archive(events: Iterator[Any], max_bytes: int) -> Iterator[bytes]:
    size = 0
    for chunk in _contents(events):
        size += len(chunk)
        if size > max_bytes:
            raise _too_big(max_bytes)
        yield chunk
    for _ in events:
        raise ApiError(400, "bad_upload", f"Nothing may come after {ARCHIVE_FIELD}. Send it last.")
