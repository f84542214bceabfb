"""How far answers agree with the model's own answers to the unchanged examples: fairness and robustness."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from tasks_catalog.metrics.registry import PERCENT, MetricError, compute, get

EXAMPLE_DECIMALS = 2  # part of the definition: percent scores were rounded before they were averaged


def unperturbed_percent(
    perf_metric: str, variants: Sequence[Sequence[str]], base: Sequence[str], **options: object
) -> float:
    """Agreement in percent of the answers to variants of example i, `variants[i]`, with the answer `base[i]`.

    The perf metric is taken over the variants of each example that has any, then averaged over these examples.
    Raise MetricError when lengths differ or no example has a variant.
    """
    if len(variants) != len(base):
        raise MetricError(f"There are variants for {len(variants)} examples but base predictions for {len(base)}.")
    scores = [
        _agreement(perf_metric, answers, original, options)
        for answers, original in zip(variants, base, strict=True)
        if answers
    ]
    if not scores:
        raise MetricError("No example has a variant: check the input_id of the perturbed dataset.")
    return fsum(scores) / len(scores)


def _agreement(perf_metric: str, answers: Sequence[str], original: str, options: dict[str, object]) -> float:
    if get(perf_metric).unit != PERCENT:
        return compute(perf_metric, answers, [original] * len(answers), **options)
    if all(answer == original for answer in answers):
        return 100.0  # also where binary precision or recall has nothing to count
    return round(compute(perf_metric, answers, [original] * len(answers), **options), EXAMPLE_DECIMALS)
