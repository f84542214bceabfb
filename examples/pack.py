"""Example projects as archives: laid out as the dynalab CLI does it, and the same bytes every time."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent
SHIPPED = ("vader", "textblob", "majority", "nli-overlap", "nli-majority", "flores-copy")


def pack(project: Path, dest: Path) -> str:
    """Write the project's `.tar.gz` to ``dest`` and return its sha256."""
    archive = archive_bytes(project)
    dest.write_bytes(archive)
    return hashlib.sha256(archive).hexdigest()


@cache
def known_sha256() -> frozenset[str]:
    """The sha256 of each archive that ships with the project, from the folders as this process found them."""
    return frozenset(hashlib.sha256(archive_bytes(EXAMPLES / name)).hexdigest() for name in SHIPPED)


def model_name(project: Path) -> str:
    """The name of the project's one model; ValueError where there is none, or more than one."""
    names = [path.parent.name for path in project.glob(".dynalab/*/setup_config.json")]
    if len(names) != 1:
        raise ValueError(
            f"{project} needs exactly one .dynalab/<model name>/setup_config.json and has {len(names)}: {sorted(names)}"
        )
    return names[0]


def setup_config(project: Path) -> dict[str, Any]:
    """The project's `setup_config.json`: its task, checkpoint, handler and what to install."""
    path = project / ".dynalab" / model_name(project) / "setup_config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    return config


def archive_bytes(project: Path) -> bytes:
    """The project as a gzipped tar of `./...` members, sorted, without times and owners."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for path in _members(project):
            tar.add(path, f"./{path.relative_to(project)}", recursive=False, filter=_anonymous)
    return packed.getvalue()


def _members(project: Path) -> list[Path]:
    excluded = _excluded(project)
    return sorted(path for path in project.rglob("*") if excluded.isdisjoint((path, *path.parents)))


def _excluded(project: Path) -> set[Path]:
    """What the CLI leaves out, and the byte code that running a handler in place leaves behind."""
    mine = project / ".dynalab" / model_name(project)
    return {
        mine / "tmp",
        project / ".dynalab_submissions",
        *(project / entry for entry in setup_config(project)["exclude"]),
        *(path for path in mine.parent.iterdir() if path != mine),
        *project.rglob("__pycache__"),
    }


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    executable = member.isdir() or member.mode & 0o100
    member.mode = 0o755 if executable else 0o644
    member.mtime = member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
