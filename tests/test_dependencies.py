"""What the requirements files name is used, explained, and free."""

from __future__ import annotations

import importlib.metadata as metadata
import re
from pathlib import Path

import pytest
from django.conf import settings
from packaging.requirements import Requirement

ROOT = Path(settings.BASE_DIR)
APPS = ("dynabench_site", "tasks_catalog", "submissions", "builds", "evaluations")
MOST = 20
# Names on the index -> what is imported, or named in settings and commands.
IMPORTED_AS = {
    "django-storages": "storages",
    "django-allauth": "allauth",
    "django-q2": "django_q",
    "djangorestframework": "rest_framework",
    "pyyaml": "yaml",
}
COPYLEFT = re.compile(r"\bA?GPL|GNU (Affero )?General Public", re.IGNORECASE)


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]


DIRECT = requirements("requirements.txt")


@pytest.fixture(scope="module")
def product() -> str:
    files = (path for app in APPS for path in (ROOT / app).rglob("*.py") if "runtime" not in path.parts)
    return "\n".join(path.read_text() for path in files)


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_a_dependency_is_pinned_used_and_explained(requirement, product):
    imported = IMPORTED_AS.get(requirement.name.lower(), requirement.name.lower())

    assert [specifier.operator for specifier in requirement.specifier] == ["=="]
    assert re.search(rf"\b(import|from) {imported}\b|[\"']{imported}\b", product)
    assert f"| {requirement.name} |" in (ROOT / "docs" / "dependencies.md").read_text()


def test_there_are_few():
    assert len(DIRECT) <= MOST


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_nothing_that_is_always_installed_is_copyleft(requirement):
    about = metadata.metadata(requirement.name)
    licences = [about.get("License-Expression") or "", *(about.get_all("Classifier") or [])]

    assert not [licence for licence in licences if COPYLEFT.search(licence)]
