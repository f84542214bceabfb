import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluations.leaderboard import dynascore

# accuracy, examples/second, GiB on an instance of 32, fairness, robustness
VALUES = [[80, 10, 6, 95, 70], [70, 20, 4, 90, 65], [60, 40, 2, 93, 60]]
BOARD = {"weights": [4, 1, 1, 1, 1], "directions": [1, 1, -1, 1, 1], "offsets": [0, 0, 32, 0, 0], "perf": 0}
PLAIN = {"weights": [1, 1], "directions": [1, 1], "offsets": [0, 0], "perf": 0}


def test_the_reference_board_has_its_reference_scores():
    scores = dynascore(VALUES, **BOARD)

    assert scores == pytest.approx([104.2708333333, 98.5416666667, 96.1458333333], abs=1e-9)


def test_the_order_of_rows_does_not_change_a_score_without_ties():
    assert dynascore(VALUES[::-1], **BOARD)[::-1] == pytest.approx(dynascore(VALUES, **BOARD), abs=1e-12)


def test_weights_count_only_in_proportion():
    doubled = {**BOARD, "weights": [8, 2, 2, 2, 2]}

    assert dynascore(VALUES, **doubled) == pytest.approx(dynascore(VALUES, **BOARD), abs=1e-12)


def test_only_the_perf_metric_gives_perf_itself():
    assert list(dynascore(VALUES, **{**BOARD, "weights": [1, 0, 0, 0, 0]})) == [80, 70, 60]


def test_all_weights_zero_gives_zero():
    assert list(dynascore(VALUES, **{**BOARD, "weights": [0] * 5})) == [0.0, 0.0, 0.0]


def test_one_model_keeps_its_share_of_perf():
    assert list(dynascore([[80, 10]], **PLAIN)) == [40.0]


def test_no_models_give_no_scores():
    assert dynascore(np.empty((0, 2)), **PLAIN).shape == (0,)


@pytest.mark.parametrize("constant", [0.0, 7.0])
def test_a_metric_that_never_changes_adds_nothing_and_its_weight_goes_to_nobody(constant):
    assert list(dynascore([[80, constant], [60, constant]], **PLAIN)) == [40.0, 30.0]


def test_models_of_equal_perf_are_no_pair():
    assert list(dynascore([[80, 1], [80, 5]], **PLAIN)) == [40.0, 40.0]


def test_a_step_in_perf_below_the_threshold_is_no_pair():
    below, above = 100 - 0.009, 100 - 0.011

    assert dynascore([[100, 1], [below, 5]], **PLAIN)[0] == 50.0
    assert dynascore([[100, 1], [above, 5]], **PLAIN)[0] > 50.0


def test_perf_that_is_never_positive_gives_finite_scores():
    assert list(dynascore([[0, 1], [0, 2]], **PLAIN)) == [0.0, 0.0]
    assert np.isfinite(dynascore([[-2, 1], [-2, 2], [-1, 3]], **PLAIN)).all()


def test_ties_in_perf_keep_the_order_of_submissions():
    first_tied = dynascore([[1, 0], [1, 10], [2, 10]], **PLAIN)
    second_tied = dynascore([[1, 10], [1, 0], [2, 10]], **PLAIN)

    assert first_tied[2] == 1.0  # the neighbour of the best is the second, whose step is 0
    assert second_tied[2] == pytest.approx(1.5)  # here its step is 10


@pytest.mark.parametrize(
    "change",
    [
        {"values": [[np.nan, 1]]},
        {"values": [[np.inf, 1]]},
        {"values": [1, 2]},
        {"weights": [1]},
        {"weights": [1, -1]},
        {"weights": [1, np.nan]},
        {"directions": [1, 1, 1]},
        {"offsets": [0]},
        {"perf": 2},
        {"perf": -1},
    ],
)
def test_nonsense_is_refused(change):
    with pytest.raises(ValueError, match="must|There are|not one of"):
        dynascore(**{"values": [[1, 2]], **PLAIN, **change})


@given(arrays(float, st.tuples(st.integers(1, 8), st.just(2)), elements=st.floats(0, 1e6)))
def test_scores_are_always_finite(values):
    assert np.isfinite(dynascore(values, **PLAIN)).all()
