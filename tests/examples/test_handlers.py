from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from evaluations.datasets import Flores
from examples.pack import EXAMPLES, SHIPPED, setup_config
from tasks_catalog import formats
from tasks_catalog.demo_data import TASKS, nli_dataset
from tasks_catalog.demo_flores import flores_dataset, make_model
from tasks_catalog.metrics import compute
from tests.examples.broken import BREAKAGES, CRASH_WORD, KINDS, REQUIREMENTS, broken_project

RUNTIME = EXAMPLES.parent / "builds" / "runtime"
SHIMS = f"{RUNTIME / 'shims'}:{RUNTIME / 'ts_shim'}"
ASK = """
import json, sys
from types import SimpleNamespace
import handler

manifest = {"model": {"serializedFile": "checkpoint.json"}}
context = SimpleNamespace(manifest=manifest, system_properties={"model_dir": ".", "gpu_id": None})
assert handler.handle(None, context) is None
for line in sys.stdin:
    print(json.dumps(handler.handle([{"body": json.loads(line)}], context)))
"""
ASK_AT_ONCE = (
    ASK.partition("for line")[0]
    + """
[text] = handler.handle([{"body": bytearray(sys.stdin.buffer.read())}], context)
for line in text.splitlines():
    print(json.dumps([json.loads(line)]))
"""
)
STATEMENTS = {
    "I love this, it is wonderful!": "positive",
    "The table has four legs.": "neutral",
    "I hate this, it is horrible.": "negative",
}


def ask(project: Path, home: Path, examples: list[dict]) -> subprocess.CompletedProcess:
    """Run the project's handler over the examples, away from the project's own folder."""
    code = Path(shutil.copytree(project, home / "code"))
    task = setup_config(project)["task"]
    config = {"task": task, "config": yaml.safe_load(TASKS[task]["io_yaml"])}
    (code / ".dynalab" / f"{task}.json").write_text(json.dumps(config))
    return subprocess.run(
        [sys.executable, "-c", ASK_AT_ONCE if task == "flores_small1" else ASK],
        cwd=code,
        env={"PYTHONPATH": SHIMS},
        input="".join(json.dumps(example) + "\n" for example in examples),
        capture_output=True,
        text=True,
        timeout=60,
    )


def answers(project: Path, home: Path, examples: list[dict]) -> list[dict]:
    process = ask(project, home, examples)
    assert process.returncode == 0, process.stderr
    return [json.loads(line)[0] for line in process.stdout.splitlines()]


def need(name: str) -> None:
    if name in ("vader", "textblob"):
        package = {"vader": "vaderSentiment", "textblob": "textblob"}[name]
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is installed inside the example's image only")


@pytest.mark.parametrize("name", SHIPPED)
def test_each_example_answers_what_its_task_asks_for(name, tmp_path):
    need(name)
    task = formats.parse(TASKS[setup_config(EXAMPLES / name)["task"]]["io_yaml"])
    inputs = task.sample_inputs(3)

    predictions = answers(EXAMPLES / name, tmp_path, inputs)

    assert [task.check_prediction(p)["id"] for p in predictions] == [example["uid"] for example in inputs]


@pytest.mark.parametrize("name", ["vader", "textblob"])
def test_a_lexicon_tells_praise_from_blame(name, tmp_path):
    need(name)
    examples = [{"uid": str(n), "statement": statement} for n, statement in enumerate(STATEMENTS)]

    predictions = answers(EXAMPLES / name, tmp_path, examples)

    assert [prediction["label"] for prediction in predictions] == list(STATEMENTS.values())


def test_majority_always_answers_the_commonest_label_of_the_tweets(tmp_path):
    examples = [{"uid": str(n), "statement": statement} for n, statement in enumerate(STATEMENTS)]

    predictions = answers(EXAMPLES / "majority", tmp_path, examples)

    assert {prediction["label"] for prediction in predictions} == {"positive"}
    assert predictions[0]["prob"]["positive"] == 2646 / 4200


@pytest.mark.parametrize(("name", "accuracy"), [("nli-majority", 33.33), ("nli-overlap", 41.11)])
def test_the_nli_baselines_score_what_the_readme_says(name, accuracy, tmp_path):
    task = formats.parse(TASKS["nli"]["io_yaml"])
    records = [task.check_example(record) for record in nli_dataset()]

    predictions = answers(EXAMPLES / name, tmp_path, [task.split(record)[0] for record in records])

    right = [record["label"] for record in records]
    assert round(compute("accuracy", [p["label"] for p in predictions], right), 2) == accuracy


def test_the_translation_baseline_scores_what_the_readme_says(tmp_path):
    task = formats.parse(TASKS["flores_small1"]["io_yaml"])
    make_model(tmp_path / "spm.model")
    records = [Flores.check_example(record, task) for record in flores_dataset()]

    predictions = answers(EXAMPLES / "flores-copy", tmp_path, [task.split(record)[0] for record in records])

    by_direction: dict[str, list[tuple[str, str]]] = {}
    for record, prediction in zip(records, predictions, strict=True):
        pair = prediction["translatedText"], record["translatedText"]
        by_direction.setdefault(record["tags"][0], []).append(pair)
    scores = {
        direction: compute("sp_bleu", *zip(*pairs, strict=True), sentencepiece_model=str(tmp_path / "spm.model"))
        for direction, pairs in by_direction.items()
    }
    assert round(Flores.overall(scores, lambda: 0.0), 2) == 7.59


def test_the_copy_writes_croatian_in_serbian_letters_and_back(tmp_path):
    words = {"hrv": "Ljubav, njuh i džep", "srp": "Љубав, њух и џеп"}
    pairs = [("hrv", "srp"), ("srp", "hrv"), ("hrv", "eng")]
    examples = [
        {"uid": str(n), "sourceLanguage": source, "targetLanguage": target, "sourceText": words[source]}
        for n, (source, target) in enumerate(pairs)
    ]

    found = [answer["translatedText"] for answer in answers(EXAMPLES / "flores-copy", tmp_path, examples)]

    assert found == [words["srp"], words["hrv"], words["hrv"]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_project_is_a_project_of_the_given_name(kind, tmp_path):
    project = broken_project(kind, tmp_path / "project", "my-model")

    assert setup_config(project)["requirements"] == (kind in REQUIREMENTS)
    assert (project / ".dynalab" / "my-model" / "setup_config.json").exists()
    compile((project / "handler.py").read_text(), "handler.py", "exec")


@pytest.mark.parametrize(
    ("kind", "message"),
    [("import-error", "module_that_nobody_has"), ("crash-on-one", "this example breaks me")],
)
def test_a_handler_that_should_crash_does(kind, message, tmp_path):
    project = broken_project(kind, tmp_path / "project", "my-model")

    process = ask(project, tmp_path, [{"uid": "1", "statement": CRASH_WORD}])

    assert process.returncode == 1
    assert message in process.stderr


@pytest.mark.parametrize("kind", sorted(BREAKAGES.keys() - {"import-error", "crash-on-one", "never-answers"}))
def test_a_handler_that_should_answer_wrongly_does(kind, tmp_path):
    project = broken_project(kind, tmp_path / "project", "my-model")
    task = formats.parse(TASKS["sentiment"]["io_yaml"])

    [prediction] = answers(project, tmp_path, [{"uid": "1", "statement": "Fine."}])

    if kind == "wrong-ids":
        assert prediction["id"] != "1"
    else:
        with pytest.raises(formats.FormatError):
            task.check_prediction(prediction)
