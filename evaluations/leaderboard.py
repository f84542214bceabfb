"""Who is best for what the reader values. The dynascore: Ma et al. 2021, arXiv 2106.06052."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

SMALLEST_STEP = 1e-4  # of the best perf: neighbours that are closer do not count as a trade


def dynascore(
    values: ArrayLike, *, weights: Sequence[float], directions: Sequence[int], offsets: Sequence[float], perf: int
) -> Floats:
    """One score a model, in units of performance; higher is better.

    `values` is [models, metrics]: raw averages, rows in ascending submission id. `perf` is the column that ranks.
    Weights are normalised here; all zero gives 0.0. Raise ValueError for NaN, infinity, negative weights, wrong shapes.
    """
    raw = _finite("values", values, dimensions=2)
    count = raw.shape[1]
    if not 0 <= perf < count:
        raise ValueError(f"perf is {perf}, which is not one of the {count} columns.")
    converted = _row("directions", directions, count) * raw + _row("offsets", offsets, count)
    shares = _shares(_row("weights", weights, count))
    return np.sum(converted * (shares * _units_of_perf(converted, perf)), axis=1)


def _finite(name: str, given: ArrayLike, *, dimensions: int) -> Floats:
    array = np.asarray(given, dtype=np.float64)
    if array.ndim != dimensions or not np.isfinite(array).all():
        raise ValueError(f"{name} must be an array of finite numbers with {dimensions} dimensions.")
    return array


def _row(name: str, given: Sequence[float], count: int) -> Floats:
    row = _finite(name, given, dimensions=1)
    if len(row) != count:
        raise ValueError(f"There are {len(row)} {name} for {count} metrics.")
    return row


def _shares(weights: Floats) -> Floats:
    if (weights < 0).any():
        raise ValueError("Weights must not be negative.")
    total = weights.sum()
    return weights / total if total else weights


def _units_of_perf(converted: Floats, perf: int) -> Floats:
    """What one unit of each metric is worth in perf: 1 / AMRS, and 0 where no pair of neighbours shows a trade."""
    rates = _average_marginal_rates(converted, perf)
    rates[perf] = 1.0
    with np.errstate(divide="ignore", over="ignore"):
        worth = 1 / rates
    return np.where(np.isfinite(worth), worth, 0.0)


def _average_marginal_rates(converted: Floats, perf: int) -> Floats:
    """AMRS of each metric: its mean change per change in perf, over neighbours in perf; 0 when there are none."""
    order = np.argsort(converted[:, perf], kind="stable")
    steps = np.abs(np.diff(converted[order], axis=0))
    enough = SMALLEST_STEP * max(converted[:, perf].max(initial=0.0), 0.0)
    kept = steps[steps[:, perf] > enough]
    return (kept / kept[:, [perf]]).mean(axis=0) if len(kept) else np.zeros(converted.shape[1])
