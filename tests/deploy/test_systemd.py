"""The units: what they promise, and that systemd reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from django.conf import settings

from dynabench_site.management.commands.cluster import STOP_SECONDS
from dynabench_site.web_server import graceful_timeout

UNITS = settings.BASE_DIR / "deploy" / "systemd"
WEB, CLUSTER = "dynabench-web.service", "dynabench-cluster@.service"
BUILD = "dynabench-cluster@build.service.d/build.conf"
HARDENED = {"NoNewPrivileges": "true", "ProtectSystem": "strict", "PrivateTmp": "true", "ProtectHome": "true"}
CLUSTER_STOP_SECONDS = 10


def directives(*names: str) -> dict[str, list[str]]:
    """The directives of a unit and its drop-ins; an empty value forgets the earlier ones, as in systemd."""
    found: dict[str, list[str]] = {}
    for name in names:
        for key, value in re.findall(r"^(\w+)=(.*)$", (UNITS / name).read_text(), re.MULTILINE):
            found[key] = [*found.get(key, []), value] if value else []
    return found


@pytest.mark.parametrize("unit", [WEB, CLUSTER])
def test_a_unit_comes_back_and_can_do_little(unit):
    found = directives(unit)

    assert found["Restart"] == ["always"]
    assert {key: found[key][0] for key in HARDENED} == HARDENED


def test_stopping_takes_as_long_as_the_processes_need():
    web, cluster = directives(WEB), directives(CLUSTER)

    assert (web["KillMode"], cluster["KillMode"]) == (["mixed"], ["control-group"])
    assert int(web["TimeoutStopSec"][0]) > graceful_timeout
    assert int(cluster["TimeoutStopSec"][0]) > CLUSTER_STOP_SECONDS > STOP_SECONDS


def test_each_role_has_a_user_and_variables_of_its_own_and_only_build_has_docker():
    web, eval_server, build = directives(WEB), directives(CLUSTER), directives(CLUSTER, BUILD)

    assert "TMPDIR=/var/lib/dynabench-build" in build["Environment"][-1].split()
    for role, found in (("web", web), ("eval", eval_server), ("build", build)):
        assert found["User"][-1] == found["Group"][-1] == found["StateDirectory"][-1] == f"dynabench-{role}"
        assert found["EnvironmentFile"] == ["/etc/dynabench/common.env", f"/etc/dynabench/{role}.env"]
        assert f"DYNABENCH_VAR=/var/lib/dynabench-{role}" in " ".join(found["Environment"]).split()
    assert build["SupplementaryGroups"] == ["docker"]
    assert "SupplementaryGroups" not in web | eval_server


@pytest.mark.systemd
def test_systemd_reads_the_units(tmp_path):
    home = tmp_path / "srv"
    for program in ("gunicorn", "python"):
        path = home / ".venv/bin" / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to("/bin/true")
    (tmp_path / "docker.service").write_text("[Service]\nExecStart=/bin/true\n")
    for name in (WEB, CLUSTER, BUILD):
        copy = tmp_path / name.replace("@.", "@default.") if name == CLUSTER else tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text((UNITS / name).read_text().replace("/srv/dynabench/", f"{home}/"))
    shutil.copy(tmp_path / "dynabench-cluster@default.service", tmp_path / "dynabench-cluster@build.service")

    for unit in (WEB, "dynabench-cluster@default.service", "dynabench-cluster@build.service"):
        assert verified(tmp_path / unit) == ""


def verified(unit: Path) -> str:
    """What systemd-analyze has to say about the file."""
    run = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit], capture_output=True, text=True
    )
    return run.stdout + run.stderr if run.returncode or unit.name in run.stderr else ""
