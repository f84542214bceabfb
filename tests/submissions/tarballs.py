"""Makes archives byte by byte, good ones and ones that no tar program would make."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

NAME, TASK = "my-model", "sentiment"
CONFIG_PATH = f"./.dynalab/{NAME}/setup_config.json"
CONFIG = {
    "task": TASK,
    "checkpoint": "checkpoint.pt",
    "handler": "handler.py",
    "requirements": False,
    "setup": False,
    "model_files": [],
    "exclude": [],
}
END = bytes(1024)


def octal(number, width):
    return f"{number:0{width - 1}o}".encode() + b"\0"


def block(name, *, kind=b"0", size=0, mode=0o644, link=b"", prefix=b"", magic=b"ustar\x0000", raw_size=None):
    """One tar header with a correct checksum, whatever else is wrong with it."""
    fields = [
        name.ljust(100, b"\0")[:100],
        octal(mode, 8),
        octal(0, 8) * 2,
        raw_size or octal(size, 12),
        octal(0, 12),
        b" " * 8,
        kind,
        link.ljust(100, b"\0")[:100],
        magic,
        bytes(80),
        prefix.ljust(155, b"\0"),
        bytes(12),
    ]
    header = b"".join(fields)
    assert len(header) == 512
    return header[:148] + octal(sum(header), 7) + b" " + header[155 + 1 :]


def padded(contents):
    return contents + bytes(-len(contents) % 512)


def file(name, contents=b"x", **options):
    name = name.encode() if isinstance(name, str) else name
    if len(name) > 100:
        return gnu_name(name) + block(name, size=len(contents), **options) + padded(contents)
    return block(name, size=len(contents), **options) + padded(contents)


def folder(name, **options):
    return block(name.encode(), kind=b"5", mode=0o755, **options)


def link(name, target, kind=b"2"):
    return block(name.encode(), kind=kind, link=target.encode())


def gnu_name(name, kind=b"L"):
    return file(b"././@LongLink", name + b"\0", kind=kind, magic=b"ustar  \0")


def record(key, value):
    """A PAX record; its length counts itself."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


def pax(*records, kind=b"x"):
    return file(b"PaxHeaders/x", b"".join(records), kind=kind)


def config(**changes):
    return file(CONFIG_PATH, json.dumps(CONFIG | changes).encode())


def project(*members, **changes):
    """The members of a good project and some more, without an end mark."""
    good = folder("./") + config(**changes) + file("./checkpoint.pt", b"weights") + file("./handler.py", b"pass\n")
    return good + b"".join(members)


def packed(members, end=END):
    return gzip.compress(members + end, mtime=0)


def write_project(root: Path, files: dict[str, bytes] | None = None, **changes) -> None:
    """The same project as files below `root`."""
    texts = {CONFIG_PATH: json.dumps(CONFIG | changes).encode(), "checkpoint.pt": b"weights", "handler.py": b"pass\n"}
    for name, contents in (texts | (files or {})).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)


def seen(root: Path) -> dict:
    """All that a stranger's write below `root` would change."""
    found = {}
    for path in [root, *root.rglob("*")]:
        stat = path.lstat()
        found[str(path)] = stat.st_mode, stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_nlink, stat.st_uid
    return found
