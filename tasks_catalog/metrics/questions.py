"""Metrics over a short free answer. SQuAD's F1: Rajpurkar et al. 2016, arXiv 1606.05250, section 5."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from math import fsum

from tasks_catalog.metrics.registry import Answer, metric

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@metric("squad_f1", "QA F1")
def squad_f1(predictions: Sequence[str], references: Sequence[Answer]) -> float:
    """F1 over the words shared with the reference, the best of the accepted ones, averaged over examples."""
    scores = [_best_f1(*pair) for pair in zip(predictions, references, strict=True)]
    return 100 * fsum(scores) / len(scores)


def squad_words(text: str) -> list[str]:
    """The words that count: lower case, without ASCII punctuation, without a, an and the."""
    return ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split()


def _best_f1(prediction: str, reference: Answer) -> float:
    accepted = [reference] if isinstance(reference, str) else reference or [""]
    predicted = squad_words(prediction)
    return max(_word_f1(predicted, squad_words(answer)) for answer in accepted)


def _word_f1(predicted: list[str], expected: list[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / (len(predicted) + len(expected))
