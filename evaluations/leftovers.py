"""What nobody needs any more on this host: of killed workers, and images that were replaced."""

from __future__ import annotations

import logging

from django.db.models import Exists, OuterRef, Q

from builds import sandboxes
from builds.backends import deployer
from builds.image import sweep_workdirs
from builds.models import Build
from builds.sandboxes.policy import SandboxError
from dynabench_site import clusters, queue
from dynabench_site.jobs import another_time
from evaluations.models import Inference
from submissions.models import Submission

logger = logging.getLogger(__name__)
BROKEN = Q(status__in=[Build.Status.FAILED, Build.Status.DEAD, Build.Status.CANCELLED])
PUSHED = ~Q(image_uri="")
ENDED = Q(submission__status__in=[Submission.Status.CANCELLED, Submission.Status.TAKEN_DOWN])


class RunningJobs:
    """The names of running jobs, asked for one by one: a job that starts during a sweep is in it too."""

    def __contains__(self, name: object) -> bool:
        builds = Build.objects.running().select_related("submission")
        inferences = Inference.objects.running().only("pk", "submission_id")
        return name in {build.submission.endpoint_name for build in builds} | {row.name for row in inferences}


def remove_unused_images() -> list[str]:
    """Remove images that a newer build replaced, or whose build or model has ended; their digests stay.

    Where images are pushed, only the build server has any, until then.
    """
    if not (deployer().keeps_image or clusters.is_of(queue.BUILD_CLUSTER)):
        return []
    newer = Build.objects.filter(submission=OuterRef("submission"), run__gt=OuterRef("run"), is_image_kept=True)
    under_way = Exists(Inference.objects.unfinished().filter(build=OuterRef("pk")))
    unused = Build.objects.filter(Exists(newer) | BROKEN | PUSHED | ENDED, ~under_way, is_image_kept=True)
    unused = unused.select_related("submission")
    return [build.submission.endpoint_name for build in unused if _remove_image(build)]


def _remove_image(build: Build) -> bool:
    """Remove it unless an equal one is in use; whether it is gone."""
    Build.objects.filter(pk=build.pk).update(is_image_kept=False)
    if Build.objects.filter(image=build.image, is_image_kept=True).exists():
        return False
    try:
        sandboxes.by_name(build.sandbox).remove(build.image)
    except SandboxError as error:
        logger.warning("the image of %s stays for now: %s", build, error)
        Build.objects.filter(pk=build.pk).update(is_image_kept=True)
        return False
    return True


def remove_unused_deployments() -> list[str]:
    """On the build server: take away what was pushed and registered of builds that failed, were replaced, or ended.

    The archive that its user sent stays.
    """
    if not clusters.is_of(queue.BUILD_CLUSTER):
        return []
    under_way = Exists(Inference.objects.unfinished().filter(build=OuterRef("pk")))
    unused = Build.objects.filter(Build.is_replaced() | BROKEN | ENDED, ~under_way, is_deployed=True)
    swept = []
    for build in unused.select_related("submission__task__build_config"):
        with another_time(build):
            deployer().remove(build)
            if not Build.objects.succeeded().filter(submission=build.submission_id).exists():
                build.submission.task.storage().delete(build.submission.mar_archive_key)
            Build.objects.filter(pk=build.pk).update(is_deployed=False, image_uri="")
            swept.append(build.name)
    return swept


def sweep() -> None:
    swept = [*sandboxes.sweep(RunningJobs()), *sweep_workdirs(RunningJobs()), *remove_unused_images()]
    swept += remove_unused_deployments()
    if swept:
        logger.info("removed what was left over of %s", ", ".join(swept))
