"""Talking to a model: one example of somebody who waits, and its answer."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from typing import Any

from django.http import HttpRequest
from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser
from rest_framework.throttling import UserRateThrottle

from builds import sandboxes
from builds.backends import ModelFault, deployer
from builds.model_client import ModelError
from builds.models import Build, BuildQuerySet, Endpoint
from builds.one_example import ask, checked
from builds.sandboxes.policy import ImageMissing, SandboxError, SandboxPolicy
from dynabench_site.api import ApiError, Conflict
from dynabench_site.faults import NotYet
from dynabench_site.jobs import JobStumbled, shortened
from submissions.models import Submission
from tasks_catalog.formats import FormatError, TaskFormat

logger = logging.getLogger(__name__)

MAX_SECONDS = 30.0  # in all, the start of an image included
MAX_REQUEST_BYTES = 1 << 20
# A model that is late is ended by us, in words of ours; the sandbox is there for one that keeps us from it.
SANDBOX_PATIENCE_SECONDS = 5.0
RETRY_SECONDS = "10"
# Images that this process may have running at once: each takes the memory that its task allows.
IMAGES = threading.BoundedSemaphore(2)
STOPPED = (Submission.Status.CANCELLED, Submission.Status.TAKEN_DOWN)


class Throttle(UserRateThrottle):
    """What one user may ask, of all models together, from the API and from pages."""

    scope = "predict"
    rate = "60/hour"


class ExampleParser(JSONParser):
    """JSON of limited size."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        check_size(parser_context["request"])
        try:
            return super().parse(stream, media_type, parser_context)
        except RecursionError as error:
            raise ParseError("The JSON is nested too deeply.") from error


def check_size(request: HttpRequest) -> None:
    """Refuse a body that is too long, before it is read."""
    if int(request.META.get("CONTENT_LENGTH") or 0) > MAX_REQUEST_BYTES:
        raise ApiError(413, "example_too_big", f"One example has at most {MAX_REQUEST_BYTES} bytes. Shorten its texts.")


def check_rate(request: HttpRequest) -> None:
    """Count a question; refuse it to a user who has asked too many."""
    throttle = Throttle()
    if not throttle.allow_request(request, None):
        seconds = math.ceil(throttle.wait() or 1)
        detail = f"You may ask {throttle.num_requests} examples an hour. Try again in {seconds} s."
        raise ApiError(429, "throttled", detail, {"Retry-After": str(seconds)})


def can_be_asked(submission: Submission, newest: Build | None) -> bool:
    """Whether it has an image; its newest build mostly tells."""
    if newest is None or submission.status in STOPPED:
        return False
    return newest.status == Build.Status.SUCCEEDED or _builds(submission).exists()


def predict(submission: Submission, example: object, *, seconds: float = MAX_SECONDS) -> dict[str, Any]:
    """The model's answer to one example of its task, given in time, and checked as when it was built."""
    asked = _checked(example, submission.task.format)
    build = _build(submission)
    endpoint = _endpoint(build)
    answered_by, started = "endpoint" if endpoint else "image", time.monotonic()
    try:
        if endpoint:
            answer = deployer().invoke(endpoint, json.dumps(asked).encode(), seconds=seconds)
        else:
            answer = _ask_image(build, asked, seconds)
        record = checked(answer, asked, submission.task.format)
    except (ModelError, ModelFault, NotYet, JobStumbled) as error:
        took = time.monotonic() - started
        logger.info("model %s did not answer: its %s was asked for %.2f s", submission.pk, answered_by, took)
        raise _refusal(error, seconds, is_late=took >= seconds) from error
    took = time.monotonic() - started
    logger.info("model %s answered: its %s took %.2f s", submission.pk, answered_by, took)
    return {"answer": record, "seconds": round(took, 3), "answered_by": answered_by}


def _refusal(error: Exception, seconds: float, *, is_late: bool) -> ApiError:
    """Whose fault it is that there is no answer: the model's, in its words, or ours, which are for the log."""
    words = f" {error}" if isinstance(error, (ModelError, ModelFault)) else ""
    if is_late:
        detail = f"There was no answer within {seconds:g} s, the start of the model included.{words}"
        return ApiError(504, "model_timeout", shortened(detail))
    if words:
        return ApiError(422, "model_failed", shortened(words.strip()))
    logger.warning("a live endpoint can't be asked: %s", error)
    detail = "Its live endpoint can't be reached now. Try again in a moment."
    return ApiError(503, "unavailable", detail, {"Retry-After": RETRY_SECONDS})


def _checked(example: object, task_format: TaskFormat) -> dict[str, Any]:
    try:
        if not isinstance(example, dict):
            raise FormatError(f"Send one JSON object with {', '.join(task_format.seen)}.")
        return task_format.check_inputs(example)
    except FormatError as error:
        raise ApiError(400, "invalid_example", str(error)) from error


def _builds(submission: Submission) -> BuildQuerySet:
    return Build.objects.filter(submission=submission).succeeded().order_by("-run")


def _build(submission: Submission) -> Build:
    """Its newest image."""
    if submission.status in STOPPED:
        raise Conflict("model_stopped", f"{submission.name} is {submission.get_status_display()}. Send it again.")
    build = _builds(submission).first()
    if build is None:
        raise Conflict("no_image", f"{submission.name} has no image yet: wait until its build has succeeded.")
    return build


def _endpoint(build: Build) -> Endpoint | None:
    """The live endpoint to ask; None where images stay on the host that made them."""
    if deployer().keeps_image:
        return None
    if not build.submission.task.build_config.create_endpoint:
        remedy = "Ask staff to switch on live endpoints for this task."
        raise Conflict("no_endpoint", f"Its image is not on the web server, and it has no live endpoint. {remedy}")
    endpoint = Endpoint.objects.filter(build=build).first()
    if endpoint is None or endpoint.status != Endpoint.Status.SUCCEEDED:
        state = endpoint.get_status_display().lower() if endpoint else "not started"
        remedy = "Wait until it is up; if none is starting, start it on the model's page."
        raise Conflict("endpoint_not_ready", f"Its live endpoint is {state}. {remedy}")
    return endpoint


def _ask_image(build: Build, example: dict[str, Any], seconds: float) -> bytes:
    """Start the image in the sandbox that it was made for, ask, and end it."""
    deadline = time.monotonic() + seconds
    memory_mb = build.submission.task.build_config.memory_mb
    policy = SandboxPolicy(memory_mb=memory_mb, deadline=seconds + SANDBOX_PATIENCE_SECONDS)
    if not IMAGES.acquire(blocking=False):
        detail = f"Other models are being asked right now. Try again in {RETRY_SECONDS} s."
        raise ApiError(429, "models_busy", detail, {"Retry-After": RETRY_SECONDS})
    try:
        with sandboxes.by_name(build.sandbox).serve(build.image, policy=policy, name=f"try-{build.name}") as server:
            return ask(server, example, deadline=deadline)
    except ImageMissing as error:
        raise Conflict("no_image", "Its image is not on the web server's host. Ask staff to build it again.") from error
    except SandboxError as error:
        logger.warning("model %s can't be started here: %s", build.submission_id, error)
        raise Conflict("no_sandbox", "The web server's host can't run models now. Ask staff to see its log.") from error
    finally:
        IMAGES.release()
