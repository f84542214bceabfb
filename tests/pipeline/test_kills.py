"""The fault that everything else stands on: processes die, and every submission still ends with one set of scores."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from django_q.models import OrmQ

from builds.models import BuildStep
from builds.sandboxes import folder
from dynabench_site import jobs
from dynabench_site.clusters import ClusterHeartbeat
from evaluations.invariants import violations
from evaluations.models import CurrentScores, Scoring
from submissions.models import Submission
from tests.examples.broken import broken_project
from tests.pipeline.conftest import archive_bytes, send, trivial_archive, wait_for

SUBMISSIONS = 20
KILLS = 5


def all_finished() -> bool:
    return not Submission.objects.unfinished().exists()


@pytest.mark.timeout(600)
def test_twenty_submissions_survive_five_kills(start_cluster, user, task, dataset, tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    task.submission_limit = SUBMISSIONS
    task.save()
    clusters = [start_cluster("build"), start_cluster("default")]

    for number in range(SUBMISSIONS):
        name = f"model-{number}"
        send(user, task, trivial_archive(name, tmp_path), name)
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.5, 4))
        victim = chance.choice(clusters)
        victim.kill()
        victim.start()

    assert wait_for(all_finished, 300), list(Submission.objects.unfinished().values())
    assert set(Submission.objects.values_list("status", flat=True)) == {"evaluated"}
    assert CurrentScores.objects.count() == SUBMISSIONS
    assert Scoring.objects.filter(status="succeeded").count() == SUBMISSIONS
    assert violations() == []


@pytest.mark.timeout(120)
def test_a_stopped_cluster_ends_with_exit_code_0_and_leaves_nothing(
    start_cluster, user, task, dataset, tmp_path, settings
):
    cluster = start_cluster("build")
    for number in range(3):
        hanging = broken_project("never-answers", tmp_path / f"m{number}", f"m{number}")
        send(user, task, archive_bytes(hanging), f"m{number}")
    assert wait_for(lambda: BuildStep.objects.filter(name="try one example").count() == 2, 60)
    time.sleep(1)
    started = time.monotonic()

    assert cluster.stop() == 0

    assert time.monotonic() - started < 10
    assert not any(model.objects.running().exists() for model in jobs.all_models())
    assert not ClusterHeartbeat.objects.alive().exists()
    assert not list((settings.VAR / "builds").iterdir())
    assert not list(Path(tempfile.gettempdir()).glob(f"dyna-{folder.installation()}-*"))


def test_workers_die_with_the_main_process_of_their_cluster(start_cluster):
    cluster = start_cluster("build")
    children = psutil.Process(cluster.process.pid).children(recursive=True)

    cluster.kill_main_process()

    _, alive = psutil.wait_procs(children, timeout=5)
    assert children
    assert not alive


def test_an_unknown_cluster_is_refused_with_the_known_names(start_cluster, task):
    with pytest.raises(AssertionError, match="default, flores101"):
        start_cluster("nonsense")


def test_a_lost_bell_is_rung_again(start_cluster, user, task, dataset, tmp_path):
    send(user, task, trivial_archive("quiet", tmp_path), "quiet")
    OrmQ.objects.all().delete()

    start_cluster("build")

    assert wait_for(lambda: Submission.objects.get().status == "evaluating", 30)
