"""Check that rows and files agree, whatever crashed: exit 1 when they don't."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from evaluations.invariants import violations


class Command(BaseCommand):
    help = "Check the invariants I1 to I10; exit 1 and say where when one is violated."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--json", action="store_true", help='print {"ok", "violations": [{"id", "object", "detail"}]}'
        )

    def handle(self, *args: Any, **options: Any) -> None:
        found = violations()
        if options["json"]:
            self.stdout.write(json.dumps({"ok": not found, "violations": [asdict(row) for row in found]}))
        else:
            lines = [f"{row.id}: {row.object}: {row.detail}." for row in found]
            self.stdout.write("\n".join(lines) or "All invariants hold.")
        if found:
            raise SystemExit(1)
