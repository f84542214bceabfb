"""Packages that a model server's image brings: requirements are held against them instead of being fetched."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from builds.requirements import Line, RequirementsError
from builds.sandboxes.policy import Log

CONSTRAINTS = "constraints.txt"
TAG = "py3-none-any"
WHEEL = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {TAG}\n"


def hold_against(lines: Sequence[Line], offers: Mapping[str, str], log: Log) -> list[Line]:
    """The lines that are left to fetch; raises `RequirementsError` at one that asks for another version."""
    for line in lines:
        version, marker = offers.get(line.name), line.requirement.marker
        if version is None or (marker and not marker.evaluate()):
            continue
        if not line.requirement.specifier.contains(version, prereleases=True):
            raise RequirementsError(
                f"{line.requirement} can't be had: the image that models of this task are built on has "
                f"{line.name} {version}. Ask for a range that holds this version.",
                line.number,
            )
        log(f"{line.requirement}: the image has {line.name} {version}, nothing is fetched\n".encode())
    return [line for line in lines if line.name not in offers]


def stand_in(offers: Mapping[str, str], wheels: Path) -> list[str]:
    """Options that make pip take empty wheels, which lie in `wheels` then, where other packages need what is offered.

    Their local version is found nowhere else, so that no index can offer the same.
    """
    if not offers:
        return []
    wheels.mkdir(parents=True, exist_ok=True)
    pinned = {name: f"{version}{'.' if '+' in version else '+'}image" for name, version in offers.items()}
    for name, version in pinned.items():
        info = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(wheels / f"{name}-{version}-{TAG}.whl", "w") as wheel:
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", WHEEL)
            wheel.writestr(f"{info}/RECORD", "")
    (wheels / CONSTRAINTS).write_text("".join(f"{name}=={version}\n" for name, version in pinned.items()))
    return ["--find-links", str(wheels), "--constraint", str(wheels / CONSTRAINTS)]
