"""Dataset classes: how inputs, labels and predictions are read and written. `Dataset.format` names one of them.

A new format is one subclass of `JsonLines`. Files are read line by line and nothing in them is trusted.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import msgspec

from evaluations.json_objects import Record, Unusable, cut_objects, decode, numbered_lines
from tasks_catalog.fields import FormatError, brief
from tasks_catalog.formats import TaskFormat

MAX_PROBLEMS_SHOWN = 20
MAX_TRACEBACK_CHARACTERS = 500
GZIP_MAGIC = b"\x1f\x8b"
HANDLER_ERROR = "dynabench_error"


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
    """What an upload was split into: counts of examples and of each tag, and the sha256 of both files."""

    examples: int
    inputs_sha256: str
    labels_sha256: str
    tags: dict[str, int]


@dataclass(frozen=True, slots=True)
class Label:
    """The right answers of one example; `input_id` is the uid of the example that a variant was made from."""

    answers: dict[str, str | list[str]]
    tags: tuple[str, ...] = ()
    input_id: str | None = None


class JsonLines:
    """One JSON object a line, in UTF-8; an upload may be gzipped. A subclass is known by its own name."""

    def __init_subclass__(cls) -> None:
        FORMATS[cls.__name__] = cls

    @classmethod
    def split_upload(
        cls, source: BinaryIO, task_format: TaskFormat, inputs_out: BinaryIO, labels_out: BinaryIO
    ) -> Summary:
        """Write the inputs and the labels of an upload to two files; raise DatasetError at the first bad line.

        `source` can seek. After an error both outputs hold the examples before it: throw them away.
        """
        inputs, labels = _HashedLines(inputs_out), _HashedLines(labels_out)
        seen: set[str] = set()
        tags: Counter[str] = Counter()
        for number, line in _uploaded_lines(source):
            example = _example(number, line, task_format)
            if example["uid"] in seen:
                raise DatasetError(number, "duplicate_uid", f"an example above has the uid {example['uid']} too.")
            seen.add(example["uid"])
            shown, hidden = task_format.split(example)
            inputs.write(shown)
            labels.write(hidden)
            tags.update(set(example.get("tags", [])))
        if not seen:
            raise DatasetError(1, "empty", "the file holds no example.")
        return Summary(len(seen), inputs.sha256.hexdigest(), labels.sha256.hexdigest(), dict(sorted(tags.items())))

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


def dataset_class(name: str) -> type[JsonLines]:
    """The dataset class of that name; raise ValueError naming the known ones."""
    if name not in FORMATS:
        raise ValueError(f"There is no dataset format {name!r}; choose one of {', '.join(sorted(FORMATS))}.")
    return FORMATS[name]


@dataclass
class _HashedLines:
    out: BinaryIO
    sha256: Any = field(default_factory=hashlib.sha256)

    def write(self, record: Record) -> None:
        # ASCII only: handlers that split a batch with str.splitlines would break a line at U+2028.
        line = json.dumps(record).encode() + b"\n"
        self.sha256.update(line)
        self.out.write(line)


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


def _example(number: int, line: bytes, task_format: TaskFormat) -> Record:
    try:
        return task_format.check_example(decode(line))
    except Unusable as error:
        raise DatasetError(number, error.rule, error.detail) from error
    except FormatError as error:
        raise DatasetError(number, "field", str(error)) from error


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
