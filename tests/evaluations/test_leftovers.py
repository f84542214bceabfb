from __future__ import annotations

import pytest

from builds.models import Build
from builds.sandboxes.folder import image_folder
from evaluations.leftovers import RunningJobs, sweep
from evaluations.models import Inference
from submissions.models import Submission
from tests.conftest import in_cluster, make_built

OLD, NEW = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"


@pytest.fixture
def old(submission) -> Build:
    build = make_built(submission)
    return keep(build, OLD)


def keep(build: Build, image: str) -> Build:
    Build.objects.filter(pk=build.pk).update(image=image, sandbox="process", is_image_kept=True)
    image_folder(image).mkdir(parents=True, exist_ok=True)
    build.refresh_from_db()
    return build


def rebuilt(old: Build, image: str) -> Build:
    return keep(Build.objects.create(submission=old.submission, run=2, cluster="build", status="succeeded"), image)


def kept() -> list[str]:
    return [image for image in (OLD, NEW) if image_folder(image).exists()]


def test_the_image_that_a_model_runs_on_stays(old):
    sweep()

    assert kept() == [OLD]


def test_a_replaced_image_is_removed_and_its_digest_kept(old):
    rebuilt(old, NEW)

    sweep()

    assert kept() == [NEW]
    old.refresh_from_db()
    assert (old.image, old.is_image_kept) == (OLD, False)


def test_an_equal_image_of_a_newer_build_stays(old):
    rebuilt(old, OLD)

    sweep()

    assert kept() == [OLD]


def test_an_image_that_still_runs_stays_until_it_is_done(old, dataset):
    assert Inference.objects.get().build == old, "the new dataset has asked for it"
    rebuilt(old, NEW)

    sweep()
    assert kept() == [OLD, NEW]
    Inference.objects.update(status="succeeded")
    sweep()

    assert kept() == [NEW]


def test_the_image_of_a_cancelled_model_is_removed(old):
    Submission.objects.update(status="cancelled")

    sweep()

    assert kept() == []


def test_running_jobs_are_known_by_their_names(submission):
    build = Build.wanted(submission)
    with in_cluster("build"):
        build.claim()

    assert submission.endpoint_name in RunningJobs()
    assert "ts999-other" not in RunningJobs()
