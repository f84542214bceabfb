import pytest

from tasks_catalog.metrics import MetricError, unperturbed_percent


@pytest.mark.parametrize(
    ("metric", "variants", "base", "value"),
    [
        ("accuracy", [["a", "a", "b"], [], ["b"]], ["a", "a", "b"], 83.34),
        ("accuracy", [["a", "b", "b"], ["c"]], ["a", "c"], 66.66),
        ("macro_f1", [["a", "a", "b"]], ["a"], 40.0),
    ],
)
def test_values_of_the_original(metric, variants, base, value):
    assert round(unperturbed_percent(metric, variants, base), 2) == value


def test_no_variant_at_all_is_refused():
    with pytest.raises(MetricError, match="No example has a variant: check the input_id"):
        unperturbed_percent("accuracy", [[], []], ["a", "b"])


def test_lengths_that_differ_are_refused():
    with pytest.raises(MetricError, match="variants for 1 examples but base predictions for 2"):
        unperturbed_percent("accuracy", [["a"]], ["a", "b"])


def test_the_same_answer_to_every_variant_is_full_agreement_also_without_the_positive_label():
    assert unperturbed_percent("recall", [["no", "no"]], ["no"], average="binary", positive="yes") == 100.0


def test_scores_that_are_no_percentages_are_not_rounded():
    base, variant = "one two three four five six seven", "one two three four five six eight"

    value = unperturbed_percent("bleu", [[variant]], [base])

    assert value != round(value, 2)
