"""Reads a `.tar.gz` that nobody vouches for, member by member, while it streams in.

Our own reader, because `tarfile` sizes its memory by what a header claims, has looped on bad ones, and its filters let
links touch files outside the target. Everything is counted as it comes, so memory stays flat. No Django here.
Formats: POSIX.1-2001 (ustar, PAX) and the GNU long names.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
INPUT_CHUNK = 64 * 1024
OUTPUT_CHUNK = 1024 * 1024
EXTENSION_MAX_BYTES = 64 * 1024  # a PAX or GNU header that renames the next member
SHOWN_CHARACTERS = 200
GZIP_MAGIC, GZIP_WINDOW = b"\x1f\x8b", 31
REGULAR, OLD_REGULAR, HARD_LINK, SYMLINK, FOLDER = b"0", b"\0", b"1", b"2", b"5"
PAX, PAX_GLOBAL = b"x", b"g"
GNU_NAMES = {b"L": "path", b"K": "linkpath"}
# Control and bidirectional characters, line separators, and the other system's path separator.
FORBIDDEN = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
AGAIN = "Make the archive again with `dynalab-cli upload` or `tar -czf`."


class ArchiveError(ValueError):
    """The archive is refused: `code` is a stable slug, `member` the file at fault (or ""), `str()` the sentence."""

    def __init__(self, code: str, rule: str, member: str = "") -> None:
        self.code, self.member = code, shown(member)
        super().__init__(f"{self.member}: {rule}" if member else rule)


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may cost. Sizes are bytes; `ratio` (expanded / compressed) counts once `ratio_from` came out."""

    compressed: int = 5 * 1024**3
    expanded: int = 20 * 1024**3
    ratio: int = 100
    ratio_from: int = 64 * 1024**2
    members: int = 20_000
    depth: int = 32
    path: int = 1024
    part: int = 255


@dataclass(slots=True)
class Member:
    """A file, folder or link: `name` relative to the archive's root (itself ""), `size` in bytes, `mode` 0644 or 0755.

    `link` is the target as it was written.
    """

    name: str
    kind: bytes
    size: int
    mode: int
    link: bytes


