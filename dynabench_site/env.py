"""Settings come from the environment, through functions that refuse nonsense."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured


def env_str(name: str, default: str = "") -> str:
    return os.environ.get(name, default).strip()


def env_bool(name: str, default: bool = False) -> bool:
    value = env_str(name, "1" if default else "0").lower()
    if value not in {"0", "1", "", "false", "true", "no", "yes"}:
        raise ImproperlyConfigured(f"{name} is {value!r}: say 1 or 0.")
    return value in {"1", "true", "yes"}


def env_int(name: str, default: int, *, least: int = 0) -> int:
    value = env_str(name) or str(default)
    if not value.isdecimal() or int(value) < least:
        raise ImproperlyConfigured(f"{name} is {value!r}: a whole number from {least} is needed.")
    return int(value)


def env_secret(name: str, kept_in: Path) -> str:
    """The secret in the environment, else the one kept in a file that is made once, readable by its owner only."""
    if value := env_str(name):
        return value
    kept_in.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(kept_in, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return kept_in.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(50))
    return kept_in.read_text().strip()


def database(url: str) -> dict[str, Any]:
    """Django's database settings for sqlite:///PATH or mysql://USER:PASSWORD@HOST:PORT/NAME.

    The latter takes ?unix_socket=PATH and &read_timeout=SECONDS.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return _sqlite(unquote(parts.path)[1:] if parts.path.startswith("//") else unquote(parts.path))
    if parts.scheme == "mysql":
        return _mysql(parts)
    raise ImproperlyConfigured(f"DYNABENCH_DATABASE_URL starts with {parts.scheme!r}: sqlite and mysql are supported.")


def _sqlite(path: str) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": path,
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 30,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
        "TEST": {"NAME": str(Path(path).with_name("test.sqlite3"))},
    }


def _mysql(parts: Any) -> dict[str, Any]:
    options = dict(parse_qsl(parts.query))
    return {
        "ENGINE": "django.db.backends.mysql",
        "NAME": parts.path.strip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": options.get("unix_socket", parts.hostname or ""),
        "PORT": parts.port or "",
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,  # the server may have been restarted between two requests
        "OPTIONS": {
            "charset": "utf8mb4",
            "isolation_level": "read committed",
            "init_command": "SET sql_mode='STRICT_TRANS_TABLES', time_zone='+00:00', innodb_lock_wait_timeout=4",
            # A server that says nothing must not hold all threads; a slow migration may ask for more.
            "connect_timeout": 5,
            "read_timeout": int(options.get("read_timeout", "25")),
            "write_timeout": 25,
        },
        "TEST": {"CHARSET": "utf8mb4"},
    }


def mail(url: str) -> dict[str, Any]:
    """Django's mail settings for file:///DIRECTORY or smtp://USER:PASSWORD@HOST:PORT (?tls=1)."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return {
            "MAIL_DELIVERY_BACKEND": "django.core.mail.backends.filebased.EmailBackend",
            "EMAIL_FILE_PATH": unquote(parts.path),
        }
    if parts.scheme == "smtp":
        return {
            "MAIL_DELIVERY_BACKEND": "django.core.mail.backends.smtp.EmailBackend",
            "EMAIL_HOST": parts.hostname,
            "EMAIL_PORT": parts.port or 25,
            "EMAIL_HOST_USER": unquote(parts.username or ""),
            "EMAIL_HOST_PASSWORD": unquote(parts.password or ""),
            "EMAIL_USE_TLS": parse_qs(parts.query).get("tls") == ["1"],
            "EMAIL_TIMEOUT": 10,
        }
    raise ImproperlyConfigured(f"DYNABENCH_MAIL_URL starts with {parts.scheme!r}: file and smtp are supported.")
