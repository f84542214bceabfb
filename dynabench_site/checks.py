"""Wrong combinations of settings, found by `manage.py check` instead of by a user."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register


@register()
def check_queue_times(**kwargs: Any) -> list[CheckMessage]:
    """A broker that redelivers before a worker's time is up would make every long job run twice."""
    if settings.Q_CLUSTER["retry"] > settings.Q_CLUSTER["timeout"] >= settings.MAX_DEADLINE_SECONDS:
        return []
    hint = "Set Q_CLUSTER's retry above its timeout, and that to MAX_DEADLINE_SECONDS or more."
    return [Error("The queue redelivers messages before the longest job can end.", hint=hint, id="dynabench.E001")]


@register()
def check_sandbox(**kwargs: Any) -> list[CheckMessage]:
    if settings.SANDBOX in {"", "docker", "bwrap", "process"}:
        return []
    hint = "Set it to docker, bwrap or process, or leave it empty for the first that works."
    return [Error(f"DYNABENCH_SANDBOX is {settings.SANDBOX!r}.", hint=hint, id="dynabench.E002")]


@register()
def check_production_secret(**kwargs: Any) -> list[CheckMessage]:
    """Hosts that share a database must share the key: it signs their messages and sessions."""
    is_production = settings.DATABASES["default"]["ENGINE"].endswith("mysql")
    if not (is_production and settings.IS_SECRET_KEY_MADE_HERE):
        return []
    hint = "Set DYNABENCH_SECRET_KEY to the same value on every host."
    return [Error("A production database with a secret key made on this host.", hint=hint, id="dynabench.E003")]


@register()
def check_production_role(**kwargs: Any) -> list[CheckMessage]:
    """Without a role SageMaker refuses every model, after it was built and pushed."""
    if settings.PROFILE != "production" or settings.SAGEMAKER_ROLE:
        return []
    hint = "Set DYNABENCH_SAGEMAKER_ROLE to the ARN of the role with deploy/iam/models.json."
    return [Error("The production profile has no role for its models.", hint=hint, id="dynabench.E004")]


@register()
def check_production_database(**kwargs: Any) -> list[CheckMessage]:
    """Web, build and eval servers see each other's work in the database alone."""
    is_sqlite = settings.DATABASES["default"]["ENGINE"].endswith("sqlite3")
    if settings.PROFILE != "production" or not is_sqlite:
        return []
    hint = "Set DYNABENCH_DATABASE_URL to one MySQL or MariaDB database for all hosts."
    return [Warning("The production profile has a database for one host alone.", hint=hint, id="dynabench.W001")]
