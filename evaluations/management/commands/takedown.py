"""End what costs and serves nobody: `manage.py takedown --idle 24`, `--failing`, or `--model ID`."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from builds.endpoints import IDLE, end_endpoint, idle_endpoints
from dynabench_site.api import Conflict
from evaluations.services import failing_models, take_down
from submissions.models import Submission


class Command(BaseCommand):
    help = "Take down idle endpoints, failing models, or the models that are named. Archives and scores stay."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--idle", type=int, metavar="HOURS", help="endpoints that nobody asked for so long")
        parser.add_argument("--failing", action="store_true", help="models that were built and failed in evaluation")
        parser.add_argument("--model", type=int, action="append", default=[], metavar="ID", help="this model")
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["idle"] is None and not options["failing"] and not options["model"]:
            raise CommandError("Say what to take down: --idle HOURS, --failing or --model ID.")
        if options["idle"] is not None and options["idle"] < 1:
            raise CommandError("--idle needs at least 1 hour.")
        models = [*_named(options["model"]), *(failing_models() if options["failing"] else [])]
        endpoints = list(idle_endpoints(options["idle"])) if options["idle"] else []
        if not options["dry_run"]:
            for endpoint in endpoints:
                end_endpoint(endpoint, IDLE)
            for model in models:
                _take_down(model)
        self._say(options, {"endpoints": [row.name for row in endpoints], "models": [row.pk for row in models]})

    def _say(self, options: dict[str, Any], found: dict[str, list[Any]]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps({"dry_run": options["dry_run"], **found}))
            return
        verb = "Would take down" if options["dry_run"] else "Took down"
        for kind, names in found.items():
            self.stdout.write(f"{verb} {len(names)} {kind}{': ' if names else ''}{', '.join(map(str, names))}.")


def _named(pks: list[int]) -> list[Submission]:
    models = list(Submission.objects.filter(pk__in=pks).order_by("pk"))
    if unknown := set(pks) - {model.pk for model in models}:
        raise CommandError(f"There is no model {min(unknown)}.")
    return models


def _take_down(model: Submission) -> None:
    try:
        take_down(model)
    except Conflict as error:
        raise CommandError(error.detail) from error
