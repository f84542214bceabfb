"""An AWS call as the stand sees it: who calls what, on which resource, read from the signed request."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from werkzeug.wrappers import Response

ACCOUNT = "123456789012"
# The stand's own calls: neither recorded nor disturbed.
OWN_ROLE = "AKIASTAND"
CREDENTIAL = re.compile(r"(?:Credential=|^)(?P<role>[^/\s]+)/\d+/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request")
INVOCATION = re.compile(r"/endpoints/(?P<name>[^/]+)/invocations")
NAMES = (
    *("TransformJobName", "EndpointName", "EndpointConfigName", "ModelName", "ResourceArn"),
    *("repositoryName", "repositoryNames", "QueueName", "QueueUrl", "logGroupName", "Namespace"),
)
READS = ("Get", "List", "Describe", "Head", "Batch", "Receive")
# (method, on an object, a parameter of the query): the first that fits.
S3_ACTIONS = (
    ("POST", True, "uploads", "CreateMultipartUpload"),
    ("POST", True, "uploadId", "CompleteMultipartUpload"),
    ("PUT", True, "partNumber", "UploadPart"),
    ("DELETE", True, "uploadId", "AbortMultipartUpload"),
    ("GET", True, "uploadId", "ListParts"),
    ("GET", False, "uploads", "ListMultipartUploads"),
    ("GET", False, "location", "GetBucketLocation"),
    ("GET", False, "list-type", "ListObjectsV2"),
    ("POST", False, "delete", "DeleteObjects"),
    ("PUT", True, "", "PutObject"),
    ("GET", True, "", "GetObject"),
    ("HEAD", True, "", "HeadObject"),
    ("DELETE", True, "", "DeleteObject"),
    ("PUT", False, "", "CreateBucket"),
    ("GET", False, "", "ListObjects"),
    ("HEAD", False, "", "HeadBucket"),
    ("DELETE", False, "", "DeleteBucket"),
)
# Actions that another permission allows.
PERMISSIONS = {
    "HeadObject": "GetObject",
    "HeadBucket": "ListBucket",
    "ListObjects": "ListBucket",
    "ListObjectsV2": "ListBucket",
    "ListBuckets": "ListAllMyBuckets",
    "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject",
    "CopyObject": "PutObject",
    "DeleteObjects": "DeleteObject",
    "ListParts": "ListMultipartUploadParts",
    "ListMultipartUploads": "ListBucketMultipartUploads",
    "SendMessageBatch": "SendMessage",
    "DeleteMessageBatch": "DeleteMessage",
    "ChangeMessageVisibilityBatch": "ChangeMessageVisibility",
}


class Refused(Exception):
    """AWS says no, with a code that boto3 hands to its caller."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status


class Unanswered(Exception):
    """The connection closes without an answer."""


@dataclass(slots=True)
class Call:
    """One request; `status` and `fault` are known once it is answered."""

    method: str
    service: str = ""
    action: str = ""
    region: str = ""
    role: str = ""
    bucket: str | None = None
    key: str | None = None
    name: str | None = None
    request: dict[str, Any] = field(default_factory=dict)
    status: int | None = None
    fault: str | None = None

    @classmethod
    def read(cls, environ: dict[str, Any]) -> Call:
        """The call in this request; its body stays readable."""
        path, query = environ["PATH_INFO"], parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        call = cls(environ["REQUEST_METHOD"], service="s3")
        signed = environ.get("HTTP_AUTHORIZATION") or query.get("X-Amz-Credential", [""])[0]
        if found := CREDENTIAL.search(signed):
            call.role, call.region, call.service = found.group("role", "region", "service")
        body = environ["wsgi.input"].getvalue()
        if target := environ.get("HTTP_X_AMZ_TARGET"):
            call.action = target.rpartition(".")[2]
            call.request = json.loads(body or b"{}")
        elif invoked := INVOCATION.fullmatch(path):
            call.service, call.action, call.name = "sagemaker-runtime", "InvokeEndpoint", invoked["name"]
        elif call.service == "s3":
            call._read_s3(path, query, "HTTP_X_AMZ_COPY_SOURCE" in environ)
        else:
            call.action = parse_qs(body.decode()).get("Action", [""])[0]
        call.service = {"monitoring": "cloudwatch"}.get(call.service, call.service)
        if named := next((call.request[key] for key in NAMES if call.request.get(key)), None):
            named = named[0] if isinstance(named, list) else named
            call.name = named.rpartition("/")[2] if named.startswith(("http:", "https:", "arn:")) else named
        return call

    def _read_s3(self, path: str, query: dict[str, list[str]], is_copy: bool) -> None:
        # WSGI hands on the path's bytes as Latin-1.
        bucket, _, key = path.encode("latin-1").decode(errors="replace").lstrip("/").partition("/")
        self.bucket, self.key = bucket or None, key or None
        fitting = (
            action
            for method, on_object, parameter, action in S3_ACTIONS
            if method == self.method and on_object == bool(key) and (not parameter or parameter in query)
        )
        self.action = next(fitting, "") if bucket else "ListBuckets"
        if self.action == "PutObject" and is_copy:
            self.action = "CopyObject"

    @property
    def permission(self) -> str:
        """What IAM must allow, such as s3:GetObject."""
        return f"{self.service.removesuffix('-runtime')}:{PERMISSIONS.get(self.action, self.action)}"

    @property
    def access(self) -> str:
        return "read" if self.action.startswith(READS) else "write"

    def line(self) -> dict[str, Any]:
        """What the recorder keeps."""
        return {
            "service": self.service,
            "action": self.action,
            "iam": self.permission,
            "region": self.region,
            "role": self.role,
            "bucket": self.bucket,
            "key": self.key,
            "name": self.name,
            "isolation": self.request.get("EnableNetworkIsolation") if self.action == "CreateModel" else None,
            "status": self.status,
            "fault": self.fault,
            "request": self.request if self.service == "sagemaker" else None,
        }

    def refusal(self, refused: Refused) -> Response:
        """The answer that makes boto3 raise this code, in the words of the service's protocol."""
        code, message = escape(refused.code), escape(refused.message)
        if self.service == "s3":
            text = f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId></Error>"
            return Response(text, refused.status, content_type="application/xml")
        if self.service == "sts":
            text = f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
            return Response(text, refused.status, content_type="text/xml")
        text = json.dumps({"__type": refused.code, "message": refused.message})
        headers = {"X-Amzn-Errortype": refused.code}
        return Response(text, refused.status, headers, content_type="application/x-amz-json-1.1")
