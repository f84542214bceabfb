"""The messages between stages: a name and a pk. The only module that knows django-q."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import transaction
from django_q.brokers import get_broker
from django_q.tasks import async_task

from dynabench_site.faults import NotYet

logger = logging.getLogger(__name__)

BUILD_SUBMISSION = "builds.tasks.build_submission"
DEPLOY_ENDPOINT = "builds.tasks.deploy_endpoint"
EVALUATE_SUBMISSION = "evaluations.tasks.evaluate_submission"
RUN_INFERENCES = "evaluations.tasks.run_inferences"
RUN_SCORINGS = "evaluations.tasks.run_scorings"
MESSAGES = (BUILD_SUBMISSION, DEPLOY_ENDPOINT, EVALUATE_SUBMISSION, RUN_INFERENCES, RUN_SCORINGS)

# What each stage makes good by itself: rows that should exist, statuses that should have followed.
SWEEPS = ("submissions.services.sweep", "builds.services.sweep", "builds.endpoints.sweep", "evaluations.services.sweep")
# What is looked for rarely, on each host.
SLOW_SWEEPS = ("evaluations.leftovers.sweep",)

BUILD_CLUSTER = "build"
RESERVED_CLUSTERS = {BUILD_CLUSTER, "all", "mail"}


def queue_name(cluster: str) -> str:
    kind = BUILD_CLUSTER if cluster == BUILD_CLUSTER else f"eval-{cluster}"
    return f"{settings.QUEUE_PREFIX}-{kind}"


def send(message: str, pk: int | str, *, cluster: str) -> None:
    """Ring a cluster once the transaction is committed. A bell that can't be rung is logged: the sweep rings again."""
    assert message in MESSAGES
    transaction.on_commit(partial(_ring, message, pk, cluster), robust=True)


def create(cluster: str) -> None:
    """The cluster's queue is there; a broker that keeps its messages in the database needs none."""
    if make := getattr(get_broker(queue_name(cluster)), "create", None):
        make()


def is_silent(cluster: str) -> bool:
    """Whether no bell waits in the cluster's queue; a queue that can't be asked is left alone for now."""
    try:
        return not get_broker(queue_name(cluster)).queue_size()
    except NotYet as error:
        logger.warning("the queue of %s can't be asked: %s", cluster, error)
        return False


def ring_again(message: str, pks: Iterable[int | str], *, cluster: str) -> None:
    """Ring for what nobody picked up, unless bells are waiting already."""
    pks = list(pks)
    if pks and is_silent(cluster):
        for pk in pks:
            send(message, pk, cluster=cluster)


def _ring(message: str, pk: int | str, cluster: str) -> None:
    try:
        async_task(message, pk, cluster=queue_name(cluster))
    except NotYet as error:
        logger.warning("could not ring %s for %s %s: %s", cluster, message, pk, error)
    except (DatabaseError, OSError):
        logger.exception("could not ring %s for %s %s", cluster, message, pk)
