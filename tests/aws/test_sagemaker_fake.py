"""SageMaker on the stand, seen through plain boto3: what the product relies on is as Amazon documents it."""

from __future__ import annotations

import json
from datetime import timedelta

import docker
import pytest
from botocore.exceptions import ClientError

from tests.aws.registry import PASSWORD
from tests.aws.stand import wait_for

pytestmark = pytest.mark.aws
BUCKET, INPUTS = "sagemaker-us-west-1", "datasets/sentiment/tweets.jsonl"
OUTPUT = "predictions/ts1-a/raw/sentiment/tweets.jsonl.out"
ROLE = "arn:aws:iam::123456789012:role/dynabench"


@pytest.fixture
def sagemaker(stand):
    return stand.client("sagemaker", role="AKIAEVAL")


@pytest.fixture
def s3(stand):
    return stand.client("s3")


def create_model(sagemaker, image, name="ts1-a", mode="test", **more):
    primary = {"Image": image, "Environment": {"MODE": mode}} | more
    sagemaker.create_model(ModelName=name, PrimaryContainer=primary, ExecutionRoleArn=ROLE, EnableNetworkIsolation=True)


def store(s3, *statements):
    lines = [json.dumps({"uid": str(n), "statement": text, "label": "x"}) for n, text in enumerate(statements)]
    s3.put_object(Bucket=BUCKET, Key=INPUTS, Body="".join(line + "\n" for line in lines).encode())


def start(sagemaker, name="ts1-i1-r1", strategy="MultiRecord", content_type="application/jsonlines", **more):
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/{INPUTS}"}
    sagemaker.create_transform_job(
        **{
            "TransformJobName": name,
            "ModelName": "ts1-a",
            "BatchStrategy": strategy,
            "MaxPayloadInMB": 1,
            "TransformInput": {"DataSource": {"S3DataSource": source}, "SplitType": "Line"}
            | {"ContentType": content_type},
            "TransformOutput": {"S3OutputPath": f"s3://{BUCKET}/predictions/ts1-a/raw/sentiment"}
            | {"AssembleWith": "Line"},
            "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
            "DataProcessing": {"InputFilter": "$['uid','statement']"},
            "Tags": [{"Key": "inference", "Value": "1"}],
        }
        | more
    )


def ended(sagemaker, name="ts1-i1-r1"):
    def described():
        job = sagemaker.describe_transform_job(TransformJobName=name)
        return job if job["TransformJobStatus"] not in ("InProgress", "Stopping") else None

    return wait_for(described)


def refusal(call, *arguments, **more):
    with pytest.raises(ClientError) as refused:
        call(*arguments, **more)
    return refused.value.response["Error"]["Code"], refused.value.response["Error"]["Message"]


def answers(s3):
    return [json.loads(line) for line in s3.get_object(Bucket=BUCKET, Key=OUTPUT)["Body"].read().splitlines()]


@pytest.mark.parametrize(
    ("strategy", "content_type"), [("MultiRecord", "application/jsonlines"), ("SingleRecord", "application/json")]
)
def test_a_transform_job_runs_the_image_and_leaves_answers_log_and_metrics(
    stand, sagemaker, s3, pushed, strategy, content_type
):
    create_model(sagemaker, pushed)
    store(s3, "fine", "é\u2028", "good")
    start(sagemaker, strategy=strategy, content_type=content_type)

    job = ended(sagemaker)

    assert job["TransformJobStatus"] == "Completed", job
    assert job["CreationTime"] <= job["TransformStartTime"] <= job["TransformEndTime"]
    assert [answer["id"] for answer in answers(s3)] == ["0", "1", "2"]
    logs = stand.client("logs")
    streams = logs.describe_log_streams(logGroupName="/aws/sagemaker/TransformJobs", logStreamNamePrefix="ts1-i1-r1/")
    stream = streams["logStreams"][0]["logStreamName"]
    events = logs.get_log_events(logGroupName="/aws/sagemaker/TransformJobs", logStreamName=stream)["events"]
    assert "asked ['statement', 'uid']" in [event["message"] for event in events]
    memory = stand.client("cloudwatch").get_metric_statistics(
        Namespace="/aws/sagemaker/TransformJobs",
        MetricName="MemoryUtilization",
        Dimensions=[{"Name": "Host", "Value": stream.rpartition("-")[0]}],
        StartTime=job["TransformStartTime"] - timedelta(minutes=1),
        EndTime=job["TransformEndTime"] + timedelta(minutes=1),
        Period=60,
        Statistics=["Average"],
    )
    assert 0 < memory["Datapoints"][0]["Average"] < 100
    assert sagemaker.list_tags(ResourceArn=job["TransformJobArn"])["Tags"] == [{"Key": "inference", "Value": "1"}]
    assert stand.containers() == []


