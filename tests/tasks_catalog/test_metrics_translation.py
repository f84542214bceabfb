"""sp-BLEU against plain computations, with a SentencePiece model that is trained here."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from pathlib import Path

import pytest
import sacrebleu
from sentencepiece import SentencePieceProcessor

from tasks_catalog import metrics
from tasks_catalog.demo_flores import sentences, train_sentencepiece
from tasks_catalog.metrics import MetricError, compute
from tasks_catalog.metrics.translation import _sentencepiece

TEXTS = [text for sentence in sentences() for text in sentence.values()]
PREDICTIONS = ["The cat sleeps on a chair.", " The river is cold, and wide. ", "My brother reads this book"]
REFERENCES = ["The cat sleeps on the chair.", "The river is wide and cold.", "My brother reads a book"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("spm") / "small.model"
    path.write_bytes(train_sentencepiece(TEXTS, 200))
    return str(path)


def pieces(model, texts):
    processor = SentencePieceProcessor(model_file=model)
    return [" ".join(processor.EncodeAsPieces(text.strip())) for text in texts]


def test_it_is_corpus_bleu_over_pieces(model):
    expected = sacrebleu.corpus_bleu(pieces(model, PREDICTIONS), [pieces(model, REFERENCES)], force=True).score

    assert compute("sp_bleu", PREDICTIONS, REFERENCES, sentencepiece_model=model) == expected
    assert 0 < expected < 100


def test_sacrebleus_own_tokenizer_still_runs_over_the_pieces(model):
    """As the original had it: 13a cuts pieces that hold punctuation once more."""
    untouched = [pieces(model, ["Is it 5,5?"]), [pieces(model, ["It is 5.5!"])]]
    expected = sacrebleu.corpus_bleu(*untouched, force=True).score

    assert compute("sp_bleu", ["Is it 5,5?"], ["It is 5.5!"], sentencepiece_model=model) == expected


def test_it_is_what_the_formula_says(model):
    """Without punctuation 13a changes nothing: clipped n-gram precisions to four, and the brevity penalty, by hand."""
    predictions = [text.replace(".", "").replace(",", "") for text in PREDICTIONS]
    references = [text.replace(".", "") for text in REFERENCES]
    predicted, expected = ([line.split() for line in pieces(model, side)] for side in (predictions, references))
    precisions = []
    for n in range(1, 5):
        counts = [
            [Counter(zip(*(p[i:] for i in range(n)), strict=False)) for p in side] for side in (predicted, expected)
        ]
        hits = sum((mine & right).total() for mine, right in zip(*counts, strict=True))
        precisions.append(hits / sum(mine.total() for mine in counts[0]))
    lengths = [sum(map(len, side)) for side in (predicted, expected)]
    penalty = min(1.0, math.exp(1 - lengths[1] / lengths[0]))
    by_hand = 100 * penalty * math.exp(sum(map(math.log, precisions)) / 4)

    assert compute("sp_bleu", predictions, references, sentencepiece_model=model) == pytest.approx(by_hand, abs=1e-9)


def test_the_same_texts_give_one_hundred(model):
    assert compute("sp_bleu", TEXTS, TEXTS, sentencepiece_model=model) == 100.0


def test_the_best_of_several_references_counts(model):
    references = [[REFERENCES[0], PREDICTIONS[0]], *REFERENCES[1:]]
    streams = [pieces(model, REFERENCES), [pieces(model, PREDICTIONS)[0], None, None]]

    expected = sacrebleu.corpus_bleu(pieces(model, PREDICTIONS), streams, force=True).score

    assert compute("sp_bleu", PREDICTIONS, references, sentencepiece_model=model) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "sentencepiece_model of sp_bleu must be the path of a file here: it is not given"),
        ({"sentencepiece_model": "/nowhere/spm.model"}, "/nowhere/spm.model is missing or can't be read"),
        ({"sentencepiece_model": "/" + "x" * 5000}, "is missing or can't be read"),
        ({"sentencepiece_model": "/a\0b"}, "is missing or can't be read"),
        ({"sentencepiece_model": "/"}, "is missing or can't be read"),
        ({"sentencepiece_model": 5}, "must be of type str"),
        ({"sentencepiece_model": __file__}, "is no SentencePiece model"),
    ],
)
def test_an_unusable_model_is_refused_in_words(options, said):
    for use in (lambda: metrics.check_options("sp_bleu", options), lambda: compute("sp_bleu", ["a"], ["a"], **options)):
        with pytest.raises(MetricError, match=said):
            use()


def test_a_model_is_read_once_until_its_file_changes(model, tmp_path):
    path = tmp_path / "own.model"
    path.write_bytes(train_sentencepiece(TEXTS, 200))
    _sentencepiece.cache_clear()
    before = [compute("sp_bleu", PREDICTIONS, REFERENCES, sentencepiece_model=str(path)) for _ in range(3)]
    assert _sentencepiece.cache_info().misses == 1

    path.write_bytes(train_sentencepiece(TEXTS, 120))
    after = compute("sp_bleu", PREDICTIONS, REFERENCES, sentencepiece_model=str(path))

    assert _sentencepiece.cache_info().misses == 2
    assert after not in before


def test_the_files_that_options_name_are_known_by_their_hash(model, tmp_path):
    expected = hashlib.sha256(Path(model).read_bytes()).hexdigest()
    path = tmp_path / "changing.model"
    path.write_text("one")
    first = metrics.file_hashes("sp_bleu", {"sentencepiece_model": str(path)})
    path.write_text("two")
    os.utime(path, ns=(0, 0))

    assert metrics.file_hashes("sp_bleu", {"sentencepiece_model": model}) == {"sentencepiece_model": expected}
    assert metrics.file_hashes("sp_bleu", {"sentencepiece_model": str(path)}) != first
    assert metrics.file_hashes("sp_bleu", {}) == {"sentencepiece_model": ""}
    assert metrics.file_hashes("bleu", {"tokenize": "char"}) == {}


def test_training_gives_the_same_bytes_every_time():
    assert train_sentencepiece(TEXTS) == train_sentencepiece(TEXTS)
