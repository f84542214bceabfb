"""Live endpoints: wanted by a task's build config, started on the build server, ended with their model."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet

from builds.backends import deployer
from builds.models import Build, Endpoint
from dynabench_site import clusters, jobs, queue
from dynabench_site.api import Conflict
from submissions.models import Submission

DEADLINE_SECONDS = 300
IDLE, ENDED = "idle", "ended"
LIVE = (Submission.Status.EVALUATING, Submission.Status.EVALUATED)


def want_endpoint(build: Build) -> None:
    """Ask for the endpoint of a build, where its task has endpoints."""
    if build.submission.task.build_config.create_endpoint:
        endpoint, _ = Endpoint.objects.get_or_create(build=build, defaults={"cluster": queue.BUILD_CLUSTER})
        queue.send(queue.DEPLOY_ENDPOINT, endpoint.pk, cluster=queue.BUILD_CLUSTER)


def deploy_endpoint(endpoint: Endpoint) -> None:
    """Bring an endpoint forward; does nothing when it isn't due."""
    if endpoint.claim():
        jobs.work(endpoint, partial(_start, endpoint), deadline_seconds=DEADLINE_SECONDS)


def _start(endpoint: Endpoint) -> None:
    endpoint.save_progress(is_deployed=True)
    if deployer().start(endpoint) == "ready":
        endpoint.advance(Endpoint.Status.SUCCEEDED)
    else:
        endpoint.wait("SageMaker, which is starting the endpoint", settings.LEASE_SECONDS / 2)


def can_redeploy(submission: Submission) -> bool:
    """Whether its task has endpoints, it has an image, and no endpoint of it is up, on its way, or still there."""
    if not submission.task.build_config.create_endpoint or submission.status not in LIVE:
        return False
    build = Build.newest(submission)
    if build is None:
        return False
    is_there = Q(pk__in=live_endpoints()) | Q(is_deployed=True)
    return build.status == Build.Status.SUCCEEDED and not Endpoint.objects.filter(is_there, build=build).exists()


def redeploy(submission: Submission) -> None:
    """Start the endpoint of a model again, or make one, without building."""
    if not can_redeploy(submission):
        detail = (
            f"{submission.name} can't get a live endpoint now. It needs an image, no endpoint that is up, and a task "
            "whose build config has endpoints."
        )
        raise Conflict("not_deployable", detail)
    build = Build.wanted(submission)
    with transaction.atomic():
        for endpoint in Endpoint.objects.filter(build=build):
            again = {"attempts": 0, "interruptions": 0, "finished_at": None, "error_code": "", "error_detail": ""}
            endpoint.move(endpoint.status, Endpoint.Status.QUEUED, reason="redeploy", **again)
        want_endpoint(build)


def end_endpoint(endpoint: Endpoint, reason: str = ENDED, *, by: str = "") -> None:
    """It shall run no longer; the sweep of the build server takes it away."""
    up, over = Endpoint.Status.SUCCEEDED, Endpoint.Status.CANCELLED
    if endpoint.cancel(by=by) or endpoint.move(up, over, reason=reason, by=by):
        Endpoint.objects.filter(pk=endpoint.pk).update(error_code=reason)


def live_endpoints() -> QuerySet[Endpoint]:
    running = [Endpoint.Status.QUEUED, Endpoint.Status.RUNNING, Endpoint.Status.SUCCEEDED]
    return Endpoint.objects.filter(status__in=running).select_related("build__submission__task__build_config")


def idle_endpoints(hours: int) -> Iterable[Endpoint]:
    """The endpoints that nobody asked anything for so many hours."""
    up = live_endpoints().filter(status=Endpoint.Status.SUCCEEDED).order_by("pk")
    return (endpoint for endpoint in up if deployer().is_idle(endpoint, hours=hours))


def sweep() -> None:
    """Make the endpoints that are missing, end those of models that failed or were replaced, ring for what is due."""
    if not clusters.is_of(queue.BUILD_CLUSTER):
        return
    newest = Build.objects.succeeded().filter(~Build.is_replaced())
    wanted = newest.filter(endpoint=None, submission__status__in=LIVE)
    for build in wanted.filter(submission__task__build_config__create_endpoint=True)[:50]:
        want_endpoint(build)
    of_no_use = ~Q(build__in=newest) | ~Q(build__submission__status__in=[*LIVE, Submission.Status.BUILDING])
    of_no_use |= Q(build__submission__task__build_config__create_endpoint=False)
    for endpoint in live_endpoints().filter(of_no_use):
        end_endpoint(endpoint)
    over = [Endpoint.Status.FAILED, Endpoint.Status.DEAD, Endpoint.Status.CANCELLED]
    for endpoint in Endpoint.objects.filter(is_deployed=True, status__in=over).select_related("build__submission"):
        with jobs.another_time(endpoint):
            deployer().stop(endpoint)
            Endpoint.objects.filter(pk=endpoint.pk, status__in=over).update(is_deployed=False)
    due = Endpoint.objects.due().order_by("pk").values_list("pk", flat=True)
    queue.ring_again(queue.DEPLOY_ENDPOINT, due[:50], cluster=queue.BUILD_CLUSTER)
