"""`manage.py demo`: everything at once, with real data, on this machine."""

from __future__ import annotations

import json
import logging
import time
from contextlib import nullcontext
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from builds import sandboxes
from dynabench_site.processes import Services, wait_for_signal
from evaluations import demo
from tasks_catalog.demo_data import DemoDataError

FINAL = {"evaluated", "failed", "dead", "cancelled", "taken_down"}
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 1800


class Command(BaseCommand):
    help = "Load real data, start the site, send the example models, follow them, and show the leaderboard."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--no-serve", action="store_true", help="end when the models are ranked")
        parser.add_argument("--json", action="store_true", help="end with one JSON line on standard output")

    def handle(self, *args: Any, no_serve: bool, json: bool, **options: Any) -> None:
        self.started, self.as_json = time.monotonic(), json
        self.console = Console(stderr=json, highlight=False)
        logging.getLogger("builds").setLevel(logging.WARNING)
        self._prepare()
        with Services(["build", *demo.eval_servers()]) as services:
            result = self._run()
            if not no_serve:
                self._say_where()
                wait_for_signal(services)
        if not all(model["status"] == "evaluated" for model in _models(result)):
            raise SystemExit(1)

    def _prepare(self) -> None:
        self.console.print("Preparing the database and the data …")
        call_command("migrate", verbosity=0)
        try:
            demo.load_tasks()
        except DemoDataError as error:
            raise CommandError(str(error)) from error
        for name, password in demo.make_accounts().items():
            self.console.print(f"  account {name}, password {password}")
        self.console.print(f"  all accounts: {settings.VAR / 'demo-accounts.txt'}")
        self.console.print("Looking for a sandbox; the first time docker's base image is made, which takes a minute …")
        self.sandbox = sandboxes.choose(trusted=True)
        if self.sandbox.name == "process":
            self.console.print("  no docker, no bubblewrap: only the models that ship with the project will run here")

    def _run(self) -> dict[str, Any]:
        client = demo.make_client()
        sent = list(demo.submit(client))
        self._follow(client, {pk: f"{task}/{name}" for task, name, pk in sent})
        details = {pk: client.mine("GET", f"/api/v1/submissions/{pk}/") for _, _, pk in sent}
        for pk, detail in details.items():
            if detail["status"] == "evaluated" and not detail["is_published"]:
                client.mine("POST", f"/api/v1/submissions/{pk}/publish/")
        boards = {code: client.mine("GET", f"/api/v1/tasks/{code}/leaderboard/") for code in demo.MODELS}
        for code, board in boards.items():
            self._show_board(code, board)
        result = self._result(sent, details, boards)
        if self.as_json:
            self.stdout.write(json.dumps(result))
        return result

    def _follow(self, client: demo.Client, names: dict[int, str]) -> None:
        """A table that changes, on a terminal; elsewhere a line for each change."""
        shown: dict[int, str] = {}
        deadline = time.monotonic() + PATIENCE_SECONDS
        with Live(console=self.console, auto_refresh=False) if self.console.is_terminal else nullcontext() as live:
            while time.monotonic() < deadline:
                states = {pk: client.mine("GET", f"/api/v1/submissions/{pk}/") for pk in names}
                lines = {pk: f"{names[pk]}: {_status(state)}" for pk, state in states.items()}
                if live:
                    live.update(Text("\n".join(lines.values())), refresh=True)
                else:
                    self._print_changes(lines, shown)
                if all(state["status"] in FINAL for state in states.values()):
                    return
                time.sleep(POLL_SECONDS)

    def _print_changes(self, lines: dict[int, str], shown: dict[int, str]) -> None:
        for pk, line in lines.items():
            if shown.get(pk) != line:
                shown[pk] = line
                self.console.print(f"  {time.monotonic() - self.started:5.1f} s  {line}", markup=False, soft_wrap=True)

    def _show_board(self, code: str, board: dict[str, Any]) -> None:
        table = Table(title=f"Leaderboard of {code}", title_justify="left")
        for title in ("#", "model", "score", *(column["label"] for column in board["columns"])):
            table.add_column(title, justify="left" if title == "model" else "right")
        for row in board["rows"]:
            values = [f"{row['averages'][column['name']]:.2f}" for column in board["columns"]]
            table.add_row(str(row["rank"]), row["name"], f"{row['score']:.2f}", *values)
        self.console.print(table)

    def _result(
        self, sent: list[tuple[str, str, int]], details: dict[int, Any], boards: dict[str, Any]
    ) -> dict[str, Any]:
        tasks = {}
        for code, board in boards.items():
            scores = {row["id"]: row["score"] for row in board["rows"]}
            models = [_model(name, details[pk], scores.get(pk)) for task, name, pk in sent if task == code]
            models.sort(key=lambda model: (model["dynascore"] is None, -(model["dynascore"] or 0)))
            tasks[code] = {"task": code, "models": models}
        return {
            **tasks.pop("sentiment"),
            "also": list(tasks.values()),
            "sandbox": self.sandbox.name,
            "seconds": round(time.monotonic() - self.started, 1),
        }

    def _say_where(self) -> None:
        url = settings.BASE_URL
        boards = "   ".join(f"{url}/tasks/{code}/" for code in demo.MODELS)
        self.console.print(
            f"\n  site      {url}/\n  boards    {boards}"
            f"\n  admin     {url}/admin/\n  mail      {settings.VAR / 'mail'}"
            f"\n  accounts  {settings.VAR / 'demo-accounts.txt'}\n\nCtrl-C stops everything."
        )


def _models(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [*result["models"], *(model for task in result["also"] for model in task["models"])]


def _model(name: str, detail: dict[str, Any], score: float | None) -> dict[str, Any]:
    model = {"name": name, "status": detail["status"], "scores": detail["scores"], "dynascore": score}
    return model | ({"error": detail["error"]} if detail["error"] else {})


def _status(state: dict[str, Any]) -> str:
    if state["error"]:
        return f"{state['status']}: {state['error']['detail']}"
    done = f", scored on {len(state['scores'])}" if state["scores"] else ""
    waiting = f" (waiting for {state['waiting_for']})" if state["waiting_for"] else ""
    return state["status"] + done + waiting
