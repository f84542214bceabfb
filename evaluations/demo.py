"""The demonstration: real tasks and data, accounts, and example models sent over HTTP as the dynalab CLI sends them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management.base import CommandError

from evaluations.dataset_files import store_dataset_file
from examples.pack import EXAMPLES, archive_bytes
from submissions.models import ApiToken, Submission
from tasks_catalog import demo_flores
from tasks_catalog.demo_data import TASKS, nli_dataset, sentiment_datasets
from tasks_catalog.models import BuildConfig, Dataset, EvalServer, Task, TaskMetric

MODELS = {
    "sentiment": ("vader", "textblob", "majority"),
    "nli": ("nli-overlap", "nli-majority"),
    "flores_small1": ("flores-copy",),
}
EVAL_SERVERS = {"sentiment": "default", "nli": "default", "flores_small1": "flores101"}
JOB_METRICS = (("examples_per_second", "job", 1.0), ("memory_utilization", "job", 1.0))
METRICS = {
    "sentiment": (("macro_f1", "perf", 4.0), ("accuracy", "perf", 0.0), *JOB_METRICS),
    "nli": (("accuracy", "perf", 4.0), ("macro_f1", "perf", 0.0), *JOB_METRICS),
    "flores_small1": (("sp_bleu", "perf", 1.0), *((name, kind, 0.0) for name, kind, _ in JOB_METRICS)),
}
SENDER = "examples"  # its uploads take none of a visitor's slots
ACCOUNTS = ("admin", "ada", SENDER)
TIMEOUT_SECONDS = 120


def load_tasks() -> None:
    """The tasks with their configs and datasets; what is there already stays as staff left it."""
    demo_flores.make_model(_sentencepiece_model())
    for code, texts in TASKS.items():
        if not Task.objects.filter(code=code).exists():
            _make_task(code, texts)
    cache = settings.VAR / "cache" / "demo"
    _load_datasets("sentiment", lambda: sentiment_datasets(cache, index_url=settings.INDEX_URL))
    _load_datasets("nli", lambda: {"nli-small": nli_dataset()})
    _load_datasets("flores_small1", lambda: {"flores-own": demo_flores.flores_dataset()}, format="Flores")


def _make_task(code: str, texts: dict[str, str]) -> None:
    task = Task(code=code, **texts)
    task.full_clean()
    task.save()
    server, _ = EvalServer.objects.get_or_create(name=EVAL_SERVERS[code])
    more = demo_flores.BUILD_CONFIG if code == "flores_small1" else {}
    BuildConfig.objects.create(task=task, memory_mb=2048, eval_server=server, **more)
    for place, (name, kind, weight) in enumerate(METRICS[code]):
        row = TaskMetric(task=task, name=name, kind=kind, weight=weight, ranks=place == 0, options=_options(name))
        row.full_clean()
        row.save()


def eval_servers() -> list[str]:
    """The clusters that evaluate the tasks; staff may have chosen others since."""
    configs = BuildConfig.objects.filter(task__code__in=MODELS)
    return list(configs.order_by("eval_server").values_list("eval_server", flat=True).distinct())


def _options(metric: str) -> dict[str, str]:
    return {"sentencepiece_model": str(_sentencepiece_model())} if metric == "sp_bleu" else {}


def _sentencepiece_model() -> Path:
    return settings.VAR / "flores_small1.model"


def _load_datasets(code: str, read: Any, **more: str) -> None:
    task = Task.objects.get(code=code)
    if task.datasets.exists():
        return
    for name, records in read().items():
        file = io.BytesIO(b"".join(json.dumps(record).encode() + b"\n" for record in records))
        store_dataset_file(Dataset(task=task, name=name, **more), file)


def make_accounts() -> dict[str, str]:
    """Accounts that were not there yet, with their passwords, which are also kept in var/demo-accounts.txt (0600)."""
    made = {}
    for name in ACCOUNTS:
        user, is_new = User.objects.get_or_create(username=name, defaults={"email": f"{name}@example.org"})
        if is_new:
            made[name] = secrets.token_urlsafe(12)
            user.set_password(made[name])
            user.is_staff = user.is_superuser = name == "admin"
            user.save()
    if made:
        descriptor = os.open(settings.VAR / "demo-accounts.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.writelines(f"{name} {password}\n" for name, password in made.items())
    return made


@dataclass(frozen=True, slots=True)
class Client:
    """Speaks to the site over HTTP as a researcher's tools do."""

    api_token: str

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[Any, dict[str, str]]:
        """The decoded JSON and the headers of the answer; raises CommandError for a refusal, in the server's words."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{settings.PORT}{path}", data=body or None, method=method, headers=headers
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                text = response.read()
                return (json.loads(text) if text else None), dict(response.headers)
        except urllib.error.HTTPError as error:
            raise CommandError(json.loads(error.read() or b"{}").get("detail", str(error))) from error

    def mine(self, method: str, path: str) -> Any:
        return self.call(method, path, Authorization=f"Token {self.api_token}")[0]

    def send(self, task: str, name: str, archive: bytes) -> int:
        """Upload as the dynalab CLI does: an access token first, then the form; returns the submission's id."""
        query = urllib.parse.urlencode({"api_token": self.api_token})
        access = self.call("GET", f"/authenticate/refresh_from_api?{query}")[0]["token"]
        boundary = secrets.token_hex(16)
        _, headers = self.call(
            "POST",
            "/models/upload/s3",
            _form(boundary, {"name": name, "taskCode": task}, f"{name}.tar.gz", archive),
            Authorization=f"Bearer {access}",
            **{"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )
        return int(headers["X-Submission-Id"])


def _form(boundary: str, fields: dict[str, str], filename: str, archive: bytes) -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="tarball"; filename="{filename}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return "".join(parts).encode() + archive + f"\r\n--{boundary}--\r\n".encode()


def make_client() -> Client:
    sender = User.objects.get(username=SENDER)
    sender.api_tokens.filter(name="demo").delete()
    return Client(ApiToken.make(user=sender, name="demo")[1])


def submit(client: Client) -> Iterator[tuple[str, str, int]]:
    """Send what wasn't sent yet, try again what failed; yields (task, model, submission id)."""
    for task, names in MODELS.items():
        for name in names:
            archive = archive_bytes(EXAMPLES / name)
            sent = Submission.objects.filter(
                owner__username=SENDER, task__code=task, name=name, sha256=hashlib.sha256(archive).hexdigest()
            ).first()
            if sent and sent.can_retry:
                client.mine("POST", f"/api/v1/submissions/{sent.pk}/retry/")
            yield task, name, sent.pk if sent else client.send(task, name, archive)
