"""The real server as a subprocess, on a unix socket, below a temporary DYNABENCH_ROOT."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import h11
import pytest
import uvicorn

from tests.builds.conformance import ENTAILED, NLI, check_batching, check_server, json_lines, objects_in
from tests.builds.serving import RUNTIME, Server, answers

RAINING = {"uid": "g", "context": "It is raining.", "hypothesis": "Rain falls."}
SIGNATURE = "ddfd069d4da289d1bf33080fd19bedd2331daf7c"
SIGNATURE_WITH_SECRET = "fb66b2558dc9eb9b866582f1d9768d2197ea5f5e"


@pytest.fixture
def server():
    with tempfile.TemporaryDirectory(prefix="dyb") as folder:  # a socket's path is at most 107 bytes long
        server = Server(Path(folder))
        yield server
        if server.process:
            server.process.kill()
            server.process.communicate()


def test_a_template_handler_passes_the_conformance_suite(server):
    check_server(server.serve("nli"))


def test_a_batching_handler_passes_the_conformance_suite(server):
    check_batching(server.serve("batching", torchserve_config={"decode_input_request": False}))


def test_many_lines_get_one_line_each_in_order(server):
    client = server.serve("nli")
    examples = [{**ENTAILED, "uid": f"u{n}"} for n in range(300)]

    found = answers(client, *examples)

    assert [a["id"] for a in found] == [e["uid"] for e in examples]


def test_many_lines_are_recognised_without_their_content_type(server):
    client = server.serve("nli")

    status, body = client.invoke(json_lines([NLI, ENTAILED]))

    assert (status, [json.loads(line)["id"] for line in body.splitlines()]) == (200, ["a-1", "a-2"])


def test_one_answer_is_one_line(server):
    client = server.serve("nli")

    _, body = client.invoke(json.dumps(NLI, indent=4))

    assert b"\n" not in body


def test_torchserves_own_address_answers_too(server):
    client = server.serve("nli")

    assert client.request("POST", "/predictions/ts7-nli", json.dumps(NLI))[0] == 200
    assert client.request("POST", "/predictions/other", json.dumps(NLI))[0] == 404


def test_signature_of_the_newer_generation_equals_the_reference(server):
    client = server.serve("nli")

    (answer,) = answers(client, {**RAINING, "context": "Rain falls. It is raining."})
    assert answer["label"] == "entailed"

    assert sign_in_shims("from dynalab.tasks.task_io import TaskIO; t = TaskIO('nli')", server.code) == [
        SIGNATURE,
        SIGNATURE_WITH_SECRET,
    ]


def test_signature_of_the_older_generation_equals_the_reference(server):
    client = server.serve("first_generation")

    (answer,) = answers(client, RAINING)

    # The golden value is over the same texts: uid and id are not signed.
    assert answer == {"id": "g", "label": "entailed", "signed": answer["signed"]}
    assert answer["signed"] == SIGNATURE
    assert sign_in_shims("from dynalab.tasks.nli import TaskIO; t = TaskIO()", server.code)[1] == SIGNATURE_WITH_SECRET


def sign_in_shims(preamble, code):
    """Signatures of the reference's example with the empty secret and with its own."""
    root = code.parents[2]
    script = f"""{preamble}
data, answer = {RAINING!r}, {{"id": "g", "label": "entailed"}}
print(t.generate_response_signature(answer, data), t.generate_response_signature(answer, data, "s3cr3t"))"""
    environment = {"PYTHONPATH": str(RUNTIME / "shims"), "DYNABENCH_ROOT": str(root)}
    return subprocess.check_output([sys.executable, "-c", script], env=environment, text=True).split()


@pytest.mark.parametrize("task", ["nli", "qa", "sentiment", "hs", "flores_full", "flores_small1", "flores_small2"])
def test_every_task_of_the_older_generation_signs_and_verifies_its_own_fields(task):
    script = f"""
from dynalab.tasks.{task} import TaskIO
t = TaskIO()
data = {{"uid": 1, **{{k: k for k in t.input_keys}}}}
answer = t.sign_response({{"id": 1, **{{k: k for k in t.output_keys}}}}, data)
t.verify_response(answer, data)
print(t.task)
try:
    t.verify_response({{**answer, "more": 1}}, data)
except AssertionError as error:
    print("more" in str(error))"""
    environment = {"PYTHONPATH": str(RUNTIME / "shims")}

    found = subprocess.check_output([sys.executable, "-c", script], env=environment, text=True).split()

    assert found == [task.partition("_")[0], "True"]


