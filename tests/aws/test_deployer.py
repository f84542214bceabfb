"""Images in ECR and models of SageMaker: what a build leaves there, what it waits for, what is taken away again."""

from __future__ import annotations

import logging
import re
import threading

import botocore.session
import docker
import psutil
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from builds import services
from builds.backends import aws, deployer
from builds.models import Build, BuildStep
from builds.sandboxes.policy import SandboxError
from builds.services import pinned
from evaluations.leftovers import remove_unused_deployments, remove_unused_images
from submissions.models import MAX_NAME, Submission
from submissions.services import cancel
from tasks_catalog.models import Task
from tests.aws.registry import PASSWORD, free_port
from tests.conftest import in_cluster, make_built
from tests.pipeline.conftest import send, trivial_archive

pytestmark = [pytest.mark.aws, pytest.mark.timeout(600)]
NO_IMAGE, ANOTHER = (f"example.org/model@sha256:{digit * 64}" for digit in "12")


@pytest.fixture
def made(on_aws, submission, task, request) -> Build:
    """A build with an image in the local engine, or one that only says so."""
    build = make_built(submission)
    image = request.getfixturevalue("obedient_image") if "obedient_image" in request.fixturenames else ""
    Build.objects.filter(pk=build.pk).update(image=image, image_uri=NO_IMAGE, config=pinned(task.build_config))
    return Build.objects.get()


@pytest.fixture
def sent(on_aws, user, task, settings, tmp_path) -> Submission:
    settings.SANDBOX = "docker"
    return send(user, task, trivial_archive("model-a", tmp_path), "model-a")


def build(submission: Submission) -> Build:
    """What a worker of the build server does when its bell rings and the pause is over."""
    Build.objects.update(not_before=None)
    with in_cluster("build"):
        services.build(Submission.objects.get(pk=submission.pk))
    return Build.newest(submission)


def sweep() -> list[str]:
    with in_cluster("build"):
        return remove_unused_deployments()


def repositories(stand) -> dict[str, list[str]]:
    """The digests in each repository."""
    ecr = stand.client("ecr")
    named = [row["repositoryName"] for row in ecr.describe_repositories()["repositories"]]
    return {
        name: [image["imageDigest"] for image in ecr.list_images(repositoryName=name)["imageIds"]] for name in named
    }


def models(stand) -> list[str]:
    return [row["ModelName"] for row in stand.client("sagemaker").list_models()["Models"]]


def local_tags(part: str) -> list[str]:
    return [
        name
        for image in docker.from_env().images.list()
        for name in [*image.tags, *image.attrs["RepoDigests"]]
        if part in name
    ]


def steps() -> list[str]:
    return list(BuildStep.objects.values_list("name", flat=True))


