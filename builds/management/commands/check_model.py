"""`manage.py check_model FOLDER --task CODE`: what the build would say, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from builds import sandboxes
from builds.image import ImageBuilder, new_workdir
from builds.sandboxes.policy import Log, NoSandbox
from builds.steps import StepFailed, readable
from examples.pack import model_name, pack
from tasks_catalog.models import Task


class Command(BaseCommand):
    help = "Build a model's folder as the build server would, and try it on one example. Needs no server or account."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("folder", type=Path, help="the project's root, with .dynalab/<name>/setup_config.json")
        parser.add_argument("--task", required=True, metavar="CODE")

    def handle(self, *args: Any, folder: Path, task: str, **options: Any) -> None:
        found = Task.objects.filter(code=task).select_related("build_config").first()
        if found is None:
            known = ", ".join(Task.objects.values_list("code", flat=True)) or "none yet"
            raise CommandError(f"There is no task {task!r}. Known: {known}.")
        try:
            self._check(folder, found)
        except (StepFailed, ValueError, NoSandbox) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(self.style.SUCCESS("It builds, and it answers."))

    def _check(self, folder: Path, task: Task) -> None:
        name, sandbox = model_name(folder), sandboxes.choose()
        with new_workdir("check-model") as workdir:
            archive = workdir / "model.tar.gz"
            pack(folder, archive)
            image = ImageBuilder(sandbox, self, task, name, "check-model").build(archive, workdir)
        sandbox.remove(image.digest)

    @contextmanager
    def step(self, name: str, command: str = "") -> Iterator[Log]:
        """A recorder that prints."""
        self.stdout.write(self.style.MIGRATE_HEADING(f"{name} {command}".strip()))
        yield lambda output: self.stdout.write(readable(output), ending="")
