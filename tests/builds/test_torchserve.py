"""The same model folders served by the real TorchServe, in a container that is isolated as in production."""

import json
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from builds import torchserve_image
from tests.builds.conformance import ACCENTS, ENTAILED, NLI, check_batching, check_server
from tests.builds.serving import Server, TorchServe, answers

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
WISHES = ["none", "raise", "dict", "two", "text", "number", "nan", "infinity", "surrogate", "set", "json text", "exit"]
# Ends a front that is not process 1, so that nothing but the front itself ends TorchServe; prints who is left.
END_THE_FRONT = """
import os, pathlib, signal, time
def running():
    lines = {p.name: (p / "cmdline").read_bytes().split(b"\\0") for p in pathlib.Path("/proc").glob("[0-9]*")}
    return {pid: line[:2] for pid, line in lines.items() if line[0]}
front = next(pid for pid, line in running().items() if line[1:] == [b"/opt/dynabench/runtime/serve.py"])
assert any(line[0] == b"java" for line in running().values())
os.kill(int(front), signal.SIGTERM)
time.sleep(2)
print(sorted(line[0].decode() for line in running().values()))
"""
LISTENING = """
import pathlib
lines = [line.split() for name in ("tcp", "tcp6") for line in pathlib.Path("/proc/net", name).read_text().splitlines()]
addresses = {line[1].rpartition(":")[0] for line in lines if line[3] == "0A"}
print(addresses - {"0100007F", "0" * 24 + "01000000", "0000000000000000FFFF00000100007F"})
"""


@pytest.fixture(scope="module", autouse=True)
def _image():
    torchserve_image.ensure(print)


@pytest.fixture
def root():
    with tempfile.TemporaryDirectory(prefix="dyb") as folder:  # a socket's path is at most 107 bytes long
        yield Path(folder)


@pytest.fixture
def torchserve(root):
    server = TorchServe(root / "torchserve")
    yield server
    subprocess.run(["docker", "rm", "--force", server.name], capture_output=True)
    if server.process:
        server.process.communicate()


@pytest.fixture
def asgi(root):
    server = Server(root / "asgi")
    yield server
    if server.process:
        server.process.kill()
        server.process.communicate()


def told(server, *examples):
    """The answers, with the server's root taken out of tracebacks."""
    return json.loads(json.dumps(answers(server.client, *examples)).replace(str(server.root), ""))


@pytest.mark.parametrize("handler", ["nli", "first_generation", "class_style", "own_modules"])
def test_it_conforms_and_answers_as_our_own_server_does(torchserve, asgi, handler):
    examples = [NLI, ENTAILED, ACCENTS, *({**ENTAILED, "uid": n} for n in range(100))]
    for server in (torchserve, asgi):
        (server.code / "server.py").write_text("LABEL = 'mine'\n")
        server.serve(handler, "server.py")

    assert told(torchserve, *examples) == told(asgi, *examples)
    if handler == "nli":
        check_server(torchserve.client)
        assert torchserve.client.request("POST", "/predictions/ts7-nli", json.dumps(NLI))[0] == 200
        assert "this must not become part of an answer" in torchserve.log()


def test_a_batching_handler_gets_all_lines_and_the_tasks_limit_counts(torchserve):
    body_limit = 1000
    config = {"decode_input_request": False, "max_request_size": body_limit}
    client = torchserve.serve("batching", torchserve_config=config)

    check_batching(client)
    good, bad = answers(client, NLI, {**NLI, "uid": "n", "hypothesis": "NAN"})
    assert "not valid JSON" in bad["dynabench_error"]
    assert client.invoke(b" " * (body_limit + 1))[0] == 413


def test_bad_answers_become_the_error_lines_of_our_own_server(torchserve, asgi):
    examples = [{**NLI, "uid": wish, "hypothesis": wish} for wish in WISHES]
    for server in (torchserve, asgi):
        server.serve("misbehaving")

    found = told(torchserve, *examples)

    assert found == told(asgi, *examples)
    assert told(torchserve, {}) == told(asgi, {})
    assert [line["id"] for line in found if "dynabench_error" in line] == [w for w in WISHES if w != "json text"]


