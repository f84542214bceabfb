from __future__ import annotations

from django.conf import settings
from django.core.files.storage import Storage
from django.utils.module_loading import import_string


def storage_for(bucket: str, region: str) -> Storage:
    """The storage of one bucket; the setting STORAGE_FOR names the function that makes it."""
    return import_string(settings.STORAGE_FOR)(bucket, region)
