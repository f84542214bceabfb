"""The build of a submission, from its archive to an image."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from django.core.files import File
from django.db import transaction
from django.forms.models import model_to_dict

from builds import sandboxes
from builds.backends import deployer
from builds.endpoints import want_endpoint
from builds.faults import hosts_faults
from builds.image import Image, ImageBuilder, new_workdir
from builds.model_servers import equipped
from builds.models import Build
from builds.sandboxes.policy import SandboxError
from builds.steps import RowRecorder, StepFailed
from dynabench_site import jobs, queue
from dynabench_site.api import Conflict
from dynabench_site.database import retried
from dynabench_site.outbox import write_mail
from examples.pack import known_sha256
from submissions.models import Submission
from tasks_catalog.files import opened
from tasks_catalog.models import BuildConfig

logger = logging.getLogger(__name__)
DISK_PAUSE_SECONDS = 60
SWEEP_BATCH = 50
MIN_FREE_BYTES = 1 << 30


def build(submission: Submission) -> None:
    """Bring the submission's build forward; does nothing when it isn't due, or isn't ours."""
    wanted = Build.wanted(submission)
    if submission.cancel_requested and not wanted.is_finished:
        wanted.cancel()
    elif submission.status in Submission.UNFINISHED and wanted.claim():
        submission.advance(Submission.Status.BUILDING)
        deadline = submission.task.build_config.build_minutes * 60 * 2
        jobs.work(wanted, partial(_make_image, wanted), deadline_seconds=deadline)
    wanted.refresh_from_db()
    settle(wanted)


@retried
def rebuild(submission: Submission) -> Build:
    """Make the image again: a new build of the same archive."""
    newest = Build.wanted(submission)
    if not newest.is_finished:
        return newest
    with transaction.atomic():
        again, _ = Build.objects.get_or_create(
            submission=submission, run=newest.run + 1, defaults={"cluster": queue.BUILD_CLUSTER}
        )
        submission.advance(Submission.Status.BUILDING, reason="rebuild", error_code="", error_detail="")
        queue.send(queue.BUILD_SUBMISSION, submission.pk, cluster=queue.BUILD_CLUSTER)
    return again


@retried
def retry(build: Build, *, by: str = "") -> None:
    """Try a failed or dead build again."""
    with transaction.atomic():
        if not build.retry(by=by):
            raise Conflict("not_retryable", f"The build is {build.status}: there is nothing to retry.")
        build.submission.advance(
            Submission.Status.BUILDING, reason="retry", cancel_requested=False, error_code="", error_detail=""
        )
        queue.send(queue.BUILD_SUBMISSION, build.submission_id, cluster=queue.BUILD_CLUSTER)


def _make_image(build: Build) -> None:
    recorder, publisher = RowRecorder(build), deployer()
    with hosts_faults():
        if not build.image_uri:  # else an earlier try came as far as the registry
            if publisher.keeps_image or not build.is_image_kept:  # else only the registry was waited for
                _build_image(build, recorder)
            if not publisher.keeps_image:
                _publish(build, recorder)
        if not publisher.keeps_image:
            with recorder.step("register model"):
                publisher.register(build)
    build.advance(build.Status.SUCCEEDED)


def _build_image(build: Build, recorder: RowRecorder) -> None:
    submission = build.submission
    config = submission.task.build_config
    chosen = sandboxes.choose(trusted=submission.sha256 in known_sha256())
    sandbox, offers = equipped(chosen, config)
    build.config, build.sandbox = pinned(config), sandbox.name
    build.save_progress(config=build.config, sandbox=sandbox.name, model_server=config.served_by)
    builder = ImageBuilder(sandbox, recorder, submission.task, submission.name, submission.endpoint_name, offers)
    with new_workdir(submission.endpoint_name) as workdir:
        _require_disk(workdir, submission.size)
        try:
            image = builder.build(_fetch_archive(submission, workdir), workdir)
        except StepFailed as error:
            raise jobs.JobFailed(error.code, error.detail) from error
        _store_mar_archive(submission, image)
    build.image = image.digest
    build.save_progress(image=image.digest, is_image_kept=True, mar_sha256=image.mar_sha256)


