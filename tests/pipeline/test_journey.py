"""A new member of staff makes a task in the admin; ada sends models to it; another metric changes their order."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from django.core.management import call_command
from playwright.sync_api import Page, expect, sync_playwright

from evaluations.demo import Client
from evaluations.models import Inference
from examples.pack import EXAMPLES, archive_bytes
from submissions.models import ApiToken, Submission
from tasks_catalog.models import Task
from tests.pipeline.conftest import wait_for

# The majority wins by accuracy and loses by macro F1 against a model that finds the rare label half of the time.
RECORDS = [{"uid": str(n), "statement": f"Nothing to see, number {n}.", "label": "positive"} for n in range(8)]
RECORDS += [
    {"uid": "8", "statement": "rare", "label": "negative"},
    {"uid": "9", "statement": "rare", "label": "neutral"},
]
MAJORITY = '"positive"'
RARE = '"negative" if example["statement"] == "rare" or example["uid"] in "01" else "positive"'
HANDLER = """
from dynalab.handler.base_handler import BaseDynaHandler

_service = BaseDynaHandler()


def handle(data, context):
    if data is None:
        return None
    example = _service._read_data(data)
    return [{{"id": example["uid"], "label": {label}}}]
"""


@pytest.fixture
def page(live_server, monkeypatch):
    monkeypatch.setitem(os.environ, "DJANGO_ALLOW_ASYNC_UNSAFE", "1")  # playwright runs an event loop in this thread
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser.new_page(base_url=live_server.url)
        browser.close()


def project(folder: Path, name: str, label: str) -> Path:
    shutil.copytree(EXAMPLES / "majority", folder / name)
    (folder / name / "handler.py").write_text(HANDLER.format(label=label))
    config = folder / name / ".dynalab" / "majority"
    setup = json.loads((config / "setup_config.json").read_text())
    (config / "setup_config.json").write_text(json.dumps({**setup, "task": "reviews"}))
    config.rename(config.with_name(name))
    return folder / name


def make_task(page: Page, file: Path) -> None:
    page.goto("/admin/tasks_catalog/task/add/")
    page.fill("input[name=code]", "reviews")
    page.fill("input[name=name]", "Reviews")
    page.select_option("select[name=metrics-0-name]", "macro_f1")
    page.check("input[name=metrics-0-ranks]")
    page.get_by_role("button", name="Save and continue editing").click()
    expect(page.locator(".messagelist")).to_contain_text("was added successfully")
    page.get_by_role("link", name="Add a dataset").click()
    page.fill("input[name=name]", "small")
    page.set_input_files("input[type=file]", file)
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator(".messagelist")).to_contain_text("10 examples")


def change_metric(page: Page, name: str) -> None:
    page.goto(f"/admin/tasks_catalog/task/{Task.objects.get(code='reviews').pk}/change/")
    page.select_option("select[name=metrics-0-name]", name)
    page.get_by_role("button", name="Save", exact=True).click()


def order(page: Page) -> list[str]:
    page.goto("/tasks/reviews/")
    return page.locator("table").first.get_by_role("link", name=re.compile("majority|rare")).all_inner_texts()


@pytest.mark.chromium
@pytest.mark.timeout(300)
def test_a_task_made_in_the_admin_ranks_models_and_another_metric_ranks_them_anew(
    page, live_server, start_cluster, user, staff, tmp_path, settings
):
    settings.PORT = int(live_server.url.rsplit(":", 1)[1])
    file = tmp_path / "small.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    page.goto("/admin/")
    page.fill("input[name=login]", "staff")
    page.fill("input[name=password]", "secret")
    page.locator("main button[type=submit]").click()
    make_task(page, file)
    start_cluster("build")
    start_cluster("default")
    ada = Client(ApiToken.make(user=user, name="test")[1])

    sent = [
        ada.send("reviews", name, archive_bytes(project(tmp_path, name, label)))
        for name, label in (("majority", MAJORITY), ("rare", RARE))
    ]
    assert wait_for(lambda: not Submission.objects.unfinished().exists(), 60)
    for pk in sent:
        ada.mine("POST", f"/api/v1/submissions/{pk}/publish/")
    by_macro_f1 = order(page)
    change_metric(page, "accuracy")
    call_command("reevaluate", "--task", "reviews", "--wait")

    assert by_macro_f1 == ["rare", "majority"]
    assert order(page) == ["majority", "rare"]
    assert Inference.objects.count() == 2, "no inference was repeated"
