"""Run one cluster: `manage.py cluster build`, or `manage.py cluster NAME` for the eval server NAME."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

import psutil
from django.core.management.base import BaseCommand, CommandParser
from django.db import Error as DatabaseError
from django.db import connections
from django.utils.module_loading import import_string
from django_q.brokers import get_broker
from django_q.cluster import Cluster
from django_q.conf import Conf

from dynabench_site import clusters, jobs, queue, sweeper
from dynabench_site.database import wait_until_it_answers
from dynabench_site.processes import die_with_parent

logger = logging.getLogger(__name__)
STOP_SECONDS = 4


class Command(BaseCommand):
    help = "Run the workers and the sweeper of one cluster until SIGTERM."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="`build`, or the name of an eval server")

    def handle(self, *args: Any, name: str, **options: Any) -> None:
        wait_until_it_answers()
        pools = import_string("evaluations.services.cluster_pools")()
        if name not in pools:
            self.stderr.write(f"There is no cluster {name!r}. Known: {', '.join(sorted(pools))}.")
            raise SystemExit(2)
        run(name, processes=pools[name])


def run(name: str, *, processes: int) -> None:
    stopping = threading.Event()
    instance = clusters.join(name)
    pool = _start_pool(name, processes)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    rounds = sweeper.start()
    print(f"cluster {name} ready", flush=True)
    while not stopping.wait(0.5) and pool.sentinel.is_alive():
        pass
    for thread in rounds:
        thread.stop()
    _stop_pool(pool)
    for thread in rounds:
        thread.join(timeout=2)
    _say_goodbye(instance)
    raise SystemExit(0 if stopping.is_set() else 1)


def _say_goodbye(instance: clusters.ClusterHeartbeat) -> None:
    """Give back the jobs; without a database others find that this instance is gone."""
    try:
        for model in jobs.all_models():
            jobs.release(model, instance)
        sweeper.clear_leftovers()
        clusters.leave()
    except DatabaseError as error:
        logger.warning("jobs could not be given back: %s", error)


def _start_pool(name: str, processes: int) -> Cluster:
    # Or workers whose cluster was killed would go on taking messages.
    os.register_at_fork(after_in_child=die_with_parent)
    connections.close_all()  # a connection must not be shared with the processes that are forked now
    Conf.CLUSTER_NAME = queue.queue_name(name)
    Conf.WORKERS, Conf.QUEUE_LIMIT = processes, processes
    pool = Cluster(broker=get_broker(Conf.CLUSTER_NAME))
    pool.start()
    return pool


def _stop_pool(pool: Cluster) -> None:
    """Let workers finish for a few seconds, then end them: their leases go back to the queue."""
    children = psutil.Process().children(recursive=True)
    pool.stop_event.set()
    pool.sentinel.join(STOP_SECONDS)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    pool.sentinel.join(1)
    psutil.wait_procs(children, timeout=1)