def test_a_dying_model_fails_its_job_with_an_algorithm_error(stand, sagemaker, s3, pushed):
    create_model(sagemaker, pushed)
    store(s3, "fine", "die")
    start(sagemaker)

    job = ended(sagemaker)

    assert job["TransformJobStatus"] == "Failed"
    assert job["FailureReason"].startswith("AlgorithmError: ")
    assert "exit code 3" in job["FailureReason"]


def test_a_stopped_job_ends_its_container(stand, sagemaker, s3, pushed):
    create_model(sagemaker, pushed)
    store(s3, "sleep")
    start(sagemaker)
    assert wait_for(stand.containers)

    sagemaker.stop_transform_job(TransformJobName="ts1-i1-r1")

    assert ended(sagemaker)["TransformJobStatus"] == "Stopped"
    assert stand.containers() == []
    assert refusal(sagemaker.stop_transform_job, TransformJobName="ts1-i1-r1")[0] == "ValidationException"


def test_an_image_that_the_registry_does_not_have_is_a_client_error(stand, sagemaker, s3):
    image = f"{stand.registry}/nothing@sha256:{'0' * 64}"
    assert "Requested image" in refusal(create_model, sagemaker, image)[1]
    stand.client("ecr").create_repository(repositoryName="nothing")
    create_model(sagemaker, image)
    store(s3, "fine")
    start(sagemaker)

    assert ended(sagemaker)["FailureReason"].startswith("ClientError: Requested image")


def test_models_are_remembered_and_their_names_are_taken_once(stand, sagemaker):
    create_model(sagemaker, "image:1")

    described = sagemaker.describe_model(ModelName="ts1-a")
    assert described["EnableNetworkIsolation"] is True
    assert described["PrimaryContainer"] == {"Image": "image:1", "Environment": {"MODE": "test"}}
    assert "already existing model" in refusal(create_model, sagemaker, "image:1")[1]
    assert refusal(create_model, sagemaker, "image:1", name="ends-with-")[0] == "ValidationException"
    sagemaker.delete_model(ModelName="ts1-a")
    assert "Could not find model" in refusal(sagemaker.delete_model, ModelName="ts1-a")[1]
    assert [call["isolation"] for call in stand.calls(action="CreateModel", status=200)] == [True]


def test_jobs_are_refused_as_amazon_refuses_them(stand, sagemaker, s3):
    assert "Could not find model" in refusal(start, sagemaker)[1]
    create_model(sagemaker, "image:1")
    stand.order({"outcome": "held", "seconds": 600})
    stand.limits({"us-west-1": {"ml.m5.large": 1}})
    start(sagemaker)

    assert refusal(start, sagemaker)[0] == "ResourceInUse"
    assert refusal(start, sagemaker, name="ts1-i1-r2")[0] == "ResourceLimitExceeded"
    assert refusal(start, sagemaker, name="ts1-i1-")[0] == "ValidationException"
    assert refusal(sagemaker.describe_transform_job, TransformJobName="other")[0] == "ResourceNotFound"
    other = {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1}
    start(sagemaker, name="ts1-i1-r2", TransformResources=other)
    sagemaker.stop_transform_job(TransformJobName="ts1-i1-r1")
    assert ended(sagemaker)["TransformJobStatus"] == "Stopped"
    assert stand.doubly_paid() == []