def test_a_task_without_config_says_where_it_looked(server):
    script = "from dynalab.tasks.task_io import TaskIO; TaskIO('nope')"
    environment = {"PYTHONPATH": str(RUNTIME / "shims")}

    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)

    assert "No task io found. Looked for ./.dynalab/nope.json and /home/model-server/code/nope.json" in found.stderr


def test_a_class_with_initialize_and_handle_serves(server):
    client = server.serve("class_style")

    assert answers(client, NLI) == [{"id": "a-1", "label": "ts7-nli"}]


def test_ping_shows_the_users_traceback_when_an_import_fails(server):
    server.pack("import_error")
    client = server.start()

    status, body = client.wait_until_loaded()

    text = body.decode()
    assert status == 500
    assert "No module named 'a_package_nobody_installed'" in text
    assert text.splitlines()[1].strip() == f'File "{server.model}/handler.py", line 1, in <module>'
    assert client.invoke(json.dumps(NLI)) == (500, body)
    assert "a_package_nobody_installed" in server.log()


def test_a_handler_without_entry_point_is_told_what_it_needs(server):
    server.pack("nli")
    (server.model / "handler.py").write_text("x = 1\n")
    client = server.start()

    assert client.wait_until_loaded() == (
        500,
        b"handler.py needs a function handle(data, context), "
        b"or exactly one class with initialize and handle (found: none).",
    )


def test_ping_says_loading_until_the_model_has_loaded(server):
    server.pack("slow_load")
    client = server.start()

    assert client.wait_until_listening() == (503, b'{"status":"Loading"}')
    assert client.invoke(json.dumps(NLI))[0] == 503

    (server.model / "go").touch()
    assert client.wait_until_loaded()[0] == 200


def test_ping_answers_while_the_handler_works(server):
    server.pack("slow_load")
    (server.model / "go").touch()
    client = server.start()
    client.wait_until_loaded()
    found = []
    waiting = threading.Thread(target=lambda: found.extend(answers(client, {**NLI, "hypothesis": "wait"})))

    waiting.start()
    assert [client.ping()[0] for _ in range(5)] == [200] * 5
    assert found == []

    (server.model / "answer").touch()
    waiting.join(10)
    assert [a["id"] for a in found] == ["a-1"]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ("raise", "ValueError: I do not like this one"),
        ("exit", "SystemExit: 3"),
        ("none", "must return a list with one element; it returned NoneType None"),
        ("dict", "must return a list with one element; it returned dict"),
        ("two", "must return a list with one element; it returned a list of 2"),
        ("text", "The answer is text but not JSON: 'not JSON'"),
        ("number", "An answer must be a dict with id"),
        ("nan", "not valid JSON: Out of range float values"),
        ("infinity", "not valid JSON: Out of range float values"),
        ("surrogate", "surrogates not allowed"),
        ("set", "not valid JSON: Object of type set"),
    ],
)
def test_a_bad_answer_becomes_an_error_line_and_the_others_go_on(server, wish, message):
    client = server.serve("misbehaving")

    before, bad, after = answers(client, {**NLI, "uid": 1}, {**NLI, "uid": 2, "hypothesis": wish}, {**NLI, "uid": 3})

    assert bad.keys() == {"id", "dynabench_error"}
    assert bad["id"] == 2
    assert message in bad["dynabench_error"]
    assert [before["id"], after["id"]] == [1, 3]
    assert message in server.log()


def test_an_error_line_shows_the_users_line_and_none_of_ours(server):
    client = server.serve("misbehaving")

    (bad,) = answers(client, {**NLI, "hypothesis": "raise"})

    assert 'raise ValueError("I do not like this one")' in bad["dynabench_error"]
    assert "dynabench_runtime" not in bad["dynabench_error"]


def test_an_answer_may_be_json_text_and_is_put_on_one_line(server):
    client = server.serve("misbehaving")

    _, body = client.invoke(json.dumps({**NLI, "hypothesis": "json text"}))

    assert body == b'{"id": "a-1", "label": "neutral"}'


def test_one_bad_line_of_a_batch_leaves_the_others(server):
    client = server.serve("batching", torchserve_config={"decode_input_request": "false"})

    good, bad = answers(client, NLI, {**NLI, "uid": "n", "hypothesis": "NAN"})

    assert good["id"] == "a-1"
    assert bad["id"] == "n"
    assert "not valid JSON" in bad["dynabench_error"]


