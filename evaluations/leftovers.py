"""What killed workers left on this host: containers, processes, directories."""

from __future__ import annotations

import logging

from builds import sandboxes
from builds.image import sweep_workdirs
from builds.models import Build
from evaluations.models import Inference

logger = logging.getLogger(__name__)


class RunningJobs:
    """The names of running jobs, asked for one by one: a job that starts during a sweep is in it too."""

    def __contains__(self, name: object) -> bool:
        builds = Build.objects.running().select_related("submission")
        inferences = Inference.objects.running().only("pk", "submission_id")
        return name in {build.submission.endpoint_name for build in builds} | {row.name for row in inferences}


def sweep() -> None:
    swept = [*sandboxes.sweep(RunningJobs()), *sweep_workdirs(RunningJobs())]
    if swept:
        logger.info("removed what was left over of %s", ", ".join(swept))
