"""Models that fail: each ends with one clear message, and keeps no other from its turn."""

from __future__ import annotations

import pytest

from dynabench_site.outbox import OutboxMail
from evaluations.dataset_files import store_dataset_file
from evaluations.invariants import violations
from submissions.models import Submission
from tasks_catalog.models import Dataset
from tests.conftest import EXAMPLES, jsonl
from tests.examples.broken import CRASH_WORD, KINDS, broken_project
from tests.pipeline.conftest import archive_bytes, send, trivial_archive, wait_for

# kind of broken project -> code, and what its owner reads
EXPECTED = {
    "import-error": ("model_load_failed", "handler.py"),
    "crash-on-one": ("bad_predictions", "5"),
    "wrong-ids": ("wrong_id", "uid"),
    "wrong-types": ("bad_answer", "label"),
    "nan": ("handler_failed", "out of range float"),
    "never-answers": ("model_timeout", "time limit"),
    "unknown-requirement": ("bad_requirements", "line"),
    "requirement-option": ("bad_requirements", "line"),
    "requirement-url": ("bad_requirements", "line"),
}


@pytest.mark.timeout(300)
def test_each_broken_model_fails_with_its_reason_and_the_good_one_is_evaluated(start_cluster, user, task, tmp_path):
    crashing = {"uid": "5", "statement": f"Please {CRASH_WORD} now.", "label": "neutral"}
    store_dataset_file(Dataset(task=task, name="tweets"), jsonl([*EXAMPLES, crashing]))
    task.submission_limit = 20
    task.save()
    task.build_config.startup_seconds = 5
    task.build_config.save()
    for kind in KINDS:
        send(user, task, archive_bytes(broken_project(kind, tmp_path / kind, kind)), kind)
    good = send(user, task, trivial_archive("good", tmp_path), "good")

    start_cluster("build")
    start_cluster("default")

    assert wait_for(lambda: not Submission.objects.unfinished().exists(), 200)
    good.refresh_from_db()
    assert good.status == "evaluated"
    for submission in Submission.objects.exclude(pk=good.pk):
        code, words = EXPECTED[submission.name]
        assert (submission.name, submission.status, submission.error_code) == (submission.name, "failed", code)
        assert words.lower() in submission.error_detail.lower()
    assert set(EXPECTED) == set(KINDS)
    failures = OutboxMail.objects.filter(subject__contains="could not")
    assert failures.count() == len(KINDS)
    assert violations() == []
