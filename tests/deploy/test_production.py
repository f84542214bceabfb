"""The product under the settings of production, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from django.conf import settings
from django.core import signing

from submissions.authentication import SALT
from tests.deploy.test_compose import env_file

SECRETS = {"DYNABENCH_SECRET_KEY": "a key for this test: 0123456789 abcdefghijklmnopqrstuvwxyz"}


def run(folder, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"PATH": os.environ["PATH"], "DYNABENCH_VAR": str(folder)}
    return subprocess.run(
        [sys.executable, *command], cwd=settings.BASE_DIR, env=own | environment, capture_output=True, text=True
    )


@pytest.mark.mariadb
def test_djangos_checks_for_deployment_have_nothing_to_say(tmp_path):
    environment = env_file("common") | env_file("web") | SECRETS

    checked = run(tmp_path, "manage.py", "check", "--deploy", "--fail-level", "WARNING", **environment)

    assert checked.returncode == 0, checked.stderr
    assert "no issues" in checked.stdout + checked.stderr


def test_a_former_key_still_opens_what_it_signed(tmp_path):
    token = signing.dumps(7, key="former", salt=SALT)
    program = (
        "import sys; from django.core import signing; from dynabench_site import wsgi; "
        "print(signing.loads(sys.argv[1], salt=sys.argv[2]))"
    )
    rotated = {"DYNABENCH_SECRET_KEY": "new", "DYNABENCH_SECRET_KEY_FALLBACKS": "former oldest"}

    assert run(tmp_path, "-c", program, token, SALT, **rotated).stdout == "7\n"
    assert "BadSignature" in run(tmp_path, "-c", program, token, SALT, DYNABENCH_SECRET_KEY="new").stderr


def test_without_https_nothing_is_redirected_and_no_proxy_is_trusted():
    assert not settings.SECURE_SSL_REDIRECT
    assert settings.SECURE_PROXY_SSL_HEADER is None
    assert settings.ALLAUTH_TRUSTED_PROXY_COUNT == 0
