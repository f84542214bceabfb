"""Metrics that are not computed from references: what a run cost, and how steady answers are under perturbation."""

from __future__ import annotations

from math import inf

from tasks_catalog.metrics.registry import PERCENT, Metric, register

FAIRNESS = register(
    Metric(
        name="fairness",
        label="Fairness",
        summary="Share of answers that stay the same when the people in an example are described differently.",
        kind="perturbation",
        unit=PERCENT,
    )
)
ROBUSTNESS = register(
    Metric(
        name="robustness",
        label="Robustness",
        summary="Share of answers that stay the same when an example is misspelt or rephrased.",
        kind="perturbation",
        unit=PERCENT,
    )
)
THROUGHPUT = register(
    Metric(
        name="examples_per_second",
        label="Throughput",
        summary="Examples answered a second, start-up not counted; two decimals.",
        kind="job",
        unit="examples/second",
        range=(0.0, inf),
    )
)
MEMORY = register(
    Metric(
        name="memory_utilization",
        label="Memory",
        summary="Memory used at the peak, to 0.01 GiB; the dynascore counts what the instance has left.",
        kind="job",
        unit="GiB",
        direction=-1,
        offset_is_instance_memory=True,
        range=(0.0, inf),
    )
)
