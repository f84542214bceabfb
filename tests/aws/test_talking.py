"""A live endpoint of SageMaker is asked by the web server."""

from __future__ import annotations

import pytest

from builds.backends import deployer
from builds.models import Build, Endpoint
from builds.services import pinned
from dynabench_site.api import ApiError
from dynabench_site.settings import PROFILES
from evaluations import talking
from tasks_catalog.models import BuildConfig
from tests.aws.hosts import ROLE
from tests.aws.stand import wait_for
from tests.conftest import in_cluster, make_built

pytestmark = pytest.mark.aws


@pytest.fixture
def deployed(stand, pushed, submission, settings, monkeypatch):
    """The obedient model with an endpoint that is up."""
    for name, value in stand.environment().items():
        monkeypatch.setenv(name, value)
    settings.DEPLOYER, settings.SAGEMAKER_ROLE = PROFILES["production"]["DEPLOYER"], ROLE
    BuildConfig.objects.update(create_endpoint=True)
    submission.refresh_from_db()
    Build.objects.filter(pk=make_built(submission).pk).update(
        image_uri=pushed, config=pinned(BuildConfig.objects.get(task=submission.task))
    )
    endpoint = Endpoint.objects.create(build=Build.newest(submission), cluster="build")
    deployer().register(endpoint.build)
    with in_cluster("build"):
        assert endpoint.claim()
        assert wait_for(lambda: deployer().start(endpoint) == "ready", 90)
        endpoint.advance(Endpoint.Status.SUCCEEDED)
    return submission


def refused(submission, statement, seconds=talking.MAX_SECONDS):
    with pytest.raises(ApiError) as caught:
        talking.predict(submission, {"statement": statement}, seconds=seconds)
    return caught.value.status, caught.value.code


def test_the_endpoint_answers_fails_and_is_late(deployed):
    answered = talking.predict(deployed, {"statement": "It rains."})

    assert (answered["answer"]["label"], answered["answered_by"]) == ("positive", "endpoint")
    assert refused(deployed, "data") == (422, "model_failed"), "what it lists is no label"
    assert refused(deployed, "sleep", seconds=3) == (504, "model_timeout")


def test_a_model_that_dies_has_failed_and_an_endpoint_that_is_gone_is_unavailable(deployed):
    assert refused(deployed, "die") == (422, "model_failed")
    deployer().stop(Endpoint.objects.get())

    assert refused(deployed, "It rains.") == (503, "unavailable")