def _publish(build: Build, recorder: RowRecorder) -> None:
    """The image is where other hosts get it, and no longer here; it stays while the registry can't be asked."""
    build.save_progress(is_deployed=True)
    try:
        with recorder.step("push image") as log:
            build.image_uri = deployer().publish(build, log)
    except (jobs.NotYet, jobs.LeaseLost):
        raise
    except Exception:
        _remove_image(build)
        raise
    build.save_progress(image_uri=build.image_uri)
    _remove_image(build)


def _remove_image(build: Build) -> None:
    """From this host; what the engine can't remove now is left to the sweep."""
    try:
        sandboxes.by_name(build.sandbox).remove(build.image)
    except SandboxError as error:
        logger.warning("the image of %s stays for now: %s", build, error)
    else:
        build.save_progress(is_image_kept=False)


def pinned(config: BuildConfig) -> dict[str, Any]:
    return model_to_dict(config, exclude=["id", "task"])


def _require_disk(workdir: Path, size: int) -> None:
    if shutil.disk_usage(workdir).free < MIN_FREE_BYTES + 4 * size:
        raise jobs.NotYet("disk space on the build server", DISK_PAUSE_SECONDS)


def _fetch_archive(submission: Submission, workdir: Path) -> Path:
    target, keys = workdir / "upload.tar.gz", [submission.archive_key]
    with opened(submission.task.storage(), keys, sha256=submission.sha256) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
    return target


def _store_mar_archive(submission: Submission, image: Image) -> None:
    with image.mar_archive.open("rb") as file:
        submission.task.storage().save(submission.mar_archive_key, File(file))


@retried
def settle(build: Build) -> None:
    """Let the submission follow a build that has ended, once; and tell its owner."""
    submission = build.submission
    submission.refresh_from_db(fields=["status", "cancel_requested"])
    if not build.is_finished or submission.status not in {Submission.Status.UPLOADED, Submission.Status.BUILDING}:
        return
    is_rebuild_cancelled = build.status == Build.Status.CANCELLED and build.run > 1
    with transaction.atomic():
        if build.status == Build.Status.SUCCEEDED or is_rebuild_cancelled:
            submission.advance(Submission.Status.EVALUATING)
            if build.status == Build.Status.SUCCEEDED:
                want_endpoint(build)
            cluster = submission.task.build_config.eval_server_id
            queue.send(queue.EVALUATE_SUBMISSION, submission.pk, cluster=cluster)
        else:
            submission.advance(build.status, error_code=build.error_code, error_detail=build.error_detail)
        if build.status != Build.Status.CANCELLED:
            _tell_owner(build)


def _tell_owner(build: Build) -> None:
    failed = [step for step in build.steps.filter(attempt=build.attempts) if step.has_failed]
    write_mail(
        f"build_{build.status}",
        to=build.submission.owner,
        key=f"build-{build.pk}-{build.attempts}-{build.status}",
        context={"submission": build.submission, "build": build, "step": failed[-1] if failed else None},
    )


def sweep() -> None:
    """Make the builds that are missing, end the cancelled, settle the ended, ring for what nobody picked up."""
    orphans = Submission.objects.filter(status=Submission.Status.UPLOADED, builds=None)[:SWEEP_BATCH]
    for submission in orphans:
        Build.wanted(submission)
    for build in Build.objects.unfinished().filter(submission__cancel_requested=True)[:SWEEP_BATCH]:
        build.cancel()  # here, because all workers may be busy; the one that holds it is interrupted
    early = [Submission.Status.UPLOADED, Submission.Status.BUILDING]
    ended = Build.objects.exclude(status__in=[Build.Status.QUEUED, Build.Status.RUNNING])
    ended = ended.filter(submission__status__in=early).select_related("submission__task__build_config")
    for build in ended[:SWEEP_BATCH]:
        if build == Build.newest(build.submission):
            settle(build)
    due = Build.objects.due().order_by("pk").values_list("submission_id", flat=True)
    queue.ring_again(queue.BUILD_SUBMISSION, due[:SWEEP_BATCH], cluster=queue.BUILD_CLUSTER)
