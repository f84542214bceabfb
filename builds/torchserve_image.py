"""Makes what images of the TorchServe flavour start from: the base image with Java, TorchServe and torch in it."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from docker.errors import ImageNotFound
from packaging.utils import canonicalize_name

from builds import base_image, requirements
from builds.base_image import BaseImageError
from builds.sandboxes.engine import engine
from builds.sandboxes.policy import SandboxPolicy

DOCKERFILE = Path(__file__).parent / "dockerfiles" / "torchserve.Dockerfile"
REQUIREMENTS = DOCKERFILE.with_name("torchserve.txt")
JAVA = "openjdk-17-jre-headless"
OFFERED = ("torch", "torchserve")
OFFERS, RECIPE = "dynabench.offers.", "dynabench.recipe"
# The processor's build has a local version where the index tells them apart; GPUs need the other.
GPU_CONSTRAINT = "torch!=2.13.0+cpu"
# torch's own tests and C++ headers: a fifth of its size.
LEFT_OUT = ("bin", "share", "torch/include", "torch/test", "torch/bin/test_*", "torch/bin/*Test", "torch/bin/protoc*")
NATIVE_LIBRARY = re.compile(r"META-INF/native/libnetty_transport_native_epoll_\w+\.so")
BUILD_SECONDS = 1800
FETCH = SandboxPolicy(memory_mb=4096, deadline=3600, disk_mb=20_480)
PROBE = "import shutil, sys; print('%d.%d' % sys.version_info[:2], shutil.which('java'))"


@dataclass(frozen=True, slots=True)
class ServerImage:
    """An image to build models on, and the versions of the packages that a model need not bring."""

    tag: str
    offers: dict[str, str]


def tag_for(*, gpu: bool) -> str:
    """Named after the base image, so that another base makes another one."""
    name, colon, version = settings.BASE_IMAGE.rpartition(":")
    name, version = (name, version) if colon and "/" not in version else (settings.BASE_IMAGE, "latest")
    return f"{name}-torchserve{'-gpu' if gpu else ''}:{version}"


def ensure(say: Callable[[str], object], *, gpu: bool = False) -> ServerImage:
    """The flavour's base image, which is made when absent or of another base or recipe; `say` is told the progress."""
    tag, recipe = tag_for(gpu=gpu), recipe_on(base_image.ensure(say))
    if labels_of(tag).get(RECIPE) != recipe:
        make(tag, recipe, say, gpu=gpu)
    say(f"{tag} is ready.")
    offers = {key.removeprefix(OFFERS): value for key, value in labels_of(tag).items() if key.startswith(OFFERS)}
    return ServerImage(tag, offers)


def recipe_on(base: str) -> str:
    """Changes with all that the image is made of."""
    return hashlib.sha256(base.encode() + DOCKERFILE.read_bytes() + REQUIREMENTS.read_bytes()).hexdigest()


def labels_of(tag: str) -> dict[str, str]:
    """Empty when there is no such image."""
    with engine() as client:
        try:
            return client.images.get(tag).labels
        except ImageNotFound:
            return {}


def make(tag: str, recipe: str, say: Callable[[str], object], *, gpu: bool) -> None:
    python, has_java = probed()
    cache = settings.VAR / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="torchserve-", dir=cache) as name:
        folder = Path(name)
        (folder / "java").mkdir()
        if not has_java:
            say(f"Fetching {JAVA} ...")
            fetch_java(folder)
        say("Fetching TorchServe and torch ...")
        fetch_packages(folder / "python", python, gpu=gpu)
        say("Building the image ...")
        offers = {OFFERS + package: version for package, version in installed(folder / "python").items()}
        with engine(timeout=BUILD_SECONDS) as client:
            client.images.build(
                path=name,
                dockerfile=str(DOCKERFILE),
                tag=tag,
                buildargs={"BASE": settings.BASE_IMAGE},
                labels={**offers, RECIPE: recipe},
                network_mode="none",
                rm=True,
                forcerm=True,
            )


def probed() -> tuple[str, bool]:
    """The base image's Python ("3.11"), and whether it has a Java."""
    with engine() as client:
        output = client.containers.run(
            settings.BASE_IMAGE, ["-c", PROBE], entrypoint="python3", network_mode="none", remove=True
        )
    python, java = output.decode().split()
    return python, java != "None"


def fetch_java(folder: Path) -> None:
    """Debian's headless Java lies in `folder`/java, as it will below the image's root, without what needs a screen."""
    java = folder / "java"
    download = ["apt-get", "download", "--quiet", JAVA]
    try:
        try:
            run(download, folder)
        except subprocess.CalledProcessError:
            run(["apt-get", "update", "--quiet"], folder)  # what apt knows may be old
            run(download, folder)
        run(["dpkg-deb", "--extract", str(next(folder.glob(f"{JAVA}_*.deb"))), str(java)], folder)
    except (OSError, subprocess.SubprocessError) as error:
        output = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
        reason = f"{JAVA} can't be fetched with this host's apt: {output[-500:] or error}"
        raise BaseImageError(f"{reason} (A base image that has Java 17 needs none.)") from error
    shutil.rmtree(java / "usr/share", ignore_errors=True)
    home = next(java.glob("usr/lib/jvm/*-17-*/bin/java")).parent.parent
    (java / "usr/bin").mkdir(parents=True)
    (java / "usr/bin/java").symlink_to(f"/{home.relative_to(java)}/bin/java")


def run(argv: list[str], folder: Path) -> None:
    subprocess.run(argv, cwd=folder, capture_output=True, check=True, timeout=600)


def fetch_packages(folder: Path, python: str, *, gpu: bool) -> None:
    """TorchServe, torch and what they need lie in `folder`."""
    folder.mkdir()
    argv = ["install", "--no-compile", "--target", str(folder), *sources(gpu=gpu), "-r", str(REQUIREMENTS)]
    output = bytearray()
    code = requirements.run_pip(
        [*argv, *requirements.target(python)], folder, output.extend, name="torchserve-image", policy=FETCH
    )
    if code:
        raise BaseImageError(f"TorchServe and torch could not be fetched: {output.decode(errors='replace')[-1000:]}")
    unpack_native_libraries(folder / "ts/frontend")
    for path in (path for pattern in LEFT_OUT for path in folder.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def unpack_native_libraries(frontend: Path) -> None:
    """Beside the jar: where nothing writable can be executed, Java could not load them from within it."""
    with zipfile.ZipFile(frontend / "model-server.jar") as jar:
        for member in filter(NATIVE_LIBRARY.fullmatch, jar.namelist()):
            (frontend / Path(member).name).write_bytes(jar.read(member))


def sources(*, gpu: bool) -> list[str]:
    """Where pip looks for torch besides its own index."""
    if gpu:
        return [GPU_CONSTRAINT]
    source = settings.TORCH_SOURCE
    return ["--extra-index-url" if "://" in source else "--find-links", source] if source else []


def installed(folder: Path) -> dict[str, str]:
    """The versions of what a model's requirements may lean on."""
    found = (path.name.removesuffix(".dist-info").partition("-") for path in folder.glob("*.dist-info"))
    return {canonicalize_name(name): version for name, _, version in found if canonicalize_name(name) in OFFERED}