def test_jobs_end_as_a_test_orders(stand, sagemaker, s3, pushed):
    create_model(sagemaker, pushed)
    store(s3, "a", "b", "c", "d")
    stand.order(
        {"outcome": "failed", "name": "-r1", "reason": "CapacityError: try later"},
        {"outcome": "stopped", "name": "-r2"},
        {"outcome": "no output", "name": "-r3", "times": 1},
        {"outcome": "partial output", "name": "-r4"},
    )
    for number in (1, 2, 3):
        start(sagemaker, name=f"ts1-i1-r{number}")
    jobs = [ended(sagemaker, f"ts1-i1-r{number}") for number in (1, 2, 3)]

    assert [job["TransformJobStatus"] for job in jobs] == ["Failed", "Stopped", "Completed"]
    assert jobs[0]["FailureReason"] == "CapacityError: try later"
    assert refusal(s3.get_object, Bucket=BUCKET, Key=OUTPUT)[0] == "NoSuchKey"
    start(sagemaker, name="ts1-i1-r4")
    ended(sagemaker, "ts1-i1-r4")
    assert [answer["id"] for answer in answers(s3)] == ["0", "1"]
    assert stand.doubly_paid() == ["ts1-i1-r4"]


def test_a_lost_answer_leaves_a_paid_job(stand, sagemaker, s3):
    create_model(sagemaker, "image:1")
    stand.order({"outcome": "held", "seconds": 600})
    stand.faults({"effect": "lost", "action": "CreateTransformJob", "times": 1})

    with pytest.raises(Exception, match="Connection was closed"):
        start(sagemaker)

    assert refusal(start, sagemaker)[0] == "ResourceInUse"
    assert [call["fault"] for call in stand.calls(action="CreateTransformJob")] == ["lost", None]
    assert [job["name"] for job in stand.jobs()] == ["ts1-i1-r1"]


def test_all_objects_below_the_prefix_are_answered_and_the_models_data_is_there(sagemaker, s3, pushed, model_archive):
    s3.put_object(Bucket=BUCKET, Key="archive.tar.gz", Body=model_archive.read_bytes())
    store(s3, "data")
    s3.copy_object(Bucket=BUCKET, Key=f"{INPUTS}.more", CopySource=f"{BUCKET}/{INPUTS}")
    missing = refusal(create_model, sagemaker, pushed, ModelDataUrl=f"s3://{BUCKET}/absent.tar.gz")
    create_model(sagemaker, pushed, ModelDataUrl=f"s3://{BUCKET}/archive.tar.gz")
    start(sagemaker)

    assert "Could not find model data" in missing[1]
    job = ended(sagemaker)
    assert job["TransformJobStatus"] == "Completed", job
    assert [answer["label"] for answer in answers(s3)] == ["archive.stand.mar"]
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix="predictions/ts1-a/raw/sentiment/")["Contents"]
    assert [each["Key"] for each in found] == [OUTPUT.replace(".jsonl.out", ".jsonl.more.out"), OUTPUT]


def test_output_and_metrics_may_come_late(stand, sagemaker, s3, pushed):
    create_model(sagemaker, pushed)
    store(s3, "fine")
    stand.order({"outcome": "late output", "seconds": 1})
    stand.late_metrics(1)
    start(sagemaker)
    cloudwatch = stand.client("cloudwatch")

    assert ended(sagemaker)["TransformJobStatus"] == "Completed"
    assert refusal(s3.get_object, Bucket=BUCKET, Key=OUTPUT)[0] == "NoSuchKey"
    assert cloudwatch.list_metrics(Namespace="/aws/sagemaker/TransformJobs")["Metrics"] == []
    assert wait_for(lambda: cloudwatch.list_metrics(Namespace="/aws/sagemaker/TransformJobs")["Metrics"])
    assert wait_for(lambda: s3.list_objects_v2(Bucket=BUCKET, Prefix="predictions/")["KeyCount"] == 1)


def create_endpoint(sagemaker, name="ts1-a"):
    variant = {"VariantName": "AllTraffic", "ModelName": "ts1-a", "InstanceType": "ml.m5.large"}
    sagemaker.create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[variant | {"InitialInstanceCount": 1}]
    )
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)


def started(sagemaker, name="ts1-a"):
    def described():
        endpoint = sagemaker.describe_endpoint(EndpointName=name)
        return endpoint if endpoint["EndpointStatus"] != "Creating" else None

    return wait_for(described)


