from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files import File
from django.core.files.storage import FileSystemStorage


class LocalStorage(FileSystemStorage):
    """Files under var/files/<bucket>/<key>; saving a key again replaces it, as S3 does: all of it or nothing."""

    def __init__(self, bucket: str) -> None:
        folder = bucket.replace("{account}", "local")
        super().__init__(location=settings.VAR / "files" / folder, allow_overwrite=True)

    def _save(self, name: str, content: File[Any]) -> str:
        partial = f"{name}.{secrets.token_hex(8)}.part"
        try:
            super()._save(partial, content)
            Path(self.path(partial)).replace(self.path(name))
        except BaseException:
            self.delete(partial)
            raise
        return name


def storage_for(bucket: str, region: str) -> LocalStorage:
    return LocalStorage(bucket)
