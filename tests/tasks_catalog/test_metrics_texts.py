import pytest
import sacrebleu

from tasks_catalog.metrics import compute

PREDICTIONS = ["The cat sat on the mat.", "A dog runs in the park today."]
REFERENCES = ["The cat is sitting on the mat.", "A dog runs in the big park today."]


def test_squad_f1_of_the_reference_example():
    assert compute("squad_f1", ["blue sky today"], ["the blue sky"]) == pytest.approx(80.0)


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [
        ("The  CAT!", "cat", 100.0),
        ("", "", 100.0),
        ("the", "a", 100.0),
        ("cat", "", 0.0),
        ("", "cat", 0.0),
        ("cat cat", "cat", 200 / 3),
        ("anthem", "them", 0.0),
        ("dog", ["cat", "a dog"], 100.0),
        ("", [], 100.0),
        ("dog", [], 0.0),
    ],
)
def test_squad_f1_by_hand(prediction, reference, value):
    assert compute("squad_f1", [prediction], [reference]) == pytest.approx(value)


def test_squad_f1_is_the_mean_over_examples():
    assert compute("squad_f1", ["cat", "dog"], ["cat", "cow"]) == 50.0


def test_bleu_equals_sacrebleu():
    expected = sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score

    assert compute("bleu", PREDICTIONS, REFERENCES) == pytest.approx(expected, abs=1e-9)


def test_bleu_of_a_perfect_corpus_is_one_hundred():
    assert compute("bleu", REFERENCES, REFERENCES) == 100.0


def test_bleu_takes_several_references_and_fewer_for_some():
    references = [[REFERENCES[0], PREDICTIONS[0]], REFERENCES[1]]
    expected = sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES, [PREDICTIONS[0], None]]).score

    assert compute("bleu", PREDICTIONS, references) == pytest.approx(expected, abs=1e-9)


def test_bleu_tokenizes_as_asked():
    by_character = compute("bleu", PREDICTIONS, REFERENCES, tokenize="char")

    assert by_character == pytest.approx(sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES], tokenize="char").score)
