"""A task's format: which fields an example has, which of them a model sees, and what it must answer.

The language is the original's: lists of fields called `context`, `input` and `output`, in YAML (see docs/metrics.md).
Labels are the fields in both `input` and `output`; a model sees all others of `context` and `input`, and `uid`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import yaml

from tasks_catalog.fields import TYPES, Field, FormatError, brief, check_text, check_uid, check_undeclared_prob

Record = Mapping[str, Any]

SECTIONS = ("context", "input", "output")
TEXT_KEYS = frozenset({"type", "reference_name", "placeholder", "display_name"})
FLAG_KEYS = frozenset({"single_prob", "as_goal_message"})
FIELD_KEYS = TEXT_KEYS | FLAG_KEYS | {"name", "labels"}
FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
RESERVED_NAMES = frozenset({"uid", "id", "tags", "input_id", "signed", "signature", "dynabench_error"})
SIGNATURES = ("signed", "signature")
MAX_CONFIG_CHARACTERS = 65_536
MAX_ANSWER_BYTES = 64 * 1024  # of one text in a prediction
MAX_EXAMPLE_BYTES = 1024 * 1024  # of one text in a dataset
LONG_SAMPLE_WORDS = 600
SAMPLE_SENTENCE = "The quick brown fox jumps over a lazy dog and sleeps."
SAMPLE_TEXTS = (
    "It rains.",
    "Żółw, naïve café, 東京は雨です, مرحبا, 🙂.",
    " ".join([SAMPLE_SENTENCE] * (LONG_SAMPLE_WORDS // len(SAMPLE_SENTENCE.split()))),
)


@dataclass(frozen=True)
class TaskFormat:
    """The fields of a task; make one with `parse`. `outputs` are full fields also where the YAML says just the name."""

    contexts: tuple[Field, ...]
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]

    @cached_property
    def labels(self) -> dict[str, Field]:
        """The fields whose right answer a dataset holds and a model must give."""
        outputs = set(self.output_names)
        return {field.name: field for field in self.inputs if field.name in outputs}

    @cached_property
    def seen(self) -> dict[str, Field]:
        """The fields that a model receives besides `uid`."""
        return {field.name: field for field in self.contexts + self.inputs if field.name not in self.labels}

    @cached_property
    def _answers(self) -> dict[str, Field]:
        return {field.name: field for field in self.outputs}

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self.labels)

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """What a model receives, `uid` first."""
        return ("uid", *self.seen)

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.outputs)

    def check_example(self, record: Record) -> dict[str, Any]:
        """The dataset line with its ids as text; raise FormatError for a missing, unknown or ill-typed field."""
        _refuse_unknown(record, {*self.input_names, *self.labels, "tags", "input_id"})
        _require(record, [*self.input_names, *self.labels])
        self._check_seen(record)
        for name, field in self.labels.items():
            field.check_label(record[name], MAX_EXAMPLE_BYTES)
        _check_tags(record.get("tags", []))
        return {**record, **{name: check_uid(name, record[name]) for name in ("uid", "input_id") if name in record}}

    def check_inputs(self, record: Record) -> dict[str, Any]:
        """What a model gets, its uid as text, or made up; FormatError for a missing, unknown or ill-typed field."""
        for name in self.labels:
            if name in record:
                raise FormatError(f"{name} is what the model answers: leave it out.", name)
        _refuse_unknown(record, set(self.input_names))
        _require(record, list(self.seen))
        self._check_seen(record)
        return {**record, "uid": check_uid("uid", record.get("uid", "example"))}

    def _check_seen(self, record: Record) -> None:
        for name, field in self.seen.items():
            field.check(record[name], MAX_EXAMPLE_BYTES)

    def split(self, record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
        """A checked example as (what the model gets, what it must not see); both have `uid`."""
        kept = ("uid", *self.labels, "tags", "input_id")
        return {name: record[name] for name in self.input_names}, {
            name: record[name] for name in kept if name in record
        }

    def check_prediction(self, record: Record) -> dict[str, Any]:
        """The answer with its id as text; raise FormatError for a missing, unknown or ill-typed field."""
        _require(record, ["id", *self.labels])
        for name, value in record.items():
            if name in self._answers:
                self._answers[name].check(value, MAX_ANSWER_BYTES)
            elif name in SIGNATURES:
                check_text(name, value, MAX_ANSWER_BYTES)
            elif name == "prob":
                check_undeclared_prob(value)
            elif name != "id":
                _refuse_unknown(record, {"id", *self.output_names, "prob", *SIGNATURES})
        return {**record, "id": check_uid("id", record["id"])}

    def sample_inputs(self, count: int) -> list[dict[str, object]]:
        """That many made-up inputs for a model: short, non-ASCII and long texts in turn."""
        return [
            {"uid": f"sample-{turn}", **{name: _sample(field, turn) for name, field in self.seen.items()}}
            for turn in range(count)
        ]


def _sample(field: Field, turn: int) -> str:
    choices = field.labels or SAMPLE_TEXTS
    return choices[turn % len(choices)]


def _require(record: Record, names: Sequence[str]) -> None:
    for name in names:
        if name not in record:
            raise FormatError(f"The field {name} is missing: add it.", name)


def _refuse_unknown(record: Record, known: set[str]) -> None:
    for name in record:
        if name not in known:
            allowed = ", ".join(sorted(known))
            raise FormatError(f"There is no field {brief(name)} in this task; the fields are {allowed}.", str(name))


def _check_tags(tags: object) -> None:
    if not isinstance(tags, list):
        raise FormatError(f"tags must be a list of texts, not {brief(tags)}.", "tags")
    for tag in tags:
        check_uid("tags", tag if isinstance(tag, str) else None)


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (a small text could grow without end) and without keys that silently replace others."""

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "write it out: aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)


