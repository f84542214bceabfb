from __future__ import annotations

import time
from datetime import timedelta

import pytest
from django.db.models.functions import Now

from builds.models import Build
from dynabench_site import clusters, jobs
from dynabench_site.state import IllegalTransition, StatusEvent
from tests.conftest import in_cluster


@pytest.fixture
def build(submission) -> Build:
    return Build.wanted(submission)


def lapse(build: Build) -> None:
    Build.objects.filter(pk=build.pk).update(lease_until=Now() - timedelta(seconds=1))


def free(build: Build) -> None:
    assert jobs.free_lost(Build) == 1
    build.refresh_from_db()


def test_a_claim_counts_the_attempt_before_the_work(build):
    with in_cluster("build"):
        assert build.claim()

    assert (build.status, build.attempts, build.lease_token) == ("running", 1, 1)


def test_a_second_delivery_claims_nothing(build):
    twin = Build.objects.get(pk=build.pk)

    with in_cluster("build"):
        assert build.claim()
        assert not twin.claim()


def test_a_worker_of_another_cluster_claims_nothing(build):
    with in_cluster("default"):
        assert not build.claim()


def test_outside_a_cluster_nothing_is_claimed(build):
    assert not build.claim()


def test_a_job_that_is_not_due_is_not_claimed(build):
    Build.objects.filter(pk=build.pk).update(not_before=Now() + timedelta(hours=1))

    with in_cluster("build"):
        assert not build.claim()
    assert not Build.objects.due().exists()


def test_a_paused_worker_cannot_overwrite_its_successor(build):
    zombie = Build.objects.get(pk=build.pk)
    with in_cluster("build"):
        assert zombie.claim()
        lapse(build)
        free(build)
        assert build.claim()

        with pytest.raises(jobs.LeaseLost):
            zombie.advance(Build.Status.FAILED)
        with pytest.raises(jobs.LeaseLost):
            zombie.save_progress(image="x")
    build.advance(Build.Status.SUCCEEDED)


def test_a_worker_that_dies_three_times_ends_the_job_with_a_reason(build):
    with in_cluster("build"):
        for _ in range(3):
            assert build.claim()
            lapse(build)
            free(build)

    assert (build.status, build.error_code) == ("dead", "worker_died")
    assert "memory" in build.error_detail


def test_a_cluster_that_goes_away_gives_the_attempt_back(build):
    with in_cluster("build"):
        assert build.claim()

    free(build)

    assert (build.status, build.attempts, build.interruptions) == ("queued", 0, 1)


def test_a_cluster_that_stopped_beating_counts_as_gone(build):
    with in_cluster("build") as instance:
        assert build.claim()
        clusters.ClusterHeartbeat.objects.filter(pk=instance.pk).update(last_seen=Now() - timedelta(minutes=5))
        free(build)

    assert build.interruptions == 1


def test_too_many_interruptions_spend_attempts_again(build):
    Build.objects.filter(pk=build.pk).update(interruptions=Build.MAX_INTERRUPTIONS)
    with in_cluster("build"):
        assert Build.objects.get(pk=build.pk).claim()

    free(build)

    assert (build.status, build.attempts) == ("queued", 1)


def test_stopping_releases_what_the_instance_holds(build):
    with in_cluster("build") as instance:
        assert build.claim()
        assert jobs.release(Build, instance) == 1

    build.refresh_from_db()
    assert (build.status, build.attempts) == ("queued", 0)


def test_waiting_spends_no_attempt_and_says_why(build):
    with in_cluster("build"):
        assert build.claim()
        build.wait("a sandbox", 60)

    assert (build.status, build.attempts, build.waiting_for) == ("queued", 0, "a sandbox")
    assert not Build.objects.due().exists()


def test_our_own_failure_is_tried_again_and_then_dead(build):
    with in_cluster("build"):
        for _ in range(3):
            Build.objects.filter(pk=build.pk).update(not_before=None)
            build.refresh_from_db()
            assert build.claim()
            build.stumble("server_error", "ours")

    assert (build.status, build.error_code) == ("dead", "server_error")


