"""Live endpoints: who gets one, on which machine, and when it ends."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db.models import F

from builds import endpoints
from builds.backends import aws, deployer
from builds.models import Build, Endpoint
from builds.services import pinned, settle
from dynabench_site.api import Conflict
from evaluations import services
from submissions.models import Submission
from tasks_catalog.models import BuildConfig, InstanceType
from tests.aws.stand import wait_for
from tests.conftest import in_cluster, make_built

pytestmark = [pytest.mark.aws, pytest.mark.timeout(600)]
NO_IMAGE = "example.org/model@sha256:" + "1" * 64  # its container never starts
LARGE, SMALL = "ml.m5.2xlarge", "ml.m5.large"


@pytest.fixture
def wanted(on_aws, task, submission, request) -> Endpoint:
    """The endpoint that a build asks for; it answers in tests with a pushed image, and fails in others."""
    InstanceType.objects.get_or_create(name=SMALL, vcpus=2, memory_gib=8)
    BuildConfig.objects.update(create_endpoint=True, instance_count=2)
    submission.refresh_from_db()
    image = request.getfixturevalue("pushed") if "pushed" in request.fixturenames else NO_IMAGE
    build = make_built(submission)
    Build.objects.filter(pk=build.pk).update(
        image_uri=image, is_deployed=True, config=pinned(BuildConfig.objects.get())
    )
    deployer().register(Build.objects.get())
    Submission.objects.update(status="building")
    settle(Build.objects.get())
    return Endpoint.objects.get()


def deploy() -> Endpoint:
    """What a worker of the build server does when its bell rings and the pause is over."""
    Endpoint.objects.update(not_before=None)
    with in_cluster("build"):
        endpoints.deploy_endpoint(Endpoint.objects.latest("pk"))
    return Endpoint.objects.latest("pk")


def deployed() -> Endpoint:
    assert wait_for(lambda: deploy().is_finished, 90)
    return Endpoint.objects.latest("pk")


def sweep() -> None:
    with in_cluster("build"):
        endpoints.sweep()


def there(stand) -> list[str]:
    """What of endpoints exists, and costs."""
    sagemaker = stand.client("sagemaker")
    live = [row["EndpointName"] for row in sagemaker.list_endpoints()["Endpoints"]]
    return live + [row["EndpointConfigName"] for row in sagemaker.list_endpoint_configs()["EndpointConfigs"]]


def machines(stand) -> list[tuple[str, int]]:
    return [
        (variant["InstanceType"], variant["InitialInstanceCount"])
        for call in stand.calls(action="CreateEndpointConfig")
        for variant in call["request"]["ProductionVariants"]
    ]


def make_up(endpoint: Endpoint) -> Endpoint:
    """It counts as up, though SageMaker started nothing for it but its row."""
    deploy()
    Endpoint.objects.update(status="succeeded", finished_at=F("created_at") - timedelta(hours=3))
    assert wait_for(lambda: describe(endpoint)["EndpointStatus"] == "Failed", 60)
    endpoint.refresh_from_db()
    return endpoint


def describe(endpoint: Endpoint) -> dict:
    return aws._client("sagemaker", endpoint.build).describe_endpoint(EndpointName=endpoint.name)


def test_a_build_gets_its_endpoint_on_the_machines_of_its_config(on_aws, pushed, wanted):
    starting = deploy()
    assert (starting.status, starting.attempts) == ("queued", 0)
    assert starting.waiting_for == "SageMaker, which is starting the endpoint"

    endpoint = deployed()

    assert (endpoint.status, endpoint.name) == ("succeeded", wanted.build.name)
    assert machines(on_aws) == [(LARGE, 2)]
    answer = deployer().invoke(endpoint, b'{"uid": "1", "statement": "It rains."}', seconds=30)
    assert b'"positive"' in answer


def test_a_model_that_does_not_start_says_why_and_leaves_nothing(on_aws, wanted):
    endpoint = deployed()
    sweep()

    endpoint.refresh_from_db()
    assert (endpoint.status, endpoint.error_code, endpoint.is_deployed) == ("failed", "endpoint_failed", False)
    assert endpoint.error_detail.startswith("The container did not pass the ping health check.")
    assert there(on_aws) == []


def test_a_task_without_endpoints_asks_for_none(on_aws, wanted):
    Endpoint.objects.all().delete()
    BuildConfig.objects.update(create_endpoint=False)

    sweep()

    assert not Endpoint.objects.exists()


def test_the_sweep_makes_an_endpoint_that_is_missing(on_aws, wanted):
    Endpoint.objects.all().delete()

    sweep()

    assert Endpoint.objects.get().build == wanted.build


def test_a_quota_is_waited_for(on_aws, pushed, wanted):
    on_aws.limits({"us-west-1": {LARGE: 1}})

    waiting = deploy()
    assert (waiting.status, waiting.attempts) == ("queued", 0)
    assert f"'{LARGE} for endpoint usage' is 1 Instances" in waiting.waiting_for
    on_aws.limits({})

    assert deployed().status == "succeeded"


def test_starting_again_builds_nothing_and_takes_the_machine_of_today(on_aws, pushed, wanted):
    endpoint = deployed()
    with pytest.raises(Conflict):
        endpoints.redeploy(endpoint.build.submission)
    endpoints.end_endpoint(endpoint)
    with pytest.raises(Conflict):
        endpoints.redeploy(endpoint.build.submission)  # the old one still runs
    sweep()
    assert there(on_aws) == []
    BuildConfig.objects.update(instance_type=SMALL, instance_count=1)

    endpoints.redeploy(Submission.objects.get())
    again = deployed()

    assert again.status == "succeeded" and Build.objects.count() == 1
    assert machines(on_aws) == [(LARGE, 2), (SMALL, 1)]


@pytest.mark.parametrize("status", ["failed", "dead", "cancelled", "taken_down"])
def test_an_endpoint_ends_with_its_model(on_aws, wanted, status):
    make_up(wanted)
    assert there(on_aws) != []

    Submission.objects.update(status=status)
    sweep()

    wanted.refresh_from_db()
    assert (wanted.status, wanted.error_code, wanted.is_deployed) == ("cancelled", "ended", False)
    assert there(on_aws) == []


def test_an_endpoint_ends_when_a_newer_image_has_one(on_aws, wanted):
    make_up(wanted)
    newer = Build.objects.create(
        submission=wanted.build.submission, run=2, cluster="build", status="succeeded", config=wanted.build.config
    )

    sweep()

    assert Endpoint.objects.get(build=newer).status == "queued"
    wanted.refresh_from_db()
    assert (wanted.status, wanted.is_deployed) == ("cancelled", False)
    assert there(on_aws) == []


def test_an_endpoint_that_ends_while_it_starts_is_taken_away_when_aws_allows_it(on_aws, pushed, wanted):
    starting = deploy()
    endpoints.end_endpoint(starting)

    sweep()
    starting.refresh_from_db()
    assert starting.is_deployed and there(on_aws) != []
    assert wait_for(lambda: describe(starting)["EndpointStatus"] == "InService", 90)
    sweep()

    assert there(on_aws) == []


def takedown(capsys, *arguments: str) -> str:
    call_command("takedown", *arguments)
    return capsys.readouterr().out


def test_idle_endpoints_are_taken_down_by_a_command(on_aws, pushed, wanted, capsys):
    endpoint = deployed()
    assert takedown(capsys, "--idle", "1").startswith("Took down 0 endpoints"), "it is up for less than an hour"
    Endpoint.objects.update(finished_at=F("finished_at") - timedelta(hours=3))
    deployer().invoke(endpoint, b'{"uid": "1", "statement": "It rains."}', seconds=30)
    assert takedown(capsys, "--idle", "1").startswith("Took down 0 endpoints"), "it was asked just now"


def test_an_endpoint_that_nobody_asks_is_idle(on_aws, wanted, capsys):
    endpoint = make_up(wanted)

    said = takedown(capsys, "--idle", "2", "--dry-run")
    assert said == f"Would take down 1 endpoints: {endpoint.name}.\nWould take down 0 models.\n"
    assert Endpoint.objects.get().status == "succeeded"
    said = takedown(capsys, "--idle", "2")
    assert said == f"Took down 1 endpoints: {endpoint.name}.\nTook down 0 models.\n"
    sweep()

    endpoint.refresh_from_db()
    assert (endpoint.status, endpoint.error_code, endpoint.is_deployed) == ("cancelled", "idle", False)
    assert there(on_aws) == []
    sweep()
    assert Endpoint.objects.get().status == "cancelled", "it stays down until somebody starts it"


def test_models_that_fail_on_the_data_are_taken_down_by_a_command(on_aws, wanted, capsys):
    make_up(wanted)
    Submission.objects.update(status="failed")

    assert "Would take down 1 models: " in takedown(capsys, "--failing", "--dry-run")
    assert Submission.objects.get().status == "failed"
    takedown(capsys, "--failing")
    sweep()

    assert Submission.objects.get().status == "taken_down"
    assert there(on_aws) == []


@pytest.fixture
def press(client, staff):
    """An action of a list in the admin, on its only row."""
    client.force_login(staff)

    def pressed(page: str, action: str, pk: int) -> str:
        form = {"action": action, "_selected_action": [pk]}
        response = client.post(f"/admin/{page}/", form, follow=True)
        return " ".join(map(str, response.context["messages"]))

    return pressed


def test_staff_end_start_and_take_down_in_the_admin(on_aws, wanted, press):
    endpoint = make_up(wanted)
    model = endpoint.build.submission

    assert press("builds/endpoint", "end", endpoint.pk).startswith("Ended 1 of 1")
    sweep()
    assert there(on_aws) == []
    assert press("submissions/submission", "redeploy", model.pk).startswith("Asked for the endpoint of 1 of 1")
    assert Endpoint.objects.get().status == "queued"
    make_up(wanted)
    services.settle(Submission.objects.get())
    Submission.objects.update(status="evaluated")
    assert press("submissions/submission", "take_down", model.pk).startswith("Taken down 1 of 1")
    sweep()
    assert there(on_aws) == []
