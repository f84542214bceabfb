"""Try what this installation needs of AWS: `manage.py check_aws --role build` on the build server."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from evaluations.backends.aws import ROLES, Finding, check_account


class Command(BaseCommand):
    help = "Try the rights and resources of the AWS account that a server needs. Costs nothing and leaves nothing."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--role", choices=ROLES, help="what this host does; without it, all that anybody does")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        findings = []
        for finding in check_account([options["role"]] if options["role"] else ROLES):
            findings.append(finding)
            if not options["json"]:
                self.stdout.write(_line(finding))
        is_ok = not any(finding.problem for finding in findings)
        if options["json"]:
            self.stdout.write(json.dumps({"ok": is_ok, "findings": [asdict(finding) for finding in findings]}))
        if not is_ok:
            raise SystemExit(1)


def _line(finding: Finding) -> str:
    if not finding.problem:
        return f"ok     {finding.what}"
    return f"WRONG  {finding.what}: {finding.problem}\n       {finding.remedy}"
