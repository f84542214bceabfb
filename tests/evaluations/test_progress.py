from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from builds.models import Build
from dynabench_site.clusters import ClusterHeartbeat
from evaluations.models import Inference
from evaluations.progress import waiting_for
from submissions.models import Submission
from tasks_catalog.models import BuildConfig, EvalServer
from tests.conftest import in_cluster, make_built


def seen_last(name, *, minutes=0):
    return ClusterHeartbeat.objects.create(
        name=name, host="h", pid=1, last_seen=timezone.now() - timedelta(minutes=minutes)
    )


def test_an_upload_waits_for_the_build_server_that_was_never_started(submission):
    assert waiting_for(submission) == "the build server, which is not running (never seen)"


def test_an_upload_waits_for_the_build_server_that_is_away(submission):
    beat = seen_last("build", minutes=14)

    text = waiting_for(submission)

    assert text == f"the build server, which is not running (last seen {beat.last_seen:%Y-%m-%d %H:%M} UTC)"


def test_an_upload_waits_for_its_turn(submission, user, task):
    for number in range(2):
        Build.wanted(Submission.objects.create(owner=user, task=task, name=f"m{number}", status="uploaded"))
    mine = Build.wanted(submission)
    seen_last("build")

    assert waiting_for(submission) == "its turn (2 jobs before it)"
    Build.objects.exclude(pk=mine.pk).first().delete()
    assert waiting_for(submission) == "its turn (1 job before it)"


def test_a_build_that_stepped_back_says_what_it_waits_for(submission):
    with in_cluster("build"):
        build = Build.wanted(submission)
        assert build.claim()
        build.wait("no sandbox on this host", 60)

    assert waiting_for(submission) == "no sandbox on this host"

    Build.objects.update(not_before=timezone.now() - timedelta(seconds=1))
    assert waiting_for(submission).startswith("the build server, which is not running (last seen ")


def test_an_evaluation_waits_for_its_own_eval_server(submission, dataset, task):
    BuildConfig.objects.update(eval_server=EvalServer.objects.get(name="flores101"))
    seen_last("default")
    build = make_built(submission)
    submission = Submission.objects.get(pk=submission.pk)

    before = waiting_for(submission)
    Inference.objects.create(submission=submission, build=build, dataset=dataset, cluster="flores101")

    assert before == waiting_for(submission) == "eval server flores101, which is not running (never seen)"
    seen_last("flores101")
    assert waiting_for(submission) == "its turn (it is next)"


def test_several_datasets_that_wait_for_the_same_say_it_once(submission, dataset, task):
    build = make_built(submission)
    for number in range(3):
        Inference.objects.create(
            submission=submission,
            build=build,
            dataset=dataset,
            cluster="default",
            fingerprint=str(number),
            waiting_for="the instance quota",
            not_before=timezone.now() + timedelta(minutes=5),
        )

    assert waiting_for(submission) == "the instance quota"


def test_what_is_worked_on_waits_for_nothing(submission):
    with in_cluster("build"):
        assert Build.wanted(submission).claim()
        submission.advance(Submission.Status.BUILDING)

        assert waiting_for(submission) == ""


@pytest.mark.parametrize("status", ["receiving", "evaluated", "failed", "dead", "cancelled", "taken_down"])
def test_what_has_ended_waits_for_nothing(status, submission, django_assert_num_queries):
    submission.status = status

    with django_assert_num_queries(0):
        assert waiting_for(submission) == ""
