"""What `TaskIO` of both generations of dynalab share: the signature and how an answer is verified."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

ROOTPATH = str(Path(os.environ.get("DYNABENCH_ROOT", "/"), "home/model-server/code"))


def require(condition: object, message: str) -> None:
    """Raise AssertionError, which handlers of dynalab expect of a verification."""
    if not condition:
        raise AssertionError(message)


class BaseTaskIO:
    """The older generation: a subclass for each task names the fields that are signed."""

    task = ""
    input_keys: tuple[str, ...] = ()
    output_keys: tuple[str, ...] = ()
    optional_keys: tuple[str, ...] = ()
    signature_key = "signed"

    def __init__(self, data: Any = None) -> None:
        self.data = data

    def parse_signature_input(
        self, response: dict[str, Any], data: dict[str, Any]
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """The task's name, and the fields of example and answer that are signed."""
        return self.task, {k: data[k] for k in self.input_keys}, {k: response[k] for k in self.output_keys}

    def generate_response_signature(self, response: dict[str, Any], data: dict[str, Any], secret: str = "") -> str:
        """SHA-1 (40 hex digits) over secret, task and the values of inputs and outputs, each by sorted key."""
        task, inputs, outputs = self.parse_signature_input(response, data)
        values = [fields[key] for fields in (inputs, outputs) for key in sorted(fields)]
        text = "".join([os.environ.get("MY_SECRET", secret), task, *map(str, values)])
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def sign_response(self, response: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Add the signature to the answer, and return it."""
        response[self.signature_key] = self.generate_response_signature(response, data)
        return response

    def verify_response(self, response: dict[str, Any], data: dict[str, Any]) -> None:
        """Raise AssertionError unless the answer has the example's id, the task's fields, and no other.

        The fields' values are not looked at here: that is done where predictions are scored.
        """
        require(response.get("id") == data["uid"], "The answer's id must be the example's uid.")
        for key in self.output_keys:
            require(key in response, f"The answer lacks {key}.")
        signature = self.generate_response_signature(response, data)
        require(response.get(self.signature_key) == signature, f"The answer's {self.signature_key} is wrong.")
        known = {"id", self.signature_key, *self.output_keys, *self.optional_keys}
        require(
            known >= response.keys(), f"The answer has fields unknown to the task: {sorted(response.keys() - known)}."
        )
