"""`manage.py base_image`."""

from __future__ import annotations

from django.core.management.base import BaseCommand, CommandError

from builds import base_image
from builds.sandboxes.policy import SandboxError


class Command(BaseCommand):
    help = "Make the image that model images start from (DYNABENCH_BASE_IMAGE), unless it is there."

    def handle(self, *args: object, **options: object) -> None:
        try:
            image = base_image.ensure(self.report)
        except SandboxError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(image)

    def report(self, line: str) -> None:
        self.stderr.write(line, self.style.NOTICE)
        self.stderr.flush()
