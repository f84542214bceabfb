"""The metrics by name: what each measures, the options it takes, and the one function that computes it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

Kind = Literal["perf", "perturbation", "job"]
Answer = str | Sequence[str]  # a reference: the right text, or every text that counts as right
OptionValue = str | bool | int | float
Function = Callable[..., float]

PERCENT = "%"
PERCENT_RANGE = (0.0, 100.0)
RANGE_SLACK = 1e-6  # sacrebleu gives 100.00000000000004 for a perfect corpus


class MetricError(ValueError):
    """A metric that cannot be computed as asked; the message says why and what to do."""


class FileVersion(NamedTuple):
    path: str
    changed_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a metric: its type, the value used when it is not given, and what is allowed (empty: anything).

    `is_file`: the value is the path of a file, which must be there.
    """

    type: type[OptionValue]
    default: OptionValue
    choices: tuple[OptionValue, ...] = ()
    is_file: bool = False

    def check(self, where: str, value: object) -> OptionValue:
        """Return the value; raise MetricError when it is of another type or not one of the choices."""
        if self.type is float and type(value) is int:
            value = float(value)
        if type(value) is not self.type:
            raise MetricError(f"{where} must be of type {self.type.__name__}, not {type(value).__name__}.")
        if self.choices and value not in self.choices:
            raise MetricError(f"{where} must be one of {', '.join(map(str, self.choices))}; it is {value!r}.")
        if self.is_file and not _is_readable(str(value)):
            found = f"{value} is missing or can't be read" if value else "it is not given"
            raise MetricError(f"{where} must be the path of a file here: {found}.")
        return value


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric is called, how its values read, and how the dynascore turns them so that more is better.

    `direction` is +1 when more is better, else -1; `range` is in `unit`; `version` goes up when the numbers change.
    """

    name: str
    label: str
    summary: str
    kind: Kind = "perf"
    unit: str = PERCENT
    direction: Literal[1, -1] = 1
    offset_is_instance_memory: bool = False
    range: tuple[float, float] = PERCENT_RANGE
    options: Mapping[str, Option] = field(default_factory=dict, hash=False)
    version: int = 1
    function: Function | None = None
    check_together: Callable[[Mapping[str, OptionValue]], None] | None = None

    def offset_for(self, instance_memory_gib: float) -> float:
        """The dynascore's offset of this metric on an instance with that much memory."""
        return instance_memory_gib if self.offset_is_instance_memory else 0.0


_METRICS: dict[str, Metric] = {}


def register(entry: Metric) -> None:
    """Make a metric known by its name; raise MetricError when the name is taken."""
    if entry.name in _METRICS:
        raise MetricError(f"Two metrics are called {entry.name!r}; rename one.")
    _METRICS[entry.name] = entry


def metric(name: str, label: str, **declared: Any) -> Callable[[Function], Function]:
    """Register the decorated `function(predictions, references, **options)` as a perf metric.

    `declared` are further fields of Metric; the first line of the function's docstring is its summary.
    """

    def decorate(function: Function) -> Function:
        summary = (function.__doc__ or "").partition("\n")[0]
        register(Metric(name, label, summary, function=function, **declared))
        return function

    return decorate


def names(kind: Kind | None = None) -> list[str]:
    """The names of all metrics, or of one kind, sorted."""
    return sorted(name for name, entry in _METRICS.items() if kind in (None, entry.kind))


def get(name: str) -> Metric:
    """The metric of that name; raise MetricError naming the known ones."""
    if name not in _METRICS:
        raise MetricError(f"There is no metric {name!r}; choose one of {', '.join(names())}.")
    return _METRICS[name]


def check_options(name: str, options: Mapping[str, object]) -> dict[str, OptionValue]:
    """The options with defaults filled in; raise MetricError naming the first unknown or wrong one."""
    entry = get(name)
    for key in options:
        if key not in entry.options:
            known = ", ".join(entry.options) or "none"
            raise MetricError(f"The metric {name} has no option {key!r}; it has: {known}.")
    checked = {
        key: option.check(f"The option {key} of {name}", options.get(key, option.default))
        for key, option in entry.options.items()
    }
    if entry.check_together:
        entry.check_together(checked)
    return checked


def file_hashes(name: str, options: Mapping[str, object]) -> dict[str, str]:
    """The sha256 of each file that the options name, by option; empty for a file that is not there."""
    files = {key: str(options.get(key, "")) for key, option in get(name).options.items() if option.is_file}
    return {key: _sha256(file_version(path)) if _is_readable(path) else "" for key, path in files.items()}


def _is_readable(path: str) -> bool:
    return "\0" not in path and os.access(path, os.R_OK) and Path(path).is_file()


def file_version(path: str) -> FileVersion:
    """The file as it is now: equal as long as nobody writes it."""
    stat = Path(path).stat()
    return FileVersion(path, stat.st_ctime_ns, stat.st_size)


@lru_cache(maxsize=16)
def _sha256(version: FileVersion) -> str:
    with Path(version.path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compute(name: str, predictions: Sequence[str], references: Sequence[Answer], **options: object) -> float:
    """The perf metric of predictions against references in their order, in the metric's unit, unrounded.

    Raise MetricError for an unknown name or option, unequal lengths, nothing to compare, or a result out of range.
    """
    entry = get(name)
    if entry.function is None:
        raise MetricError(f"{name} is a {entry.kind} metric: it is not computed from predictions and references.")
    checked = check_options(name, options)
    if len(predictions) != len(references):
        raise MetricError(f"{name} got {len(predictions)} predictions for {len(references)} references.")
    if not references:
        raise MetricError(f"{name} needs at least one example; the dataset has none.")
    return _within_range(entry, entry.function(predictions, references, **checked))


def _within_range(entry: Metric, value: float) -> float:
    low, high = entry.range
    if not math.isfinite(value) or not low - RANGE_SLACK <= value <= high + RANGE_SLACK:
        raise MetricError(f"{entry.name} came out as {value}, outside {low} to {high}: the metric itself is at fault.")
    return min(max(float(value), low), high)
