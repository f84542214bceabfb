"""Makes the image that model images start from: Debian bookworm with Python 3.11."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from django.conf import settings
from docker.errors import ImageNotFound

from builds.sandboxes.engine import engine
from builds.sandboxes.policy import SandboxError

UPSTREAM = "python:3.11-slim-bookworm"
SUITE = "bookworm"
PACKAGES = ("python3", "python3-pip", "python3-venv", "ca-certificates")
REGISTRY_SECONDS = 10
PULL_SECONDS = 600
DEBOOTSTRAP_SECONDS = 900
# debootstrap copies the first two from this host; the rest is weight.
LEFT_OUT = (
    "etc/resolv.conf",
    "etc/hostname",
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/locale",
)
APT_SOURCE = re.compile(r"^(?:URIs:|deb(?: \[[^]]*\])?) *(https?://\S+)", re.MULTILINE)
PROXIES = ("http_proxy", "https_proxy", "no_proxy")


class BaseImageError(SandboxError):
    """The base image can't be made here; the message says why."""


def ensure(say: Callable[[str], object]) -> str:
    """The id of `settings.BASE_IMAGE`, which is made when absent; `say` is told the progress."""
    tag = settings.BASE_IMAGE
    if found := existing(tag):
        say(f"{tag} is there.")
        return found
    reason = pull(tag, say)
    if reason:
        say(f"{reason} Trying debootstrap instead.")
        bootstrap(tag, say)
    made = existing(tag)
    if made is None:
        raise BaseImageError(f"{tag} was made, but the docker engine does not show it.")
    say(f"{tag} is ready.")
    return made


def existing(tag: str) -> str | None:
    """The image's id, or None when the engine does not have it."""
    with engine() as client:
        try:
            return client.images.get(tag).id
        except ImageNotFound:
            return None


def pull(tag: str, say: Callable[[str], object]) -> str | None:
    """Why the upstream image can't be had from a registry; None once it is there under `tag`."""
    say(f"Asking the registry for {UPSTREAM} ...")
    try:
        with engine(timeout=REGISTRY_SECONDS) as client:
            client.images.get_registry_data(UPSTREAM)
        with engine(timeout=PULL_SECONDS) as client:
            client.images.pull(UPSTREAM).tag(tag)
    except SandboxError as error:
        return f"No registry answers ({str(error)[:200]})."
    return None


def bootstrap(tag: str, say: Callable[[str], object]) -> None:
    """Debian's own packages, from this host's apt mirror, become the image."""
    tool = shutil.which("debootstrap", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if os.geteuid() != 0 or tool is None:
        raise BaseImageError(f"{tag} is missing: no registry answers, and debootstrap needs root and to be installed.")
    mirror = apt_mirror()
    cache = settings.VAR / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="base-", dir=cache) as folder:
        say(f"debootstrap {SUITE} (about a minute) ...")
        debootstrap(tool, mirror, folder)
        say("Importing it into docker ...")
        import_folder(folder, tag)


def debootstrap(tool: str, mirror: str, folder: str) -> None:
    command = [tool, "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, folder, mirror]
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LANG": "C.UTF-8"}
    env |= {key: value for key, value in os.environ.items() if key.lower() in PROXIES}
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=DEBOOTSTRAP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BaseImageError(f"debootstrap did not finish within {DEBOOTSTRAP_SECONDS} s.") from error
    if done.returncode:
        raise BaseImageError(f"debootstrap failed: {(done.stdout + done.stderr).strip()[-500:]}")


def import_folder(folder: str, tag: str) -> None:
    """The folder's files are the image's only layer."""
    repository, _, version = tag.rpartition(":")
    excluded = [f"--exclude=./{path}/*" if "." not in path else f"--exclude=./{path}" for path in LEFT_OUT]
    command = ["tar", "--numeric-owner", "--one-file-system", *excluded, "-C", folder, "-c", "."]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as packing, engine(timeout=PULL_SECONDS) as client:
        client.api.import_image_from_stream(
            packing.stdout, repository=repository or version, tag=version if repository else "latest"
        )


def stanzas(file: Path) -> list[str]:
    """The entries of an apt source file: paragraphs in the newer format, lines in the older."""
    return file.read_text().split("\n\n" if file.suffix == ".sources" else "\n")


def apt_mirror() -> str:
    """The address from which this host gets Debian's packages of our suite."""
    etc = Path("/etc/apt")
    files = [etc / "sources.list", *sorted(etc.glob("sources.list.d/*"))]
    for stanza in (part for file in files if file.is_file() for part in stanzas(file)):
        text = "\n".join(line for line in stanza.splitlines() if not line.lstrip().startswith("#"))
        if re.search(rf"\b{SUITE}(?![\w-])", text) and (found := APT_SOURCE.search(text)):
            return found[1]
    raise BaseImageError(f"No apt source of this host has {SUITE}: load an image and name it in DYNABENCH_BASE_IMAGE.")