def test_a_batch_with_a_line_missing_fails_for_every_example(server):
    client = server.serve("batching", torchserve_config={"decode_input_request": False})

    found = answers(client, NLI, {**NLI, "uid": "d", "hypothesis": "DROP"})

    assert [a["id"] for a in found] == ["a-1", "d"]
    assert {a["dynabench_error"] for a in found} == {
        "The handler answered 1 lines to 2 examples; it must answer each once."
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", b"has no example"),
        (b"[1]", b"must be a JSON object, not a list"),
        (b'{"uid": 1}\n{"uid": \n', b"Line 2 of the request is not an example"),
        (b'{"uid": 1}\n3\n', b"Line 2 of the request is not an example: An example must be a JSON object"),
    ],
)
def test_a_bad_request_names_its_line(server, body, message):
    status, text = server.serve("misbehaving").invoke(body)

    assert status == 400
    assert message in text


def test_a_body_at_the_limit_is_read_and_one_byte_more_is_refused(server):
    body = json.dumps(NLI).encode()
    client = server.serve("misbehaving", torchserve_config={"max_request_size": len(body)})

    assert client.invoke(body)[0] == 200
    assert client.invoke(body + b" ")[0] == 413


def test_a_mounted_archive_of_this_image_is_accepted(server):
    server.pack("nli")
    mounted = server.root / "opt/ml/model"
    mounted.mkdir(parents=True)
    shutil.copy(server.root / "model.mar", mounted / "ts7-nli.mar")

    assert server.start().wait_until_loaded()[0] == 200


def test_a_mounted_archive_of_another_image_is_refused(server):
    server.pack("nli")
    mounted = server.root / "opt/ml/model"
    mounted.mkdir(parents=True)
    (mounted / "other.mar").write_bytes(b"another model")

    status, body = server.start().wait_until_loaded()

    assert status == 500
    assert b"other.mar has sha256" in body
    assert b"but this image was built from" in body


def test_the_users_modules_may_have_the_names_of_ours(server):
    (server.code / "server.py").write_text("LABEL = 'mine'\n")
    server.pack("own_modules", "server.py")
    client = server.start()
    client.wait_until_loaded()

    assert answers(client, NLI) == [{"id": "a-1", "label": "mine"}]


def test_the_users_packages_win_over_the_servers(server):
    server.pack("own_modules")
    (server.dynabench / "packages/server").mkdir(parents=True)
    (server.dynabench / "packages/server/__init__.py").write_text("LABEL = 'installed'\n")
    (server.dynabench / "lib/server.py").write_text("LABEL = 'ours'\n")
    client = server.start()
    client.wait_until_loaded()

    assert answers(client, NLI) == [{"id": "a-1", "label": "installed"}]


def test_what_the_handler_prints_goes_to_the_log(server):
    answers(server.serve("nli"), NLI)
    server.process.send_signal(signal.SIGTERM)

    printed, _ = server.process.communicate(timeout=5)

    assert printed == b""
    assert "this must not become part of an answer" in server.log()


@pytest.mark.parametrize("is_loaded", [True, False])
def test_sigterm_ends_it_at_once_whatever_the_handler_does(server, is_loaded):
    server.pack("slow_load")
    if is_loaded:
        (server.model / "go").touch()
    client = server.start()
    client.wait_until_listening()
    if is_loaded:
        client.wait_until_loaded()
        threading.Thread(target=hang, args=(client,), daemon=True).start()

    server.process.send_signal(signal.SIGTERM)

    assert server.process.wait(timeout=5) == 0


def hang(client):
    try:
        client.invoke(json.dumps({**NLI, "hypothesis": "wait"}))
    except OSError:
        pass


def test_the_runtime_imports_nothing_of_the_project():
    sources = [path.read_text() for path in RUNTIME.rglob("*.py")]

    assert not [s for s in sources if "django" in s.lower() or "import builds" in s or "from builds" in s]


def test_pinned_requirements_are_those_it_is_tested_with():
    pinned = dict(line.split("==") for line in (RUNTIME / "requirements.txt").read_text().splitlines()[1:4])

    assert pinned["uvicorn"] == uvicorn.__version__
    assert pinned["h11"] == h11.__version__


def test_an_unknown_command_is_refused():
    found = subprocess.run([sys.executable, RUNTIME / "serve.py", "train"], capture_output=True, env={**os.environ})

    assert (found.returncode, found.stderr) == (1, b"usage: serve.py serve\n")


def test_printed_objects_over_many_lines_are_read_one_by_one():
    assert objects_in(b'{\n "a": 1\n}\n{"a": 2}') == [{"a": 1}, {"a": 2}]
