"""Metrics over translations: BLEU as sacrebleu defines it (Post 2018, arXiv 1804.08771), over words or pieces.

The pieces are those of Flores-101's sp-BLEU (Goyal et al. 2021, arXiv 2106.03193).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import zip_longest
from typing import Any

import sacrebleu
from sentencepiece import SentencePieceProcessor

from tasks_catalog.metrics.registry import Answer, FileVersion, MetricError, Option, OptionValue, file_version, metric

TOKENIZERS = ("13a", "intl", "char", "zh", "none")


@metric("bleu", "BLEU", unit="", options={"tokenize": Option(str, "13a", TOKENIZERS)})
def bleu(predictions: Sequence[str], references: Sequence[Answer], tokenize: str) -> float:
    """Corpus BLEU of sacrebleu, over all accepted references of an example."""
    return sacrebleu.corpus_bleu(list(predictions), _streams(references), tokenize=tokenize, force=True).score


def _check_model(options: Mapping[str, OptionValue]) -> None:
    _sentencepiece(file_version(str(options["sentencepiece_model"])))


SENTENCEPIECE = {"sentencepiece_model": Option(str, "", is_file=True)}


@metric("sp_bleu", "sp-BLEU", unit="", options=SENTENCEPIECE, check_together=_check_model)
def sp_bleu(predictions: Sequence[str], references: Sequence[Answer], sentencepiece_model: str) -> float:
    """Corpus BLEU of sacrebleu over the pieces that a SentencePiece model cuts both sides into."""
    model = _sentencepiece(file_version(sentencepiece_model))
    streams = [_pieces(model, stream) for stream in _streams(references)]
    # The original names no tokenizer: sacrebleu's 13a runs over the pieces.
    return sacrebleu.corpus_bleu(_pieces(model, predictions), streams, tokenize="13a", force=True).score


def _streams(references: Sequence[Answer]) -> list[list[Any]]:
    """The first accepted reference of each example, the second, and so on; None where an example has fewer."""
    accepted = [[reference] if isinstance(reference, str) else reference for reference in references]
    return [list(stream) for stream in zip_longest(*accepted)]


def _pieces(model: SentencePieceProcessor, texts: Sequence[Any]) -> list[Any]:
    return [text if text is None else " ".join(model.EncodeAsPieces(text.strip())) for text in texts]


@lru_cache(maxsize=4)
def _sentencepiece(version: FileVersion) -> SentencePieceProcessor:
    try:
        return SentencePieceProcessor(model_file=version.path)
    except (RuntimeError, OSError) as error:
        raise MetricError(f"{version.path} is no SentencePiece model: give the path of one.") from error
