"""One pass over an archive: the rules that need more than one member to decide, and the files it writes, if any.

Only files and folders come out; a link to a file of the same archive becomes a copy; anything else refuses the whole.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Self

from submissions.setup_config import CONFIG_MAX_BYTES, check_setup_config, config_name
from submissions.tarballs import (
    FOLDER,
    HARD_LINK,
    OUTPUT_CHUNK,
    SYMLINK,
    ArchiveError,
    Limits,
    Member,
    Tarball,
    expands_too_far,
    shown,
    too_many_members,
)

DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Manifest:
    """An accepted archive: number of files, their bytes once unpacked, and `setup_config` with normalised paths.

    `content_digest` is of names, modes and contents: a project that is packed again has the same.
    """

    files: int
    size: int
    setup_config: dict[str, Any]
    content_digest: str


class Nowhere:
    """Where files go that are only checked."""

    def make_folder(self, name: str) -> None:
        """Do nothing."""

    def write(self, name: str, mode: int, pieces: Iterable[bytes]) -> None:
        """Let `pieces` pass by."""
        for _ in pieces:
            pass

    def copy(self, source: str, name: str, mode: int) -> None:
        """Do nothing."""


class NewFolder(Nowhere):
    """A folder made for this (0700), into which files are written: never through a link, never over another."""

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700)
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    def make_folder(self, name: str) -> None:
        """`name` is a folder with mode 0755; its parent exists."""
        os.mkdir(name, dir_fd=self._root)
        os.chmod(name, 0o755, dir_fd=self._root)

    def write(self, name: str, mode: int, pieces: Iterable[bytes]) -> None:
        """`name` is a new file with these contents; FileExistsError when it was there."""
        new = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=self._root)
        with os.fdopen(new, "wb") as file:
            file.writelines(pieces)
            os.fchmod(new, mode)

    def copy(self, source: str, name: str, mode: int) -> None:
        """`name` is a new file with the contents of the file `source`."""
        with os.fdopen(os.open(source, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._root), "rb") as file:
            self.write(name, mode, iter(lambda: file.read(OUTPUT_CHUNK), b""))


class Reading:
    """Reads one archive of `model_name` into `target`."""

    def __init__(self, target: Nowhere, model_name: str, limits: Limits) -> None:
        self._target, self._config_name, self._limits = target, config_name(model_name), limits
        self._config: bytes | None = None
        self._files: dict[str, Member] = {}
        self._digests: dict[str, str] = {}
        self._links: list[Member] = []
        self._folders = {""}
        self._taken: dict[str, str] = {}  # a name as a careless file system sees it: the name

    def read(self, stream: BinaryIO, task_code: str) -> Manifest:
        """What the archive holds, read to its last byte; ArchiveError names the member and the rule it breaks."""
        tarball = Tarball(stream, self._limits)
        for member in tarball:
            self._accept(member, tarball)
        self._copy_links()
        if self._config is None:
            rule = "is missing. Run `dynalab-cli init` with the model's name at the project's root and upload again."
            raise ArchiveError("archive_no_setup_config", rule, self._config_name)
        sizes = {name: file.size for name, file in self._files.items()}
        config = check_setup_config(self._config, name=self._config_name, files=sizes, task_code=task_code)
        return Manifest(len(sizes), sum(sizes.values()), config, self._content_digest())

    def _accept(self, member: Member, tarball: Tarball) -> None:
        if member.kind == FOLDER:
            self._add_folder(member.name)
            return
        self._add_folder(posixpath.dirname(member.name))
        self._take_name(member.name)
        if member.kind in (HARD_LINK, SYMLINK):
            self._links.append(member)
        else:
            self._add_file(member, tarball.contents(member))

    def _add_folder(self, name: str) -> None:
        if name in self._folders:
            return
        self._add_folder(posixpath.dirname(name))
        self._take_name(name)
        self._folders.add(name)
        self._target.make_folder(name)

    def _take_name(self, name: str) -> None:
        """Names, those of folders that a path only implies too, differ on any file system."""
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if folded in self._taken:
            rule = f"has the same name as {shown(self._taken[folded])!r} (case does not count). Rename or exclude one."
            raise ArchiveError("archive_member_duplicate", rule, name)
        if len(self._taken) >= self._limits.members:
            raise too_many_members(self._limits)
        self._taken[folded] = name

    def _add_file(self, file: Member, contents: Iterable[bytes]) -> None:
        if file.name == self._config_name:
            contents = [self._take_config(file, contents)]
        self._files[file.name] = file
        self._target.write(file.name, file.mode, self._digested(file.name, contents))

    def _digested(self, name: str, contents: Iterable[bytes]) -> Iterator[bytes]:
        digest = blake2b(digest_size=DIGEST_BYTES)
        for piece in contents:
            digest.update(piece)
            yield piece
        self._digests[name] = digest.hexdigest()

    def _content_digest(self) -> str:
        """Not of the archive's own bytes: tar writes down when a folder was last touched."""
        lines = (f"{name}\0{self._files[name].mode:o}\0{digest}\n" for name, digest in sorted(self._digests.items()))
        return blake2b("".join(lines).encode("utf-8", "surrogateescape"), digest_size=DIGEST_BYTES).hexdigest()

    def _take_config(self, file: Member, contents: Iterable[bytes]) -> bytes:
        if file.size > CONFIG_MAX_BYTES:
            rule = f"has more than {CONFIG_MAX_BYTES:,} bytes. Run `dynalab-cli init` again."
            raise ArchiveError("archive_setup_config_invalid", rule, file.name)
        self._config = b"".join(contents)
        return self._config

    def _copy_links(self) -> None:
        """No link is ever made: each becomes a copy of the file it names, and counts as one."""
        files, size = dict(self._files), sum(file.size for file in self._files.values())
        for link in self._links:
            source = files.get(_link_target(link))
            if source is None:
                where = shown(link.link.decode(errors="backslashreplace"))
                rule = f"links to {where!r}, which is no file of the archive. Exclude it or put the file in its place."
                raise ArchiveError("archive_link", rule, link.name)
            size += source.size
            if size > self._limits.expanded:
                raise expands_too_far(self._limits)
            self._files[link.name] = replace(source, name=link.name)
            self._digests[link.name] = self._digests[source.name]
            self._target.copy(source.name, link.name, source.mode)


def _link_target(link: Member) -> str:
    """The member a link means, found lexically: a symlink starts at its folder, a hard link at the root."""
    start = posixpath.dirname(link.name) if link.kind == SYMLINK else ""
    return posixpath.normpath(posixpath.join(start, link.link.decode(errors="backslashreplace")))
