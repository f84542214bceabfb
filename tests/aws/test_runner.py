"""Inferences as batch transform jobs: what is asked of SageMaker, and what becomes of each way a job can go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from django.core.files.base import ContentFile
from django.db.models import F, Min
from django.utils import timezone

from builds.backends import deployer
from builds.models import Build
from builds.services import pinned
from dynabench_site.state import StatusEvent
from evaluations import services
from evaluations.backends import sagemaker
from evaluations.dataset_files import store_dataset_file
from evaluations.models import Inference, Score
from submissions.models import Submission
from submissions.services import cancel
from tasks_catalog.models import BuildConfig, Dataset, EvalServer, InstanceType, Task
from tests.aws.hosts import ROLE
from tests.aws.stand import wait_for
from tests.conftest import EXAMPLES, in_cluster, jsonl, make_built

pytestmark = [pytest.mark.aws, pytest.mark.timeout(600)]
BUCKET = "sagemaker-us-west-1"
NO_IMAGE = "example.org/model@sha256:" + "1" * 64  # enough for jobs that a test holds or ends
really = pytest.mark.usefixtures("pushed")  # the model itself answers


@pytest.fixture
def ready(on_aws, task, submission, request) -> Submission:
    """A model that SageMaker knows, its task without datasets yet."""
    image = request.getfixturevalue("pushed") if "pushed" in request.fixturenames else NO_IMAGE
    build = make_built(submission)
    Build.objects.filter(pk=build.pk).update(image_uri=image, config=pinned(task.build_config))
    deployer().register(Build.objects.get(pk=build.pk))
    return submission


def add_dataset(task: Task, name: str = "tweets", examples: list[dict] | None = None) -> Inference:
    """The inference that is asked for with a new dataset."""
    store_dataset_file(Dataset(task=task, name=name), jsonl(examples or EXAMPLES))
    return Inference.objects.latest("pk")


@pytest.fixture
def inference(ready, task) -> Inference:
    return add_dataset(task)


def run_next() -> None:
    """What a worker of the eval server does when its bell rings."""
    with in_cluster("default"):
        services.run_inferences(EvalServer.objects.get(pk="default"))


def sweep() -> None:
    with in_cluster("default"):
        services.sweep()


def let_time_pass() -> None:
    """To the moment when the next job is due."""
    first = Inference.objects.unfinished().aggregate(at=Min("not_before"))["at"]
    if first and first > timezone.now():
        Inference.objects.exclude(not_before=None).update(not_before=F("not_before") - (first - timezone.now()))


def run_until(is_so: Callable[[Inference], bool], inference: Inference, seconds: float = 120) -> None:
    def tried() -> bool:
        let_time_pass()
        run_next()
        inference.refresh_from_db()
        return is_so(inference)

    assert wait_for(tried, seconds), (inference.status, inference.waiting_for, inference.error_detail)


def is_finished(inference: Inference) -> bool:
    return inference.is_finished


def names(stand) -> list[str]:
    return [job["name"] for job in stand.jobs()]


def test_the_request_says_what_the_build_config_says_and_passes_no_environment(on_aws, ready, task):
    BuildConfig.objects.update(batch_strategy="MultiRecord", max_payload_mb=3, instance_count=2)
    on_aws.order({"outcome": "held", "seconds": 60})
    inference = add_dataset(Task.objects.get())

    run_next()

    assert on_aws.calls(action="CreateTransformJob")[0]["request"] == {
        "TransformJobName": f"ts{ready.pk}-i{inference.pk}-r0",
        "ModelName": f"ts{ready.pk}-model-a",
        "MaxConcurrentTransforms": 1,
        "MaxPayloadInMB": 3,
        "BatchStrategy": "MultiRecord",
        "ModelClientConfig": {"InvocationsTimeoutInSeconds": 3600, "InvocationsMaxRetries": 0},
        "TransformInput": {
            "DataSource": {
                "S3DataSource": {
                    "S3DataType": "S3Prefix",
                    "S3Uri": f"s3://{BUCKET}/datasets/sentiment/tweets.jsonl",
                }
            },
            "ContentType": "application/json",
            "SplitType": "Line",
        },
        "TransformOutput": {
            "S3OutputPath": f"s3://{BUCKET}/predictions/ts{ready.pk}-model-a/raw/sentiment/",
            "Accept": "application/json",
            "AssembleWith": "Line",
        },
        "TransformResources": {"InstanceType": "ml.m5.2xlarge", "InstanceCount": 2},
        "DataProcessing": {"InputFilter": "$['uid','statement']"},
        "Tags": [{"Key": "dynabench:inference", "Value": str(inference.pk)}],
    }
    assert len(inference.name) <= 63


def test_fields_whose_names_are_too_long_for_a_filter_are_sent_without_one(on_aws, ready, task):
    long = "statement_" * 6
    Task.objects.update(io_yaml=task.io_yaml.replace("statement", long))
    on_aws.order({"outcome": "held", "seconds": 60})
    add_dataset(Task.objects.get(), examples=[{"uid": "1", long: "It rains.", "label": "neutral"}])

    run_next()

    assert "DataProcessing" not in on_aws.calls(action="CreateTransformJob", status=200)[0]["request"]


def test_a_reply_that_is_lost_costs_no_second_job(on_aws, inference):
    on_aws.order({"outcome": "held", "seconds": 60})
    on_aws.faults({"effect": "lost", "action": "CreateTransformJob", "times": 3})

    run_next()
    inference.refresh_from_db()
    assert (inference.handle, inference.attempts) == ("", 0)
    let_time_pass()
    run_next()

    inference.refresh_from_db()
    assert inference.handle == f"ts{inference.submission_id}-i{inference.pk}-r0"
    assert names(on_aws) == [inference.handle]
    assert on_aws.doubly_paid() == []


def test_a_name_that_somebody_elses_job_has_is_left_to_it(on_aws, inference, task):
    on_aws.order({"outcome": "held", "seconds": 60})
    run_next()
    request = on_aws.calls(action="CreateTransformJob")[0]["request"]
    Inference.objects.all().delete()
    mine = add_dataset(task, "movies")
    taken = f"ts{mine.submission_id}-i{mine.pk}-r0"
    on_aws.client("sagemaker").create_transform_job(
        **request | {"TransformJobName": taken, "TransformOutput": {"S3OutputPath": f"s3://{BUCKET}/elsewhere/"}}
    )

    run_next()
    let_time_pass()
    run_next()

    mine.refresh_from_db()
    assert mine.handle == f"ts{mine.submission_id}-i{mine.pk}-r1" and names(on_aws)[-1] == mine.handle


def test_a_quota_is_waited_for_and_blocks_no_other_kind_of_instance(on_aws, inference, task):
    InstanceType.objects.get_or_create(name="ml.m5.large", vcpus=2, memory_gib=8)
    BuildConfig.objects.update(instance_type="ml.m5.large")
    other = add_dataset(Task.objects.get(), "movies")
    on_aws.order({"outcome": "held", "seconds": 60})
    on_aws.limits({"us-west-1": {"ml.m5.2xlarge": 0}})

    run_next()
    run_next()

    inference.refresh_from_db()
    other.refresh_from_db()
    assert "ml.m5.2xlarge for transform job usage" in inference.waiting_for
    assert inference.not_before > timezone.now() and inference.attempts == 0
    assert names(on_aws) == [other.handle]
    on_aws.limits({})
    let_time_pass()
    run_next()
    run_next()
    inference.refresh_from_db()
    assert inference.handle in names(on_aws)


def test_a_burst_of_throttling_costs_time_and_neither_attempts_nor_the_order(on_aws, ready, task):
    wanted = [add_dataset(task, name).pk for name in ("a", "b", "c", "d")]
    EvalServer.objects.update(max_inferences=len(wanted))
    on_aws.order({"outcome": "held", "seconds": 120})
    on_aws.faults({"effect": "throttle", "action": "CreateTransformJob", "times": 60})

    run_next()
    first = Inference.objects.get(pk=wanted[0])
    assert first.waiting_for == "AWS, which is throttling CreateTransformJob"
    for _ in range(100):
        let_time_pass()
        run_next()
        if len(on_aws.jobs()) == len(wanted):
            break

    assert on_aws.fired() == [60]
    assert [int(name.split("-")[1][1:]) for name in names(on_aws)] == wanted
    assert not Inference.objects.filter(attempts__gt=1).exists()
    assert not StatusEvent.objects.filter(model="inference", target="dead").exists()


@really
def test_a_model_that_dies_has_failed_and_only_its_people_read_its_log(on_aws, ready, task, user, other_user, client):
    inference = add_dataset(task, examples=[EXAMPLES[0], EXAMPLES[1] | {"statement": "die"}])

    run_until(is_finished, inference)

    assert (inference.status, inference.error_code, inference.handle) == ("failed", "model_error", "")
    assert inference.error_detail.startswith("AlgorithmError")
    line = "asked ['statement', 'uid']"
    assert line in inference.error_detail
    Submission.objects.update(is_published=True)
    shown = {}
    for viewer in (user, other_user):
        client.force_login(viewer)
        pages = [client.get(f"/models/{ready.pk}/"), client.get(f"/api/v1/submissions/{ready.pk}/")]
        assert [page.status_code for page in pages] == [200, 200]
        shown[viewer] = any("statement&#x27;" in p.content.decode() or line in p.content.decode() for p in pages)
    assert shown == {user: True, other_user: False}


def test_a_job_that_aws_breaks_is_tried_three_times_under_three_names(on_aws, inference):
    on_aws.order({"outcome": "failed", "reason": "CapacityError: Unable to provision requested ML compute capacity."})

    run_until(is_finished, inference)

    assert (inference.status, inference.error_code) == ("dead", "transform_failed")
    assert "CapacityError" in inference.error_detail
    name = f"ts{inference.submission_id}-i{inference.pk}"
    assert names(on_aws) == [f"{name}-r0", f"{name}-r1", f"{name}-r2"]


def test_a_job_that_somebody_stops_on_aws_is_started_again(on_aws, inference):
    on_aws.order({"outcome": "stopped", "times": 1}, {"outcome": "held", "seconds": 60})

    run_until(lambda row: row.tries == 1 and row.handle != "", inference)

    assert names(on_aws)[-1] == inference.handle


@really
def test_output_that_comes_late_is_waited_for(on_aws, inference):
    on_aws.order({"outcome": "late output", "seconds": 8})

    run_until(lambda row: row.waiting_for.startswith("the job's output"), inference)
    assert inference.attempts == 0
    run_until(is_finished, inference)

    assert inference.status == "succeeded"


@really
def test_output_that_never_comes_is_asked_for_again(on_aws, inference, monkeypatch):
    monkeypatch.setattr(sagemaker, "OUTPUT_DELAY", timedelta(0))
    on_aws.order({"outcome": "no output", "times": 1})

    run_until(lambda row: row.tries == 1, inference)
    assert "no_output" in inference.waiting_for
    run_until(is_finished, inference)

    assert inference.status == "succeeded" and len(names(on_aws)) == 2


@really
def test_memory_figures_that_come_late_are_waited_for(on_aws, inference):
    on_aws.late_metrics(8)

    run_until(lambda row: row.waiting_for.startswith("the job's memory figures"), inference)
    run_until(is_finished, inference)

    assert inference.status == "succeeded" and inference.peak_memory_bytes > 0


def test_cancelling_stops_the_paid_job(on_aws, inference, ready):
    on_aws.order({"outcome": "held", "seconds": 300})
    run_next()
    inference.refresh_from_db()
    handle = inference.handle

    cancel(ready)
    sweep()

    inference.refresh_from_db()
    assert (inference.status, inference.handle) == ("cancelled", "")
    assert [call["name"] for call in on_aws.calls(action="StopTransformJob")] == [handle]
    assert wait_for(lambda: on_aws.jobs()[0]["status"] == "Stopped")


def test_a_job_over_inputs_that_were_replaced_is_stopped(on_aws, inference, task):
    on_aws.order({"outcome": "held", "seconds": 300})
    run_next()

    store_dataset_file(Dataset.objects.get(), jsonl(EXAMPLES[:2]))
    sweep()

    inference.refresh_from_db()
    assert (inference.status, inference.handle) == ("cancelled", "")
    assert wait_for(lambda: on_aws.jobs()[0]["status"] == "Stopped")
    assert Inference.objects.unfinished().count() == 1


def test_a_job_that_cannot_be_stopped_now_is_stopped_later_and_keeps_no_other_from_being_stopped(
    on_aws, inference, task, ready
):
    other = add_dataset(task, "movies")
    on_aws.order({"outcome": "held", "seconds": 300})
    run_next()
    run_next()
    cancel(ready)
    on_aws.faults({"effect": "throttle", "action": "StopTransformJob", "name": other.name})

    sweep()
    assert list(Inference.objects.exclude(handle="").values_list("pk", flat=True)) == [other.pk]
    on_aws.faults()
    sweep()

    assert not Inference.objects.exclude(handle="").exists()


def test_a_job_past_its_deadline_is_stopped_and_has_failed(on_aws, inference):
    on_aws.order({"outcome": "held", "seconds": 300})
    run_next()
    Inference.objects.update(limits={**inference.limits, "deadline_seconds": 0})

    run_until(is_finished, inference)

    assert (inference.status, inference.error_code) == ("failed", "model_timeout")
    assert wait_for(lambda: on_aws.jobs()[0]["status"] == "Stopped")


def test_jobs_that_no_worker_holds_count_for_the_cap(on_aws, inference, task):
    add_dataset(task, "movies")
    EvalServer.objects.update(max_inferences=1)
    on_aws.order({"outcome": "held", "seconds": 300})

    for _ in range(3):
        run_next()

    assert len(on_aws.jobs()) == 1 and Inference.objects.running().count() == 0


@really
def test_a_dataset_in_parts_is_one_job_with_an_output_for_each_part(on_aws, ready, task):
    inference = add_dataset(task)
    storage, dataset = task.storage(), Dataset.objects.get()
    whole = {
        key: storage.open(key).read().splitlines(keepends=True) for key in (*dataset.inputs_keys, *dataset.labels_keys)
    }
    dataset.shards = ["b", "a"]
    dataset.save()
    for keys, lines in zip((dataset.inputs_keys, dataset.labels_keys), whole.values(), strict=True):
        storage.save(keys[0], ContentFile(b"".join(lines[:3])))
        storage.save(keys[1], ContentFile(b"".join(lines[3:])))

    run_until(is_finished, inference)

    assert inference.status == "succeeded" and len(on_aws.jobs()) == 1
    outputs = [storage.open(key).read() for key in inference.predictions_keys]
    answered = [json.loads(line)["id"] for output in outputs for line in output.splitlines()]
    assert answered == [example["uid"] for example in EXAMPLES]
    assert inference.predictions_sha256 == hashlib.sha256(b"".join(outputs)).hexdigest()
    with in_cluster("default"):
        services.run_scorings(EvalServer.objects.get(pk="default"))
    assert Score.objects.get(metric="accuracy").value == 50.0


@really
def test_time_memory_and_cost_are_those_of_the_job(on_aws, inference):
    InstanceType.objects.update(price_per_hour=Decimal("0.461"))
    Inference.objects.update(limits={**inference.limits, "instance_count": 2})

    run_until(is_finished, inference)

    job = on_aws.client("sagemaker").describe_transform_job(TransformJobName=names(on_aws)[0])
    seconds = (job["TransformEndTime"] - job["TransformStartTime"]).total_seconds()
    assert inference.seconds == seconds > 0 and inference.examples == len(EXAMPLES)
    micros = round(Fraction("0.461") * 2 * Fraction(seconds) / 3600 * 10**6)
    assert inference.cost == Decimal(micros).scaleb(-6) > 0
    assert inference.peak_memory_bytes == int(peak_percent(on_aws, job) / 100 * 32 * 2**30)


def peak_percent(stand, job: dict) -> float:
    cloudwatch, name = stand.client("cloudwatch"), {"Namespace": sagemaker.NAMESPACE, "MetricName": "MemoryUtilization"}
    (metric,) = cloudwatch.list_metrics(**name)["Metrics"]
    hours = {
        "StartTime": job["TransformStartTime"] - timedelta(hours=1),
        "EndTime": timezone.now() + timedelta(hours=1),
    }
    found = cloudwatch.get_metric_statistics(
        **name, **hours, Dimensions=metric["Dimensions"], Period=60, Statistics=["Maximum"]
    )
    return max(point["Maximum"] for point in found["Datapoints"])


def test_the_link_leads_to_the_console_of_the_tasks_region(on_aws, submission, task):
    BuildConfig.objects.update(aws_region="us-west-2")
    build = make_built(submission)
    Build.objects.filter(pk=build.pk).update(image_uri=NO_IMAGE, config=pinned(BuildConfig.objects.get()))
    deployer().register(Build.objects.get())
    on_aws.order({"outcome": "held", "seconds": 60})
    inference = add_dataset(Task.objects.get())

    run_next()

    inference.refresh_from_db()
    assert inference.link == (
        "https://us-west-2.console.aws.amazon.com/sagemaker/home?region=us-west-2#/transform-jobs/" + inference.handle
    )
    assert [job["region"] for job in on_aws.jobs()] == ["us-west-2"]


def test_work_goes_on_when_expired_credentials_are_renewed(on_aws, inference):
    on_aws.order({"outcome": "held", "seconds": 60})
    on_aws.faults({"effect": "expired"})

    run_next()
    inference.refresh_from_db()
    assert inference.waiting_for == "AWS rights for CreateTransformJob (ExpiredTokenException)"
    assert inference.attempts == 0
    on_aws.faults()
    let_time_pass()
    run_next()

    inference.refresh_from_db()
    assert names(on_aws) == [inference.handle]


def test_models_are_isolated(on_aws, inference):
    model = on_aws.calls(action="CreateModel")[0]

    assert model["isolation"] is True and model["request"]["ExecutionRoleArn"] == ROLE
    assert "Environment" not in model["request"]["PrimaryContainer"]
