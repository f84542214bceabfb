import random
import warnings

import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from tasks_catalog.metrics import MetricError, compute

ORACLES = {"precision": precision_score, "recall": recall_score}


def random_labels(seed):
    """Predictions and references over labels that partly occur on one side only."""
    rng = random.Random(seed)
    size = rng.randint(1, 60)
    predicted, expected = (rng.sample("abcdefgh", rng.randint(1, 6)) for _ in range(2))
    return rng.choices(predicted, k=size), rng.choices(expected, k=size)


def test_accuracy_is_the_percentage_of_equal_pairs():
    assert compute("accuracy", ["a", "b"], ["a", "c"]) == 50.0


def test_accuracy_takes_any_accepted_reference():
    assert compute("accuracy", ["a", "b", "c"], [["b", "a"], "b", ["x", "y"]]) == pytest.approx(200 / 3)


@pytest.mark.parametrize("reference", [1, None, [], {"a": 1}])
def test_a_reference_that_is_no_text_is_refused(reference):
    with pytest.raises(MetricError, match="A reference must be a text or a list of accepted texts"):
        compute("accuracy", ["a"], [reference])


@pytest.mark.parametrize(("predictions", "references", "value"), [("abcc", "abbc", 77.78), ("az", "aa", 33.33)])
def test_macro_f1_gives_the_numbers_of_the_original(predictions, references, value):
    assert round(compute("macro_f1", list(predictions), list(references)), 2) == value


def test_macro_f1_counts_an_accepted_reference_as_the_predicted_label():
    assert compute("macro_f1", ["a", "b"], [["b", "a"], "b"]) == 100.0


@pytest.mark.parametrize("seed", range(60))
def test_values_equal_scikit_learn(seed):
    predictions, references = random_labels(seed)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracles = [
            ("accuracy", {}, accuracy_score(references, predictions)),
            ("macro_f1", {}, f1_score(references, predictions, average="macro")),
            *(
                (name, {"average": average}, score(references, predictions, average=average))
                for name, score in ORACLES.items()
                for average in ("macro", "micro")
            ),
            *(
                (
                    name,
                    {"average": "binary", "positive": references[0]},
                    score(references, predictions, labels=[references[0]], average="macro"),
                )
                for name, score in ORACLES.items()
            ),
        ]

    for name, options, expected in oracles:
        assert compute(name, predictions, references, **options) == pytest.approx(100 * expected, abs=1e-9), name


def test_precision_of_one_label_by_hand():
    value = compute("precision", list("yyyn"), list("ynnn"), average="binary", positive="y")

    assert value == pytest.approx(100 / 3)


def test_a_misspelt_positive_label_is_refused():
    with pytest.raises(MetricError, match="positive label 'hatefull' is in no prediction and no reference"):
        compute("recall", ["hateful"], ["hateful"], average="binary", positive="hatefull")
