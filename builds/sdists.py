"""Source distributions from the index, without running them: pip would run their code to ask what they need."""

from __future__ import annotations

import hashlib
import json
import ssl
import urllib.error
import urllib.request
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from django.conf import settings
from packaging.requirements import Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidSdistFilename, canonicalize_name, parse_sdist_filename
from packaging.version import Version
from pip._internal.models.index import PyPI

JSON = "application/vnd.pypi.simple.v1+json"  # PEP 691
SUFFIX = ".tar.gz"
TIMEOUT_SECONDS = 60
CHUNK = 1024 * 1024


def fetch(requirement: Requirement, dest: Path, *, python: str, max_bytes: int) -> bool:
    """Whether the newest fitting source distribution lies in `dest` now; what it needs is not followed."""
    index = (settings.INDEX_URL or PyPI.simple_url).rstrip("/")
    try:
        address = f"{index}/{canonicalize_name(requirement.name)}/"
        with _open(address, JSON) as page:
            files = json.load(page)["files"]
        fitting = {version: file for file in files if (version := _version(file, requirement, python))}
        if not fitting:
            return False
        _save(fitting[max(fitting)], address, dest, max_bytes)
    except (urllib.error.URLError, TimeoutError, json.JSONDecodeError):
        return False
    return True


def _open(url: str, accept: str = "*/*") -> HTTPResponse:
    context = ssl.create_default_context(cafile=settings.BUILD_CA_BUNDLE or None)
    request = urllib.request.Request(url, headers={"Accept": accept})
    return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=context)


def _version(file: dict[str, Any], requirement: Requirement, python: str) -> Version | None:
    """The file's version when it is a source distribution that fits."""
    try:
        name, version = parse_sdist_filename(file["filename"])
        needs = SpecifierSet(file.get("requires-python") or "")
    except (InvalidSdistFilename, InvalidSpecifier):
        return None
    is_wanted = name == canonicalize_name(requirement.name) and file["filename"].endswith(SUFFIX)
    is_fitting = version in requirement.specifier and python in needs and not file.get("yanked")
    return version if is_wanted and is_fitting else None


def _save(file: dict[str, Any], page: str, dest: Path, max_bytes: int) -> None:
    """The file lies in `dest` with the digest that the index names."""
    digest = hashlib.sha256()
    path = dest / file["filename"]
    with _open(urljoin(page, file["url"])) as source, path.open("wb") as target:
        while (chunk := source.read(CHUNK)) and target.tell() < max_bytes:
            digest.update(chunk)
            target.write(chunk)
    if digest.hexdigest() != file["hashes"].get("sha256"):
        path.unlink()
        raise urllib.error.URLError(f"{file['filename']} differs from the digest in the index")
