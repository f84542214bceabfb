"""What every model server must do, whatever it is built from and wherever it runs.

`check_server` needs the handler `handlers/nli.py`, `check_batching` needs `handlers/batching.py`.
"""

import http.client
import json
import socket
import time
from dataclasses import dataclass

READY_SECONDS = 20
NLI = {"uid": "a-1", "context": "It is raining.", "hypothesis": "It rains."}
ENTAILED = {"uid": "a-2", "context": "It is raining.", "hypothesis": "raining"}
ACCENTS = {"uid": "é\u2028日", "context": "naïve \u2028 日本", "hypothesis": "日本"}


class UnixConnection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.host)


@dataclass(frozen=True)
class Client:
    """Talks HTTP to a unix socket (`address` starts with `/`) or to `host:port`."""

    address: str
    timeout: float = 30
    ready_seconds: float = READY_SECONDS

    def request(self, method, path, body=None, content_type="application/json"):
        """Status and body of one request."""
        kind = UnixConnection if self.address.startswith("/") else http.client.HTTPConnection
        connection = kind(self.address, timeout=self.timeout)
        try:
            connection.request(method, path, body, {"Content-Type": content_type} if body is not None else {})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def ping(self):
        return self.request("GET", "/ping")

    def invoke(self, body, content_type="application/json"):
        return self.request("POST", "/invocations", body, content_type)

    def wait_until_listening(self):
        """The first answer of `/ping`."""
        return self._poll(lambda status: True)

    def wait_until_loaded(self):
        """The first answer of `/ping` that is not "loading"."""
        return self._poll(lambda status: status != 503)

    def _poll(self, is_enough):
        give_up = time.monotonic() + self.ready_seconds
        while time.monotonic() < give_up:
            try:
                status, body = self.ping()
            except OSError:
                status, body = 503, b""
            else:
                if is_enough(status):
                    return status, body
            time.sleep(0.02)
        raise AssertionError(f"no answer within {self.ready_seconds} s, last {status}: {body!r}")


def json_lines(examples):
    return "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in examples).encode()


def objects_in(body):
    """The JSON objects of a body, over one line each or (TorchServe prints so) over many."""
    text, found = body.decode().strip(), []
    while text:
        value, end = json.JSONDecoder().raw_decode(text)
        found.append(value)
        text = text[end:].strip()
    return found


def check_server(client):
    """The contract that batch inference relies on."""
    check_healthy(client)
    check_one_example(client)
    check_answers_do_not_depend_on_order(client)
    check_text_survives(client)
    check_unknown_address(client)
    check_still_healthy_after_nonsense(client)


def check_healthy(client):
    status, body = client.wait_until_loaded()
    assert (status, json.loads(body)) == (200, {"status": "Healthy"})


def check_one_example(client):
    status, body = client.invoke(json.dumps(NLI))
    (answer,) = objects_in(body)
    assert status == 200
    assert answer["id"] == "a-1"
    assert answer["label"] == "neutral"
    assert set(answer) == {"id", "label", "signature"}


def check_answers_do_not_depend_on_order(client):
    def ask(*examples):
        return [objects_in(client.invoke(json.dumps(e))[1])[0] for e in examples]

    assert ask(NLI, ENTAILED) == ask(ENTAILED, NLI)[::-1]


def check_text_survives(client):
    _, body = client.invoke(json.dumps(ACCENTS, ensure_ascii=False).encode())
    (answer,) = objects_in(body)
    assert answer["id"] == ACCENTS["uid"]


def check_unknown_address(client):
    assert client.request("GET", "/nothing-here")[0] in {404, 405}


def check_still_healthy_after_nonsense(client):
    assert client.invoke(b'{"uid": ')[0] >= 400
    check_one_example(client)


def check_batching(client):
    """`decode_input_request` false: one call for all lines, one line for each, in order."""
    assert client.wait_until_loaded()[0] == 200
    examples = [NLI, ACCENTS, ENTAILED]

    status, body = client.invoke(json_lines(examples), "application/jsonlines")

    assert status == 200
    assert objects_in(body) == [{"id": e["uid"], "label": e["hypothesis"], "of": 3} for e in examples]
