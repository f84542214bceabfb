"""Metrics over one label an example: accuracy, macro F1, precision, recall. All in percent."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from tasks_catalog.metrics.registry import Answer, MetricError, Option, OptionValue, metric


@dataclass(frozen=True, slots=True)
class Counts:
    """How often a label was rightly given, wrongly given, and wrongly left out."""

    hits: int
    false_alarms: int
    misses: int

    @property
    def precision(self) -> float:
        return _ratio(self.hits, self.hits + self.false_alarms)

    @property
    def recall(self) -> float:
        return _ratio(self.hits, self.hits + self.misses)

    @property
    def f1(self) -> float:
        return _ratio(2 * self.hits, 2 * self.hits + self.false_alarms + self.misses)


def _check_average(options: Mapping[str, OptionValue]) -> None:
    if (options["average"] == "binary") != bool(options["positive"]):
        raise MetricError("The option positive names the label that average=binary looks at: give both or neither.")


AVERAGING = {"average": Option(str, "macro", ("macro", "micro", "binary")), "positive": Option(str, "")}


@metric("accuracy", "Accuracy")
def accuracy(predictions: Sequence[str], references: Sequence[Answer]) -> float:
    """Share of examples whose prediction equals the reference, or one of the accepted references."""
    hits = sum(map(operator.eq, predictions, best_references(predictions, references)))
    return 100 * hits / len(references)


@metric("macro_f1", "Macro F1")
def macro_f1(predictions: Sequence[str], references: Sequence[Answer]) -> float:
    """F1 of each label seen in predictions or references, averaged with equal weight."""
    return _averaged(predictions, references, "macro", "", lambda counts: counts.f1)


@metric("precision", "Precision", options=AVERAGING, check_together=_check_average)
def precision(predictions: Sequence[str], references: Sequence[Answer], average: str, positive: str) -> float:
    """Of the times a label was predicted, the share where it was right."""
    return _averaged(predictions, references, average, positive, lambda counts: counts.precision)


@metric("recall", "Recall", options=AVERAGING, check_together=_check_average)
def recall(predictions: Sequence[str], references: Sequence[Answer], average: str, positive: str) -> float:
    """Of the times a label was the reference, the share where it was predicted."""
    return _averaged(predictions, references, average, positive, lambda counts: counts.recall)


def best_references(predictions: Sequence[str], references: Sequence[Answer]) -> list[str]:
    """One reference an example: of several accepted ones the predicted, else the first; MetricError for other types."""
    if all(type(reference) is str for reference in references):
        return list(references)  # type: ignore[arg-type]
    return [_best(*pair) for pair in zip(predictions, references, strict=True)]


def _best(prediction: str, reference: Answer) -> str:
    if isinstance(reference, str):
        return reference
    if not isinstance(reference, (list, tuple)) or not reference:
        raise MetricError(f"A reference must be a text or a list of accepted texts, not {reference!r:.80}.")
    return prediction if prediction in reference else reference[0]


def _averaged(
    predictions: Sequence[str],
    references: Sequence[Answer],
    average: str,
    positive: str,
    score: Callable[[Counts], float],
) -> float:
    by_label = count_labels(predictions, best_references(predictions, references))
    if average == "binary":
        if positive not in by_label:
            raise MetricError(
                f"The positive label {positive!r} is in no prediction and no reference; check its spelling."
            )
        return 100 * score(by_label[positive])
    if average == "micro":
        return 100 * score(_total(by_label.values()))
    return 100 * fsum(map(score, by_label.values())) / len(by_label)


def count_labels(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Counts]:
    """The counts of every label that occurs in either."""
    predicted, expected = Counter(predictions), Counter(references)
    hits = Counter(label for label, reference in zip(predictions, references, strict=True) if label == reference)
    return {
        label: Counts(hits[label], predicted[label] - hits[label], expected[label] - hits[label])
        for label in predicted | expected
    }


def _total(counts: Collection[Counts]) -> Counts:
    return Counts(
        sum(each.hits for each in counts),
        sum(each.false_alarms for each in counts),
        sum(each.misses for each in counts),
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
