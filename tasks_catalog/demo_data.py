"""The demonstration's tasks and data: sentences rated by people for VADER, and small sets of our own.

The sentiment sets lie in the source distribution of vaderSentiment 3.3.2. They are fetched when the demonstration is
set up and stay in its cache: they belong to their authors, so they are neither shipped nor served.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks_catalog import demo_flores

PACKAGE = "vaderSentiment==3.3.2"
SDIST = "vaderSentiment-3.3.2.tar.gz"
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
RATINGS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
RATED_SETS = {
    "tweets": "tweets",
    "movies": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "nyt": "nytEditorialSnippets",
}
FETCH_SECONDS = 120
# Mean valence runs from -4 to 4; what lies beyond this, on either side, is an opinion.
OPINION = 0.2
SHORT_WORDS, LONG_WORDS = 10, 25
NEGATION = re.compile(r"\b(?:no|not|never|none|nobody|nothing|neither|nor|cannot|without|\w+n['’]t)\b", re.IGNORECASE)
NLI_FILE = Path(__file__).resolve().parent.parent / "examples" / "data" / "nli.jsonl"

TASKS = {
    "sentiment": {
        "name": "Sentiment",
        "purpose": "Say whether a sentence is negative, neutral or positive.",
        "description": (
            "Sentences from tweets, film reviews, product reviews and newspaper editorials, each rated by at least "
            "twenty people from -4 to 4. A mean above 0.2 counts as positive, one below -0.2 as negative, anything "
            "else as neutral. The ratings were published by the authors of VADER's lexicon: this is a demonstration, "
            "not a held-out benchmark.\n\n"
            "C.J. Hutto and E.E. Gilbert (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of "
            "Social Media Text. Eighth International Conference on Weblogs and Social Media (ICWSM-14), Ann Arbor. "
            "Film snippets after Pang and Lee (2004), product reviews after Hu and Liu (2004). Data from the source "
            "distribution of vaderSentiment 3.3.2 (MIT licence); not redistributed here."
        ),
        "io_yaml": """\
context: []
input:
  - {name: statement, type: string, placeholder: Enter a sentence}
  - {name: label, type: multiclass, labels: [negative, positive, neutral]}
output:
  - {name: label}
  - {name: prob, type: prob, reference_name: label}
""",
    },
    "nli": {
        "name": "Natural language inference",
        "purpose": "Say whether a hypothesis follows from a text, contradicts it, or neither.",
        "description": (
            "Thirty short texts with three hypotheses each: one that follows, one that contradicts, one that the text "
            "leaves open. The set is small and proves only that the path from an upload to a score works.\n\n"
            "Written for this project; MIT licence."
        ),
        "io_yaml": """\
context:
  - {name: context, type: string, placeholder: Enter a text}
input:
  - {name: hypothesis, type: string, placeholder: Enter a hypothesis}
  - {name: label, type: multiclass, labels: [entailed, neutral, contradictory]}
output:
  - {name: label}
  - {name: prob, type: prob, reference_name: label}
""",
    },
    "flores_small1": demo_flores.TASK,
}


class DemoDataError(RuntimeError):
    """The demonstration's data could not be had; the message says what to do."""


def sentiment_datasets(cache: Path, *, index_url: str = "") -> dict[str, list[dict[str, Any]]]:
    """The four rated sets as dataset records, fetched into ``cache`` unless they are there; DemoDataError if not."""
    sdist = cache / SDIST
    if not _is_genuine(sdist):
        _fetch(sdist, index_url)
    return {name: list(_records(name, lines)) for name, lines in _rated_lines(sdist).items()}


def nli_dataset() -> list[dict[str, Any]]:
    """Our own NLI pairs as dataset records."""
    return [json.loads(line) for line in NLI_FILE.read_text(encoding="utf-8").splitlines()]


def _is_genuine(sdist: Path) -> bool:
    return sdist.exists() and hashlib.sha256(sdist.read_bytes()).hexdigest() == SDIST_SHA256


def _fetch(sdist: Path, index_url: str) -> None:
    """Have pip download the file; pip compares the hash before it looks inside."""
    sdist.parent.mkdir(parents=True, exist_ok=True)
    wanted = sdist.parent / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SDIST_SHA256}\n")
    try:
        pip = subprocess.run(_pip_command(wanted, index_url), capture_output=True, text=True, timeout=FETCH_SECONDS)
    except subprocess.TimeoutExpired as slow:
        raise _unfetched(sdist, f"pip did not finish within {FETCH_SECONDS} seconds") from slow
    if pip.returncode or not _is_genuine(sdist):
        errors = (line.removeprefix("ERROR: ") for line in pip.stderr.splitlines() if line.startswith("ERROR: "))
        raise _unfetched(sdist, "pip: " + next(errors, f"exit code {pip.returncode}"))


def _pip_command(wanted: Path, index_url: str) -> list[str]:
    index = ["--index-url", index_url] if index_url else []
    options = ["--quiet", "--retries", "1", "--no-deps", "--no-binary", "vaderSentiment", "--require-hashes", *index]
    return [sys.executable, "-m", "pip", "download", *options, "--dest", str(wanted.parent), "-r", str(wanted)]


def _unfetched(sdist: Path, reason: str) -> DemoDataError:
    return DemoDataError(
        f"The sentiment data could not be fetched ({reason}): connect to the package index and run this again, or put "
        f"{SDIST} (sha256 {SDIST_SHA256}) into {sdist.parent} yourself."
    )


def _rated_lines(sdist: Path) -> dict[str, list[str]]:
    """Each set's lines, read from the archive in the archive without unpacking either."""
    with tarfile.open(sdist) as outer:
        ratings = io.BytesIO(_member(outer, RATINGS))
    with tarfile.open(fileobj=ratings) as inner:
        return {
            name: _member(inner, f"hutto_ICWSM_2014/{stem}_GroundTruth.txt").decode().split("\r\n")
            for name, stem in RATED_SETS.items()
        }


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None, f"{name} is a file in the archive whose sha256 was checked"
    return file.read()


def _records(name: str, lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in filter(None, lines):
        number, valence, statement = line.split("\t")
        yield {
            "uid": f"{name}-{number}",
            "statement": statement,
            "label": _label(float(valence)),
            "tags": _tags(statement),
        }


def _label(valence: float) -> str:
    if abs(valence) <= OPINION:
        return "neutral"
    return "positive" if valence > 0 else "negative"


def _tags(statement: str) -> list[str]:
    """How long the sentence is, and whether it negates anything."""
    words = len(statement.split())
    length = "short" if words < SHORT_WORDS else "long" if words > LONG_WORDS else "medium"
    return [length, "negation"] if NEGATION.search(statement) else [length]
