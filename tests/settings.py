"""The product's settings, with an empty VAR of its own and no accidental services."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("DYNABENCH_VAR", tempfile.mkdtemp(prefix="dynabench-test-"))

from dynabench_site.settings import *  # noqa: E402, F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
MAIL_DELIVERY_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
