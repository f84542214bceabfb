"""One stand for a whole test run, an empty account for each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from builds.backends import deployer
from builds.image import ImageBuilder, new_workdir
from builds.models import Build
from builds.sandboxes.docker import DockerSandbox
from builds.services import pinned
from dynabench_site.settings import PROFILES
from evaluations.models import Inference
from examples.pack import pack
from submissions.models import Submission
from tests.aws.hosts import ROLE, SECRET_KEY, installation
from tests.aws.inferences import NO_IMAGE, add_dataset
from tests.aws.stand import Stand, running_stand
from tests.conftest import make_built


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
def built() -> Iterator[list[str]]:
    """The obedient model's image, once a test has made it."""
    images: list[str] = []
    yield images
    for image in images:
        DockerSandbox().remove(image)


@pytest.fixture(scope="session")
def model_archive(tmp_path_factory) -> Path:
    """Where the archive is that belongs to the obedient model's image."""
    return tmp_path_factory.mktemp("obedient") / "archive.tar.gz"


@pytest.fixture
def obedient_image(built, model_archive, task, shared_cache, tmp_path) -> str:
    """A small model's image in the local docker engine."""
    if not built:
        archive = tmp_path / "model.tar.gz"
        pack(Path(__file__).parent / "model", archive)
        with new_workdir("stand") as workdir:
            made = ImageBuilder(DockerSandbox(), Quiet(), task, "obedient", "stand").build(archive, workdir)
            model_archive.write_bytes(made.mar_archive.read_bytes())
        built.append(made.digest)
    return built[0]


@pytest.fixture
def pushed(stand, obedient_image) -> str:
    """Its address by digest in the stand's registry."""
    return stand.push(obedient_image, "obedient")


@pytest.fixture
def on_aws(stand, settings, monkeypatch, shared_cache) -> Stand:
    """This process works with the classes of the production profile; its leases outlast a test."""
    for name, value in stand.environment().items():
        monkeypatch.setenv(name, value)
    settings.STORAGE_FOR = PROFILES["production"]["STORAGE_FOR"]
    settings.DEPLOYER = PROFILES["production"]["DEPLOYER"]
    settings.INFERENCE_RUNNER = PROFILES["production"]["INFERENCE_RUNNER"]
    settings.SAGEMAKER_ROLE = ROLE
    settings.LEASE_SECONDS = 600
    return stand


@pytest.fixture
def production(transactional_db, eval_servers, on_aws, settings, tmp_path):
    """A production installation without hosts yet; this process sees its database and its files."""
    settings.SECRET_KEY = SECRET_KEY
    with installation(on_aws, tmp_path / "hosts") as made:
        yield made


@pytest.fixture
def ready(on_aws, task, submission, request) -> Submission:
    """A model that SageMaker knows, its task without datasets yet; with the obedient image where a test wants it."""
    image = request.getfixturevalue("pushed") if "pushed" in request.fixturenames else NO_IMAGE
    build = make_built(submission)
    Build.objects.filter(pk=build.pk).update(image_uri=image, config=pinned(task.build_config))
    deployer().register(Build.objects.get(pk=build.pk))
    return submission


@pytest.fixture
def inference(ready, task) -> Inference:
    return add_dataset(task)
