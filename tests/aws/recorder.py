"""Writes down every call to AWS, a JSON object a line, by the time its caller has the answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.aws.calls import OWN_ROLE, Call


class Recorder:
    def __init__(self, app: Any, path: Path) -> None:
        self.app, self.path = app, path
        self._lock = threading.Lock()
        self.path.touch()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        call = environ["stand.call"] = Call.read(environ)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            call.status = int(status.split()[0])
            return start_response(status, headers, exc_info)

        try:
            return self.app(environ, start)
        finally:
            if call.role != OWN_ROLE:
                self._write(call)

    def clear(self) -> None:
        with self._lock:
            self.path.write_text("")

    def _write(self, call: Call) -> None:
        with self._lock, self.path.open("a") as file:
            file.write(json.dumps(call.line()) + "\n")
