from __future__ import annotations

import hashlib
import shutil
import tarfile

import pytest
from django.core.files.base import ContentFile

from builds import sandboxes, services
from builds.models import Build
from builds.sandboxes.folder import image_folder
from dynabench_site.api import Conflict
from dynabench_site.outbox import OutboxMail
from examples.pack import EXAMPLES, archive_bytes, known_sha256
from submissions.models import Submission
from tests.conftest import in_cluster
from tests.examples.broken import broken_project


@pytest.fixture(autouse=True)
def _process_sandbox(settings, shared_cache):
    """The sandbox that every machine has; the stronger ones have tests of their own."""
    settings.SANDBOX, settings.ALLOW_UNSANDBOXED = "process", True


def uploaded(user, task, archive: bytes, name: str) -> Submission:
    sha256 = hashlib.sha256(archive).hexdigest()
    submission = Submission.objects.create(owner=user, task=task, name=name, size=len(archive), sha256=sha256)
    task.storage().save(submission.archive_key, ContentFile(archive))
    submission.advance(Submission.Status.UPLOADED)
    return submission


@pytest.fixture
def majority(transactional_db, user, task) -> Submission:
    return uploaded(user, task, archive_bytes(EXAMPLES / "majority"), "majority")


def build(submission: Submission) -> Build:
    with in_cluster("build"):
        services.build(submission)
    submission.refresh_from_db()
    return Build.newest(submission)


def test_an_archive_becomes_an_image_and_a_model_archive_beside_it(majority):
    made = build(majority)

    assert (made.status, majority.status) == ("succeeded", "evaluating")
    assert image_folder(made.image).is_dir()
    key = f"torchserve/models/sentiment/archive.ts{majority.pk}-majority.tar.gz"
    assert majority.mar_archive_key == key
    with majority.task.storage().open(key) as file, tarfile.open(fileobj=file) as archive:
        assert archive.getnames() == [f"archive.ts{majority.pk}-majority.mar"]


def test_its_steps_can_be_read_and_its_owner_gets_a_mail(majority):
    made = build(majority)

    names = [step.name for step in made.steps.all()]
    assert names == ["unpack", "pack model", "fetch requirements", "pack image", "try one example"]
    assert all(step.exit_code == 0 and step.finished_at for step in made.steps.all())
    assert "answered" in made.steps.last().output
    assert OutboxMail.objects.get().to == "ada@example.org"


def test_a_second_delivery_builds_nothing(majority):
    build(majority)
    build(majority)

    assert Build.objects.count() == 1
    assert Build.objects.get().attempts == 1
    assert OutboxMail.objects.count() == 1


def test_a_model_that_does_not_answer_the_example_leaves_no_image(transactional_db, user, task, tmp_path, settings):
    archive = archive_bytes(broken_project("wrong-ids", tmp_path / "project", "broken"))

    made = build(uploaded(user, task, archive, "broken"))

    assert (made.status, made.error_code) == ("failed", "wrong_id")
    assert not list((settings.VAR / "images").glob("*"))
    assert not list((settings.VAR / "builds").iterdir())


def test_a_cancelled_submission_is_not_built(majority):
    Submission.objects.update(cancel_requested=True)
    majority.refresh_from_db()

    build(majority)

    assert majority.status == "cancelled"


def test_without_a_sandbox_an_upload_waits_with_the_reason_and_examples_go_on(majority, user, task, settings, tmp_path):
    settings.SANDBOX, settings.ALLOW_UNSANDBOXED = "process", False
    sandboxes._chosen.cache_clear()
    project = shutil.copytree(EXAMPLES / "majority", tmp_path / "changed")
    (project / "README").write_text("not as shipped")
    stranger = uploaded(user, task, archive_bytes(project), "majority")

    waiting = build(stranger)

    assert (waiting.status, waiting.attempts) == ("queued", 0)
    assert "sandbox" in waiting.waiting_for.lower()
    assert majority.sha256 in known_sha256()
    assert build(majority).status == "succeeded"


def test_a_rebuild_is_a_new_build_of_the_same_archive(majority):
    first = build(majority)
    majority.advance(Submission.Status.EVALUATED)

    services.rebuild(majority)
    second = build(majority)

    assert (first.run, second.run, second.status) == (1, 2, "succeeded")
    assert second.image == first.image, "the same archive makes the same image"


def test_only_what_failed_can_be_retried(majority):
    made = build(majority)

    with pytest.raises(Conflict):
        services.retry(made)


def test_the_sweep_makes_the_build_that_a_lost_message_would_have_made(majority):
    services.sweep()

    assert Build.objects.get().submission == majority


def test_the_sweep_lets_a_submission_follow_a_build_that_ended(majority):
    with in_cluster("build"):
        made = Build.wanted(majority)
        made.claim()
        made.advance(Build.Status.DEAD, error_code="worker_died", error_detail="It died.")

    services.sweep()

    majority.refresh_from_db()
    assert (majority.status, majority.error_code) == ("dead", "worker_died")


def test_the_sweep_ends_a_cancelled_build_though_all_workers_are_busy(majority):
    with in_cluster("build"):
        hanging = Build.wanted(majority)
        hanging.claim()
    Submission.objects.update(status="building", cancel_requested=True)

    services.sweep()

    hanging.refresh_from_db()
    majority.refresh_from_db()
    assert (hanging.status, majority.status) == ("cancelled", "cancelled")
