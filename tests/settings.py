"""The product's settings, with an empty VAR of its own and no accidental services."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

if "DYNABENCH_VAR" not in os.environ:
    os.environ["DYNABENCH_VAR"] = tempfile.mkdtemp(prefix="dynabench-test-")
    atexit.register(shutil.rmtree, os.environ["DYNABENCH_VAR"], ignore_errors=True)

from dynabench_site.settings import *  # noqa: E402, F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
MAIL_DELIVERY_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
