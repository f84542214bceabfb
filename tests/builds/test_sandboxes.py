"""Each test performs the attack and finds that it failed and that the host is clean."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from builds import sandboxes
from builds.sandboxes import by_name, folder
from builds.sandboxes.policy import Command, LimitExceeded, NoSandbox, SandboxError, SandboxPolicy
from builds.sandboxes.supervised import mark_of

DOCKER = pytest.param("docker", marks=pytest.mark.docker)
BWRAP = pytest.param("bwrap", marks=pytest.mark.bwrap)
ISOLATING = pytest.mark.parametrize("sandbox", [DOCKER, BWRAP], indirect=True)
EVERY = pytest.mark.parametrize("sandbox", [DOCKER, BWRAP, "process"], indirect=True)
ON_FOLDERS = pytest.mark.parametrize("sandbox", [BWRAP, "process"], indirect=True)

ROOT = Path(__file__).resolve().parents[2]
POLICY = SandboxPolicy(memory_mb=256, pids=40, cpu_seconds=20, deadline=20, tmpfs_mb=16, disk_mb=64, log_cap=100_000)
JOB = "test-job"
SERVER = """
import os, socketserver
from http.server import BaseHTTPRequestHandler
class Server(socketserver.UnixStreamServer):
    def get_request(self):
        return super().get_request()[0], ("local", 0)
class Ping(BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "written"), "w"):
                body = b"wrote to the image"
        except OSError:
            body = b"healthy"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = Server(os.environ["DYNABENCH_SOCKET"], Ping)
os.chmod(os.environ["DYNABENCH_SOCKET"], 0o666)
print("listening", flush=True)
server.serve_forever()
"""


@pytest.fixture(autouse=True)
def var(settings, tmp_path):
    settings.VAR = tmp_path / "var"
    settings.VAR.mkdir()
    return settings.VAR


@pytest.fixture
def sandbox(request, var):
    return by_name(request.param)


@pytest.fixture
def stage(var):
    root = var / "stage"
    for inside in ("opt/dynabench/runtime", "opt/dynabench/packages", "home/model-server/code"):
        (root / inside).mkdir(parents=True)
    (root / "opt/dynabench/runtime/serve.py").write_text(SERVER)
    return root


@pytest.fixture
def attack(sandbox, stage):
    """Runs a script in the sandbox: (exit code, output)."""

    def run(script, policy=POLICY, **options):
        log = bytearray()
        command = Command(["python3", "-c", textwrap.dedent(script)], stage, **options)
        code = sandbox.run(command, policy=policy, log=log.extend, name=JOB)
        return code, log.decode()

    return run


def left_of_job(name=JOB):
    return [process.pid for process in psutil.process_iter() if folder.marked_job(mark_of(process) or "") == name]


def containers():
    """The containers of this test's own installation; other tests have theirs at the same time."""
    shown = ["--filter", "label=dyna.job", "--format", '{{.ID}} {{.Label "dyna.job"}}']
    found = subprocess.run(["docker", "ps", "-a", *shown], capture_output=True, check=False, text=True)
    return {line for line in found.stdout.splitlines() if folder.installation() in line}


def processes_of_nobody():
    found = psutil.process_iter(["uids"])
    return [process.pid for process in found if process.info["uids"] and process.info["uids"].real == 65534]


def gone(question, seconds=5):
    until = time.monotonic() + seconds
    while question() and time.monotonic() < until:
        time.sleep(0.05)
    return not question()


@EVERY
def test_a_command_works_on_the_stage_and_reports_its_exit_code(attack, stage):
    code, output = attack("""
        import os, sys
        print(os.path.isdir(os.environ["TMPDIR"]), open(os.environ["TMPDIR"] + "/t", "w").write("x"))
        sys.exit(7)
    """)

    assert (code, output) == (7, "True 1\n")
    assert not list(stage.parent.glob(".scratch-*"))


@EVERY
def test_in_image_paths_and_extra_mounts_are_seen(attack, stage, tmp_path):
    (tmp_path / "extra").mkdir(mode=0o755)
    (tmp_path / "extra" / "note").write_text("hello")

    code, output = attack(
        'open("/opt/dynabench/packages/made", "w").write(open("/opt/dynabench-build/extra/note").read())',
        mounts={tmp_path / "extra": "/opt/dynabench-build/extra"},
    )

    assert (code, output) == (0, "")
    assert (stage / "opt/dynabench/packages/made").read_text() == "hello"


