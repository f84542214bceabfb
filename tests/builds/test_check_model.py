from __future__ import annotations

import io

import pytest
from django.core.management import CommandError, call_command

from examples.pack import EXAMPLES
from tests.examples.broken import broken_project


@pytest.fixture(autouse=True)
def _process_sandbox(settings, shared_cache):
    settings.SANDBOX, settings.ALLOW_UNSANDBOXED = "process", True


def check(folder, task="sentiment"):
    out = io.StringIO()
    call_command("check_model", str(folder), "--task", task, stdout=out)
    return out.getvalue()


def test_a_good_model_builds_and_answers(task):
    assert "It builds, and it answers." in check(EXAMPLES / "majority")


def test_a_broken_model_is_told_what_its_build_would_be_told(task, tmp_path):
    with pytest.raises(CommandError, match="handler.py"):
        check(broken_project("import-error", tmp_path / "project", "broken"))


def test_a_folder_that_is_no_project_is_refused(task, tmp_path):
    with pytest.raises(CommandError, match="setup_config.json"):
        check(tmp_path)


def test_an_unknown_task_is_refused_with_the_known_ones(task):
    with pytest.raises(CommandError, match="Known: sentiment"):
        check(EXAMPLES / "majority", task="other")
