"""A model's requirements in two phases: fetched by us without running their code, installed without network."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pip
from django.conf import settings
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from builds import sdists
from builds.sandboxes.folder import DiskWatch, erase, job_mark, seal
from builds.sandboxes.policy import MEBIBYTE, Command, LimitExceeded, Log, SandboxPolicy
from builds.sandboxes.supervised import JOB_VARIABLE, Supervised

MAX_LINES = 1000
# Our runtime has modules of these names; on the index, `ts` is somebody else's.
OURS = frozenset({"dynalab", "ts", "torchserve"})
BUILD_TOOLS = ("setuptools", "wheel")
HASH = re.compile(r"\s--hash=(?:sha256|sha384|sha512):[0-9a-f]+")
COMMENT = re.compile(r"(^|\s)#.*$")
RUNTIME_REQUIREMENTS = Path(__file__).parent / "runtime" / "requirements.txt"

PIP_INSIDE = "/opt/dynabench-build/pip"
WHEELS_INSIDE = "/opt/dynabench-build/wheels"
PACKAGES_INSIDE = "/opt/dynabench/packages"
CODE_INSIDE = "/home/model-server/code"
REQUIREMENTS = "requirements.txt"
PIP_OPTIONS = ("--only-binary=:all:", "--quiet", "--no-input", "--disable-pip-version-check")
FETCH = SandboxPolicy(memory_mb=2048, deadline=600, log_cap=2 * MEBIBYTE)

FROM_WHEELS = ("--no-index", "--find-links", WHEELS_INSIDE, "--no-cache-dir", "--no-compile")
PIP_INSTALL = ("python3", PIP_INSIDE, "install", *FROM_WHEELS, "--target", PACKAGES_INSIDE)
# What was fetched; the project itself, for `setup: true`, whose build tools are among the wheels; and byte code that
# does not depend on file times: files that don't compile are no failure of the build.
INSTALL = (*PIP_INSTALL, "--requirement", f"{WHEELS_INSIDE}/{REQUIREMENTS}")
SETUP = (*PIP_INSTALL, "--upgrade", CODE_INSIDE)
COMPILE = ("python3", "-m", "compileall", "-qq", "--invalidation-mode", "unchecked-hash", PACKAGES_INSIDE)
# pip would read the host's configuration where it can see it; a fixed time makes equal builds equal.
INSTALL_ENV = {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "SOURCE_DATE_EPOCH": "315532800"}

NO_MATCH = re.compile(r"^ERROR: No matching distribution found for (.+?)(?: \(from .*\))?$", re.MULTILINE)
CONFLICT = re.compile(r"^ERROR: (Cannot install .+ conflicting dependencies\.)$", re.MULTILINE)
# pip says so when the index itself does not answer: nobody's requirement is at fault.
UNREACHABLE = "Retrying (Retry("
HOST_VARIABLES = re.compile(
    r"PIP_\w+|\w*_CERT\w*|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|PATH|HOME|(?i:https?_proxy|no_proxy)"
)
# With an index of our own, the host's other sources are not asked.
OTHER_SOURCES = re.compile(r"PIP_(EXTRA_)?INDEX_URL|PIP_FIND_LINKS|PIP_NO_INDEX")
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")


class RequirementsError(ValueError):
    """The submitter's requirements can't be met; `line` counts from 1, 0 when no single line is at fault."""

    def __init__(self, detail: str, line: int = 0) -> None:
        super().__init__(f"requirements.txt, line {line}: {detail}" if line else detail)
        self.line = line


class FetchError(RuntimeError):
    """The package index did not answer: our side."""


@dataclass(frozen=True, slots=True)
class Line:
    """One requirement and where it stands; `text` is what pip gets."""

    number: int
    text: str
    requirement: Requirement

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    @property
    def is_ours(self) -> bool:
        return self.name in OURS


def check_lines(text: str) -> list[Line]:
    """Every requirement of a requirements.txt; raises `RequirementsError` at the first line that isn't just that."""
    lines = [_line(number, line) for number, line in _logical_lines(text) if line]
    if len(lines) > MAX_LINES:
        raise RequirementsError(f"requirements.txt has {len(lines)} requirements; {MAX_LINES} are allowed.")
    return lines