@lru_cache(maxsize=256)
def parse(text: str) -> TaskFormat:
    """The format written in a task's YAML; raise FormatError that names the field and the remedy."""
    written = _load(text)
    contexts, inputs = (_fields(written, section, {}) for section in ("context", "input"))
    defined = _by_name("context and input", contexts + inputs)
    outputs = _fields(written, "output", defined)
    known = {**_by_name("output", outputs), **defined}
    made = TaskFormat(contexts, inputs, tuple(_with_labels(field, known) for field in outputs))
    _check_roles(made)
    return made


def _load(text: str) -> dict[str, object]:
    if len(text) > MAX_CONFIG_CHARACTERS:
        raise FormatError(f"The format is longer than {MAX_CONFIG_CHARACTERS} characters.")
    try:
        written = yaml.load(text, _Loader)
    # PyYAML lets a wrong !!bool, !!timestamp or date through as KeyError, AttributeError, ValueError.
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(f"The format is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(written, dict):
        raise FormatError("The format must be YAML with the keys context, input and output.")
    for key in written:
        if key not in SECTIONS:
            raise FormatError(f"{brief(key)} does not belong here; a format holds only context, input and output.")
    return written


def _fields(written: Mapping[str, object], section: str, defined: Mapping[str, Field]) -> tuple[Field, ...]:
    entries = written.get(section) or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise FormatError(f"{section} must be a list of fields, each like `- name: statement`.")
    return tuple(_field(section, number, entry, defined) for number, entry in enumerate(entries, 1))


def _field(section: str, number: int, entry: dict[str, object], defined: Mapping[str, Field]) -> Field:
    where = f"{section}, entry {number}"
    name = _name(where, entry.get("name"))
    if name in defined and set(entry) == {"name"}:
        return defined[name]
    for key, value in entry.items():
        _check_key(name, key, value)
    field = Field(**{"type": "", **entry, "name": name, "labels": _labels(name, entry)})  # type: ignore[arg-type]
    _check_type(where, field, is_output=section == "output")
    if name not in defined:
        return field
    if (field.type, field.labels) != (defined[name].type, defined[name].labels):
        raise FormatError(f"{where}: {name} is defined above in another way; here write only its name.", name)
    return defined[name]


def _name(where: str, name: object) -> str:
    if not isinstance(name, str) or not FIELD_NAME.fullmatch(name):
        raise FormatError(f"{where}: name must be a letter, then letters, digits or _ (64 at most), not {brief(name)}.")
    if name in RESERVED_NAMES:
        raise FormatError(f"{where}: {name} is used by Dynabench itself; choose another name.", name)
    return name


def _check_key(name: str, key: object, value: object) -> None:
    if key not in FIELD_KEYS:
        raise FormatError(f"{name} has an unknown key {brief(key)}; allowed are {', '.join(sorted(FIELD_KEYS))}.", name)
    if key in TEXT_KEYS and not isinstance(value, str):
        raise FormatError(f"The {key} of {name} must be a text, not {brief(value)}.", name)
    if key in FLAG_KEYS and not isinstance(value, bool):
        raise FormatError(f"The {key} of {name} must be true or false, not {brief(value)}.", name)


def _labels(name: str, entry: Mapping[str, object]) -> tuple[str, ...]:
    labels = entry.get("labels", [])
    if not isinstance(labels, list):
        raise FormatError(f"The labels of {name} must be a list of texts.", name)
    for label in labels:
        if not isinstance(label, str) or not label:
            hint = "yes, no, numbers and dates mean something else in YAML: put them in quotes"
            raise FormatError(f"A label of {name} is {label!r:.60} instead of a text ({hint}).", name)
    if len(set(labels)) < len(labels):
        raise FormatError(f"The labels of {name} must differ from each other.", name)
    return tuple(labels)


def _check_type(where: str, field: Field, *, is_output: bool) -> None:
    if field.type not in TYPES:
        raise FormatError(f"{where}: the type of {field.name} must be one of {', '.join(TYPES)}.", field.name)
    if bool(field.labels) != (field.type == "multiclass"):
        raise FormatError(f"{where}: a multiclass needs labels, other types have none; see {field.name}.", field.name)
    if field.type == "prob" and not is_output:
        raise FormatError(f"{where}: {field.name} is a prob, which only output may have.", field.name)


def _with_labels(field: Field, known: Mapping[str, Field]) -> Field:
    if field.type != "prob" or field.single_prob:
        return field
    referred = known.get(field.reference_name)
    if referred is None or referred.type != "multiclass":
        remedy = "set reference_name to a multiclass field, or single_prob to true"
        raise FormatError(f"The prob {field.name} does not say what of: {remedy}.", field.name)
    return replace(field, labels=referred.labels)


def _by_name(where: str, fields: Sequence[Field]) -> dict[str, Field]:
    by_name: dict[str, Field] = {}
    for field in fields:
        if field.name in by_name:
            raise FormatError(f"{field.name} is there twice in {where}.", field.name)
        by_name[field.name] = field
    return by_name


def _check_roles(made: TaskFormat) -> None:
    if not made.labels:
        raise FormatError("No field is in both input and output: name in output what a model must answer.")
    if made.input_names == ("uid",):
        raise FormatError("A model would get only uid: add a field to context or input that is not in output.")


def render_config(
    made: TaskFormat, perf: Mapping[str, str], delta: Sequence[str] = (), weights: Mapping[str, float] | None = None
) -> str:
    """The `config_yaml` that the CLI reads: the same arguments give the same bytes.

    `perf` has the keys type and reference_name, `delta` names the perturbation metrics, `weights` maps metrics to 0..5.
    """
    defined = {field.name for field in made.contexts + made.inputs}
    config = {
        "aggregation_metric": {"type": "dynascore", **({"default_weights": dict(weights)} if weights else {})},
        "perf_metric": {"type": perf["type"], "reference_name": perf["reference_name"]},
        "delta_metrics": [{"type": name} for name in delta],
        "context": [field.config() for field in made.contexts],
        "input": [field.config() for field in made.inputs],
        "output": [{"name": field.name} if field.name in defined else field.config() for field in made.outputs],
    }
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=MAX_CONFIG_CHARACTERS)
