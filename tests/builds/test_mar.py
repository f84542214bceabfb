import hashlib
import json
import os
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


def test_members_are_flattened_and_the_digest_is_that_of_the_file(project, dest):
    sha256 = mar.write_mar(project, SETUP, name="ts7-vader", dest=dest)

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


def test_the_same_project_gives_the_same_bytes(project, dest, tmp_path):
    first = mar.write_mar(project, SETUP, name="m", dest=dest)
    mar.write_archive(dest, tmp_path / "1.tar.gz")
    os.utime(project / "src/handler.py", (1, 1))
    (project / "src/handler.py").chmod(0o755)

    assert mar.write_mar(project, SETUP, name="m", dest=dest) == first
    mar.write_archive(dest, tmp_path / "2.tar.gz")
    assert (tmp_path / "1.tar.gz").read_bytes() == (tmp_path / "2.tar.gz").read_bytes()


def test_two_equal_names_are_refused_and_both_named(project, dest):
    (project / "model.pt").write_bytes(b"other")

    with pytest.raises(ValueError, match=r"^model\.pt and \./weights/model\.pt have the same name"):
        mar.write_mar(project, {**SETUP, "model_files": ["model.pt"]}, name="m", dest=dest)


def test_a_file_with_the_name_of_the_manifests_folder_is_refused(project, dest):
    (project / "MAR-INF").write_bytes(b"x")

    with pytest.raises(ValueError, match="MAR-INF and the archive's own manifest"):
        mar.write_mar(project, {**SETUP, "model_files": ["MAR-INF"]}, name="m", dest=dest)


@pytest.mark.parametrize("path", ["../secret", "data/../data/labels.json", "/etc/hostname", "data", "", "nope", "pipe"])
def test_a_path_that_is_no_regular_file_of_the_project_is_refused(project, dest, path):
    (project.parent / "secret").write_bytes(b"x")
    os.mkfifo(project / "pipe")

    with pytest.raises(ValueError, match="must be a regular file inside the project"):
        mar.write_mar(project, {**SETUP, "model_files": [path]}, name="m", dest=dest)


@pytest.mark.parametrize("link", ["leaf", "folder/labels.json", "inside"])
def test_a_link_is_refused_wherever_it_leads(project, dest, link):
    (project / "leaf").symlink_to("/etc/hostname")
    (project / "folder").symlink_to(project / "data")
    (project / "inside").symlink_to("data/labels.json")

    with pytest.raises(ValueError, match="no link"):
        mar.write_mar(project, {**SETUP, "model_files": [link]}, name="m", dest=dest)


def test_the_archive_holds_the_mar(project, dest, tmp_path):
    mar.write_mar(project, SETUP, name="m", dest=dest)

    mar.write_archive(dest, tmp_path / "archive.tar.gz")

    with tarfile.open(tmp_path / "archive.tar.gz") as archive:
        assert archive.getnames() == ["ts7-vader.mar"]
        assert archive.extractfile("ts7-vader.mar").read() == dest.read_bytes()


def test_unpacking_gives_the_files_back(project, dest, tmp_path):
    mar.write_mar(project, SETUP, name="m", dest=dest)

    mar.unpack_mar(dest, tmp_path / "model")

    found = {str(p.relative_to(tmp_path / "model")) for p in (tmp_path / "model").rglob("*") if p.is_file()}
    assert found == {"handler.py", "labels.json", "model.pt", "MAR-INF/MANIFEST.json"}
    assert (tmp_path / "model/model.pt").read_bytes() == FILES["weights/model.pt"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/b", "..", "MAR-INF/other", "a\\b"])
def test_unpacking_refuses_members_that_are_not_flat(dest, tmp_path, name):
    with zipfile.ZipFile(dest, "w") as archive:
        archive.writestr(name, b"x")

    with pytest.raises(ValueError, match="not flat"):
        mar.unpack_mar(dest, tmp_path / "model")

    assert not (tmp_path / "evil").exists()


def test_unpacking_over_something_is_refused(project, dest):
    mar.write_mar(project, SETUP, name="m", dest=dest)

    with pytest.raises(FileExistsError):
        mar.unpack_mar(dest, project)
