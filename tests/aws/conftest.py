"""One stand for a whole test run, an empty account for each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.test import override_settings

from builds.image import ImageBuilder, new_workdir
from builds.sandboxes.docker import DockerSandbox
from examples.pack import pack
from tasks_catalog.models import BuildConfig, Task
from tests.aws.stand import Stand, running_stand
from tests.conftest import IO_YAML, share_cache


class Quiet:
    """A recorder that keeps nothing."""

    @contextmanager
    def step(self, name, command=""):
        yield lambda output: None


@pytest.fixture(scope="session")
def running(tmp_path_factory) -> Iterator[Stand]:
    with running_stand(tmp_path_factory.mktemp("aws")) as stand:
        yield stand


@pytest.fixture
def stand(running) -> Stand:
    """AWS without faults and limits, and empty but for a bucket in each region."""
    running.steer("POST", "reset")
    return running


@pytest.fixture(scope="session")
def obedient_image(tmp_path_factory) -> Iterator[str]:
    """A small model's image in the local docker engine."""
    task = Task(code="sentiment", name="Sentiment", io_yaml=IO_YAML)
    BuildConfig(task=task, memory_mb=1024)
    folder = tmp_path_factory.mktemp("image")
    with override_settings(VAR=folder), new_workdir("stand") as workdir:
        share_cache(folder, tmp_path_factory)
        sandbox = DockerSandbox()
        pack(Path(__file__).parent / "model", workdir / "model.tar.gz")
        built = ImageBuilder(sandbox, Quiet(), task, "obedient", "stand-obedient").build(
            workdir / "model.tar.gz", workdir
        )
        yield built.digest
        sandbox.remove(built.digest)


@pytest.fixture(scope="session")
def pushed(running, obedient_image) -> str:
    """Its address by digest in the stand's registry."""
    return running.push(obedient_image, "obedient")