@ISOLATING
def test_no_network_is_reached(attack):
    with socket.create_server(("0.0.0.0", 0)) as canary:
        canary.settimeout(0.2)
        port = canary.getsockname()[1]

        code, output = attack(f"""
            import socket
            for host in ("127.0.0.1", "172.17.0.1", "{own_address()}", "169.254.169.254", "192.0.2.1"):
                try:
                    socket.create_connection((host, {port}), 1)
                    print("reached", host)
                except OSError:
                    pass
        """)

        with pytest.raises(TimeoutError):
            canary.accept()
    assert (code, output) == (0, "")


def own_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]


@EVERY
def test_our_environment_does_not_get_in(attack, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-4711")

    _, output = attack("import os; print(dict(os.environ))")

    assert "canary" not in output
    assert "AWS_" not in output


@ISOLATING
def test_no_process_inside_tells_our_environment(sandbox, stage, var, tmp_path):
    script = """
        import glob
        for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
            try:
                print(open(path).read())
            except OSError as error:
                print(error)
    """
    program = f"""
command = Command(["python3", "-c", {textwrap.dedent(script)!r}], Path({str(stage)!r}))
sandbox.run(command, policy=SandboxPolicy(), log=sys.stdout.buffer.write, name={JOB!r})
"""

    command, env = child(sandbox, var, program, CANARY="canary-4711")
    done = subprocess.run(command, env=env, capture_output=True, check=True)

    assert b"LANG=" in done.stdout or b"PYTHONUNBUFFERED=" in done.stdout
    assert b"canary" not in done.stdout


@ISOLATING
def test_nothing_is_written_outside(attack, stage):
    (stage / "opt/dynabench/image.json").write_text("{}")

    code, output = attack("""
        import os
        for path in ("/x", "/etc/x", "/usr/x", "/root/x", "/var/x", "/dev/x", "/proc/sys/kernel/core_pattern",
                     "/opt/dynabench/runtime/serve.py", "/opt/dynabench/image.json", "/home/model-server/x"):
            try:
                open(path, "w").write("x")
                print("wrote", path)
            except OSError:
                pass
        for path in ("/opt/dynabench/packages/p", "/home/model-server/code/c", "/tmp/t"):
            open(path, "w").write("x")
    """)

    assert (code, output) == (0, "")
    assert (stage / "opt/dynabench/runtime/serve.py").read_text() == SERVER
    assert (stage / "home/model-server/code/c").exists()


@ISOLATING
def test_it_is_nobody_without_capabilities_and_our_files_are_hidden(attack, var):
    code, output = attack(f"""
        import json, os
        status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
        print(json.dumps({{
            "uid": os.getuid(), "gid": os.getgid(), "groups": [g for g in os.getgroups() if g != os.getgid()],
            "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapInh"], 16),
            "new_privileges": int(status["NoNewPrivs"]),
            "seen": [p for p in ("/var/run/docker.sock", "/run/docker.sock", "/etc/shadow", "{ROOT}", "{var}")
                     if os.access(p, os.R_OK)],
        }}))
    """)

    expected = {"uid": 65534, "gid": 65534, "groups": [], "capabilities": 0, "new_privileges": 1, "seen": []}
    assert code == 0
    assert json.loads(output) == expected


@ISOLATING
def test_a_fork_bomb_is_stopped(attack):
    with pytest.raises(LimitExceeded, match="more than 40 processes|within 4 s"):
        attack(
            """
            import os
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
            """,
            SandboxPolicy(memory_mb=1024, pids=40, deadline=4),
        )

    assert gone(left_of_job)
    assert gone(lambda: len(processes_of_nobody()) >= 20), "of the forty that it was allowed"


@ON_FOLDERS
def test_too_many_processes_are_named_as_the_reason(attack):
    with pytest.raises(LimitExceeded, match="more than 10 processes"):
        attack(
            """
            import os, time
            for _ in range(15):
                if os.fork() == 0:
                    break
            time.sleep(30)
            """,
            SandboxPolicy(memory_mb=2048, pids=10, deadline=20),
        )

    assert gone(left_of_job)


@EVERY
def test_a_memory_bomb_is_stopped_with_its_reason(attack):
    with pytest.raises(LimitExceeded, match="more than 100 MiB of memory"):
        attack(
            """
            import time
            kept = []
            while True:
                kept.append(bytearray(b"x" * 5_000_000))
                time.sleep(0.02)
            """,
            SandboxPolicy(memory_mb=100, deadline=20),
        )

    assert gone(left_of_job)


@EVERY
def test_an_output_flood_is_capped_and_says_so(attack):
    _, output = attack("""
        import sys
        for _ in range(50):
            sys.stdout.write("x" * 1_000_000)
    """)

    assert output.startswith("x" * POLICY.log_cap)
    assert output.endswith("... 47 MiB of output dropped\n")
    assert len(output) < POLICY.log_cap + 100


@EVERY
def test_the_deadline_kills_also_what_hides(attack):
    started = time.monotonic()

    with pytest.raises(LimitExceeded, match="within 1.5 s"):
        attack(
            """
            import os, signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork() == 0:
                os.setsid()
                if os.fork():
                    os._exit(0)
            time.sleep(60)
            """,
            SandboxPolicy(deadline=1.5),
        )

    assert time.monotonic() - started < 10
    assert gone(left_of_job)


@ON_FOLDERS
def test_processor_time_is_limited(attack):
    with pytest.raises(LimitExceeded, match="processor time"):
        attack("while True: pass", SandboxPolicy(cpu_seconds=1, deadline=15))


@EVERY
def test_filling_the_disk_is_stopped(attack):
    with pytest.raises(LimitExceeded, match="more than 10 MiB"):
        attack(
            """
            import os, time
            for number in range(1000):
                open(os.environ["TMPDIR"] + f"/{number}", "wb").write(b"x" * 1_000_000)
                time.sleep(0.05)
            """,
            SandboxPolicy(disk_mb=10, deadline=30),
        )


@EVERY
def test_nesting_folders_does_not_blind_the_disk_watch(attack):
    with pytest.raises(LimitExceeded, match="nested too deeply|wrote more than"):
        attack(
            """
            import os, time
            os.chdir(os.environ["TMPDIR"])
            for _ in range(3000):
                os.mkdir("deep")
                os.chdir("deep")
            time.sleep(30)
            """,
            SandboxPolicy(disk_mb=10, deadline=30),
        )


@ISOLATING
def test_memory_file_systems_are_small(attack):
    _, output = attack("""
        for folder in ("/tmp", "/dev/shm"):
            try:
                open(folder + "/big", "wb").write(b"x" * 70_000_000)
            except OSError:
                print("refused")
    """)

    assert output == "refused\nrefused\n"


def ping(server):
    connection = http.client.HTTPConnection("localhost")
    until = time.monotonic() + 10
    while True:
        try:
            connection.sock = server.connect(timeout=5)
            break
        except OSError:
            assert time.monotonic() < until, server.failure() or server.log_tail()
            time.sleep(0.05)
    connection.request("GET", "/ping")
    return connection.getresponse().read()


@EVERY
def test_an_image_is_packed_served_and_removed(sandbox, stage):
    image = sandbox.pack(stage, name="ts1", labels={"dynabench.archive": "0" * 64})
    try:
        with sandbox.serve(image, policy=POLICY, name=JOB) as server:
            answer = ping(server)
            time.sleep(0.2)
            memory, tail, is_alive, failure = server.peak_memory(), server.log_tail(), server.alive(), server.failure()
    finally:
        sandbox.remove(image)

    assert answer == b"healthy" or sandbox.name == "process"
    assert 1_000_000 < memory < 256 * 1024**2
    assert "listening" in tail
    assert is_alive
    assert failure is None
    assert not stage.exists()
    assert gone(left_of_job)
    assert not server.socket.exists()
    with pytest.raises(SandboxError, match="not on this host"), sandbox.serve(image, policy=POLICY, name=JOB):
        pass
    sandbox.remove(image)


@EVERY
def test_a_server_that_ends_or_is_late_says_why(sandbox, stage):
    (stage / "opt/dynabench/runtime/serve.py").write_text("import os, time; time.sleep(1.2); os._exit(3)")
    image = sandbox.pack(stage, name="ts2", labels={})
    try:
        with sandbox.serve(image, policy=POLICY, name=JOB) as ending:
            assert gone(ending.alive)
            assert ending.failure() == "It ended with exit code 3."
        with sandbox.serve(image, policy=SandboxPolicy(deadline=0.5), name=JOB) as late:
            assert gone(late.alive)
            assert gone(lambda: late.failure() != "It did not finish within 0.5 s and was stopped.")
    finally:
        sandbox.remove(image)


@pytest.mark.docker
def test_a_docker_image_is_complete_and_tells_no_secret(stage, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-4711")
    sandbox = by_name("docker")
    image = sandbox.pack(stage, name="ts3", labels={"dynabench.archive": "0" * 64})
    try:
        seen = subprocess.run(["docker", "inspect", image], capture_output=True, text=True, check=True).stdout
        seen += subprocess.run(
            ["docker", "history", "--no-trunc", image], capture_output=True, text=True, check=True
        ).stdout
        config = json.loads(seen[: seen.rindex("]\n") + 1])[0]["Config"]
    finally:
        sandbox.remove(image)

    assert "canary" not in seen
    assert config["Entrypoint"] == ["python3", "/opt/dynabench/runtime/serve.py"]
    assert config["Cmd"] == ["serve"]
    assert "8080/tcp" in config["ExposedPorts"]
    assert config["Labels"]["dynabench.archive"] == "0" * 64


def child(sandbox, var, program, **env):
    """A worker of this installation that runs `program`: its command and environment."""
    code = f"""
import sys, django
django.setup()
from pathlib import Path
from builds.sandboxes import by_name
from builds.sandboxes.policy import Command, SandboxPolicy
sandbox = by_name({sandbox.name!r})
{program}
"""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("DJANGO")}
    settings = {"DJANGO_SETTINGS_MODULE": "dynabench_site.settings", "DYNABENCH_VAR": str(var), "PYTHONPATH": str(ROOT)}
    return [sys.executable, "-c", code], inherited | settings | env


@EVERY
def test_what_a_killed_worker_leaves_is_swept(sandbox, stage, var):
    before = containers()
    image = sandbox.pack(stage, name="ts4", labels={})
    program = f"""
with sandbox.serve({image!r}, policy=SandboxPolicy(), name={JOB!r}) as server:
    print("started", flush=True)
    import time; time.sleep(60)
"""
    command, env = child(sandbox, var, program)
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as worker:
        assert worker.stdout.readline() == b"started\n"
        worker.send_signal(signal.SIGKILL)

    spared = sandbox.sweep(live={JOB})
    swept = sandboxes.sweep(live=())
    sandbox.remove(image)

    assert spared == []
    assert swept == [JOB]
    assert gone(left_of_job)
    assert containers() == before
    assert folder.sweep_folders(live=()) == []


def test_equal_stages_are_one_folder_image(stage, var):
    sandbox = by_name("process")
    twin = var / "twin"
    subprocess.run(["cp", "-r", stage, twin], check=True)

    first = sandbox.pack(stage, name="a", labels={})
    second = sandbox.pack(twin, name="b", labels={})

    assert first == second
    assert not twin.exists()
    assert [path.name for path in (var / "images").iterdir()] == [first.removeprefix("sha256:")]
    assert (var / "images" / first.removeprefix("sha256:") / "opt").stat().st_mode & 0o777 == 0o555


def test_every_changed_byte_mode_and_link_is_another_digest(stage):
    digests = {folder.digest_of(stage)}
    serve = stage / "opt/dynabench/runtime/serve.py"

    serve.write_text("other")
    digests.add(folder.digest_of(stage))
    serve.chmod(0o755)
    digests.add(folder.digest_of(stage))
    (stage / "opt/link").symlink_to("/etc/passwd")
    digests.add(folder.digest_of(stage))

    assert len(digests) == 4


def test_packing_follows_no_link_and_keeps_no_special_file(stage, tmp_path):
    guarded = tmp_path / "guarded"
    guarded.write_text("secret")
    guarded.chmod(0o600)
    packages = stage / "opt/dynabench/packages"
    (packages / "link").symlink_to(guarded)
    (packages / "folder").symlink_to(tmp_path)
    os.mkfifo(packages / "pipe")
    mode_before = tmp_path.stat().st_mode
    (packages / "setuid").write_text("x")
    (packages / "setuid").chmod(0o6777)

    folder.seal(stage)

    assert guarded.stat().st_mode & 0o777 == 0o600
    assert tmp_path.stat().st_mode == mode_before
    assert not (packages / "pipe").exists()
    assert (packages / "setuid").stat().st_mode & 0o7777 == 0o755


def test_folders_nested_without_end_are_refused_and_removed(stage):
    subprocess.run(["python3", "-c", DEEP], cwd=stage / "opt/dynabench/packages", check=True)

    with pytest.raises(LimitExceeded, match="nested too deeply"):
        folder.seal(stage)
    folder.erase(stage)

    assert not stage.exists()


DEEP = """
import os
for _ in range(3000):
    os.mkdir("deep")
    os.chdir("deep")
"""


def test_a_link_in_place_of_the_socket_is_not_followed(tmp_path):
    with socket.socket(socket.AF_UNIX) as real:
        real.bind(str(tmp_path / "engine.sock"))
        real.listen()
        folder.connect(tmp_path / "engine.sock", timeout=1).close()
        (tmp_path / "model.sock").symlink_to(tmp_path / "engine.sock")

        with pytest.raises(OSError):
            folder.connect(tmp_path / "model.sock", timeout=1)


def test_an_image_name_is_never_a_path():
    with pytest.raises(SandboxError, match="not the digest"):
        by_name("process").remove("sha256:../../etc")


@pytest.fixture
def nothing_installed(monkeypatch, settings, tmp_path):
    """A host with neither docker nor bubblewrap."""
    for tool in ("prlimit", "chmod", "rm"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/absent.sock")
    monkeypatch.setenv("PATH", str(tmp_path))
    settings.SANDBOX = ""
    settings.ALLOW_UNSANDBOXED = False
    sandboxes._chosen.cache_clear()
    yield
    sandboxes._chosen.cache_clear()


def test_an_upload_waits_where_no_sandbox_is_installed(nothing_installed, caplog):
    with pytest.raises(NoSandbox, match="^no sandbox on this host: install docker or bubblewrap$"):
        sandboxes.choose()

    refused = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert [message.split()[1] for message in refused] == ["docker", "bwrap", "process"]
    assert "bwrap is not installed" in refused[1]


def test_our_own_archives_run_where_no_sandbox_is_installed(nothing_installed):
    assert sandboxes.choose(trusted=True).name == "process"


def test_the_operator_may_allow_no_sandbox(nothing_installed, settings):
    settings.ALLOW_UNSANDBOXED = True

    assert sandboxes.choose().name == "process"


def test_a_forced_sandbox_that_fails_is_not_replaced(nothing_installed, settings):
    settings.SANDBOX = "bwrap"

    with pytest.raises(NoSandbox, match="DYNABENCH_SANDBOX=bwrap can't be used: bwrap is not installed"):
        sandboxes.choose(trusted=True)


def test_an_unknown_sandbox_is_named_with_those_that_exist(nothing_installed, settings):
    settings.SANDBOX = "gvisor"

    with pytest.raises(NoSandbox, match="no sandbox 'gvisor': it is one of docker, bwrap, process"):
        sandboxes.choose()


@pytest.mark.docker
@pytest.mark.bwrap
@pytest.mark.parametrize("name", ["docker", "bwrap"])
def test_the_self_test_passes_within_five_seconds(name):
    started = time.monotonic()

    by_name(name).self_test()

    assert time.monotonic() - started < 5


@ON_FOLDERS
def test_two_runs_of_one_name_do_not_end_each_other(sandbox, stage):
    image = sandbox.pack(stage, name="ts5", labels={})

    with sandbox.serve(image, policy=POLICY, name=JOB) as staying:
        ping(staying)
        with sandbox.serve(image, policy=POLICY, name=JOB) as leaving:
            ping(leaving)

        assert not leaving.alive()
        assert staying.alive()
        assert sandboxes.sweep(live=()) == []
        ping(staying)