def test_a_process_that_ends_or_answers_too_late_costs_one_example(torchserve):
    client = torchserve.serve("misbehaving", torchserve_config={"default_response_timeout": 2})

    found = answers(client, *({**NLI, "uid": wish, "hypothesis": wish} for wish in ["a", "die", "b", "sleep", "c"]))

    assert [line["id"] for line in found if "label" in line] == ["a", "b", "c"]
    assert all("default_response_timeout" in line["dynabench_error"] for line in (found[1], found[3]))


def test_want_of_memory_ends_the_server(torchserve):
    client = torchserve.serve("misbehaving")

    with pytest.raises(OSError):
        client.invoke(json.dumps({**NLI, "hypothesis": "hoard"}))

    assert torchserve.process.wait(30) == 137
    assert "killed for want of memory" in torchserve.log()


def test_ping_shows_the_users_traceback_when_an_import_fails(torchserve, asgi):
    shown = []
    for server in (torchserve, asgi):
        server.pack("import_error")
        status, body = server.start().wait_until_loaded()
        shown.append((status, body.decode().replace(str(server.root), "")))

    assert shown[0] == shown[1]
    assert shown[0][0] == 500
    assert torchserve.client.invoke(json.dumps(NLI))[0] == 500


def test_a_handler_that_ends_the_process_while_loading_is_reported(torchserve):
    torchserve.pack("dies_at_load")
    client = torchserve.start()

    assert client.wait_until_loaded() == (
        500,
        b"The model's process ended while the model was loading; the log says more.",
    )
    assert "out of luck" in torchserve.log()


def test_ping_says_loading_until_the_model_has_loaded_and_answers_while_it_works(torchserve):
    torchserve.pack("slow_load")
    client = torchserve.start()
    assert client.wait_until_listening() == (503, b'{"status":"Loading"}')
    assert client.invoke(json.dumps(NLI))[0] == 503
    (torchserve.model / "go").touch()
    assert client.wait_until_loaded()[0] == 200
    found = []
    asking = threading.Thread(target=lambda: found.extend(answers(client, {**NLI, "hypothesis": "wait"})))

    asking.start()
    assert [client.ping()[0] for _ in range(5)] == [200] * 5
    assert found == []

    (torchserve.model / "answer").touch()
    asking.join(30)
    assert [line["id"] for line in found] == ["a-1"]


def test_a_mounted_archive_of_another_image_is_refused(torchserve):
    torchserve.pack("nli")
    (torchserve.root / "opt/ml/model").mkdir(parents=True)
    (torchserve.root / "opt/ml/model/other.mar").write_bytes(b"another model")

    status, body = torchserve.start().wait_until_loaded()

    assert status == 500
    assert b"other.mar has sha256" in body


def test_nothing_of_it_listens_beyond_loopback(torchserve):
    torchserve.serve("nli")

    assert torchserve.inside("python3", "-c", LISTENING) == "set()\n"


def test_sigterm_ends_it_at_once_while_it_loads(torchserve):
    torchserve.pack("slow_load")
    torchserve.start().wait_until_listening()

    torchserve.process.send_signal(signal.SIGTERM)

    assert torchserve.process.wait(timeout=15) == 0


def test_sigterm_leaves_no_java_process(torchserve):
    torchserve.pack("nli")
    torchserve.start(entrypoint=["sh", "-c", "python3 /opt/dynabench/runtime/serve.py serve; sleep 60"])
    assert torchserve.client.wait_until_loaded()[0] == 200

    assert torchserve.inside("python3", "-c", END_THE_FRONT) == "['python3', 'sh', 'sleep']\n"


def test_the_packages_of_the_gpu_flavour_can_be_had(tmp_path):
    """What pip would take, from the index's metadata: several gigabytes that are not fetched here."""
    report, sources = tmp_path / "report.json", torchserve_image.sources(gpu=True)
    argv = ["pip", "install", "--dry-run", "--quiet", "--only-binary=:all:", "--report", str(report)]
    argv += ["--target", str(tmp_path / "none"), *sources, "-r", str(torchserve_image.REQUIREMENTS)]

    subprocess.run([sys.executable, "-m", *argv], check=True, timeout=400, capture_output=True)

    taken = {
        item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(report.read_text())["install"]
    }
    assert "+cpu" not in taken["torch"]
    assert any(name.startswith("nvidia-cudnn") for name in taken)
