"""Requirements are fetched without running their code and installed without a network."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from builds import requirements
from builds.requirements import FetchError, RequirementsError, check_lines, fetch
from builds.sandboxes import by_name
from builds.sandboxes.policy import SandboxPolicy

DOCKER = pytest.param("docker", marks=pytest.mark.docker)
BWRAP = pytest.param("bwrap", marks=pytest.mark.bwrap)
POLICY = SandboxPolicy(memory_mb=512, deadline=60)
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

# A build backend that attacks and notes what it could do.
HOSTILE = """
import os, socket, zipfile
open("/tmp/canary-built", "w").close()
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    found = []
    for host in ("127.0.0.1", "172.17.0.1", "169.254.169.254"):
        try:
            socket.create_connection((host, PORT), 1)
            found.append(host)
        except OSError:
            pass
    for path in ("/proc/1/environ", "/proc/self/environ", "/var/run/docker.sock", "/etc/shadow"):
        try:
            found += [path] if "canary" in open(path).read() or "environ" not in path else []
        except OSError:
            pass
    found += [key for key in os.environ if key.startswith("AWS_")]
    name = "hostile-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        wheel.writestr("hostile_findings.py", f"found = {found!r}\\n")
        wheel.writestr("hostile-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: hostile\\nVersion: 1.0\\n")
        tag = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr("hostile-1.0.dist-info/WHEEL", tag)
        wheel.writestr("hostile-1.0.dist-info/RECORD", "")
    return name
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def wheel(name, version="1.0", *, needs=(), tag="py3-none-any", size=0):
    """The file name and bytes of a small wheel."""
    body = io.BytesIO()
    info = f"{name}-{version}.dist-info"
    lines = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(body, "w") as file:
        file.writestr(f"{name}.py", f"version = {version!r}\n" + "#" * size)
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{lines}")
        file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        file.writestr(f"{info}/RECORD", "")
    return f"{name}-{version}-{tag}.whl", body.getvalue()


def sdist(name, version="1.0", port=9):
    body = io.BytesIO()
    files = {"pyproject.toml": PYPROJECT, "backend.py": HOSTILE.replace("PORT", str(port))}
    files["PKG-INFO"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with tarfile.open(fileobj=body, mode="w:gz") as file:
        for path, text in files.items():
            member = tarfile.TarInfo(f"{name}-{version}/{path}")
            member.size = len(text)
            file.addfile(member, io.BytesIO(text.encode()))
    return f"{name}-{version}.tar.gz", body.getvalue()


class Index:
    """A package index on loopback."""

    def __init__(self):
        self.files = {}
        self.hits = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                index.hits.append(self.path)
                kind, body = index.answer(self.path)
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}/simple"

    def add(self, file):
        self.files[file[0]] = file[1]

    def answer(self, path):
        parts = path.strip("/").split("/")
        if parts[0] == "files":
            return "application/octet-stream", self.files.get(parts[1])
        entries = [
            {"filename": name, "url": f"/files/{name}", "hashes": {"sha256": hashlib.sha256(body).hexdigest()}}
            for name, body in self.files.items()
            if name.split("-")[0] == parts[1]
        ]
        page = {"meta": {"api-version": "1.0"}, "name": parts[1], "files": entries}
        return "application/vnd.pypi.simple.v1+json", json.dumps(page).encode() if entries else None


@pytest.fixture(autouse=True)
def var(settings, tmp_path):
    settings.VAR = tmp_path / "var"
    settings.VAR.mkdir()
    return settings.VAR


@pytest.fixture
def index(settings):
    index = Index()
    index.add(wheel("alpha", needs=["beta"]))
    index.add(wheel("beta"))
    index.add(wheel("setuptools"))
    index.add(wheel("wheel"))
    settings.INDEX_URL = index.url
    yield index
    index.server.shutdown()
    index.server.server_close()


@pytest.fixture
def fetched(var):
    """Fetches a requirements.txt: (names in the folder, log)."""

    def run(text, **options):
        log = bytearray()
        options = {"python": PYTHON, "name": "test-fetch", **options}
        fetch(check_lines(text), var / "wheels", log=log.extend, **options)
        return sorted(path.name for path in (var / "wheels").iterdir()), log.decode()

    return run


