"""Dataset classes: how inputs, labels and predictions are read and written. `Dataset.format` names one of them.

A new format is one subclass of `JsonLines`. Files are read line by line and nothing in them is trusted.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import BinaryIO, cast

import msgspec

from evaluations.json_objects import Record, Unusable, cut_objects, decode, numbered_lines
from evaluations.spool import Spool
from tasks_catalog.fields import FormatError, brief
from tasks_catalog.formats import TaskFormat

MAX_PROBLEMS_SHOWN = 20
MAX_TRACEBACK_CHARACTERS = 500
GZIP_MAGIC = b"\x1f\x8b"
HANDLER_ERROR = "dynabench_error"
LANGUAGE = re.compile(r"[a-z]{2,8}(_[A-Za-z0-9]{2,8}){0,3}")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with the object that starts on a line: a short name of the rule, and a sentence."""

    line: int
    rule: str
    detail: str

    def __str__(self) -> str:
        return f"Line {self.line} ({self.rule}): {self.detail}"


class DatasetError(ValueError):
    """A dataset that cannot be used; its owner must correct the line."""

    def __init__(self, line: int, rule: str, detail: str) -> None:
        super().__init__(str(Problem(line, rule, detail)))
        self.line, self.rule, self.detail = line, rule, detail


class PredictionsError(ValueError):
    """Predictions that cannot be scored: how many problems there are, and the first 20. The model is at fault."""

    def __init__(self, summary: str, problems: list[Problem] | None = None, count: int = 0) -> None:
        self.problems, self.count = problems or [], count
        super().__init__("\n".join([summary, *map(str, self.problems)]))


@dataclass(frozen=True, slots=True)
class Summary:
    """What an upload was split into: counts of examples and of each tag, shards, and the sha256 of both halves."""

    examples: int
    inputs_sha256: str
    labels_sha256: str
    tags: dict[str, int]
    shards: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Label:
    """The right answers of one example; `input_id` is the uid of the example that a variant was made from."""

    answers: dict[str, str | list[str]]
    tags: tuple[str, ...] = ()
    input_id: str | None = None


class JsonLines:
    """One JSON object a line, in UTF-8; an upload may be gzipped. A subclass is known by its own name."""

    is_sharded = False
    takes_variants = True

    def __init_subclass__(cls) -> None:
        FORMATS[cls.__name__] = cls

    @classmethod
    def check_example(cls, record: Record, task_format: TaskFormat) -> Record:
        """The example of a line; raise FormatError when it does not fit the task."""
        return task_format.check_example(record)

    @classmethod
    def shard_of(cls, example: Record) -> str:
        """The name of the part of the dataset that holds the example; empty when there is one file."""
        return ""

    @classmethod
    def overall(cls, by_tag: Mapping[str, float], over_all: Callable[[], float]) -> float:
        """A performance metric's value on the dataset, from those of its tags or computed over all examples."""
        return over_all()

    @classmethod
    def split_upload(cls, source: BinaryIO, task_format: TaskFormat, inputs: Spool, labels: Spool) -> Summary:
        """Write the inputs and the labels of an upload, each in shards; raise DatasetError at the first bad line.

        `source` can seek. After an error both spools hold the examples before it: throw them away.
        """
        seen: set[str] = set()
        tags: Counter[str] = Counter()
        for number, line in _uploaded_lines(source):
            example = cls._example(number, line, task_format)
            if example["uid"] in seen:
                raise DatasetError(number, "duplicate_uid", f"an example above has the uid {example['uid']} too.")
            seen.add(example["uid"])
            for spool, half in zip((inputs, labels), task_format.split(example), strict=True):
                # ASCII only: handlers that split a batch with str.splitlines would break a line at U+2028.
                spool.write(cls.shard_of(example), json.dumps(half).encode() + b"\n")
            tags.update(set(example.get("tags", [])))
        if not seen:
            raise DatasetError(1, "empty", "the file holds no example.")
        shards = inputs.shards if cls.is_sharded else []
        return Summary(len(seen), inputs.sha256(), labels.sha256(), dict(sorted(tags.items())), shards)

    @classmethod
    def _example(cls, number: int, line: bytes, task_format: TaskFormat) -> Record:
        try:
            return cls.check_example(decode(line), task_format)
        except Unusable as error:
            raise DatasetError(number, error.rule, error.detail) from error
        except FormatError as error:
            raise DatasetError(number, "field", str(error)) from error

    @classmethod
    def read_labels(cls, source: BinaryIO, task_format: TaskFormat) -> dict[str, Label]:
        """The labels by uid, in file order; raise DatasetError when they no longer fit the task's format."""
        return dict(_label(number, line, task_format) for number, line in numbered_lines(source))

    @classmethod
    def read_predictions(
        cls, source: BinaryIO, task_format: TaskFormat, expected_uids: Collection[str]
    ) -> dict[str, Record]:
        """The checked answers by uid, in file order; raise PredictionsError unless each expected uid has exactly one.

        An answer is a JSON object, or a list of one, on one line or printed over several. `expected_uids` looks up
        fast (a set, or the keys of the labels).
        """
        reading = _Reading(task_format, expected_uids)
        for number, raw in cut_objects(source):
            try:
                reading.add(raw)
            except Unusable as error:
                reading.note(Problem(number, error.rule, error.detail))
        return reading.result()


