"""One error body for every API address: RFC 9457 problem+json with a stable `code`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404, JsonResponse
from rest_framework import exceptions
from rest_framework.views import set_rollback

from dynabench_site.faults import NotYet

NOTHING_HERE = "There is nothing here, or it is not yours to see."


class ApiError(Exception):
    """A refusal for the caller: HTTP status, stable code, and a sentence that says what to do."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.headers = status, code, detail, dict(headers or {})


class Conflict(ApiError):
    def __init__(self, code: str, detail: str) -> None:
        super().__init__(409, code, detail)


def problem_response(status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> JsonResponse:
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, "code": code}
    return JsonResponse(body, status=status, headers=headers, content_type="application/problem+json")


def problem(error: Exception, context: Mapping[str, Any]) -> JsonResponse | None:
    """DRF's exception handler."""
    set_rollback()
    if isinstance(error, ApiError):
        return problem_response(error.status, error.code, error.detail, error.headers)
    if isinstance(error, NotYet):
        retry = {"Retry-After": str(math.ceil(error.seconds))}
        return problem_response(503, "unavailable", f"Not possible now: we wait for {error.reason}. Try again.", retry)
    if isinstance(error, Http404):
        return problem_response(404, "not_found", NOTHING_HERE)
    if isinstance(error, PermissionDenied):
        return problem_response(403, "forbidden", "You may not do this.")
    if isinstance(error, exceptions.APIException):
        return _from_rest_framework(error)
    return None


def _from_rest_framework(error: exceptions.APIException) -> JsonResponse:
    headers = {"WWW-Authenticate": error.auth_header} if getattr(error, "auth_header", None) else {}
    if wait := getattr(error, "wait", None):
        headers["Retry-After"] = str(int(wait))
    if isinstance(error.detail, dict):
        detail = " ".join(f"{field}: {' '.join(map(str, texts))}" for field, texts in error.detail.items())
        return problem_response(error.status_code, "invalid", detail, headers)
    return problem_response(error.status_code, str(error.get_codes()), str(error.detail), headers)
