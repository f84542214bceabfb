"""Which inference runs next, and how the running ones go."""

from __future__ import annotations

from functools import partial

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q

from dynabench_site import jobs
from dynabench_site.database import retried
from dynabench_site.faults import Throttled
from evaluations.backends import Outcome, runner
from evaluations.models import Inference
from submissions.models import Submission
from tasks_catalog.models import EvalServer

MARGIN_SECONDS = 60
# What counts for the cap: a worker is at it, or its run goes on elsewhere.
IN_FLIGHT = Q(status=Inference.Status.RUNNING) | ~Q(handle="")


class Scheduler:
    """The inferences of one eval server, in the order they came, never more at once than it allows."""

    def __init__(self, eval_server: EvalServer) -> None:
        self.eval_server = eval_server
        self.runner = runner()
        self.jobs = Inference.objects.filter(cluster=eval_server.pk)

    @retried
    @transaction.atomic
    def submit(self) -> Inference | None:
        """The next inference, claimed: one that was started is looked at first; a new one only below the cap."""
        EvalServer.objects.select_for_update().get(pk=self.eval_server.pk)  # one scheduler counts at a time
        rows = self.jobs.select_related("submission__task__build_config", "dataset__task", "build__submission")
        started = jobs.claim_next(rows.exclude(handle=""))
        if started or self.jobs.unfinished().filter(IN_FLIGHT).count() >= self.eval_server.max_inferences:
            return started
        return jobs.claim_next(rows.filter(handle=""))

    def run(self, inference: Inference) -> None:
        """Start a claimed inference, or look again at one that was started."""
        deadline = inference.limits["deadline_seconds"] + MARGIN_SECONDS
        jobs.work(inference, partial(self._advance, inference), deadline_seconds=deadline)

    def _advance(self, inference: Inference) -> None:
        try:
            inference.handle = self.runner.start(inference)
        except Throttled as error:
            self._hold_back_after(inference, error)
            raise
        inference.save_progress(handle=inference.handle, link=self.runner.link(inference))
        self.update_status(inference, self.runner.poll(inference))

    def _hold_back_after(self, inference: Inference, error: Throttled) -> None:
        """Those behind it in its region stay behind it: they would be refused as well, or overtake it."""
        until = jobs.in_seconds(error.pause(inference.waits) + 1)
        behind = self.jobs.queued().filter(handle="", pk__gt=inference.pk)
        behind = behind.filter(build__config__aws_region=inference.build.config["aws_region"])
        behind = behind.filter(Q(not_before=None) | Q(not_before__lt=until))
        behind.update(not_before=until, waiting_for=error.reason)

    def update_status(self, inference: Inference, outcome: Outcome) -> None:
        """Write down how a claimed inference goes."""
        if outcome.state == "running":
            pause = settings.LEASE_SECONDS / 2
            inference.wait(outcome.detail or "the batch transform job, which is running", pause)
        elif outcome.state in {"failed", "lost"}:
            inference.save_progress(handle="", tries=F("tries") + 1)  # or the next try would find this run
            if outcome.state == "lost":
                raise jobs.JobStumbled(outcome.code, outcome.detail)
            raise jobs.JobFailed(outcome.code, outcome.detail)
        else:
            inference.advance(
                Inference.Status.SUCCEEDED,
                predictions_sha256=outcome.predictions_sha256,
                examples=outcome.examples,
                seconds=outcome.seconds,
                peak_memory_bytes=outcome.peak_memory_bytes,
                cost=outcome.cost,
                handle="",
            )

    def stop(self, submission: Submission) -> None:
        """End what is queued or running for a submission; what runs elsewhere ends with the next sweep."""
        for inference in self.jobs.unfinished().filter(submission=submission):
            inference.cancel(by="stop")

    def end_runs(self) -> None:
        """End the runs of inferences that were cancelled or given up, here or on an eval server that is no more."""
        ended = Inference.objects.exclude(handle="")
        ended = ended.exclude(status__in=[Inference.Status.QUEUED, Inference.Status.RUNNING])
        for inference in ended.select_related("submission__task__build_config", "build__submission", "dataset"):
            with jobs.another_time(inference):
                self.runner.stop(inference)
                ended.filter(pk=inference.pk).update(handle="", tries=F("tries") + 1)
