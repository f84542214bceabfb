"""The model archive (`.mar`) that TorchServe and our own runtime serve; same project, same bytes."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

ARCHIVER_VERSION = "0.12.0"  # of torch-model-archiver, whose format this is
MANIFEST = "MAR-INF/MANIFEST.json"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold
FILE_MODE = 0o644
GZIP_LEVEL = 1  # weights hardly compress


def lay_out(project: Path, setup: dict[str, Any], *, name: str, folder: Path) -> None:
    """Checkpoint, handler and `model_files`, flattened, and a manifest lie in `folder`, which is made.

    Args:
        setup: the project's `setup_config.json`; its paths are relative to `project`.
        name: the model's name in the manifest.

    Raises:
        ValueError: a path is no regular file of the project, or two files have the same name.
    """
    members = flatten(project, [setup["checkpoint"], setup["handler"], *setup["model_files"]])
    (folder / MANIFEST).parent.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps(manifest(setup, name), indent=2))
    for member, source in members.items():
        shutil.copyfile(source, folder / member)


def write_mar(folder: Path, dest: Path) -> str:
    """Write the files that were laid out in `folder`; return the sha256 (hex) of `dest`."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    with zipfile.ZipFile(dest, "w") as mar:
        for path in [*files, folder / MANIFEST]:
            with path.open("rb") as source, mar.open(zip_entry(path, folder), "w") as target:
                shutil.copyfileobj(source, target)
    with dest.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flatten(project: Path, paths: list[str]) -> dict[str, Path]:
    """The files by their bare name."""
    members: dict[str, Path] = {}
    origin = {PurePosixPath(MANIFEST).parts[0]: "the archive's own manifest"}
    for path in paths:
        member = PurePosixPath(path).name
        if member in origin:
            raise ValueError(f"{path} and {origin[member]} have the same name in the model's folder: rename one.")
        if "\\" in member:
            raise ValueError(f"{path!r} has a backslash in its name: rename it.")
        members[member], origin[member] = regular_file(project, path), path
    return members


def regular_file(project: Path, path: str) -> Path:
    root = project.resolve()
    source = root / path
    if source.resolve() != source or not source.is_relative_to(root) or not source.is_file():
        raise ValueError(f"{path} must be a regular file inside the project: no link, no folder, no '..'.")
    return source


def manifest(setup: dict[str, Any], name: str) -> dict[str, Any]:
    model = {
        "modelName": name,
        "serializedFile": PurePosixPath(setup["checkpoint"]).name,
        "handler": PurePosixPath(setup["handler"]).name,
        "modelVersion": "1.0",
    }
    return {"runtime": "python", "model": model, "archiverVersion": ARCHIVER_VERSION}


def zip_entry(path: Path, folder: Path) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(str(path.relative_to(folder)), EPOCH)
    entry.create_system = 3  # Unix, wherever this runs
    entry.external_attr = FILE_MODE << 16
    entry.file_size = path.stat().st_size  # so that members over 4 GiB get the larger header
    return entry


def write_archive(mar: Path, dest: Path) -> None:
    """Write the `.tar.gz` with the `.mar` inside that SageMaker unpacks to `/opt/ml/model`."""
    entry = tarfile.TarInfo(mar.name)
    entry.size, entry.mode = mar.stat().st_size, FILE_MODE
    with (
        dest.open("wb") as raw,
        gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
        mar.open("rb") as stream,
    ):
        archive.addfile(entry, stream)
