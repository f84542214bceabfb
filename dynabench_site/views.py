"""Health, and errors that speak the caller's language: problem+json for the API, a page for people."""

from __future__ import annotations

import errno
import sys

from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views import defaults

from dynabench_site.api import NOTHING_HERE, problem_response
from dynabench_site.clusters import ClusterHeartbeat
from dynabench_site.database import is_away
from dynabench_site.faults import NotYet

API_PATHS = ("/api/", "/models/upload/", "/authenticate/", "/tasks/submitable", "/readyz")
TASK_LIST = "/tasks"  # without a slash it is the CLI's; with one begin the pages
OUR_FAULT = "Something went wrong on our side. It is logged; please try again."
RETRY_SECONDS = "30"
NOT_NOW = "The server is too busy, or short of space, to answer now. Nothing was kept; try again in half a minute."


def healthz(request: HttpRequest) -> HttpResponse:
    """This process answers."""
    return HttpResponse("ok\n", content_type="text/plain")


def readyz(request: HttpRequest) -> JsonResponse:
    """The database answers; says which clusters are alive."""
    connection.ensure_connection()
    names = ClusterHeartbeat.objects.alive().order_by("name").values_list("name", flat=True).distinct()
    return JsonResponse({"database": True, "clusters": list(names)})


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _is_api(request):
        return problem_response(404, "not_found", NOTHING_HERE)
    return defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """500; 503 when the same request will pass a little later: the database is busy or away, or the disk is full."""
    passing = _is_passing(sys.exc_info()[1])
    headers = {"Retry-After": RETRY_SECONDS} if passing else {}
    status, code, detail = (503, "unavailable", NOT_NOW) if passing else (500, "server_error", OUR_FAULT)
    if _is_api(request):
        return problem_response(status, code, detail, headers)
    page = defaults.server_error(request)
    page.status_code = status
    for name, value in headers.items():
        page.headers[name] = value
    return page


def _is_api(request: HttpRequest) -> bool:
    return request.path == TASK_LIST or request.path.startswith(API_PATHS)


def _is_passing(error: BaseException | None) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    return isinstance(error, NotYet) or is_away(error)
