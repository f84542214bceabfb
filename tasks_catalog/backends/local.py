from __future__ import annotations

from django.conf import settings
from django.core.files.storage import FileSystemStorage


class LocalStorage(FileSystemStorage):
    """Files under var/files/<bucket>/<key>; saving a key again replaces it, as S3 does."""

    def __init__(self, bucket: str) -> None:
        folder = bucket.replace("{account}", "local")
        super().__init__(location=settings.VAR / "files" / folder, allow_overwrite=True)


def storage_for(bucket: str, region: str) -> LocalStorage:
    return LocalStorage(bucket)
