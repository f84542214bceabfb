"""Inference on this host: the image in a sandbox, batches over its unix socket."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from django.conf import settings
from django.core.files import File

from builds import sandboxes
from builds.faults import hosts_faults
from builds.model_client import ModelClient, ModelError
from builds.sandboxes.policy import SandboxPolicy
from builds.steps import check_cancelled
from evaluations.backends import Outcome
from evaluations.models import Inference
from tasks_catalog.files import opened_each
from tasks_catalog.models import BuildConfig

BATCH_LINES = 256
MAX_ANSWER_BYTES_PER_EXAMPLE = 1 << 16


class LocalRunner:
    """`start` returns when the predictions are stored: here the worker itself is the machine that runs them."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}

    def limits(self, config: BuildConfig, examples: int) -> dict[str, Any]:
        return {"deadline_seconds": config.deadline_seconds(examples), "memory_mb": config.memory_mb}

    def start(self, inference: Inference) -> str:
        try:
            with hosts_faults():
                self.outcomes[inference.name] = self._run(inference)
        except ModelError as error:
            self.outcomes[inference.name] = Outcome("failed", code=error.code, detail=error.detail)
        return inference.name

    def link(self, inference: Inference) -> str:
        return ""

    def poll(self, inference: Inference) -> Outcome:
        return self.outcomes[inference.name]

    def stop(self, inference: Inference) -> None:
        """A running one reads the flag of its submission before each batch."""

    def _run(self, inference: Inference) -> Outcome:
        sandbox = sandboxes.by_name(inference.build.sandbox)  # the one that the image was made for
        deadline = inference.limits["deadline_seconds"]
        policy = SandboxPolicy(memory_mb=inference.limits["memory_mb"], deadline=deadline, cpu_seconds=int(deadline))
        with sandbox.serve(inference.build.image, policy=policy, name=inference.name) as server:
            client = ModelClient(
                server,
                deadline=time.monotonic() + deadline,
                max_answer_bytes=BATCH_LINES * MAX_ANSWER_BYTES_PER_EXAMPLE,
            )
            client.wait_until_ready()
            outcome = self._predict(inference, client)
            client.close()
            return replace(outcome, peak_memory_bytes=server.peak_memory())

    def _predict(self, inference: Inference, client: ModelClient) -> Outcome:
        """The answers to each shard of the inputs are stored in an object of their own."""
        examples, seconds, sha256 = 0, 0.0, hashlib.sha256()
        storage, keys = inference.submission.task.storage(), inference.dataset.inputs_keys
        shards = opened_each(storage, keys, sha256=inference.inputs_sha256)
        for lines, key in zip(shards, inference.predictions_keys, strict=True):
            with tempfile.TemporaryFile(dir=settings.VAR) as output:
                started = time.monotonic()
                for batch in _batches(lines):
                    check_cancelled(inference.submission)
                    answer = client.predict_lines(batch)
                    sha256.update(answer)
                    output.write(answer)
                    examples += len(batch)
                seconds += time.monotonic() - started
                output.seek(0)
                storage.save(key, File(output))
        return Outcome("succeeded", predictions_sha256=sha256.hexdigest(), examples=examples, seconds=seconds)


def _batches(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    while batch := list(islice(lines, BATCH_LINES)):
        yield batch
