"""How well a model did: metrics by name. Pure functions, importable without Django; docs/metrics.md explains each."""

from __future__ import annotations

from tasks_catalog.metrics import classification, measured, questions, translation
from tasks_catalog.metrics.perturbation import unperturbed_percent
from tasks_catalog.metrics.registry import (
    Metric,
    MetricError,
    Option,
    check_options,
    compute,
    file_hashes,
    get,
    metric,
    names,
)

FAMILIES = (classification, measured, questions, translation)  # importing a family registers its metrics

__all__ = [
    "FAMILIES",
    "Metric",
    "MetricError",
    "Option",
    "check_options",
    "compute",
    "file_hashes",
    "get",
    "metric",
    "names",
    "unperturbed_percent",
]
