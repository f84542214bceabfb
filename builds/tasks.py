from __future__ import annotations

from builds import endpoints, services
from builds.models import Endpoint
from submissions.models import Submission


def build_submission(submission_pk: int) -> None:
    services.build(Submission.objects.select_related("task__build_config", "owner").get(pk=submission_pk))


def deploy_endpoint(endpoint_pk: int) -> None:
    endpoints.deploy_endpoint(Endpoint.objects.get(pk=endpoint_pk))
