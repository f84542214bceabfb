"""What SageMaker keeps: named things by region, the rules for their requests, and the account's limits."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator
from typing import Any

import botocore.session
from botocore.model import Shape

from tests.aws.calls import ACCOUNT, Refused
from tests.aws.cloud import now

API = botocore.session.get_session().get_service_model("sagemaker")


def check(action: str, request: dict[str, Any]) -> None:
    """Refuse what Amazon's description of the API refuses: names, patterns, lengths, missing members."""
    problems = list(violations(API.operation_model(action).input_shape, request, ""))
    if problems:
        raise Refused("ValidationException", f"{len(problems)} validation error detected: {'; '.join(problems)}")


def violations(shape: Shape, value: Any, where: str) -> Iterator[str]:
    match shape.type_name:
        case "structure":
            for missing in set(shape.required_members) - set(value):
                yield f"Value null at '{where}.{missing}' failed to satisfy constraint: Member must not be null"
            for key in value:
                yield from violations(shape.members[key], value[key], f"{where}.{key}")
        case "list":
            for member in value:
                yield from violations(shape.member, member, f"{where}.member")
        case "map":
            for key in value:
                yield from violations(shape.key, key, f"{where}.key")
                yield from violations(shape.value, value[key], f"{where}.{key}")
        case "string":
            if constraint := broken(shape.metadata, value):
                yield f"Value '{value}' at '{where}' failed to satisfy constraint: Member must satisfy {constraint}"


def broken(rules: dict[str, Any], value: str) -> str | None:
    pattern = compiled(rules.get("pattern", ""))
    if pattern and not pattern.fullmatch(value):
        return f"regular expression pattern: {rules['pattern']}"
    if "enum" in rules and value not in rules["enum"]:
        return f"enum value set: {rules['enum']}"
    if not rules.get("min", 0) <= len(value) <= rules.get("max", len(value)):
        return f"length between {rules.get('min', 0)} and {rules.get('max')}"
    return None


@functools.cache
def compiled(pattern: str) -> re.Pattern[str] | None:
    """None where there is no pattern, or one in a dialect that Python does not read."""
    try:
        return re.compile(pattern) if pattern else None
    except re.error:
        return None


class Resources(dict[str, dict[str, Any]]):
    """Everything by its ARN; who reads or writes more than one value holds the lock."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()

    def add(self, region: str, kind: str, name: str, thing: dict[str, Any]) -> str:
        arn = self.arn(region, kind, name)
        self[arn] = thing | {"CreationTime": now(), "LastModifiedTime": now()}
        return arn

    def arn(self, region: str, kind: str, name: str) -> str:
        return f"arn:aws:sagemaker:{region}:{ACCOUNT}:{kind}/{name}"

    def refuse_second(self, region: str, kind: str, name: str) -> None:
        if (arn := self.arn(region, kind, name)) in self:
            raise Refused("ValidationException", f'Cannot create already existing {kind.replace("-", " ")} "{arn}".')

    def find(self, region: str, kind: str, name: str) -> dict[str, Any]:
        arn = self.arn(region, kind, name)
        if arn not in self:
            raise Refused("ValidationException", f'Could not find {kind.replace("-", " ")} "{arn}".')
        return self[arn]

    def listed(self, region: str, kind: str, part: str | None) -> list[dict[str, Any]]:
        start = self.arn(region, kind, "")
        return [self[arn] for arn in list(self) if arn.startswith(start) and (part or "") in arn.removeprefix(start)]


class Limits:
    """Instances of a type that an account may use at once, for jobs and for endpoints each."""

    def __init__(self) -> None:
        self.by_region: dict[str, dict[str, int]] = {}

    def claim(self, region: str, instance_type: str, usage: str, used: int, wanted: int) -> None:
        limit = self.by_region.get(region, {}).get(instance_type)
        if limit is not None and used + wanted > limit:
            raise Refused(
                "ResourceLimitExceeded",
                f"The account-level service limit '{instance_type} for {usage} usage' is {limit} Instances, with "
                f"current utilization of {used} Instances and a request delta of {wanted} Instances.",
            )
