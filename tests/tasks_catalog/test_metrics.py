import dataclasses
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks_catalog import metrics
from tasks_catalog.demo_flores import make_model
from tasks_catalog.metrics import MetricError, compute
from tasks_catalog.metrics.registry import Metric, register

texts = st.text(max_size=30)


@pytest.fixture(scope="module")
def needed(tmp_path_factory):
    """The options that a metric can't do without."""
    path = tmp_path_factory.mktemp("spm") / "small.model"
    make_model(path)
    return lambda name: {"sentencepiece_model": str(path)} if name == "sp_bleu" else {}


def test_metrics_import_without_django():
    code = "import sys, tasks_catalog.metrics; sys.exit('django' in sys.modules)"

    finished = subprocess.run([sys.executable, "-c", code], check=False)

    assert finished.returncode == 0


def test_every_kind_has_its_metrics():
    assert metrics.names("perf") == ["accuracy", "bleu", "macro_f1", "precision", "recall", "sp_bleu", "squad_f1"]
    assert metrics.names("perturbation") == ["fairness", "robustness"]
    assert metrics.names("job") == ["examples_per_second", "memory_utilization"]


def test_every_metric_explains_itself():
    for name in metrics.names():
        entry = metrics.get(name)
        assert entry.label
        assert entry.summary.endswith(".")


def test_only_memory_counts_what_the_instance_has_left():
    memory = metrics.get("memory_utilization")

    assert (memory.unit, memory.direction, memory.offset_for(32)) == ("GiB", -1, 32)
    assert metrics.get("accuracy").offset_for(32) == 0.0


def test_an_unknown_metric_is_refused_with_the_known_names():
    with pytest.raises(MetricError, match="no metric 'acuracy'; choose one of accuracy"):
        compute("acuracy", ["a"], ["a"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"averages": "macro"}, "recall has no option 'averages'; it has: average, positive"),
        ({"average": "mean"}, "average of recall must be one of macro, micro, binary; it is 'mean'"),
        ({"average": True}, "average of recall must be of type str, not bool"),
        ({"average": "binary"}, "give both or neither"),
        ({"positive": "yes"}, "give both or neither"),
    ],
)
def test_a_wrong_option_is_refused_with_what_would_be_right(options, sentence):
    for use in (lambda: metrics.check_options("recall", options), lambda: compute("recall", ["a"], ["a"], **options)):
        with pytest.raises(MetricError, match=sentence):
            use()


def test_checked_options_have_their_defaults():
    assert metrics.check_options("bleu", {}) == {"tokenize": "13a"}


def test_a_metric_that_is_measured_is_not_computed():
    with pytest.raises(MetricError, match="examples_per_second is a job metric"):
        compute("examples_per_second", ["a"], ["a"])


def test_lengths_that_differ_are_refused():
    with pytest.raises(MetricError, match="accuracy got 1 predictions for 2 references"):
        compute("accuracy", ["a"], ["a", "b"])


def test_nothing_to_compare_is_refused():
    with pytest.raises(MetricError, match="at least one example"):
        compute("accuracy", [], [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 100.1])
def test_a_result_outside_the_range_of_its_metric_is_refused(value, monkeypatch):
    broken = dataclasses.replace(metrics.get("accuracy"), name="broken", function=lambda predictions, references: value)
    monkeypatch.setitem(metrics.registry._METRICS, "broken", broken)

    with pytest.raises(MetricError, match="outside 0.0 to 100.0: the metric itself is at fault"):
        compute("broken", ["a"], ["a"])


def test_two_metrics_cannot_share_a_name():
    with pytest.raises(MetricError, match="Two metrics are called 'accuracy'"):
        register(Metric("accuracy", "Another", "Another one."))


@pytest.mark.parametrize("name", metrics.names("perf"))
@given(pairs=st.lists(st.tuples(texts, texts | st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=8))
def test_any_texts_give_a_finite_percentage(name, needed, pairs):
    predictions, references = zip(*pairs, strict=True)

    assert 0 <= compute(name, predictions, references, **needed(name)) <= 100


@pytest.mark.parametrize("name", metrics.names("perf"))
@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=12), seed=st.randoms())
def test_the_order_of_examples_does_not_matter(name, needed, pairs, seed):
    shuffled = list(pairs)
    seed.shuffle(shuffled)

    first, second = (compute(name, *zip(*each, strict=True), **needed(name)) for each in (pairs, shuffled))

    assert first == pytest.approx(second, abs=1e-12)