FORMATS: dict[str, type[JsonLines]] = {"JsonLines": JsonLines}


class Flores(JsonLines):
    """Translations, in shards by source language. The direction is an example's tag, and scores are their mean."""

    is_sharded = True
    takes_variants = False

    @classmethod
    def check_example(cls, record: Record, task_format: TaskFormat) -> Record:
        """With its direction as its tag, and `targetText` under the name of the field that models predict."""
        languages = [_language(record, name) for name in ("sourceLanguage", "targetLanguage")]
        if len(set(languages)) == 1:
            raise FormatError(f"sourceLanguage and targetLanguage are both {languages[0]}.", "targetLanguage")
        direction = "-".join(languages)
        if record.get("tags", [direction]) != [direction]:
            raise FormatError("Leave tags out: the direction, made from the languages, is the only tag.", "tags")
        predicted = task_format.label_names[0]
        names = {"targetText": predicted} if predicted not in record else {}
        renamed = {names.get(name, name): value for name, value in record.items()}
        return super().check_example({**renamed, "tags": [direction]}, task_format)

    @classmethod
    def shard_of(cls, example: Record) -> str:
        return example["sourceLanguage"]

    @classmethod
    def overall(cls, by_tag: Mapping[str, float], over_all: Callable[[], float]) -> float:
        """Each direction counts the same, however many sentences it has."""
        return mean(by_tag.values())


def dataset_class(name: str) -> type[JsonLines]:
    """The dataset class of that name; raise ValueError naming the known ones."""
    if name not in FORMATS:
        raise ValueError(f"There is no dataset format {name!r}; choose one of {', '.join(sorted(FORMATS))}.")
    return FORMATS[name]


def _uploaded_lines(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    is_gzip = source.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    source.seek(0)
    number = 0
    try:
        plain = cast(BinaryIO, gzip.GzipFile(fileobj=source)) if is_gzip else source
        for number, line in numbered_lines(plain):
            yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError(number + 1, "gzip", "the file is damaged or cut off from here; upload it again.") from error


def _language(record: Record, name: str) -> str:
    code = record.get(name)
    if not isinstance(code, str) or not LANGUAGE.fullmatch(code):
        raise FormatError(f"{name} must be a code like eng or zho_simp, not {brief(code)}.", name)
    return code


def _label(number: int, line: bytes, task_format: TaskFormat) -> tuple[str, Label]:
    record = msgspec.json.decode(line, type=Record)
    lost = [name for name in task_format.label_names if name not in record]
    if lost:
        remedy = "the task's format was changed since; upload the dataset again"
        raise DatasetError(number, "field", f"the labels have no {', '.join(lost)}: {remedy}.")
    answers = {name: record[name] for name in task_format.label_names}
    return record["uid"], Label(answers, tuple(record.get("tags", [])), record.get("input_id"))


@dataclass
class _Reading:
    """Predictions while they are read. Unknown ids are counted, not kept: memory is bound by what is expected."""

    task_format: TaskFormat
    expected: Collection[str]
    records: dict[str, Record] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    unknown_count: int = 0
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0

    def add(self, raw: bytes | bytearray) -> None:
        """Keep the prediction in these bytes; raise Unusable when it breaks a rule."""
        record = decode(raw)
        if HANDLER_ERROR in record:
            raise Unusable("handler_error", _handler_error(record))
        try:
            record = self.task_format.check_prediction(record)
        except FormatError as error:
            raise Unusable("field", str(error)) from error
        self._keep(record["id"], record)

    def _keep(self, uid: str, record: Record) -> None:
        if uid not in self.expected:
            self.unknown_count += 1
            self.unknown = self.unknown or [uid]
        elif uid in self.records:
            raise Unusable("duplicate_id", f"there is already an answer with the id {uid}; give one to each example.")
        else:
            self.records[uid] = record

    def note(self, problem: Problem) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS_SHOWN:
            self.problems.append(problem)

    def result(self) -> dict[str, Record]:
        """The predictions, when all is well; else raise PredictionsError."""
        if self.problems:
            shown = f"; the first {MAX_PROBLEMS_SHOWN}" if self.problem_count > MAX_PROBLEMS_SHOWN else ""
            summary = f"{self.problem_count} of the model's answers cannot be used{shown}:"
            raise PredictionsError(summary, self.problems, self.problem_count)
        missing = [uid for uid in self.expected if uid not in self.records]
        if missing or self.unknown_count:
            found = [*_listed(len(missing), "missing", missing), *_listed(self.unknown_count, "unknown", self.unknown)]
            remedy = "Answer each example once, with its uid as id."
            raise PredictionsError(f"The ids of the answers do not match: {', '.join(found)}. {remedy}")
        return self.records


def _listed(count: int, what: str, uids: list[str]) -> list[str]:
    return [f"{count} {what} (first: {uids[0]})"] if count else []


def _handler_error(record: Record) -> str:
    uid = brief(record.get("id", record.get("uid")))
    tail = str(record[HANDLER_ERROR]).strip()[-MAX_TRACEBACK_CHARACTERS:]
    return f"the handler raised an error for the example {uid}: {tail}"
