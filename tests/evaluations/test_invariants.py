from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db.models.functions import Now
from django.utils import timezone

from builds.models import Build
from dynabench_site.clusters import ClusterHeartbeat
from dynabench_site.outbox import OutboxMail
from dynabench_site.state import StatusEvent
from evaluations.invariants import INVARIANTS, violations
from evaluations.models import CurrentScores, Inference, Score, Scoring
from submissions.models import Submission
from tests.conftest import in_cluster, jsonl


@pytest.fixture
def sound(evaluated):
    """An evaluated submission with all its files."""
    evaluated.task.storage().save(evaluated.archive_key, jsonl([]))
    return evaluated


def found():
    return {row.id for row in violations()}


def test_nothing_is_wrong_with_an_evaluated_submission(sound, capsys):
    call_command("check_invariants", "--json")

    assert json.loads(capsys.readouterr().out) == {"ok": True, "violations": []}


def test_the_ten_invariants_are_checked_in_order():
    assert list(INVARIANTS) == [f"I{number}" for number in range(1, 11)]


def test_a_violation_is_named_and_ends_with_exit_code_1(sound, capsys):
    sound.task.storage().delete(sound.archive_key)

    with pytest.raises(SystemExit) as ended:
        call_command("check_invariants", "--json")

    answer = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1
    assert answer == {
        "ok": False,
        "violations": [{"id": "I8", "object": f"submission {sound.pk}", "detail": f"{sound.archive_key} is missing"}],
    }


def test_i1_finds_a_submission_that_nothing_will_ever_move(sound):
    Submission.objects.filter(pk=sound.pk).update(status="evaluating")

    assert "I1" in found()


def test_i1_finds_an_upload_without_a_build(submission):
    StatusEvent.objects.update(at=Now() - timedelta(minutes=5))

    assert "I1" in found()


def test_i1_lets_a_submission_pass_from_one_stage_to_the_next(submission):
    assert "I1" not in found()


def test_i1_accepts_a_queued_job_as_a_reason_to_wait(submission):
    StatusEvent.objects.update(at=Now() - timedelta(minutes=5))
    Build.wanted(submission)

    assert "I1" not in found()


def test_i2_finds_a_succeeded_scoring_without_a_pointer(sound):
    CurrentScores.objects.all().delete()

    assert found() == {"I2"}


def test_i2_finds_an_incomplete_current_set(sound):
    Score.objects.filter(metric="accuracy").delete()

    assert found() == {"I2"}


def test_i2_finds_a_pointer_to_what_did_not_succeed(sound):
    Scoring.objects.update(status="failed")

    assert "I2" in found()


def test_i3_finds_an_illegal_transition(sound):
    sound.record("evaluated", "uploaded")

    assert found() == {"I3"}


def test_i3_finds_a_gap_in_the_history(sound):
    StatusEvent.objects.filter(model="submission", target="building").delete()

    assert found() == {"I3"}


def test_i3_finds_a_status_that_changed_without_an_event(sound):
    Submission.objects.filter(pk=sound.pk).update(status="taken_down")

    assert found() == {"I3"}


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (Build, "image"),
        (Inference, "predictions_sha256"),
        (Scoring, "labels_sha256"),
        (Scoring, "code_version"),
    ],
)
def test_i4_finds_a_score_that_does_not_say_what_it_was_made_from(sound, model, field):
    model.objects.update(**{field: ""})

    assert found() == {"I4"}


def test_i4_finds_a_score_without_its_metrics_version(sound):
    Score.objects.filter(metric="accuracy").update(pinned={})

    assert found() == {"I4"}


def upload(user, task, hours_ago, **fields):
    sent = Submission.objects.create(owner=user, task=task, name="m", status="failed", **fields)
    Submission.objects.filter(pk=sent.pk).update(created_at=timezone.now() - timedelta(hours=hours_ago))
    return sent


def test_i5_finds_one_more_than_the_limit_in_any_window(user, task):
    for hours_ago in (100, 99, 98, 97):
        upload(user, task, hours_ago)

    assert "I5" in found()


def test_i5_accepts_the_limit_and_what_our_own_failures_gave_back(user, task):
    for hours_ago in (100, 99, 98, 75):
        upload(user, task, hours_ago)
    dead = upload(user, task, 97)
    dead.record("building", "dead")

    assert "I5" not in found()


def test_i6_finds_two_inferences_of_one_pair(sound):
    first = Inference.objects.get()
    Inference.objects.create(
        submission=sound, build=first.build, dataset=first.dataset, cluster="default", fingerprint="2"
    )
    Inference.objects.update(status="running")

    assert "I6" in found()


def test_i7_finds_a_mail_that_nobody_claimed(db):
    OutboxMail.objects.create(key="k", to="a@example.org", status="succeeded", cluster="mail")

    assert found() == {"I7"}


def test_i7_finds_a_mail_that_went_twice(db):
    mail = OutboxMail.objects.create(key="k", to="a@example.org", cluster="default")
    with in_cluster("default"):
        assert mail.claim()
        mail.advance("succeeded")
    mail.record("running", "succeeded")

    assert "I7" in found()


@pytest.mark.parametrize("model", [Inference, "inputs", "labels"])
def test_i8_finds_each_missing_file(sound, dataset, model):
    keys = {"inputs": dataset.inputs_keys[0], "labels": dataset.labels_keys[0]}
    sound.task.storage().delete(keys.get(model) or Inference.objects.get().predictions_keys[0])

    assert found() == {"I8"}


@pytest.mark.parametrize("holder", ["other", None])
def test_i9_finds_a_job_in_the_wrong_hands(submission, holder):
    held_by = holder and ClusterHeartbeat.objects.create(name=holder, host="h", pid=1)
    Build.objects.create(submission=submission, cluster="build", status="running", holder=held_by)

    assert "I9" in found()


def test_i9_accepts_the_right_hands(submission):
    with in_cluster("build"):
        assert Build.wanted(submission).claim()

        assert found() == {"I8"}


def test_i10_finds_a_job_that_was_tried_too_often(sound):
    Build.objects.update(attempts=4)

    assert found() == {"I10"}
