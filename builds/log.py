"""The steps of a build as one text with numbered lines, so that a mail can point at the line that matters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from builds.models import BuildStep

FRAME = re.compile(r'^\s*File "(?P<path>[^"]+)", line \d+')
OTHERS_FILES = re.compile(r"/(site|dist)-packages/|/lib/python\d|/dynabench_runtime/|^<frozen ")
COMPLAINT = re.compile(r"error|no such file|not found|refused|killed", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the log, numbered from 1; `kind` is heading, command, output or ending."""

    number: int
    text: str
    kind: str
    step_pk: int


def numbered(steps: Iterable[BuildStep]) -> list[Line]:
    """The whole log of a build; steps only ever follow, so a line keeps its number."""
    lines = ((text, kind, step.pk) for step in steps for text, kind in _lines(step))
    return [Line(number, text, kind, pk) for number, (text, kind, pk) in enumerate(lines, start=1)]


def culprit(lines: Iterable[Line], step: BuildStep) -> Line | None:
    """The line of a step that says what went wrong: the last frame in the sender's own file, else a complaint."""
    output = [line for line in lines if line.step_pk == step.pk and line.kind == "output" and line.text.strip()]
    frames = [line for line in output if (found := FRAME.match(line.text)) and not OTHERS_FILES.search(found["path"])]
    complaints = [line for line in output if COMPLAINT.search(line.text)]
    return next((found[-1] for found in (frames, complaints, output) if found), None)


def _lines(step: BuildStep) -> Iterator[tuple[str, str]]:
    yield f"{step.name} (attempt {step.attempt})", "heading"
    for text in step.command.splitlines():
        yield f"$ {text}", "command"
    for text in step.output.splitlines():
        yield text, "output"
    if step.exit_code is not None:
        yield f"exit code {step.exit_code}", "ending"
