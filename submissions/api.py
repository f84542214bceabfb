"""What the dynalab CLI calls, at the site's root and without a trailing slash."""

from __future__ import annotations

import json
from typing import Any

from django.contrib.auth.models import User
from django.http import JsonResponse
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import NotAuthenticated
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from submissions.authentication import TokenAuthentication, access_token, find_token
from submissions.models import ApiToken
from submissions.upload import receive
from tasks_catalog.models import Task


class QueryTokenAuthentication(BaseAuthentication):
    """The API token in the query string, as the CLI sends it."""

    def authenticate(self, request: Request) -> tuple[User, ApiToken]:
        if not (secret := request.query_params.get("api_token")):
            raise NotAuthenticated("Send ?api_token=. You get a token at /generate_api_token.")
        token = find_token(secret)
        return token.user, token

    def authenticate_header(self, request: Request) -> str:
        return 'Token realm="dynabench"'


class AccessTokenView(APIView):
    """An access token for an API token; 401 when that one is missing, unknown, expired or revoked."""

    authentication_classes = [QueryTokenAuthentication]

    def get(self, request: Request) -> Response:
        return Response({"token": access_token(request.auth)}, headers={"Cache-Control": "no-store"})


class TaskListView(APIView):
    """The tasks as both generations of the CLI read them: a plain list. Hidden tasks are left out."""

    authentication_classes: list[type[BaseAuthentication]] = []
    permission_classes = [AllowAny]
    only_submitable = False

    def get(self, request: Request) -> JsonResponse:
        tasks = Task.objects.visible().filter(build_config__isnull=False)
        tasks = tasks.submitable() if self.only_submitable else tasks
        rows = tasks.select_related("build_config").prefetch_related("metrics")
        return JsonResponse([task_fields(task) for task in rows], safe=False)


class UploadView(APIView):
    """A model's archive. Whoever sends it is known before its body is read, which DRF never parses."""

    authentication_classes = [TokenAuthentication]

    def post(self, request: Request) -> Response:
        submission = receive(request._request, owner=request.user)
        return Response(headers={"X-Submission-Id": str(submission.pk)})


def task_fields(task: Task) -> dict[str, Any]:
    """A task in the CLI's words; `settings_json` is for its first generation, the limits beside it for the second."""
    limits = {"dynalab_hr_diff": task.limit_hours, "dynalab_threshold": task.submission_limit}
    config = task.build_config
    return {
        "id": task.pk,
        "name": task.name,
        "task_code": task.code,
        "shortname": task.code,
        "desc": task.purpose,
        "config_yaml": task.config_yaml,
        "settings_json": json.dumps(limits),
        **limits,
        "submitable": task.submitable,
        "instance_type": config.instance_type_id,
        "instance_count": config.instance_count,
        "aws_region": config.aws_region,
        "create_endpoint": config.create_endpoint,
        "gpu": config.gpu,
    }