def build_tools(project: Path) -> list[Line]:
    """What building the project itself takes: its pyproject.toml's build requirements, else setuptools and wheel."""
    pyproject = project / "pyproject.toml"
    try:
        table = tomllib.loads(pyproject.read_text()) if pyproject.is_file() else {}
        wanted = table.get("build-system", {}).get("requires", BUILD_TOOLS)
        return [_line(0, str(text)) for text in wanted]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise RequirementsError(f"pyproject.toml can't be read: {error}") from error


def fetch(
    lines: Sequence[Line],
    wheels: Path,
    *,
    python: str,
    log: Log,
    name: str,
    allow_sdists: bool = False,
    policy: SandboxPolicy = FETCH,
    options: Sequence[str] = (),
) -> None:
    """The lines' packages and all they need lie in `wheels`, with a requirements.txt; none of their code has run.

    `python` ("3.11") is the sandbox's; `options` are pip's. Raises `RequirementsError` or `FetchError`.
    """
    wheels.mkdir(parents=True, exist_ok=True)
    for line in filter(lambda line: line.is_ours, lines):
        log(f"{line.text}: comes with the model server, not from the index\n".encode())
    remaining = [line for line in lines if not line.is_ours]
    (wheels / REQUIREMENTS).write_text(_text(line for line in remaining if line.number))
    options = [*target(python), *options]
    while remaining and (failure := _download(remaining, wheels, options, log, name=name, policy=policy)):
        culprit = next((line for line in remaining if line.number == failure.line), None)
        if not (allow_sdists and failure.line and culprit):
            raise failure
        log(f"{culprit.text}: no wheel, taking the source distribution\n".encode())
        if not sdists.fetch(culprit.requirement, wheels, python=python, max_bytes=policy.disk_mb * MEBIBYTE):
            raise failure
        remaining = [*(line for line in remaining if line is not culprit), *(_line(0, tool) for tool in BUILD_TOOLS)]
    wheels.chmod(0o755)
    seal(wheels)  # readable inside, whatever our umask


def installing(argv: Sequence[str], stage: Path, wheels: Path) -> Command:
    """INSTALL, SETUP or COMPILE on a stage, with our own pip, as the base may have none, and what was fetched."""
    return Command(argv, stage, INSTALL_ENV, {Path(pip.__file__).parent: PIP_INSIDE, wheels: WHEELS_INSIDE})


def runtime_library(log: Log) -> Path:
    """The folder with our runtime's own packages, made once; it becomes /opt/dynabench/lib."""
    digest = hashlib.sha256(RUNTIME_REQUIREMENTS.read_bytes()).hexdigest()[:16]
    made = settings.VAR / "cache" / f"lib-{digest}"
    if made.is_dir():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="lib-", dir=made.parent))
    argv = ["install", "--no-compile", "--target", str(folder), "-r", str(RUNTIME_REQUIREMENTS)]
    if run_pip(argv, folder, log, name="runtime-library", policy=FETCH):
        shutil.rmtree(folder)
        raise FetchError("The model server's own packages could not be installed; the log above says why.")
    try:
        folder.rename(made)
    except OSError:
        shutil.rmtree(folder)  # somebody else was first
    return made


def _text(lines: Iterable[Line]) -> str:
    return "".join(f"{line.text}\n" for line in lines)


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """Number and content of each line; a backslash at its end joins the next."""
    lines: list[tuple[int, str]] = []
    start, joined = 1, ""
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        joined += COMMENT.sub("", line).strip() if not line.endswith("\\") else line[:-1].strip() + " "
        if not line.endswith("\\"):
            lines.append((start, joined))
            start, joined = number + 1, ""
    return [*lines, (start, joined.strip())]


