"""Which inference runs next, and how the running ones go."""

from __future__ import annotations

from functools import partial

from django.db import transaction

from dynabench_site import jobs
from evaluations.backends import Outcome, runner
from evaluations.models import Inference
from submissions.models import Submission
from tasks_catalog.models import EvalServer

POLL_SECONDS = 15
MARGIN_SECONDS = 60


class Scheduler:
    """The inferences of one eval server, in the order they came, never more at once than it allows."""

    def __init__(self, eval_server: EvalServer) -> None:
        self.eval_server = eval_server
        self.runner = runner()
        self.jobs = Inference.objects.filter(cluster=eval_server.pk)

    @transaction.atomic
    def submit(self) -> Inference | None:
        """The next inference, claimed; None when there is none or the cap is reached."""
        EvalServer.objects.select_for_update().get(pk=self.eval_server.pk)  # one scheduler counts at a time
        if self.jobs.running().count() >= self.eval_server.max_inferences:
            return None
        return jobs.claim_next(self.jobs.select_related("submission__task__build_config", "dataset__task", "build"))

    def run(self, inference: Inference) -> None:
        """Start a claimed inference, or look again at one that was started."""
        deadline = inference.limits["deadline_seconds"] + MARGIN_SECONDS
        jobs.work(inference, partial(self._advance, inference), deadline_seconds=deadline)

    def _advance(self, inference: Inference) -> None:
        handle = self.runner.start(inference)
        inference.save_progress(handle=handle)
        self.update_status(inference, self.runner.poll(handle))

    def update_status(self, inference: Inference, outcome: Outcome) -> None:
        """Write down how a claimed inference goes."""
        if outcome.state == "running":
            inference.wait("the batch transform job, which is running", POLL_SECONDS)
        elif outcome.state == "failed":
            raise jobs.JobFailed(outcome.code, outcome.detail)
        else:
            inference.advance(
                Inference.Status.SUCCEEDED,
                predictions_sha256=outcome.predictions_sha256,
                examples=outcome.examples,
                seconds=outcome.seconds,
                peak_memory_bytes=outcome.peak_memory_bytes,
            )

    def stop(self, submission: Submission) -> None:
        """End what is queued or running for a submission."""
        for inference in self.jobs.unfinished().filter(submission=submission):
            if inference.handle:
                self.runner.stop(inference.handle)
            inference.cancel(by="stop")
