"""What becomes of each way a batch transform job can go."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from django.core.files.base import ContentFile
from django.utils import timezone

from evaluations import services
from evaluations.backends import sagemaker
from evaluations.models import Inference, Score
from submissions.models import Submission
from tasks_catalog.models import Dataset, EvalServer, InstanceType
from tests.aws.inferences import (
    add_dataset,
    is_finished,
    names,
    really,
    run_next,
    run_until,
)
from tests.aws.stand import wait_for
from tests.conftest import EXAMPLES, in_cluster

pytestmark = [pytest.mark.aws, pytest.mark.timeout(600)]


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


def test_a_job_past_its_deadline_is_stopped_and_has_failed(on_aws, inference):
    on_aws.order({"outcome": "held", "seconds": 300})
    run_next()
    Inference.objects.update(limits={**inference.limits, "deadline_seconds": 0})

    run_until(is_finished, inference)

    assert (inference.status, inference.error_code) == ("failed", "model_timeout")
    assert wait_for(lambda: on_aws.jobs()[0]["status"] == "Stopped")


@really
def test_a_dataset_in_parts_is_one_job_with_an_output_for_each_part(on_aws, ready, task):
    inference = add_dataset(task)
    storage, dataset = task.storage(), Dataset.objects.get()
    whole = {
        key: storage.open(key).read().splitlines(keepends=True) for key in (*dataset.inputs_keys, *dataset.labels_keys)
    }
    dataset.shards = ["b", "a"]
    dataset.save()
    Inference.objects.update(shards=dataset.shards)
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
