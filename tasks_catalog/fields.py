"""One field of a task's format, and what a value of it may be."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

TYPES = ("string", "multiclass", "prob")
MAX_UID_CHARACTERS = 255
MAX_WHOLE_NUMBER_BITS = 64
PROB_TOLERANCE = 1e-4  # dynalab's own


class FormatError(ValueError):
    """A format, example or prediction that breaks the rules; `field` names the field at fault, "" for the whole."""

    def __init__(self, detail: str, field: str = "") -> None:
        super().__init__(detail)
        self.field = field


@dataclass(frozen=True, slots=True)
class Field:
    """One field as written in the task's YAML; a prob has the labels of the field that it refers to."""

    name: str
    type: str
    labels: tuple[str, ...] = ()
    reference_name: str = ""
    single_prob: bool = False
    placeholder: str = ""
    display_name: str = ""
    as_goal_message: bool = False

    def check(self, value: object, max_bytes: int) -> None:
        """Raise FormatError unless the value is one that a field of this type may have."""
        if self.type == "string":
            check_text(self.name, value, max_bytes)
        elif self.type == "multiclass":
            _check_choice(self, value)
        elif self.single_prob:
            _check_probability(self.name, value)
        else:
            _check_distribution(self, value)

    def check_label(self, value: object, max_bytes: int) -> None:
        """Like `check`, for the right answer of an example: also a list of accepted ones."""
        if isinstance(value, list) and not value:
            raise FormatError(f"{self.name} has an empty list of accepted answers; give at least one.", self.name)
        for accepted in value if isinstance(value, list) else [value]:
            self.check(accepted, max_bytes)

    def config(self) -> dict[str, object]:
        """The field as the CLI reads it: keys that say nothing are left out."""
        keys = {each.name: getattr(self, each.name) for each in fields(self)}
        keys["labels"] = [] if self.type == "prob" else list(self.labels)
        return {key: value for key, value in keys.items() if value}


def _check_choice(field: Field, value: object) -> None:
    if not isinstance(value, str) or value not in field.labels:
        allowed = ", ".join(field.labels)
        raise FormatError(f"{field.name} must be one of {allowed}; it is {brief(value)}.", field.name)


def _check_distribution(field: Field, value: object) -> None:
    if not isinstance(value, dict) or value.keys() != set(field.labels):
        expected = ", ".join(field.labels)
        raise FormatError(f"{field.name} must give a probability to each of {expected}, and to no other.", field.name)
    for probability in value.values():
        _check_probability(field.name, probability)
    total = math.fsum(value.values())
    if abs(total - 1) > PROB_TOLERANCE:
        raise FormatError(f"The probabilities of {field.name} must sum to 1; they sum to {total:.6g}.", field.name)


def _check_probability(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise FormatError(f"{name} must be a number from 0 to 1, not {brief(value)}.", name)
    if not -PROB_TOLERANCE < value < 1 + PROB_TOLERANCE:  # also false for NaN
        raise FormatError(f"{name} must be from 0 to 1; it is {brief(value)}.", name)


def check_undeclared_prob(value: object) -> None:
    """Raise FormatError unless the value is a probability, or gives one to each of some labels."""
    for probability in value.values() if isinstance(value, dict) else [value]:
        _check_probability("prob", probability)


def check_text(name: str, value: object, max_bytes: int) -> None:
    """Raise FormatError unless the value is a text that UTF-8 can hold in at most that many bytes."""
    if not isinstance(value, str):
        raise FormatError(f"{name} must be a text, not {brief(value)}.", name)
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise FormatError(f"{name} holds half a character (a lone surrogate); write whole characters.", name) from None
    if size > max_bytes:
        raise FormatError(f"{name} is {size} bytes long; at most {max_bytes} are allowed.", name)


def check_uid(name: str, value: object) -> str:
    """The identifier as a text; whole numbers are taken for their digits."""
    text = str(value) if type(value) is int and value.bit_length() <= MAX_WHOLE_NUMBER_BITS else value
    if not isinstance(text, str) or not text.isprintable() or not 0 < len(text) <= MAX_UID_CHARACTERS:
        raise FormatError(f"{name} must be 1 to {MAX_UID_CHARACTERS} printable characters, not {brief(value)}.", name)
    return text


def brief(value: object) -> str:
    """What to call a wrong value in a message: a short text or number itself, else its type."""
    if isinstance(value, (str, float)) or value is None:
        return f"{value!r:.60}"
    return f"of type {type(value).__name__}"
