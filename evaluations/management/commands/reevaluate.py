"""Ask for what is missing or outdated: `manage.py reevaluate [--task CODE] [--dry-run] [--wait]`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import QuerySet

from builds.models import Build
from evaluations.models import Inference, Scoring
from evaluations.services import plan_evaluation, request_evaluation
from submissions.models import Submission
from tasks_catalog.models import Dataset, EvalServer, Task

POLL_SECONDS = 1
INTERRUPTED = 130


class Command(BaseCommand):
    help = "Evaluate what is missing or outdated. Without options: every model of every task."

    def add_arguments(self, parser: CommandParser) -> None:
        several = {"action": "extend", "type": _listed, "default": [], "metavar": "A,B"}
        parser.add_argument("--task", help="codes of tasks", **several)
        parser.add_argument("--dataset", help="names of datasets, variants like fairness-tweets", **several)
        parser.add_argument("--model", help="ids of models", **several)
        parser.add_argument("--eval-server", help="only tasks that these evaluate", **several)
        parser.add_argument(
            "--force",
            choices=["scores", "inference", "build"],
            default="",
            help="do this stage again, and what follows, also where it is up to date",
        )
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
        parser.add_argument("--wait", action="store_true", help="until these models have no unfinished job")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        submissions, datasets = _chosen_models(options), _chosen_datasets(options)
        ask = plan_evaluation if options["dry_run"] else request_evaluation
        plan = ask(submissions=submissions, datasets=datasets, force=options["force"])
        counts = plan.as_json(dry_run=options["dry_run"])
        self.stdout.write(json.dumps(counts) if options["json"] else _in_words(counts))
        if options["wait"] and not options["dry_run"]:
            self._wait(list(submissions.values_list("pk", flat=True)))

    def _wait(self, pks: list[int]) -> None:
        try:
            while _are_unfinished(pks):
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            self.stderr.write("Stopped waiting; the jobs go on.")
            raise SystemExit(INTERRUPTED) from None


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _chosen_models(options: dict[str, Any]) -> QuerySet[Submission]:
    tasks = _chosen_tasks(options)
    submissions = Submission.objects.accepted().filter(task__in=tasks)
    if options["model"]:
        known = {str(pk) for pk in submissions.values_list("pk", flat=True)}
        _require(options["model"], known, "model among those chosen")
        submissions = submissions.filter(pk__in=options["model"])
    return submissions


def _chosen_tasks(options: dict[str, Any]) -> QuerySet[Task]:
    tasks = Task.objects.all()
    _require(options["task"], tasks.values_list("code", flat=True), "task")
    _require(options["eval_server"], EvalServer.objects.values_list("pk", flat=True), "eval server")
    if options["task"]:
        tasks = tasks.filter(code__in=options["task"])
    if options["eval_server"]:
        tasks = tasks.filter(build_config__eval_server__in=options["eval_server"])
    return tasks


def _chosen_datasets(options: dict[str, Any]) -> list[Dataset] | None:
    if not options["dataset"]:
        return None
    datasets = Dataset.objects.filter(task__in=_chosen_tasks(options))
    _require(options["dataset"], {row.full_name for row in datasets}, "dataset in these tasks")
    return [row for row in datasets if row.full_name in options["dataset"]]


def _require(wanted: Iterable[str], known: Iterable[str], what: str) -> None:
    known = sorted(known, key=lambda name: (len(name), name) if name.isdigit() else (0, name))
    for name in wanted:
        if name not in known:
            raise CommandError(f"There is no {what} {name!r}. Known: {', '.join(known) or 'none'}.", returncode=2)


def _in_words(counts: dict[str, Any]) -> str:
    verb = "would be queued" if counts["dry_run"] else "queued"
    stages = [("builds", "builds"), ("inferences", "inferences"), ("scores", "sets of scores")]
    lines = [f"{counts[key]:>6} {label} {verb}" for key, label in stages]
    return "\n".join([*lines, f"{len(counts['models']):>6} models concerned"])


def _are_unfinished(pks: list[int]) -> bool:
    """Also between two stages, when no job shows it, a model's status does."""
    if Submission.objects.unfinished().filter(pk__in=pks).exists():
        return True
    return any(model.objects.unfinished().filter(submission__in=pks).exists() for model in (Build, Inference, Scoring))
