"""Health, and errors that speak the caller's language: problem+json for the API, a page for people."""

from __future__ import annotations

from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views import defaults

from dynabench_site.api import problem_response
from dynabench_site.clusters import ClusterHeartbeat

API_PATHS = ("/api/", "/models/upload/", "/authenticate/")
OUR_FAULT = "Something went wrong on our side. It is logged; please try again."


def healthz(request: HttpRequest) -> HttpResponse:
    """This process answers."""
    return HttpResponse("ok\n", content_type="text/plain")


def readyz(request: HttpRequest) -> JsonResponse:
    """The database answers; says which clusters are alive."""
    connection.ensure_connection()
    names = ClusterHeartbeat.objects.alive().order_by("name").values_list("name", flat=True).distinct()
    return JsonResponse({"database": True, "clusters": list(names)})


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if request.path.startswith(API_PATHS):
        return problem_response(404, "not_found", "There is nothing here, or it is not yours to see.")
    return defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    if request.path.startswith(API_PATHS):
        return problem_response(
            500, "server_error", "Something went wrong on our side. It is logged; please try again."
        )
    return defaults.server_error(request)
