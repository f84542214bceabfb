"""Metrics that are not computed from references: what a run cost, and how steady answers are under perturbation."""

from __future__ import annotations

from math import inf

from tasks_catalog.metrics.registry import Metric, register

register(
    Metric(
        "fairness",
        "Fairness",
        "Share of answers that stay the same when the people in an example are described differently.",
        kind="perturbation",
    )
)
register(
    Metric(
        "robustness",
        "Robustness",
        "Share of answers that stay the same when an example is misspelt or rephrased.",
        kind="perturbation",
    )
)
register(
    Metric(
        "examples_per_second",
        "Throughput",
        "Examples answered a second, start-up not counted; two decimals.",
        kind="job",
        unit="examples/second",
        range=(0.0, inf),
    )
)
register(
    Metric(
        "memory_utilization",
        "Memory",
        "Memory used at the peak, to 0.01 GiB; the dynascore counts what the instance has left.",
        kind="job",
        unit="GiB",
        direction=-1,
        offset_is_instance_memory=True,
        range=(0.0, inf),
    )
)
