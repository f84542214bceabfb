"""`manage.py base_image`."""

from __future__ import annotations

from django.core.management.base import BaseCommand, CommandError, CommandParser

from builds import base_image, torchserve_image
from builds.sandboxes.policy import SandboxError


class Command(BaseCommand):
    help = "Make the image that model images start from (DYNABENCH_BASE_IMAGE), unless it is there."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--model-server",
            choices=["asgi", "torchserve"],
            default="asgi",
            help="torchserve: that with Java, TorchServe and torch on top of it",
        )
        parser.add_argument("--gpu", action="store_true", help="torchserve with CUDA's torch, several gigabytes")

    def handle(self, *args: object, model_server: str, gpu: bool, **options: object) -> None:
        try:
            if model_server == "torchserve":
                image = torchserve_image.ensure(self.report, gpu=gpu).tag
            else:
                image = base_image.ensure(self.report)
        except SandboxError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(image)

    def report(self, line: str) -> None:
        self.stderr.write(line, self.style.NOTICE)
        self.stderr.flush()
