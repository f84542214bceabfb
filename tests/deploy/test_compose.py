"""The compose file and the files of variables beside it, against the settings and the eval servers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from django.conf import settings

from dynabench_site import web_server
from tasks_catalog.models import EvalServer
from tests.deploy.site import CONFIG

DEPLOY = settings.BASE_DIR / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
SOCKET = "/var/run/docker.sock"
WEB = ("web-1", "web-2")
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "dynabench:1"}


def env_file(role: str) -> dict[str, str]:
    lines = (DEPLOY / "env" / f"{role}.env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def roles(service: dict) -> list[str]:
    return [Path(path).name.removesuffix(".env") for path in service["env_file"]]


def mounts(service: dict) -> list[str]:
    return [volume.split(":")[0] for volume in service["volumes"]]


def test_every_process_of_the_product_has_its_service(eval_servers):
    clusters = [
        service["command"][-1] for service in OURS.values() if service["command"][:2] == ["python", "manage.py"]
    ]

    assert sorted(clusters) == sorted(["build", *EvalServer.objects.values_list("name", flat=True)])
    assert OURS.keys() - set(WEB) == {"build", "eval-default", "eval-flores101"}
    assert SERVICES.keys() - OURS.keys() == {"nginx", "database"}


def test_the_build_server_alone_has_the_docker_socket():
    assert [name for name, service in SERVICES.items() if SOCKET in mounts(service)] == ["build"]
    assert [name for name, service in SERVICES.items() if "group_add" in service] == ["build"]
    assert not [name for name, service in SERVICES.items() if service.get("privileged")]


def test_the_build_servers_folder_has_one_path_for_it_and_the_engine():
    build = SERVICES["build"]
    var = build["environment"]["DYNABENCH_VAR"]

    assert f"{var}:{var}" in build["volumes"]
    assert build["environment"]["TMPDIR"] == var


def test_each_role_gets_its_own_variables_and_every_variable_exists():
    example = re.findall(r"^(DYNABENCH_\w+)=", (DEPLOY / "env.example").read_text(), re.MULTILINE)
    found = {name: {key for role in roles(service) for key in env_file(role)} for name, service in OURS.items()}

    for name, keys in found.items():
        keys |= OURS[name].get("environment", {}).keys()
        assert {key for key in keys if key.startswith("DYNABENCH_")} <= set(example)
        assert roles(OURS[name]) == ["common", name.split("-")[0]]
        assert env_file(roles(OURS[name])[1])["AWS_PROFILE"] == f"dynabench-{name.split('-')[0]}"
    assert [name for name, keys in found.items() if "DYNABENCH_BASE_IMAGE" in keys] == ["build"]
    assert [name for name, keys in found.items() if "DYNABENCH_ALLOWED_HOSTS" in keys] == list(WEB)


def test_nothing_secret_stands_in_the_compose_file():
    assert not re.search(r"SECRET|PASSWORD|TOKEN|ACCESS_KEY", (DEPLOY / "compose.yaml").read_text())


@pytest.mark.parametrize("name", WEB)
def test_a_web_server_is_healthy_when_it_is_ready_and_nginx_knows_it(name):
    service = SERVICES[name]
    address = service["command"][service["command"].index("--bind") + 1]

    assert f"http://{address}/readyz" in service["healthcheck"]["test"][-1]
    assert f"server {address} " in CONFIG.read_text()
    assert "127.0.0.1" in env_file("web")["DYNABENCH_ALLOWED_HOSTS"].split(",")


def test_everything_may_end_in_peace_and_comes_back():
    seconds = {name: int(service["stop_grace_period"].removesuffix("s")) for name, service in SERVICES.items()}

    assert min(seconds[name] for name in WEB) > web_server.graceful_timeout
    assert min(seconds.values()) > 10  # what a cluster takes
    assert {service["restart"] for service in SERVICES.values()} == {"always"}


def test_every_named_volume_is_declared():
    used = {source for service in SERVICES.values() for source in mounts(service) if source[0] not in "/."}

    assert used == COMPOSE["volumes"].keys()