def test_a_dead_job_can_be_retried_with_all_its_attempts(build):
    with in_cluster("build"):
        assert build.claim()
        build.fail(jobs.JobFailed("x", "y", theirs=False))
        assert build.retry(by="staff")
        assert build.claim()

    assert (build.attempts, build.error_code) == (1, "")


def test_cancelling_a_running_job_fences_its_worker_off(build):
    worker = Build.objects.get(pk=build.pk)
    with in_cluster("build"):
        assert worker.claim()

    assert build.cancel()

    with pytest.raises(jobs.LeaseLost):
        worker.advance(Build.Status.SUCCEEDED)


def test_an_edge_that_is_not_in_the_table_is_refused(build):
    with pytest.raises(IllegalTransition):
        build.move("succeeded", "running")


EDGES = [(source, target) for source, targets in Build.TRANSITIONS.items() for target in targets]


@pytest.mark.parametrize(("source", "target"), EDGES)
def test_each_edge_is_written_down(build, source, target):
    Build.objects.filter(pk=build.pk).update(status=source)

    assert build.move(source, target, reason="because")

    event = StatusEvent.objects.filter(model="build").latest("pk")
    assert (event.source, event.target, event.reason, event.submission_pk) == (
        source,
        target,
        "because",
        build.submission_id,
    )


def test_a_move_from_elsewhere_changes_nothing(build):
    assert not build.move("running", "succeeded")

    assert not StatusEvent.objects.filter(model="build").exists()


@pytest.mark.django_db(transaction=True)
def test_the_lease_is_renewed_while_the_work_goes_on(submission, settings):
    settings.LEASE_SECONDS = 0.3
    build = Build.wanted(submission)
    with in_cluster("build"):
        assert build.claim()
        before = Build.objects.get(pk=build.pk).lease_until

        with build.kept_alive(deadline_seconds=5):
            time.sleep(0.5)

    assert Build.objects.get(pk=build.pk).lease_until > before


class TestWork:
    def run(self, build, error):
        def do():
            raise error

        with in_cluster("build"):
            assert build.claim()
            jobs.work(build, do, deadline_seconds=5)
        build.refresh_from_db()
        return build.status

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (jobs.JobFailed("code", "why"), "failed"),
            (jobs.JobFailed("code", "why", theirs=False), "dead"),
            (jobs.JobStumbled("code", "why"), "queued"),
            (jobs.NotYet("it", 5), "queued"),
            (jobs.CancelRequested(), "cancelled"),
            (KeyError("a bug"), "queued"),
        ],
    )
    @pytest.mark.django_db(transaction=True)
    def test_how_the_work_ends_is_written_down(self, build, error, status):
        assert self.run(build, error) == status

    @pytest.mark.django_db(transaction=True)
    def test_a_lost_lease_ends_quietly(self, build):
        assert self.run(build, jobs.LeaseLost("gone")) == "running"


def test_work_whose_lease_is_lost_is_interrupted_wherever_it_waits(transactional_db, submission, settings):
    settings.LEASE_SECONDS = 0.6
    build = Build.wanted(submission)

    def wait_for_ever() -> None:
        Build.objects.get().cancel()
        time.sleep(30)

    with in_cluster("build"):
        assert build.claim()
        started = time.monotonic()
        jobs.work(build, wait_for_ever, deadline_seconds=60)

    assert time.monotonic() - started < 10
    assert Build.objects.get().status == "cancelled"


def test_work_that_is_past_its_deadline_is_interrupted_and_tried_again(transactional_db, submission, settings):
    settings.LEASE_SECONDS = 0.6
    build = Build.wanted(submission)

    with in_cluster("build"):
        assert build.claim()
        jobs.work(build, lambda: time.sleep(30), deadline_seconds=0.2)

    build.refresh_from_db()
    assert (build.status, build.attempts) == ("queued", 1)
    assert "deadline" in build.waiting_for


def test_what_a_model_says_of_its_failure_is_kept_to_a_length_that_can_be_mailed(build):
    with in_cluster("build"):
        build.claim()
        build.fail(jobs.JobFailed("model_error", "begin" + "x" * 10**6 + "end"))

    build.refresh_from_db()
    assert len(build.error_detail) < 10_000
    assert build.error_detail.startswith("begin")
    assert build.error_detail.endswith("end")