def test_a_build_leaves_its_image_in_the_registry_alone_and_the_login_nowhere(on_aws, sent, caplog):
    caplog.set_level(logging.INFO)
    commands, done = set(), threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            commands.update(" ".join(row.info["cmdline"] or ()) for row in psutil.process_iter(["cmdline"]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    built = build(sent)
    done.set()
    watcher.join()

    assert built.status == "succeeded", built.error_detail
    address, _, digest = built.image_uri.partition("@")
    assert address == f"{on_aws.registry}/ts{sent.pk}-model-a" and not built.is_image_kept
    assert repositories(on_aws) == {f"ts{sent.pk}-model-a": [digest]}
    (repository,) = on_aws.client("ecr").describe_repositories()["repositories"]
    assert repository["imageScanningConfiguration"] == {"scanOnPush": True}
    assert local_tags(address) == []
    with pytest.raises(docker.errors.ImageNotFound):
        docker.from_env().images.get(built.image)
    (model,) = on_aws.calls(action="CreateModel")
    assert model["isolation"] is True
    assert model["request"]["PrimaryContainer"] == {"Image": built.image_uri}
    said = "\n".join([caplog.text, *BuildStep.objects.values_list("output", flat=True), *commands])
    assert commands and PASSWORD not in said and digest in said


@pytest.mark.parametrize("login", [{"username": "AWS", "password": "wrong"}, {}])
def test_the_registry_refuses_a_wrong_login(on_aws, made, obedient_image, login):
    address = f"{on_aws.registry}/refused"

    with pytest.raises(SandboxError, match=f"the push to {address} failed: "):
        aws._push(made.image, address, "r1", login, lambda output: None)

    assert "refused" not in repositories(on_aws)
    docker.from_env().images.remove(f"{address}:r1")


def test_a_push_to_nobody_and_one_of_nothing_are_errors(made, obedient_image):
    address = f"127.0.0.1:{free_port()}/nobody"

    for image, reason in ((made.image, "connection refused"), ("sha256:" + "3" * 64, "No such image")):
        with pytest.raises(SandboxError, match=reason):
            aws._push(image, address, "r1", {}, lambda output: None)

    docker.from_env().images.remove(f"{address}:r1")


NAMES = st.from_regex(r"[a-z0-9-]{1,63}", fullmatch=True) | st.from_regex(r"(r[1-3]-|-|[0-9]){1,31}", fullmatch=True)
ECR, SAGEMAKER = (botocore.session.get_session().get_service_model(name) for name in ("ecr", "sagemaker"))
SEEN: dict[str, tuple[int, int]] = {}


@hypothesis_settings(max_examples=1000, deadline=None)
@given(name=NAMES.filter(lambda name: len(name) <= MAX_NAME), pk=st.integers(1, 10**9))
def test_names_of_builds_are_valid_and_of_one_build_only(name, pk):
    submission = Submission(pk=pk, name=name, task=Task(code="nli"))

    for run in (1, 2, 3):
        build = Build(submission=submission, run=run)
        assert SEEN.setdefault(build.name, (pk, run)) == (pk, run)
        for shape in ("ModelName", "EndpointName"):
            assert fits(SAGEMAKER.shape_for(shape).metadata, build.name)
    assert fits(ECR.shape_for("RepositoryName").metadata, aws._repository_name(build))
    assert re.fullmatch(rf"ts{pk}(-.*)?", aws._repository_name(build))
    for key in (submission.archive_key, submission.mar_archive_key):
        assert re.fullmatch(r"[a-z0-9./-]{1,1024}", key) and f"ts{pk}-{name}." in key


def fits(rules: dict, name: str) -> bool:
    return bool(re.fullmatch(rules["pattern"], name)) and rules.get("min", 1) <= len(name) <= rules["max"]


def test_a_model_that_was_registered_before_is_taken_over(on_aws, made):
    deployer().register(made)
    deployer().register(made)

    assert models(on_aws) == [made.name]
    assert on_aws.calls(action="DeleteModel") == []


def test_a_model_with_another_image_is_replaced(on_aws, made):
    deployer().register(made)
    made.image_uri = ANOTHER
    deployer().register(made)

    model = on_aws.client("sagemaker").describe_model(ModelName=made.name)
    assert (model["PrimaryContainer"]["Image"], model["EnableNetworkIsolation"]) == (ANOTHER, True)
    assert {call["isolation"] for call in on_aws.calls(action="CreateModel")} == {True}


def test_a_build_waits_for_the_quota_of_models_and_is_not_made_again(on_aws, sent):
    on_aws.faults({"effect": "quota", "action": "CreateModel"})

    waiting = build(sent)
    assert waiting.waiting_for == "an AWS quota: The account-level service limit is reached."
    assert (waiting.status, waiting.attempts) == ("queued", 0) and waiting.not_before is not None
    image = waiting.image_uri
    before = steps()
    again = build(sent)
    assert (again.status, steps()) == ("queued", [*before, "register model"])
    on_aws.faults()
    built = build(sent)

    assert (built.status, built.image_uri, built.attempts) == ("succeeded", image, 1)
    assert steps().count("push image") == 1 and models(on_aws) == [built.name]


def test_an_image_that_waits_for_the_registry_is_not_made_again(on_aws, sent):
    on_aws.faults({"effect": "throttle", "action": "CreateRepository"})

    waiting = build(sent)
    assert (waiting.waiting_for, waiting.attempts) == ("AWS, which is throttling CreateRepository", 0)
    before = steps()
    on_aws.faults()
    built = build(sent)

    assert built.status == "succeeded" and built.image == waiting.image and not built.is_image_kept
    assert steps() == [*before, "push image", "register model"]
    with pytest.raises(docker.errors.ImageNotFound):
        docker.from_env().images.get(built.image)


def test_the_build_server_removes_an_image_whose_build_was_cancelled_before_its_push(on_aws, sent):
    on_aws.faults({"effect": "throttle", "action": "CreateRepository"})
    waiting = build(sent)
    cancel(sent)
    build(sent)

    with in_cluster("default"):
        assert remove_unused_images() == []
    with in_cluster("build"):
        assert remove_unused_images() == [waiting.name]

    with pytest.raises(docker.errors.ImageNotFound):
        docker.from_env().images.get(waiting.image)


def test_a_build_that_fails_after_its_push_leaves_only_the_archive_of_its_user(on_aws, sent, task, settings):
    settings.SAGEMAKER_ROLE = "no ARN of a role"

    for _ in range(3):
        broken = build(sent)
    assert (broken.status, broken.error_code) == ("dead", "aws_refused")
    assert repositories(on_aws) and task.storage().exists(sent.mar_archive_key)

    assert sweep() == [broken.name]
    assert sweep() == []
    assert (repositories(on_aws), models(on_aws)) == ({}, [])
    assert not task.storage().exists(sent.mar_archive_key)
    assert task.storage().exists(sent.archive_key)
    assert local_tags(f"{on_aws.registry}/ts{sent.pk}") == []


def test_a_retry_after_that_builds_again(on_aws, sent, settings):
    role, settings.SAGEMAKER_ROLE = settings.SAGEMAKER_ROLE, "no ARN of a role"
    for _ in range(3):
        broken = build(sent)
    sweep()
    settings.SAGEMAKER_ROLE = role

    services.retry(broken)
    built = build(sent)

    assert built.status == "succeeded", built.error_detail
    assert models(on_aws) == [built.name] and len(repositories(on_aws)) == 1


def test_a_build_that_is_cancelled_while_it_waits_leaves_nothing(on_aws, sent, task):
    on_aws.faults({"effect": "quota", "action": "CreateModel"})
    waiting = build(sent)
    assert repositories(on_aws) != {}

    cancel(sent)
    build(sent)

    assert Submission.objects.get().status == "cancelled"
    assert sweep() == [waiting.name] and repositories(on_aws) == {}
    assert not task.storage().exists(sent.mar_archive_key)


def test_a_rebuild_has_a_model_of_its_own_and_then_the_old_one_goes(on_aws, sent):
    old = build(sent)

    services.rebuild(Submission.objects.get())
    assert sweep() == [], "it serves until the new one is there"
    new = build(sent)

    assert new.status == "succeeded" and set(models(on_aws)) == {old.name, new.name}
    assert sweep() == [old.name]
    assert models(on_aws) == [new.name]
    assert repositories(on_aws) == {f"ts{sent.pk}-model-a": [new.image_uri.partition("@")[2]]}


def test_what_cannot_be_taken_away_now_keeps_nothing_else_from_it(on_aws, made, other_user, task):
    deployer().register(made)
    other = Submission.objects.create(owner=other_user, task=task, name="model-b")
    other.advance(Submission.Status.UPLOADED)
    make_built(other)
    Build.objects.filter(submission=other).update(image_uri=NO_IMAGE, config=pinned(task.build_config))
    deployer().register(Build.newest(other))
    Build.objects.update(is_deployed=True)
    Submission.objects.update(status="taken_down")
    on_aws.faults({"effect": "throttle", "action": "DeleteModel", "name": made.name})

    assert sweep() == [Build.newest(other).name]
    on_aws.faults()
    assert sweep() == [made.name]
    assert models(on_aws) == []