@pytest.mark.parametrize(
    "text",
    [
        "numpy",
        "numpy==1.26.4",
        "uvicorn[standard]>=0.20,<1 ; python_version >= '3.9'",
        "  numpy  # because",
        f"numpy==1.26.4 --hash=sha256:{'0' * 64}",
        f"numpy==1.26.4 \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{'1' * 64}\n",
        "numpy\r\n",
    ],
)
def test_a_plain_requirement_is_accepted(text):
    lines = check_lines(f"\ufeff# made by hand\n\n{text}")

    assert [line.name for line in lines] == [lines[0].name]
    assert lines[0].number == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("-r other.txt", "options are not supported"),
        ("--index-url https://example.org/simple", "options are not supported"),
        ("--extra-index-url=https://example.org", "options are not supported"),
        ("-e .", "options are not supported"),
        ("--trusted-host example.org", "options are not supported"),
        ("name @ https://example.org/name.whl", "addresses and paths"),
        ("git+https://example.org/name.git", "addresses and paths"),
        ("name @ file:///etc/passwd", "addresses and paths"),
        ("name@file:x.whl", "addresses and paths"),
        ("./name.whl", "addresses and paths"),
        ("/tmp/name.whl", "addresses and paths"),
        ("../name", "addresses and paths"),
        ("name==", "is not a requirement"),
        ("name --global-option=x", "is not a requirement"),
        ("name; rm -rf /", "is not a requirement"),
        ("name.whl/", "is not a requirement"),
        ("${HOME}", "is not a requirement"),
    ],
)
def test_anything_else_is_refused_with_its_line(line, reason):
    with pytest.raises(RequirementsError, match=f"requirements.txt, line 3: .*{reason}") as refused:
        check_lines(f"numpy\n\n{line}\nscipy\n")

    assert refused.value.line == 3


def test_too_many_requirements_are_refused():
    with pytest.raises(RequirementsError, match="1001 requirements; 1000 are allowed"):
        check_lines("numpy\n" * 1001)


def test_what_is_named_and_what_it_needs_is_fetched(fetched, index):
    names, _ = fetched("alpha\n")

    assert names == ["alpha-1.0-py3-none-any.whl", "beta-1.0-py3-none-any.whl", "requirements.txt"]


def test_our_own_modules_are_not_asked_of_the_index(fetched, index, var):
    names, log = fetched("dynalab\nts==1.0\nTorchServe\nbeta\n")

    assert names == ["beta-1.0-py3-none-any.whl", "requirements.txt"]
    assert (var / "wheels/requirements.txt").read_text() == "beta\n"
    assert "ts==1.0: comes with the model server" in log
    assert not [path for path in index.hits if "/ts/" in path or "dynalab" in path]


def test_an_unknown_package_is_named_with_its_line(fetched, index):
    with pytest.raises(RequirementsError, match="line 2: No matching distribution found for nothere==3") as refused:
        fetched("alpha\nnothere==3\n")

    assert refused.value.line == 2


def test_a_conflict_is_told_in_pips_words(fetched, index):
    index.add(wheel("gamma", needs=["beta>=2"]))
    index.add(wheel("beta", "2.0"))

    with pytest.raises(RequirementsError, match="Cannot install .*conflicting dependencies"):
        fetched("gamma\nbeta==1.0\n")


def test_an_index_that_does_not_answer_is_our_fault(fetched, settings):
    settings.INDEX_URL = "http://127.0.0.1:9/simple"

    with pytest.raises(FetchError, match="did not answer"):
        fetched("alpha\n")


