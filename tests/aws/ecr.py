"""ECR whose images are those of the registry on loopback; moto keeps the repositories."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable
from http.client import HTTPConnection
from typing import Any

from werkzeug.wrappers import Response

from tests.aws.calls import Call
from tests.aws.registry import PASSWORD

HOST = re.compile(rb"\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com")
LOGIN = b64encode(f"AWS:{PASSWORD}".encode()).decode()
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MISSING = {"failureCode": "ImageNotFound", "failureReason": "Requested image not found"}


class Ecr:
    def __init__(self, app: Any, registry: str) -> None:
        self.app, self.registry = app, registry

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        call = environ["stand.call"]
        if call.service != "ecr":
            return self.app(environ, start_response)
        answer = Response.from_app(self.app, environ, buffered=True)
        if answer.status_code == 200:
            answer.set_data(self._answer(call, answer.get_data()))
        return answer(environ, start_response)

    def _answer(self, call: Call, text: bytes) -> bytes:
        """What moto says, of our registry: its address and its images."""
        match call.action:
            case "ListImages":
                return json.dumps({"imageIds": self.images(call.name)}).encode()
            case "BatchDeleteImage":
                return json.dumps(self._delete(call.name, call.request["imageIds"])).encode()
            case "DeleteRepository":
                self._delete(call.name, self.images(call.name))
        return HOST.sub(self.registry.encode(), text.replace(b"https://", b"http://"))

    def images(self, repository: str) -> list[dict[str, str]]:
        tags = self._ask("GET", f"{repository}/tags/list")[1].get("tags") or []
        digests = {tag: self._ask("HEAD", f"{repository}/manifests/{tag}")[0] for tag in tags}
        return [{"imageTag": tag, "imageDigest": digest} for tag, digest in digests.items() if digest]

    def reset(self) -> None:
        for repository in self._ask("GET", "_catalog?n=1000")[1].get("repositories", []):
            self._delete(repository, self.images(repository))

    def _delete(self, repository: str, wanted: list[dict[str, str]]) -> dict[str, Any]:
        """Whoever names one tag of an image deletes it with all its tags."""
        there, deleted, failures = self.images(repository), [], []
        for image in wanted:
            found = [known for known in there if image.items() <= known.items()]
            for known in found:
                self._ask("DELETE", f"{repository}/manifests/{known['imageDigest']}")
            deleted += found
            failures += [] if found else [{"imageId": image} | MISSING]
        return {"imageIds": deleted, "failures": failures}

    def _ask(self, method: str, path: str) -> tuple[str | None, dict[str, Any]]:
        """The digest and the JSON that the registry answers."""
        connection = HTTPConnection(self.registry, timeout=30)
        try:
            connection.request(method, f"/v2/{path}", headers={"Authorization": f"Basic {LOGIN}", "Accept": MANIFEST})
            answer = connection.getresponse()
            body = answer.read()
            return answer.headers["Docker-Content-Digest"], json.loads(body) if body else {}
        finally:
            connection.close()
