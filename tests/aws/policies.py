"""The policies in deploy/iam as an operator fills them in, and what a call needs of them."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.aws.calls import ACCOUNT

FOLDER = Path(__file__).parent.parent.parent / "deploy/iam"
NAMES = {"${ACCOUNT}": ACCOUNT, "${PREFIX}": "dynabench", "${BUCKET}": "sagemaker-*"}
# By role, the access key whose calls are its own.
KEYS = {"web": "AKIAWEB", "build": "AKIABUILD", "eval": "AKIAEVAL", "operator": "AKIAOPERATOR"}
KINDS = {"Model": "model", "Endpoint": "endpoint", "EndpointConfig": "endpoint-config", "TransformJob": "transform-job"}


def policy(role: str) -> list[dict[str, Any]]:
    """The statements of a role, as an operator fills them in."""
    text = (FOLDER / f"{role}.json").read_text()
    for name, value in NAMES.items():
        text = text.replace(name, value)
    return json.loads(text)["Statement"]


POLICIES = {role: policy(role) for role in (*KEYS, "models")}


def allowed(role: str) -> set[str]:
    return {action for statement in POLICIES[role] for action in statement["Action"]}


def resources(call: dict[str, Any]) -> list[str]:
    """The ARNs that IAM looks at for a call."""
    service, action = call["iam"].split(":")
    start = f"arn:aws:{service}:{call['region']}:{ACCOUNT}"
    match service:
        case "s3":
            return [f"arn:aws:s3:::{call['bucket']}" + (f"/{call['key']}" if call["key"] else "")]
        case "sqs":
            return [f"{start}:{call['name']}"]
        case "ecr" if action != "GetAuthorizationToken":
            return [f"{start}:repository/{call['name']}"]
        case "logs":
            stream = ":log-stream:x" if action == "GetLogEvents" else ""
            return [f"{start}:log-group:{call['name']}{stream}"]
        case "sagemaker":
            kinds = [KINDS[re.sub("^(Create|Describe|Delete|Stop|Invoke)", "", action)]]
            kinds += ["endpoint-config"] if action == "CreateEndpoint" else []
            return [f"{start}:{kind}/{call['name']}" for kind in kinds]
    return ["*"]


def allows(statement: dict[str, Any], action: str, resource: str) -> bool:
    return action in statement["Action"] and any(fnmatchcase(resource, pattern) for pattern in statement["Resource"])