def shown(name: str) -> str:
    """`name` as it may be printed: no control or invisible characters, and not endless."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in name[:SHOWN_CHARACTERS])


def clean_name(raw: bytes, limits: Limits) -> str:
    """`raw` without a leading `./`; ArchiveError when it is not a plain relative path."""
    printed = raw.decode(errors="backslashreplace")
    if len(raw) > limits.path or any(len(part) > limits.part for part in raw.split(b"/")):
        rule = f"a path has at most {limits.path} bytes and a part of it {limits.part}. Give it a shorter name."
        raise ArchiveError("archive_member_too_long", rule, printed)
    name = printed.removeprefix("./")
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        raise ArchiveError("archive_member_escapes", "leads out of the archive. Use paths below its root.", printed)
    if FORBIDDEN.search(name) or {"", "."} & set(parts):
        rule = "empty parts, `.`, backslashes, control characters and bytes that are not UTF-8 are refused. Rename it."
        raise ArchiveError("archive_member_name", rule, printed)
    if len(parts) > limits.depth:
        rule = f"lies more than {limits.depth} folders deep. Move it up."
        raise ArchiveError("archive_member_too_deep", rule, printed)
    return name


class Tarball:
    """The members of `stream` in order. Take one's contents before you ask for the next; at the end all was read."""

    def __init__(self, stream: BinaryIO, limits: Limits) -> None:
        self._source, self._limits = _Inflated(stream, limits), limits

    def contents(self, member: Member) -> Iterator[bytes]:
        """The `member.size` bytes of a file, in pieces of at most 1 MiB."""
        yield from self._source.pieces(member.size)
        self._source.take(-member.size % BLOCK)

    def __iter__(self) -> Iterator[Member]:
        extensions: dict[str, bytes] = {}
        count = 0
        while (block := self._source.take(BLOCK)).strip(b"\0"):
            _check_sum(block)
            kind, size = block[156:157], self._number(block[124:136])
            if kind == PAX or kind in GNU_NAMES:
                self._extend(extensions, kind, size)
                continue
            if (count := count + 1) > self._limits.members:
                raise too_many_members(self._limits)
            if kind == PAX_GLOBAL:
                self._extend({"path": b"", "linkpath": b"", "size": b""}, kind, size)
                continue
            yield self._member(block, kind, extensions)
            extensions = {}
        self._end(extensions)

    def _member(self, block: bytes, kind: bytes, extensions: dict[str, bytes]) -> Member:
        raw = extensions.get("path", _header_name(block))
        size = extensions["size"] if "size" in extensions else block[124:136]
        if kind == OLD_REGULAR:
            kind = FOLDER if raw.endswith(b"/") else REGULAR
        if kind not in (REGULAR, HARD_LINK, SYMLINK, FOLDER):
            rule = f"has type {kind!r}; only files, folders and links to files of the archive are accepted. Exclude it."
            raise ArchiveError("archive_member_type", rule, raw.decode(errors="backslashreplace"))
        is_root = kind == FOLDER and raw in (b".", b"./")
        name = "" if is_root else clean_name(raw.removesuffix(b"/") if kind == FOLDER else raw, self._limits)
        link = extensions.get("linkpath", _text(block[157:257]))
        if len(link) > self._limits.path:
            raise ArchiveError("archive_link", f"links to a path of over {self._limits.path} bytes. Exclude it.", name)
        mode = 0o755 if self._number(block[100:108]) & 0o100 else 0o644
        member = Member(name, kind, self._number(size, decimal="size" in extensions), mode, link)
        if member.size and kind != REGULAR:
            raise ArchiveError("archive_bad_header", f"has a size, but is no file. {AGAIN}", name)
        return member

    def _extend(self, extensions: dict[str, bytes], kind: bytes, size: int) -> None:
        if size > EXTENSION_MAX_BYTES:
            raise bad_header(f"an extended header claims {size:,} bytes")
        contents = self._source.take(size)
        self._source.take(-size % BLOCK)
        new = {GNU_NAMES[kind]: contents.removesuffix(b"\0")} if kind in GNU_NAMES else _parse_pax(contents)
        if extensions.keys() & new.keys():
            raise bad_header("a member is named or sized twice, or for all members at once")
        extensions |= new

    def _number(self, field: bytes, *, decimal: bool = False) -> int:
        """A header's number: octal, GNU base 256, or a PAX decimal."""
        if field[:1] == b"\x80" and not decimal:
            number = int.from_bytes(field[1:], "big")
        else:
            digits = field if decimal else _text(field).strip(b" ")
            if not re.fullmatch(rb"[0-9]{1,20}" if decimal else rb"[0-7]*", digits):
                raise bad_header(f"{digits!r} is not a number")
            number = int(digits or b"0", 10 if decimal else 8)
        if number > self._limits.expanded:
            raise expands_too_far(self._limits)
        return number

    def _end(self, extensions: dict[str, bytes]) -> None:
        """The end mark is at least two blocks of zeros, and nothing but zeros may follow."""
        zeros = BLOCK
        for piece in self._source.rest():
            zeros += len(piece)
            if piece.strip(b"\0"):
                raise ArchiveError("archive_trailing_data", f"More data follows the end of the archive. {AGAIN}")
        if zeros < 2 * BLOCK or extensions:
            raise ArchiveError("archive_truncated", f"The archive has no end mark. {AGAIN}")


