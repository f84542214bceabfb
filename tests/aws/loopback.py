"""A threaded HTTP/1.1 server for a WSGI app, on loopback only; the app may leave a request unanswered."""

from __future__ import annotations

import io
import traceback
from typing import Any

from moto.moto_server.werkzeug_app import MotoRequestHandler
from werkzeug.serving import BaseWSGIServer, make_server
from werkzeug.wrappers import Response

from tests.aws.calls import Unanswered


class Handler(MotoRequestHandler):
    """Keeps connections open, which werkzeug's own handler does not; whole bodies fit in memory here."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle_expect_100(self) -> bool:
        super().handle_expect_100()
        self.wfile.flush()  # boto3 waits for it
        return True

    def run_wsgi(self) -> None:
        environ = self.environ = self.make_environ()
        is_chunked = environ.get("wsgi.input_terminated")
        body = environ["wsgi.input"].read(-1 if is_chunked else int(environ.get("CONTENT_LENGTH") or 0))
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)), "wsgi.input_terminated": True}
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        try:
            answer = Response.from_app(self.server.app, environ, buffered=True)
        except Unanswered:
            self.close_connection = True
            return
        except Exception:  # noqa: BLE001
            traceback.print_exc()
            answer = Response("The stand failed; its traceback is in its log.", 500)
        self._send(answer)

    def _send(self, answer: Response) -> None:
        data = b"" if self.command == "HEAD" else answer.get_data()
        announced = answer.headers.setdefault("Content-Length", str(len(data)))
        self.send_response(answer.status_code)
        for key, value in answer.headers:
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
        # A body shorter than announced: only the end of the connection tells.
        self.close_connection = self.close_connection or (self.command != "HEAD" and int(announced) > len(data))

    def log(self, *_: Any, **__: Any) -> None:
        """What was called is in the record."""


def loopback_server(port: int, app: Any) -> BaseWSGIServer:
    return make_server("127.0.0.1", port, app, threaded=True, request_handler=Handler)
