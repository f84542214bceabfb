"""The pages in a real browser: what only a browser can tell."""

from __future__ import annotations

import os
import re

import pytest
from playwright.sync_api import expect, sync_playwright

from builds.models import Build
from submissions.models import Submission
from tests.conftest import EXAMPLES, in_cluster, make_built, make_predictions, make_scores

pytestmark = [pytest.mark.chromium, pytest.mark.django_db(transaction=True)]
ARGUMENTS = ["--no-sandbox", "--disable-background-networking"]
WIDTHS = (1280, 390)


@pytest.fixture(autouse=True)
def _synchronous_orm(monkeypatch):
    """Playwright runs an event loop in this thread, which Django would take for asynchronous code."""
    monkeypatch.setitem(os.environ, "DJANGO_ALLOW_ASYNC_UNSAFE", "1")


@pytest.fixture
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, live_server):
    """A page of the live server that fails the test on any console error, refused inline code included."""
    context = browser.new_context(base_url=live_server.url, permissions=["clipboard-read", "clipboard-write"])
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []


def sign_in(page) -> None:
    page.goto("/accounts/login/")
    page.get_by_label("Login").fill("ada")
    page.get_by_label("Password").fill("secret")
    page.get_by_role("main").get_by_role("button", name="Sign In").click()
    expect(page.get_by_role("link", name="My models")).to_be_visible()


def test_a_visitor_weighs_the_board_and_sends_the_address(page, browser, live_server, evaluated):
    page.goto("/tasks/sentiment/")
    page.get_by_label("Throughput").fill("9")
    page.get_by_role("button", name="Rank again").click()
    page.wait_for_url(re.compile("m.examples_per_second=9"))

    other = browser.new_page()
    other.goto(page.url)
    expect(other.get_by_label("Throughput")).to_have_value("9")
    assert other.locator("table.board").inner_text() == page.locator("table.board").inner_text()


def test_the_board_is_weighed_without_javascript(browser, live_server, evaluated):
    page = browser.new_context(base_url=live_server.url, java_script_enabled=False).new_page()
    page.goto("/tasks/sentiment/")
    page.get_by_label("Memory").fill("7")
    page.get_by_role("button", name="Rank again").click()

    expect(page.get_by_label("Memory")).to_have_value("7")


def test_a_new_token_is_copied_with_one_click(page, user):
    sign_in(page)
    page.goto("/generate_api_token")
    page.get_by_role("button", name="Make a token").click()
    page.get_by_role("button", name="Copy").click()

    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert re.fullmatch("[0-9a-f]{64}", page.evaluate("navigator.clipboard.readText()"))


def test_the_page_of_a_model_follows_it_to_its_end(page, submission, dataset):
    sign_in(page)
    page.goto(f"/models/{submission.pk}/")
    badge = page.get_by_role("heading", level=1).locator(".badge")
    expect(badge).to_have_text("uploaded")
    page.wait_for_timeout(500)  # the first answer, to which later ones are compared

    build = make_built(submission)
    expect(badge).to_have_text("evaluating", timeout=10_000)
    make_scores(make_predictions(build, dataset, {row["uid"]: row["label"] for row in EXAMPLES}))
    submission.advance(Submission.Status.EVALUATED)

    expect(badge).to_have_text("evaluated", timeout=10_000)
    expect(page.get_by_text("If published it would rank")).to_be_visible()
    expect(page.locator("main")).not_to_have_attribute("data-live", re.compile(".*"))


def test_an_owner_publishes_with_one_click(page, evaluated):
    Submission.objects.update(is_published=False)
    sign_in(page)
    page.goto(f"/models/{evaluated.pk}/")
    page.get_by_role("button", name="Publish").click()

    expect(page.get_by_text("Published: everybody can see")).to_be_visible()


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_the_screen(page, evaluated, width):
    Submission.objects.create(owner=evaluated.owner, task=evaluated.task, name="n" * 63, status="uploaded")
    with in_cluster("build"):
        Build.wanted(evaluated)
    page.set_viewport_size({"width": width, "height": 800})
    sign_in(page)
    model = f"/models/{evaluated.pk}/"
    for path in ("/", "/tasks/sentiment/", "/tasks/sentiment/datasets/tweets/", model, f"{model}log", "/submissions/",
                 "/generate_api_token", "/accounts/password/change/", f"/models/{evaluated.pk + 1}/"):  # fmt: skip
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