def test_an_endpoint_answers_from_its_container_until_it_is_deleted(stand, sagemaker, pushed):
    create_model(sagemaker, pushed)
    create_endpoint(sagemaker)
    assert started(sagemaker)["EndpointStatus"] == "InService"
    runtime = stand.client("sagemaker-runtime", role="AKIAWEB")
    body, died = (json.dumps({"uid": "7", "statement": text}) for text in ("fine", "die"))

    answer = runtime.invoke_endpoint(EndpointName="ts1-a", Body=body, ContentType="application/json")["Body"].read()

    assert json.loads(answer)["id"] == "7"
    assert refusal(runtime.invoke_endpoint, EndpointName="ts1-a", Body=died)[0] == "ModelError"
    assert [call["iam"] for call in stand.calls(role="AKIAWEB")] == ["sagemaker:InvokeEndpoint"] * 2
    metrics = stand.client("cloudwatch").list_metrics(Namespace="AWS/SageMaker", MetricName="Invocations")["Metrics"]
    assert {"Name": "EndpointName", "Value": "ts1-a"} in metrics[0]["Dimensions"]
    sagemaker.delete_endpoint(EndpointName="ts1-a")
    assert refusal(runtime.invoke_endpoint, EndpointName="ts1-a", Body=body)[0] == "ValidationError"
    assert stand.containers() == []


def test_an_endpoint_whose_model_does_not_load_says_why(stand, sagemaker, pushed):
    stand.limits({"us-west-1": {"ml.m5.large": 1}})
    create_model(sagemaker, pushed, mode="broken")
    create_endpoint(sagemaker)

    assert "weights are of another model" in started(sagemaker)["FailureReason"]
    assert stand.containers() == []
    assert "already existing endpoint" in refusal(create_endpoint, sagemaker)[1]
    assert refusal(create_endpoint, sagemaker, "ts2-b")[0] == "ResourceLimitExceeded"
    sagemaker.delete_endpoint_config(EndpointConfigName="ts2-b")
    assert "Could not find endpoint" in refusal(sagemaker.describe_endpoint_config, EndpointConfigName="ts2-b")[1]


@pytest.mark.parametrize("login", [None, {"username": "AWS", "password": "wrong"}])
def test_the_registry_refuses_a_wrong_or_missing_login(stand, obedient_image, login):
    client, address = docker.from_env(), f"{stand.registry}/stranger"
    client.images.get(obedient_image).tag(address)

    said = list(client.images.push(address, auth_config=login, stream=True, decode=True))

    client.images.remove(address)
    assert any("no basic auth" in line.get("error", "") or "unauthorized" in line.get("error", "") for line in said)


def test_ecr_knows_what_was_pushed_and_deletes_it(stand, obedient_image):
    ecr, login = stand.client("ecr"), {"username": "AWS", "password": PASSWORD}
    uri = ecr.create_repository(repositoryName="ts1-a")["repository"]["repositoryUri"]
    assert uri == f"{stand.registry}/ts1-a"
    assert ecr.get_authorization_token()["authorizationData"][0]["proxyEndpoint"] == f"http://{stand.registry}"
    assert ecr.list_images(repositoryName="ts1-a")["imageIds"] == []
    client = docker.from_env()
    client.images.get(obedient_image).tag(uri, "r1")
    client.images.push(uri, "r1", auth_config=login)
    client.images.remove(f"{uri}:r1")

    (image,) = ecr.list_images(repositoryName="ts1-a")["imageIds"]
    wanted = [{"imageTag": "r1"}, {"imageTag": "r2"}]
    deleted = ecr.batch_delete_image(repositoryName="ts1-a", imageIds=wanted)

    assert image["imageTag"] == "r1"
    assert deleted["imageIds"] == [image]
    assert [failure["failureCode"] for failure in deleted["failures"]] == ["ImageNotFound"]
    assert ecr.list_images(repositoryName="ts1-a")["imageIds"] == []
    ecr.delete_repository(repositoryName="ts1-a")
    assert refusal(ecr.list_images, repositoryName="ts1-a")[0] == "RepositoryNotFoundException"
