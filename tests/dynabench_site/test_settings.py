from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from dynabench_site import env

ROOT = settings.BASE_DIR
TESTS_ONLY = {"DYNABENCH_TEST_REQUIRE"}


def variables(*paths: Path) -> set[str]:
    return {name for path in paths for name in re.findall(r"DYNABENCH_[A-Z0-9_]+", path.read_text())} - TESTS_ONLY


def test_every_variable_is_in_the_table_and_in_the_example_file():
    code = [path for app in ("dynabench_site", "builds") for path in (ROOT / app).glob("*.py")]
    read = variables(*code) - {"DYNABENCH_SOCKET", "DYNABENCH_ROOT"}

    assert read == variables(ROOT / "docs" / "operations.md") == variables(ROOT / "deploy" / "env.example")


def test_the_secret_is_made_once_and_readable_by_its_owner_only(tmp_path, monkeypatch):
    monkeypatch.delenv("DYNABENCH_SECRET_KEY", raising=False)
    kept_in = tmp_path / "var" / "secret_key"

    first = env.env_secret("DYNABENCH_SECRET_KEY", kept_in)

    assert env.env_secret("DYNABENCH_SECRET_KEY", kept_in) == first
    assert stat.S_IMODE(kept_in.stat().st_mode) == 0o600
    assert len(first) >= 50


@pytest.mark.parametrize(("value", "read"), [("x", env.env_bool), ("2", env.env_bool)])
def test_a_switch_that_is_neither_on_nor_off_is_refused(monkeypatch, value, read):
    monkeypatch.setenv("DYNABENCH_DEBUG", value)

    with pytest.raises(ImproperlyConfigured, match="DYNABENCH_DEBUG"):
        read("DYNABENCH_DEBUG")


@pytest.mark.parametrize("value", ["-1", "1.5", "many"])
def test_a_number_that_is_none_is_refused(monkeypatch, value):
    monkeypatch.setenv("DYNABENCH_PORT", value)

    with pytest.raises(ImproperlyConfigured, match="DYNABENCH_PORT"):
        env.env_int("DYNABENCH_PORT", 8000)


def test_a_database_address_becomes_settings():
    found = env.database("mysql://dyna:p%40ss@db.example:3307/bench")

    assert (found["USER"], found["PASSWORD"], found["HOST"], found["PORT"], found["NAME"]) == (
        "dyna",
        "p@ss",
        "db.example",
        3307,
        "bench",
    )
    assert found["OPTIONS"]["read_timeout"] == 25
    assert env.database("mysql://x/y?read_timeout=3600")["OPTIONS"]["read_timeout"] == 3600
    assert env.database("sqlite:///var/lib/d.sqlite3")["NAME"] == "/var/lib/d.sqlite3"


@pytest.mark.parametrize("url", ["postgres://x/y", "nonsense"])
def test_another_database_is_refused(url):
    with pytest.raises(ImproperlyConfigured):
        env.database(url)


def test_mail_goes_to_files_or_by_smtp():
    assert env.mail("file:///var/mail")["EMAIL_FILE_PATH"] == "/var/mail"
    smtp = env.mail("smtp://me:secret@mail.example:587?tls=1")
    assert (smtp["EMAIL_HOST"], smtp["EMAIL_PORT"], smtp["EMAIL_USE_TLS"]) == ("mail.example", 587, True)
