"""Submissions and leaderboards for scripts and for the pages that follow them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from django.utils.decorators import method_decorator
from django.views.decorators.http import conditional_page
from rest_framework.pagination import LimitOffsetPagination
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from evaluations import services, talking
from evaluations.board import Board, Entry, board, scores_of, weights_from
from evaluations.progress import waiting_for
from submissions.models import Submission
from tasks_catalog.models import Task

FILTERS = {"task": "task__code", "name": "name"}


class Pages(LimitOffsetPagination):
    max_limit = 100


class SubmissionListView(APIView):
    """My submissions, newest first; filters `task` and `name`, pages by `limit` and `offset`."""

    def get(self, request: Request) -> Response:
        given = {column: request.query_params.get(key) for key, column in FILTERS.items()}
        chosen = {column: value for column, value in given.items() if value}
        pages = Pages()
        page = pages.paginate_queryset(_submissions().filter(owner=request.user, **chosen), request, view=self)
        return pages.get_paginated_response(_fields(page, request.user))


@method_decorator(conditional_page, name="dispatch")
class SubmissionView(APIView):
    """One submission that the caller may see; an ETag tells whether something has changed."""

    def get(self, request: Request, pk: int) -> Response:
        submission = get_object_or_404(_submissions().visible_to(request.user), pk=pk)
        return _answer(submission, request.user)


class ActionView(APIView):
    """What its owner, or staff, can do with a submission; 409 when its state doesn't allow it."""

    action = ""

    def post(self, request: Request, pk: int) -> Response:
        submission = get_object_or_404(_managed_by(request.user), pk=pk)
        services.ACTIONS[self.action](submission)
        submission.refresh_from_db()
        return _answer(submission, request.user)


class PredictView(APIView):
    """Ask a model one example; for its owner and staff, also when it is published, because it costs."""

    parser_classes = [talking.ExampleParser]

    def post(self, request: Request, pk: int) -> Response:
        submission = get_object_or_404(_managed_by(request.user), pk=pk)
        talking.check_rate(request)
        return Response(talking.predict(submission, request.data))


@method_decorator(conditional_page, name="dispatch")
class LeaderboardView(APIView):
    """The ranking of a task, by the reader's weights: `m.<metric>` and `d.<dataset>`."""

    permission_classes = [AllowAny]

    def get(self, request: Request, code: str) -> Response:
        task = get_object_or_404(Task.objects.whole().visible_to(request.user), code=code)
        metric_weights, dataset_weights = weights_from(request.query_params)
        return Response(_board_fields(board(task, metric_weights=metric_weights, dataset_weights=dataset_weights)))


def _submissions() -> QuerySet[Submission]:
    return Submission.objects.select_related("owner", "task__build_config")


def _managed_by(user: User) -> QuerySet[Submission]:
    return _submissions() if user.is_staff else _submissions().filter(owner=user)


def _answer(submission: Submission, viewer: User) -> Response:
    return Response(_fields([submission], viewer)[0])


def _fields(submissions: Sequence[Submission], viewer: User) -> list[dict[str, Any]]:
    scores = scores_of(submissions, viewer=viewer)
    return [
        {
            "id": submission.pk,
            "task": submission.task.code,
            "name": submission.name,
            "status": submission.status,
            "waiting_for": waiting_for(submission),
            "error": _error(submission, viewer),
            "is_published": submission.is_published,
            "scores": scores[submission.pk],
            "created_at": submission.created_at,
        }
        for submission in submissions
    ]


def _error(submission: Submission, viewer: User) -> dict[str, str] | None:
    """What went wrong, for those who may look inside."""
    if submission.error_code and submission.is_open_to(viewer):
        return {"code": submission.error_code, "detail": submission.error_detail}
    return None


def _board_fields(ranked: Board) -> dict[str, Any]:
    return {
        "columns": [asdict(column) for column in ranked.columns],
        "datasets": [{"name": row.name, "weight": weight, "examples": row.examples} for row, weight in ranked.datasets],
        "rows": [
            {"rank": row.rank, **_model(row), "score": row.score, "averages": row.averages, "scores": row.scores}
            for row in ranked.rows
        ],
        "lacking": [{**_model(row), "missing": row.missing} for row in ranked.lacking],
    }


def _model(row: Entry) -> dict[str, Any]:
    """Which model it is; nothing of one that competes unpublished."""
    if row.is_anonymous:
        return {"id": None, "name": None, "owner": None}
    return {"id": row.submission.pk, "name": row.submission.name, "owner": row.submission.owner.username}
