"""Inferences as batch transform jobs: what is asked of SageMaker, what is waited for, what is stopped."""

from __future__ import annotations

import pytest
from django.utils import timezone

from builds.backends import deployer
from builds.models import Build
from builds.services import pinned
from dynabench_site.state import StatusEvent
from evaluations.dataset_files import store_dataset_file
from evaluations.models import Inference
from submissions.services import cancel
from tasks_catalog.models import BuildConfig, Dataset, EvalServer, InstanceType, Task
from tests.aws.hosts import ROLE
from tests.aws.inferences import (
    BUCKET,
    NO_IMAGE,
    add_dataset,
    let_time_pass,
    names,
    run_next,
    sweep,
)
from tests.aws.stand import wait_for
from tests.conftest import EXAMPLES, jsonl, make_built

pytestmark = [pytest.mark.aws, pytest.mark.timeout(600)]


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


def test_jobs_that_no_worker_holds_count_for_the_cap(on_aws, inference, task):
    add_dataset(task, "movies")
    EvalServer.objects.update(max_inferences=1)
    on_aws.order({"outcome": "held", "seconds": 300})

    for _ in range(3):
        run_next()

    assert len(on_aws.jobs()) == 1 and Inference.objects.running().count() == 0


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