def _line(number: int, text: str) -> Line:
    bare = HASH.sub("", f" {text}").strip()
    if bare.startswith("-"):
        raise RequirementsError(f"options are not supported ({bare[:60]}): leave only package names.", number)
    if "://" in bare or bare.startswith((".", "/", "~")):
        raise RequirementsError(f"addresses and paths are not fetched ({bare[:60]}): name a package.", number)
    try:
        requirement = Requirement(bare)
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        raise RequirementsError(f"{bare[:60]!r} is not a requirement like name==1.0: {reason}.", number) from error
    if requirement.url:
        raise RequirementsError(f"addresses and paths are not fetched ({bare[:60]}): name a package.", number)
    return Line(number, text.strip(), requirement)


def _download(
    lines: Sequence[Line], wheels: Path, options: Sequence[str], log: Log, *, name: str, policy: SandboxPolicy
) -> RequirementsError | None:
    """Asks pip for all lines at once; why it can't have them."""
    output = bytearray()

    def both(chunk: bytes) -> None:
        output.extend(chunk)
        log(chunk)

    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / REQUIREMENTS
        listed.write_text(_text(lines))
        argv = ["download", "--dest", str(wheels), *options, "-r", str(listed)]
        try:
            code = run_pip(argv, wheels, both, name=name, policy=policy)
        except LimitExceeded as error:
            raise RequirementsError(f"Fetching the requirements was stopped: {error}") from error
    return _explained(output.decode(errors="replace"), lines) if code else None


def _explained(output: str, lines: Sequence[Line]) -> RequirementsError:
    if UNREACHABLE in output:
        raise FetchError("The package index did not answer; the log says more.")
    if found := NO_MATCH.search(output):
        missing = found[1]
        name = canonicalize_name(re.split(r"[^\w.-]", missing, maxsplit=1)[0])
        line = next((line.number for line in lines if line.name == name), 0)
        return RequirementsError(
            f"No matching distribution found for {missing}. Only wheels for this Python are installed: "
            f"check the name and the version.",
            line,
        )
    if found := CONFLICT.search(output):
        return RequirementsError(f"{found[1]} Loosen one of them.")
    return RequirementsError(f"pip could not fetch the requirements: {output.strip()[-500:]}")


def run_pip(arguments: Sequence[str], folder: Path, log: Log, *, name: str, policy: SandboxPolicy) -> int:
    """The exit code of a pip that takes only wheels; what it unpacks meanwhile counts as `folder`'s."""
    index = ["--index-url", settings.INDEX_URL] if settings.INDEX_URL else []
    trust = ["--cert", settings.BUILD_CA_BUNDLE] if settings.BUILD_CA_BUNDLE else []
    argv = [sys.executable, "-m", "pip", *arguments, *PIP_OPTIONS, *trust, *index]
    mark, scratch = job_mark(name), Path(tempfile.mkdtemp(prefix=".pip-", dir=folder))
    env = _environment() | {"TMPDIR": str(scratch), JOB_VARIABLE: mark}
    try:
        disk = DiskWatch([folder], policy.disk_mb)
        with Supervised(argv, env=env, policy=policy, log=log, mark=mark, disk=disk, cwd=scratch) as running:
            return running.finish()
    finally:
        erase(scratch)


def _environment() -> dict[str, str]:
    """Of the host's variables only those that lead pip to its index."""
    kept = {key: value for key, value in os.environ.items() if HOST_VARIABLES.fullmatch(key)}
    if settings.INDEX_URL:
        kept = {key: value for key, value in kept.items() if not OTHER_SOURCES.fullmatch(key)}
        kept["PIP_CONFIG_FILE"] = os.devnull
    return kept | {
        "PIP_CACHE_DIR": str(settings.VAR / "cache" / "pip"),
        "PIP_PROGRESS_BAR": "off",
        "PIP_ROOT_USER_ACTION": "ignore",
    }


def target(python: str) -> list[str]:
    """Options that make pip choose wheels for another interpreter than the one it runs in."""
    if python == f"{sys.version_info.major}.{sys.version_info.minor}":
        return []
    platforms = [part for name in PLATFORMS for part in ("--platform", f"{name}_{platform.machine()}")]
    return ["--python-version", python, "--implementation", "cp", *platforms]
