from __future__ import annotations

from builds import services
from submissions.models import Submission


def build_submission(submission_pk: int) -> None:
    services.build(Submission.objects.select_related("task__build_config", "owner").get(pk=submission_pk))