class _Inflated:
    """The bytes inside the one gzip member of `stream`, never more of them than `limits` allow."""

    def __init__(self, stream: BinaryIO, limits: Limits) -> None:
        self._stream, self._limits = stream, limits
        self._inflate = zlib.decompressobj(GZIP_WINDOW)
        self._buffer = io.BytesIO()
        self._received = self._expanded = 0

    def take(self, size: int) -> bytes:
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[bytes]:
        """Exactly `size` bytes; ArchiveError when the archive ends before."""
        while size:
            piece = self._buffer.read(size)
            if not piece and not self._refill():
                raise ArchiveError("archive_truncated", f"The archive ends in the middle. {AGAIN}")
            size -= len(piece)
            yield piece

    def rest(self) -> Iterator[bytes]:
        """All that is left, up to the checksum and the last byte of the stream."""
        yield self._buffer.read()
        while self._refill():
            yield self._buffer.read()
        if self._inflate.unused_data or self._stream.read(1):
            raise ArchiveError("archive_trailing_data", f"More data follows the end of the gzip file. {AGAIN}")

    def _refill(self) -> bool:
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._receive()
            try:
                piece = self._inflate.decompress(packed, OUTPUT_CHUNK)
            except zlib.error as error:
                raise ArchiveError("archive_corrupt", f"The archive is damaged ({error}). {AGAIN}") from error
            if piece:
                self._count(len(piece))
                self._buffer = io.BytesIO(piece)
                return True
        return False

    def _receive(self) -> bytes:
        packed = self._stream.read(INPUT_CHUNK)
        if not packed:
            raise ArchiveError("archive_truncated", f"The archive is empty or was cut off. {AGAIN}")
        if not self._received and not packed.startswith(GZIP_MAGIC[: len(packed)]):
            raise ArchiveError("archive_not_gzip", f"This is no gzip file; a .tar.gz is wanted. {AGAIN}")
        self._received += len(packed)
        if self._received > self._limits.compressed:
            raise ArchiveError("archive_too_big", f"The archive is bigger than {self._limits.compressed:,} bytes.")
        return packed

    def _count(self, size: int) -> None:
        self._expanded += size
        if self._expanded > self._limits.expanded:
            raise expands_too_far(self._limits)
        used = self._received - len(self._inflate.unconsumed_tail)
        if self._expanded > max(self._limits.ratio_from, self._limits.ratio * used):
            rule = f"The archive expands more than {self._limits.ratio} times. Leave out files that are mostly padding."
            raise ArchiveError("archive_ratio", rule)


def bad_header(what: str) -> ArchiveError:
    return ArchiveError("archive_bad_header", f"The archive holds something that is no tar header: {what}. {AGAIN}")


def expands_too_far(limits: Limits) -> ArchiveError:
    rule = f"The archive expands to more than {limits.expanded:,} bytes. Exclude what the model does not need."
    return ArchiveError("archive_expands_too_far", rule)


def too_many_members(limits: Limits) -> ArchiveError:
    rule = f"The archive has more than {limits.members:,} files and folders. Exclude what the model does not need."
    return ArchiveError("archive_too_many_members", rule)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _header_name(block: bytes) -> bytes:
    """Only POSIX headers have a prefix; GNU keeps times in its place."""
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" * bool(prefix) + _text(block[:100])


def _check_sum(block: bytes) -> None:
    written = _text(block[148:156]).strip(b" ")
    if not re.fullmatch(rb"[0-7]+", written) or int(written, 8) != sum(block[:148]) + sum(block[156:]) + 8 * ord(" "):
        raise bad_header("its checksum is wrong")


def _parse_pax(records: bytes) -> dict[str, bytes]:
    """What renames or resizes the next member, from records `<length> <key>=<value>\\n`; other keys mean nothing."""
    found: dict[str, bytes] = {}
    start = 0
    while start < len(records):
        length = re.compile(rb"[1-9][0-9]{0,5} ").match(records, start)
        end = start + int(length[0]) if length else 0
        key, equals, value = records[length.end() if length else 0 : end].partition(b"=")
        if not equals or not value.endswith(b"\n") or end > len(records):
            raise bad_header("a PAX record has a wrong length")
        if key.startswith(b"GNU.sparse"):
            raise ArchiveError("archive_member_type", f"Sparse files are refused. {AGAIN}")
        if key in (b"path", b"linkpath", b"size"):
            found[key.decode()] = value[:-1]
        start = end
    return found
