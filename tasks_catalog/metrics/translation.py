"""Metrics over translations: BLEU as sacrebleu defines it (Post 2018, arXiv 1804.08771)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import sacrebleu

from tasks_catalog.metrics.registry import Answer, Option, metric

TOKENIZERS = ("13a", "intl", "char", "zh", "none")


@metric("bleu", "BLEU", unit="", options={"tokenize": Option(str, "13a", TOKENIZERS)})
def bleu(predictions: Sequence[str], references: Sequence[Answer], tokenize: str) -> float:
    """Corpus BLEU of sacrebleu, over all accepted references of an example."""
    accepted = [[reference] if isinstance(reference, str) else reference for reference in references]
    streams = [list(stream) for stream in zip_longest(*accepted)]
    return sacrebleu.corpus_bleu(list(predictions), streams, tokenize=tokenize, force=True).score
