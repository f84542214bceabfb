from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from examples.pack import EXAMPLES, SHIPPED, known_sha256, model_name, pack, setup_config

SETUP_KEYS = {"task", "checkpoint", "handler", "requirements", "setup", "model_files", "exclude"}


@pytest.fixture
def project(tmp_path) -> Path:
    return Path(shutil.copytree(EXAMPLES / "vader", tmp_path / "vader"))


def members(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


@pytest.mark.parametrize("name", SHIPPED)
def test_each_example_is_a_complete_dynalab_project(name):
    project = EXAMPLES / name

    setup = setup_config(project)

    assert model_name(project) == name
    assert set(setup) == SETUP_KEYS
    assert (project / setup["checkpoint"]).stat().st_size > 0
    assert (project / setup["handler"]).suffix == ".py"
    assert (project / "requirements.txt").exists() == setup["requirements"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_packed_example_is_known_by_its_sha256(name, tmp_path):
    digest = pack(EXAMPLES / name, tmp_path / "a.tar.gz")

    assert digest == hashlib.sha256((tmp_path / "a.tar.gz").read_bytes()).hexdigest()
    assert digest in known_sha256()


def test_times_modes_and_byte_code_do_not_change_the_archive(project, tmp_path):
    before = pack(project, tmp_path / "before.tar.gz")
    (project / "__pycache__").mkdir()
    (project / "__pycache__" / "handler.cpython-311.pyc").write_bytes(b"x")
    (project / "handler.py").chmod(0o600)
    os.utime(project / "handler.py", (1, 1))

    assert pack(project, tmp_path / "after.tar.gz") == before


def test_a_changed_handler_is_not_known(project, tmp_path):
    (project / "handler.py").write_text("print('something else')\n")

    assert pack(project, tmp_path / "a.tar.gz") not in known_sha256()


def test_members_start_with_a_dot_and_slash(project, tmp_path):
    pack(project, tmp_path / "a.tar.gz")

    assert "./.dynalab/vader/setup_config.json" in members(tmp_path / "a.tar.gz")
    assert all(name.startswith("./") for name in members(tmp_path / "a.tar.gz"))


def test_what_the_cli_leaves_out_is_left_out(project, tmp_path):
    setup = setup_config(project) | {"exclude": ["notes"]}
    (project / ".dynalab" / "vader" / "setup_config.json").write_text(json.dumps(setup))
    for left_out in ("notes", ".dynalab_submissions", ".dynalab/vader/tmp", ".dynalab/other"):
        (project / left_out).mkdir()
        (project / left_out / "file").write_text("x")
    (project / ".dynalab" / "sentiment.json").write_text("{}")

    pack(project, tmp_path / "a.tar.gz")

    assert sorted(members(tmp_path / "a.tar.gz")) == [
        "./.dynalab",
        "./.dynalab/vader",
        "./.dynalab/vader/setup_config.json",
        "./checkpoint.json",
        "./handler.py",
        "./requirements.txt",
    ]


def test_gnu_tar_unpacks_the_same_files(project, tmp_path):
    pack(project, tmp_path / "a.tar.gz")
    (tmp_path / "out").mkdir()

    subprocess.run(["tar", "-xzf", tmp_path / "a.tar.gz", "-C", tmp_path / "out"], check=True)

    subprocess.run(["diff", "-r", project, tmp_path / "out"], check=True)


def test_a_project_with_two_models_is_refused_by_name(project, tmp_path):
    shutil.copytree(project / ".dynalab" / "vader", project / ".dynalab" / "second")

    with pytest.raises(ValueError, match=r"second.*vader"):
        pack(project, tmp_path / "a.tar.gz")
