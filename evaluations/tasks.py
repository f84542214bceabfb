from __future__ import annotations

from evaluations import services
from submissions.models import Submission
from tasks_catalog.models import EvalServer


def evaluate_submission(submission_pk: int) -> None:
    services.evaluate_submission(Submission.objects.get(pk=submission_pk))


def run_inferences(eval_server_pk: str) -> None:
    services.run_inferences(EvalServer.objects.get(pk=eval_server_pk))


def run_scorings(eval_server_pk: str) -> None:
    services.run_scorings(EvalServer.objects.get(pk=eval_server_pk))
