"""bubblewrap: namespaces and an almost empty file system around folder images."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from builds.sandboxes.folder import Mount
from builds.sandboxes.policy import MEBIBYTE, NOBODY, SandboxPolicy, SandboxUnavailable
from builds.sandboxes.probe import isolated
from builds.sandboxes.process import FolderSandbox
from builds.sandboxes.supervised import limited, required

SYSTEM_FOLDERS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# All of /etc that python and compilers need; anything else there could be a secret.
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/ssl/certs")
NAMESPACES = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
# Root changes to nobody inside, with these, and keeps none of them.
ROOT_NEEDS = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
BECOME_NOBODY = (
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "--bounding-set=-all",
    "--inh-caps=-all",
    "--no-new-privs",
)


class BwrapSandbox(FolderSandbox):
    """No network, no files but the mounted ones, user 65534, no capabilities."""

    name: ClassVar[str] = "bwrap"

    def self_test(self) -> None:
        try:
            finding = isolated(self)
        except SandboxUnavailable as error:
            hint = f"is {sys.base_prefix} readable to user {NOBODY}, and are user namespaces allowed?"
            raise SandboxUnavailable(f"{error} ({hint})") from error
        if finding.uid != NOBODY:
            raise SandboxUnavailable(f"code in it runs as user {finding.uid}, not {NOBODY}")
        if finding.version != platform.python_version():
            raise SandboxUnavailable(f"the python of {sys.base_prefix} can't be read by user {NOBODY} inside")

    def wrap(
        self, command: Sequence[str], *, mounts: Sequence[Mount], env: Mapping[str, str], policy: SandboxPolicy
    ) -> tuple[list[str], dict[str, str]]:
        is_root = os.geteuid() == 0
        argv = [required("bwrap"), *(as_root() if is_root else as_user()), *NAMESPACES]
        argv += ["--die-with-parent", "--new-session", *system(), *memory_file_systems(policy)]
        for mount in mounts:
            argv += parents(mount.inside)
            argv += ["--bind" if mount.writable else "--ro-bind", str(mount.host), mount.inside]
        argv += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
        for key, value in env.items():
            argv += ["--setenv", key, value]
        argv += ["--", *([required("setpriv"), *BECOME_NOBODY, "--"] if is_root else []), *command]
        # Process 1 keeps bwrap's own environment, readable inside: it gets none.
        return limited(argv, policy, NOBODY if is_root else os.getuid()), {}


def as_root() -> list[str]:
    return ["--cap-drop", "ALL", *(part for capability in ROOT_NEEDS for part in ("--cap-add", capability))]


def as_user() -> list[str]:
    return ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY), "--cap-drop", "ALL"]


def system() -> list[str]:
    """The interpreter, its libraries and nothing that was installed beside them."""
    argv = ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"]
    for path in map(Path, SYSTEM_FOLDERS):
        if path.is_symlink():
            argv += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            argv += ["--ro-bind", str(path), str(path)]
    for file in SYSTEM_FILES:
        argv += [*parents(file), "--ro-bind-try", file, file]
    prefix = Path(sys.base_prefix)
    if Path("/usr/local").is_dir() and not prefix.is_relative_to("/usr/local"):
        argv += ["--tmpfs", "/usr/local"]
    if not prefix.is_relative_to("/usr"):
        argv += [*parents(str(prefix)), "--ro-bind", str(prefix), str(prefix)]
    return argv + [part for packages in foreign_packages(prefix) for part in ("--tmpfs", str(packages))]


def parents(inside: str) -> list[str]:
    """Folders above a mount; bwrap would make them for root only."""
    above = [str(path) for path in reversed(Path(inside).parents[:-1])]
    return [part for path in above for part in ("--perms", "0755", "--dir", path)]


def foreign_packages(prefix: Path) -> list[Path]:
    """The host's own Python packages: a model must not lean on what is not in its image."""
    return [path for kind in ("site", "dist") for path in prefix.glob(f"lib/python3*/{kind}-packages") if path.is_dir()]


def memory_file_systems(policy: SandboxPolicy) -> list[str]:
    size = str(policy.tmpfs_mb * MEBIBYTE)
    folders = ("/tmp", "/dev/shm")
    return [part for folder in folders for part in ("--perms", "1777", "--size", size, "--tmpfs", folder)]