def test_only_our_index_is_asked(fetched, index, monkeypatch):
    other = Index()
    other.add(wheel("beta", "9.0"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", other.url)

    names, _ = fetched("beta\n")

    assert names == ["beta-1.0-py3-none-any.whl", "requirements.txt"]
    assert other.hits == []
    other.server.shutdown()
    other.server.server_close()


def test_packages_of_any_size_do_not_fill_the_disk(fetched, index):
    index.add(wheel("huge", size=8_000_000))

    with pytest.raises(RequirementsError, match="wrote more than 1 MiB"):
        fetched("huge\n", policy=replace(requirements.FETCH, disk_mb=1))


def test_wheels_are_chosen_for_the_sandboxes_python(fetched, index):
    index.add(wheel("native", tag="cp39-cp39-manylinux2014_x86_64"))
    index.add(wheel("native", tag="cp39-cp39-manylinux2014_aarch64"))

    names, _ = fetched("native\n", python="3.9")

    assert len(names) == 2
    with pytest.raises(RequirementsError, match="No matching distribution found for native"):
        fetched("native\n", python="3.10")


def test_a_source_distribution_is_refused_unless_allowed(fetched, index):
    index.add(sdist("hostile"))

    with pytest.raises(RequirementsError, match="line 2: No matching distribution found for hostile"):
        fetched("beta\nhostile\n")


def test_fetching_a_source_distribution_runs_none_of_its_code(fetched, index):
    canary = Path("/tmp/canary-built")
    canary.unlink(missing_ok=True)
    index.add(sdist("hostile"))

    names, _ = fetched("beta\nhostile\n", allow_sdists=True)

    assert "hostile-1.0.tar.gz" in names
    assert "setuptools-1.0-py3-none-any.whl" in names
    assert not canary.exists()


def test_a_source_distribution_that_differs_from_the_index_is_refused(fetched, index, monkeypatch):
    index.add(sdist("hostile"))
    answer = index.answer
    monkeypatch.setattr(index, "answer", lambda path: (a := answer(path)) and (a[0], a[1] and a[1] + b" "))

    with pytest.raises(RequirementsError, match="No matching distribution found for hostile"):
        fetched("hostile\n", allow_sdists=True)


@pytest.fixture
def stage(var):
    root = var / "stage"
    for inside in ("opt/dynabench/runtime", "home/model-server/code"):
        (root / inside).mkdir(parents=True)
    return root


def in_sandbox(name, stage, argv):
    log = bytearray()
    wheels = stage.parent / "wheels"
    wheels.mkdir(exist_ok=True)
    command = requirements.installing(argv, stage, wheels)
    code = by_name(name).run(command, policy=POLICY, log=log.extend, name="test-install")
    return code, log.decode()


@pytest.mark.parametrize("name", [DOCKER, BWRAP, "process"])
def test_what_was_fetched_is_installed_without_network(name, fetched, index, stage):
    fetched("alpha\n")
    asked = len(index.hits)

    code, log = in_sandbox(name, stage, requirements.INSTALL)

    packages = stage / "opt/dynabench/packages"
    assert code == 0, log
    assert {"alpha.py", "beta.py"} <= {path.name for path in packages.iterdir()}
    assert len(index.hits) == asked
    assert in_sandbox(name, stage, requirements.COMPILE)[0] == 0
    assert list((packages / "__pycache__").iterdir())


@pytest.mark.parametrize("name", [DOCKER, BWRAP])
def test_a_hostile_setup_reaches_nothing(name, index, stage, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-4711")
    port = index.server.server_port
    (stage / "home/model-server/code/pyproject.toml").write_text(PYPROJECT)
    (stage / "home/model-server/code/backend.py").write_text(HOSTILE.replace("PORT", str(port)))

    code, log = in_sandbox(name, stage, requirements.SETUP)

    assert code == 0, log
    assert (stage / "opt/dynabench/packages/hostile_findings.py").read_text() == "found = []\n"
    assert index.hits == []
    assert not Path("/tmp/canary-built").exists()


def test_the_projects_build_tools_are_known_without_running_it(tmp_path):
    assert [line.name for line in requirements.build_tools(tmp_path)] == ["setuptools", "wheel"]

    (tmp_path / "pyproject.toml").write_text('[build-system]\nrequires = ["hatchling>=1"]\n')
    assert [line.name for line in requirements.build_tools(tmp_path)] == ["hatchling"]

    (tmp_path / "pyproject.toml").write_text('[build-system]\nrequires = ["x @ file:///etc/passwd"]\n')
    with pytest.raises(RequirementsError, match="addresses and paths"):
        requirements.build_tools(tmp_path)

    (tmp_path / "pyproject.toml").write_text("[build-system\n")
    with pytest.raises(RequirementsError, match="pyproject.toml can't be read"):
        requirements.build_tools(tmp_path)


def test_the_runtimes_own_packages_are_installed_once(index, var, monkeypatch, tmp_path):
    monkeypatch.setattr(requirements, "RUNTIME_REQUIREMENTS", tmp_path / "requirements.txt")
    (tmp_path / "requirements.txt").write_text("alpha==1.0\n")

    first = requirements.runtime_library(lambda chunk: None)
    asked = len(index.hits)
    second = requirements.runtime_library(lambda chunk: None)

    assert first == second
    assert (first / "alpha.py").is_file()
    assert len(index.hits) == asked
    assert [path.name for path in (var / "cache").iterdir() if path.name.startswith("lib-")] == [first.name]
