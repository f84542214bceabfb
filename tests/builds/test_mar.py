import hashlib
import json
import os
import shutil
import tarfile
import zipfile

import pytest

from builds import mar

SETUP = {"checkpoint": "./weights/model.pt", "handler": "src/handler.py", "model_files": ["data/labels.json"]}
FILES = {"weights/model.pt": b"\x00\x01" * 500, "src/handler.py": b"def handle(): ...\n", "data/labels.json": b"[]"}


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "ts7-vader.mar"


@pytest.fixture
def model(tmp_path):
    return tmp_path / "model"


def write(project, setup, model, dest, name="m"):
    shutil.rmtree(model, ignore_errors=True)
    mar.lay_out(project, setup, name=name, folder=model)
    return mar.write_mar(model, dest)


def test_members_are_flattened_and_the_digest_is_that_of_the_file(project, model, dest):
    sha256 = write(project, SETUP, model, dest, name="ts7-vader")

    assert sha256 == hashlib.sha256(dest.read_bytes()).hexdigest()
    with zipfile.ZipFile(dest) as archive:
        assert archive.namelist() == ["handler.py", "labels.json", "model.pt", "MAR-INF/MANIFEST.json"]
        assert archive.read("model.pt") == FILES["weights/model.pt"]
        assert json.loads(archive.read("MAR-INF/MANIFEST.json")) == {
            "runtime": "python",
            "model": {
                "modelName": "ts7-vader",
                "serializedFile": "model.pt",
                "handler": "handler.py",
                "modelVersion": "1.0",
            },
            "archiverVersion": "0.12.0",
        }


def test_the_same_project_gives_the_same_bytes(project, model, dest, tmp_path):
    first = write(project, SETUP, model, dest)
    mar.write_archive(dest, tmp_path / "1.tar.gz")
    os.utime(project / "src/handler.py", (1, 1))
    (project / "src/handler.py").chmod(0o755)

    assert write(project, SETUP, model, dest) == first
    mar.write_archive(dest, tmp_path / "2.tar.gz")
    assert (tmp_path / "1.tar.gz").read_bytes() == (tmp_path / "2.tar.gz").read_bytes()


def test_two_equal_names_are_refused_and_both_named(project, model, dest):
    (project / "model.pt").write_bytes(b"other")

    with pytest.raises(ValueError, match=r"^model\.pt and \./weights/model\.pt have the same name"):
        write(project, {**SETUP, "model_files": ["model.pt"]}, model, dest)


def test_a_file_with_the_name_of_the_manifests_folder_is_refused(project, model, dest):
    (project / "MAR-INF").write_bytes(b"x")

    with pytest.raises(ValueError, match="MAR-INF and the archive's own manifest"):
        write(project, {**SETUP, "model_files": ["MAR-INF"]}, model, dest)


@pytest.mark.parametrize("path", ["../secret", "data/../data/labels.json", "/etc/hostname", "data", "", "nope", "pipe"])
def test_a_path_that_is_no_regular_file_of_the_project_is_refused(project, model, dest, path):
    (project.parent / "secret").write_bytes(b"x")
    os.mkfifo(project / "pipe")

    with pytest.raises(ValueError, match="must be a regular file inside the project"):
        write(project, {**SETUP, "model_files": [path]}, model, dest)


@pytest.mark.parametrize("link", ["leaf", "folder/labels.json", "inside"])
def test_a_link_is_refused_wherever_it_leads(project, model, dest, link):
    (project / "leaf").symlink_to("/etc/hostname")
    (project / "folder").symlink_to(project / "data")
    (project / "inside").symlink_to("data/labels.json")

    with pytest.raises(ValueError, match="no link"):
        write(project, {**SETUP, "model_files": [link]}, model, dest)


def test_the_archive_holds_the_mar(project, model, dest, tmp_path):
    write(project, SETUP, model, dest)

    mar.write_archive(dest, tmp_path / "archive.tar.gz")

    with tarfile.open(tmp_path / "archive.tar.gz") as archive:
        assert archive.getnames() == ["ts7-vader.mar"]
        assert archive.extractfile("ts7-vader.mar").read() == dest.read_bytes()


def test_the_models_folder_holds_the_same_files(project, model, dest):
    write(project, SETUP, model, dest)

    found = {str(p.relative_to(model)) for p in model.rglob("*") if p.is_file()}
    assert found == {"handler.py", "labels.json", "model.pt", "MAR-INF/MANIFEST.json"}
    assert (model / "model.pt").read_bytes() == FILES["weights/model.pt"]


def test_laying_out_over_something_is_refused(project, model):
    mar.lay_out(project, SETUP, name="m", folder=model)

    with pytest.raises(FileExistsError):
        mar.lay_out(project, SETUP, name="m", folder=model)


def test_a_name_that_some_systems_read_as_a_path_is_refused(project, model):
    (project / "a\\b").write_bytes(b"x")

    with pytest.raises(ValueError, match="a backslash"):
        mar.lay_out(project, {**SETUP, "model_files": ["a\\b"]}, name="m", folder=model)
