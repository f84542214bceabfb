"""Batch transform jobs: each runs its model's image over the objects of a prefix, in threads."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from builds.model_client import ModelClient, ModelError
from tests.aws import records
from tests.aws.calls import Refused
from tests.aws.cloud import Cloud, bucket_and_key, now
from tests.aws.containers import Host, Instance, NoImage
from tests.aws.resources import Limits, Resources

GROUP = NAMESPACE = "/aws/sagemaker/TransformJobs"
KIND = "transform-job"
JOB_SECONDS = 3600
STOP_SECONDS = 60
MAX_ANSWER_BYTES = 100 << 20
OUTCOMES = ("failed", "stopped", "no output", "partial output", "late output", "held")


class JobFailure(Exception):
    """The job fails; the message is its FailureReason."""


@dataclass(slots=True)
class Order:
    """What a test wants of the jobs whose name has this part, `times` times; `seconds` for late and held ones."""

    outcome: str
    name: str = ""
    reason: str = "InternalServerError: We encountered an internal error. Please try again."
    seconds: float = 0.0
    times: int | None = None

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"{self.outcome!r} is no outcome; there are {', '.join(OUTCOMES)}.")


@dataclass(slots=True)
class Job:
    """A job on its way; `kept` is what DescribeTransformJob shows."""

    region: str
    kept: dict[str, Any]
    model: dict[str, Any]
    order: Order | None
    runs: int = 0
    host: str = ""
    stream: str = ""
    instance: Instance | None = None
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        return str(self.kept["TransformJobName"])

    def wants(self, outcome: str) -> bool:
        return self.order is not None and self.order.outcome == outcome

    def is_active(self) -> bool:
        return self.kept["TransformJobStatus"] in ("InProgress", "Stopping")

    def stop(self) -> None:
        self.stopping.set()
        if self.instance:
            self.instance.stop()


class TransformJobs:
    def __init__(self, resources: Resources, limits: Limits, cloud: Cloud, host: Host, parallel: int) -> None:
        self.resources, self.limits, self.cloud, self.host = resources, limits, cloud, host
        self.late_metrics = 0.0
        self.jobs: list[Job] = []
        self.orders: list[Order] = []
        self._runs: list[Future[None]] = []
        self._timers: list[threading.Timer] = []
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="transform")

    def create_transform_job(self, region: str, request: dict[str, Any]) -> dict[str, Any]:
        name, wanted = request["TransformJobName"], request["TransformResources"]
        model = self.resources.find(region, "model", request["ModelName"])
        if (arn := self.resources.arn(region, KIND, name)) in self.resources:
            raise Refused("ResourceInUse", f"Job name must be unique within an account and region, and {arn} exists.")
        records.check(request)
        used = sum(
            job.kept["TransformResources"]["InstanceCount"]
            for job in self.jobs
            if job.is_active()
            and (job.region, job.kept["TransformResources"]["InstanceType"]) == (region, wanted["InstanceType"])
        )
        self.limits.claim(region, wanted["InstanceType"], "transform job", used, wanted["InstanceCount"])
        self.resources.add(region, KIND, name, request | {"TransformJobArn": arn, "TransformJobStatus": "InProgress"})
        job = Job(region, self.resources[arn], model, self._order_for(name))
        self.jobs.append(job)
        self._runs.append(self._pool.submit(self._run, job))
        return {"TransformJobArn": arn}

    def describe_transform_job(self, region: str, request: dict[str, Any]) -> dict[str, Any]:
        return self._find(region, request["TransformJobName"]).kept

    def list_transform_jobs(self, region: str, request: dict[str, Any]) -> dict[str, Any]:
        found = self.resources.listed(region, KIND, request.get("NameContains"))
        wanted = request.get("StatusEquals")
        return {"TransformJobSummaries": [job for job in found if wanted in (None, job["TransformJobStatus"])]}

    def stop_transform_job(self, region: str, request: dict[str, Any]) -> None:
        job = self._find(region, request["TransformJobName"])
        if not job.is_active():
            status = job.kept["TransformJobStatus"]
            raise Refused("ValidationException", f"The request was rejected because the job is in status {status}.")
        job.kept["TransformJobStatus"] = "Stopping"
        job.stop()

    def set_orders(self, orders: list[dict[str, Any]]) -> None:
        self.orders = [Order(**order) for order in orders]

    def shown(self) -> list[dict[str, Any]]:
        """Every job that was accepted, and so is paid for."""
        return [
            {
                "name": job.name,
                "model": job.kept["ModelName"],
                "region": job.region,
                "status": job.kept["TransformJobStatus"],
                "reason": job.kept.get("FailureReason"),
                "input": job.kept["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"],
                "runs": job.runs,
            }
            for job in self.jobs
        ]

    def reset(self) -> None:
        """No job is left, nor anything that one would still write."""
        for job in self.jobs:
            job.stop()
        wait(self._runs, STOP_SECONDS)
        for timer in self._timers:
            timer.cancel()
        self.jobs, self.orders, self.late_metrics, self._runs, self._timers = [], [], 0.0, [], []

    def _find(self, region: str, name: str) -> Job:
        for job in self.jobs:
            if (job.region, job.name) == (region, name):
                return job
        raise Refused("ResourceNotFound", f"Could not find requested job with name: {name}")

    def _order_for(self, name: str) -> Order | None:
        order = next((order for order in self.orders if order.name in name and order.times != 0), None)
        if order and order.times is not None:
            order.times -= 1
        return order

    def _run(self, job: Job) -> None:
        end: dict[str, Any]
        with self.resources.lock:
            job.kept["TransformStartTime"], job.host = now(), f"{job.name}/i-{secrets.token_hex(8)}"
            job.stream = f"{job.host}-{int(time.time())}"
        try:
            self._obey(job)
            if not job.stopping.is_set():
                job.runs += 1
                self._transform(job)
            end = {"TransformJobStatus": "Completed"}
        except ModelError as error:
            end = failed(f"AlgorithmError: {error.detail}")
        except JobFailure as error:
            end = failed(str(error))
        except (NoImage, records.TooLong) as error:
            end = failed(f"ClientError: {error}")
        except Exception as error:  # noqa: BLE001
            end = failed(f"InternalServerError: {error!r}")
        if job.stopping.is_set():
            end = {"TransformJobStatus": "Stopped"}
        with self.resources.lock:
            job.kept.update(end | {"TransformEndTime": now(), "LastModifiedTime": now()})

    def _obey(self, job: Job) -> None:
        if job.wants("held"):
            job.stopping.wait(job.order.seconds)
        elif job.wants("failed"):
            raise JobFailure(job.order.reason)
        elif job.wants("stopped"):
            job.stopping.set()

    def _transform(self, job: Job) -> None:
        started = time.monotonic()
        with self.host.run(job.model, self._model_data(job), job.name) as job.instance:
            client = ModelClient(job.instance.server, deadline=started + JOB_SECONDS, max_answer_bytes=MAX_ANSWER_BYTES)
            try:
                client.wait_until_ready()
                for uri, content in self._outputs(job, client):
                    self._store(job, uri, content)
                used = job.instance.utilization(time.monotonic() - started)
            except ModelError as error:
                self.cloud.log(job.region, GROUP, f"{job.stream}/data-log", f"[sagemaker logs]: {error.detail}")
                raise
            finally:
                client.close()
                job.instance.stop()  # or the engine may still hold back what it printed last
                self.cloud.log(job.region, GROUP, job.stream, job.instance.server.log_tail())
            self._measure(job, used)

    def _model_data(self, job: Job) -> bytes | None:
        uri = job.model["PrimaryContainer"].get("ModelDataUrl")
        return self.cloud.read(job.region, *bucket_and_key(uri)) if uri else None

    def _outputs(self, job: Job, client: ModelClient) -> Iterator[tuple[str, bytes]]:
        """Address and content for each object of the input."""
        source = job.kept["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"]
        folder = bucket_and_key(source)[1].rpartition("/")[0]
        found = list(self.cloud.keys(job.region, source))
        if not found:
            raise JobFailure(f"ClientError: No S3 objects found under S3 URL {source}")
        for bucket, key in found:
            content = self.cloud.read(job.region, bucket, key)
            answers = []
            for body in records.requests(job.kept, content):
                if job.stopping.is_set():
                    return
                answers.append(client.invoke(body, job.kept["TransformInput"].get("ContentType", "")))
            target = job.kept["TransformOutput"]["S3OutputPath"].rstrip("/")
            yield f"{target}/{key.removeprefix(folder).lstrip('/')}.out", records.assembled(job.kept, answers)

    def _store(self, job: Job, uri: str, content: bytes) -> None:
        if job.wants("no output"):
            return
        if job.wants("partial output"):
            lines = content.splitlines(keepends=True)
            content = b"".join(lines[: len(lines) // 2])
        if job.wants("late output"):
            self._later(job.order.seconds, self.cloud.write, job.region, uri, content)
        else:
            self.cloud.write(job.region, uri, content)

    def _measure(self, job: Job, used: dict[str, float]) -> None:
        values = [(name, percent, "Percent", now()) for name, percent in used.items()]
        self._later(self.late_metrics, self.cloud.measure, job.region, NAMESPACE, {"Host": job.host}, values)

    def _later(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        if not seconds:
            act(*arguments)
            return
        timer = threading.Timer(seconds, act, arguments)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)


def failed(reason: str) -> dict[str, Any]:
    return {"TransformJobStatus": "Failed", "FailureReason": reason[:1024]}
