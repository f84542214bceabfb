from __future__ import annotations

import pytest

from dynabench_site import checks


def test_a_broker_that_redelivers_too_early_is_refused(settings):
    assert not checks.check_queue_times()

    settings.Q_CLUSTER = {**settings.Q_CLUSTER, "retry": settings.Q_CLUSTER["timeout"]}

    assert checks.check_queue_times()[0].id == "dynabench.E001"


def test_a_sandbox_that_does_not_exist_is_refused(settings):
    settings.SANDBOX = "chroot"

    assert checks.check_sandbox()[0].id == "dynabench.E002"


def test_a_production_database_needs_a_shared_secret(settings):
    settings.IS_SECRET_KEY_MADE_HERE = True
    settings.DATABASES = {"default": {**settings.DATABASES["default"], "ENGINE": "django.db.backends.mysql"}}

    assert checks.check_production_secret()[0].id == "dynabench.E003"


def test_a_production_profile_needs_a_role_for_its_models(settings):
    settings.PROFILE, settings.SAGEMAKER_ROLE = "production", ""

    assert checks.check_production_role()[0].id == "dynabench.E004"
    settings.SAGEMAKER_ROLE = "arn:aws:iam::123456789012:role/dynabench-models"
    assert not checks.check_production_role()


@pytest.mark.parametrize(("engine", "ids"), [("sqlite3", ["dynabench.W001"]), ("mysql", [])])
def test_a_production_profile_on_sqlite_is_warned_of(settings, engine, ids):
    settings.DATABASES = {"default": {**settings.DATABASES["default"], "ENGINE": f"django.db.backends.{engine}"}}
    assert not checks.check_production_database()

    settings.PROFILE = "production"

    assert [message.id for message in checks.check_production_database()] == ids
