"""AWS on loopback: moto, our own SageMaker on top of it, faults on demand, and a record of every call.

`python -m tests.aws.server --record PATH --registry HOST:PORT` says `aws ready http://127.0.0.1:PORT` when it serves.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moto.moto_api._internal.models import moto_api_backend
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.wrappers import Request, Response

from dynabench_site.processes import PR_SET_PDEATHSIG
from tests.aws.cloud import Cloud
from tests.aws.containers import Host
from tests.aws.ecr import Ecr
from tests.aws.faults import Faults
from tests.aws.loopback import loopback_server
from tests.aws.recorder import Recorder
from tests.aws.sagemaker_fake import SageMaker

REGIONS = ("us-west-1", "us-west-2")


class Stand:
    """Everything under AWS_ENDPOINT_URL; tests steer it through /_stand/."""

    def __init__(self, port: int, record: Path, registry: str, parallel: int) -> None:
        self.server = loopback_server(port, self)
        self.url = f"http://127.0.0.1:{self.server.port}"
        self.host = Host(registry)
        self.cloud = Cloud(self.url)
        self.ecr = Ecr(DomainDispatcherApplication(create_backend_app), registry)
        self.sagemaker = SageMaker(self.ecr, self.cloud, self.host, parallel)
        self.faults = Faults(self.sagemaker)
        self.recorder = Recorder(self.faults, record)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if not environ["PATH_INFO"].startswith("/_stand/"):
            return self.recorder(environ, start_response)
        request = Request(environ)
        try:
            answer = self.steer(request.method, request.path.removeprefix("/_stand/"), request.get_data())
        except (TypeError, ValueError, KeyError) as error:
            return Response(repr(error), 400)(environ, start_response)
        return Response(json.dumps(answer, default=str), content_type="application/json")(environ, start_response)

    def steer(self, method: str, what: str, body: bytes) -> Any:
        """Set (POST), clear (DELETE) or show (GET) what happens to calls and jobs."""
        given = json.loads(body) if method == "POST" and body else None
        jobs = self.sagemaker.jobs
        match method, what:
            case "POST" | "DELETE", "faults":
                self.faults.set(given or [])
            case "GET", "faults":
                return [rule.shown() for rule in self.faults.rules]
            case "POST" | "DELETE", "limits":
                self.sagemaker.limits.by_region = given or {}
            case "POST" | "DELETE", "late_metrics":
                jobs.late_metrics = float(given or 0)
            case "POST" | "DELETE", "jobs":
                jobs.set_orders(given or [])
            case "GET", "jobs":
                return jobs.shown()
            case "POST", "reset":
                self.reset()
            case _:
                raise ValueError(f"{method} {what} is not known here.")
        return {}

    def reset(self) -> None:
        """A new account: empty but for the buckets of the two regions."""
        self.faults.set([])
        self.sagemaker.reset()
        self.ecr.reset()
        moto_api_backend.reset()
        for region in REGIONS:
            self.cloud.client("s3", region).create_bucket(
                Bucket=f"sagemaker-{region}", CreateBucketConfiguration={"LocationConstraint": region}
            )
        self.recorder.clear()

    def serve(self) -> None:
        print(f"aws ready {self.url}", flush=True)
        self.server.serve_forever(poll_interval=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--registry", default="127.0.0.1:5000")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=2, help="transform jobs that run at once")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # Always the same place, so that the next stand finds what a killed one left.
    os.environ["DYNABENCH_VAR"] = f"{tempfile.gettempdir()}/dynabench-aws-stand"
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    stand = Stand(options.port, options.record, options.registry, options.parallel)
    stand.host.sweep()
    try:
        stand.serve()
    finally:
        stand.host.close()
        os._exit(0)  # threads of jobs must not keep it


if __name__ == "__main__":
    main()
