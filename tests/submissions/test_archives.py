from __future__ import annotations

import gzip
import io
import json
import os
import random
import stat
import subprocess
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from submissions.archives import ArchiveError, Limits, Manifest, check, extract
from tests.submissions.hostile import CONFIGS, DEEP, MEMBERS, STREAMS, WRONG_TYPE
from tests.submissions.tarballs import (
    CONFIG,
    CONFIG_PATH,
    END,
    NAME,
    TASK,
    block,
    file,
    folder,
    gnu_name,
    link,
    packed,
    padded,
    pax,
    project,
    record,
    seen,
    write_project,
)

GOOD = packed(project())
WANTED = {"model_name": NAME, "task_code": TASK}


def refused(archive, limits=None):
    with pytest.raises(ArchiveError) as caught:
        check(io.BytesIO(archive), **WANTED, limits=limits or Limits())
    return caught.value


@pytest.fixture
def guarded(tmp_path):
    """A place to extract to in the middle of files that must stay as they are."""
    place = tmp_path / "guarded" / "inner" / "place"
    place.mkdir(parents=True)
    (tmp_path / "guarded" / "evil").write_text("untouched")
    (place / "handler.py").write_text("untouched")
    return place


def refused_everywhere(archive, place):
    """The same refusal when checked and when extracted, quickly, and nothing written."""
    (source := place / "archive.tar.gz").write_bytes(archive)
    before, started = seen(place.parents[2]), time.monotonic()
    error = refused(archive)

    with pytest.raises(ArchiveError) as caught:
        extract(source, place / "new", **WANTED)

    after = seen(place.parents[2])
    for found in (before, after):
        found[str(place)] = (found[str(place)][0], *found[str(place)][2:])  # its time: .partial came and went
    assert time.monotonic() - started < 5
    assert before == after
    assert (caught.value.code, str(caught.value)) == (error.code, str(error))
    assert str(error).isprintable()
    return error


@pytest.mark.parametrize("case", MEMBERS)
def test_a_hostile_member_refuses_the_archive(case, guarded):
    member, code = MEMBERS[case]

    assert refused_everywhere(packed(project(member)), guarded).code == code


@pytest.mark.parametrize("case", STREAMS)
def test_what_is_no_whole_gzipped_tar_is_refused(case, guarded):
    stream, code = STREAMS[case]

    assert refused_everywhere(stream, guarded).code == code


def test_a_zip_in_disguise_is_refused(guarded):
    with zipfile.ZipFile(zipped := io.BytesIO(), "w") as archive:
        archive.writestr("handler.py", "pass")

    assert refused_everywhere(zipped.getvalue(), guarded).code == "archive_not_gzip"


@pytest.mark.parametrize("case", CONFIGS)
def test_a_bad_setup_config_is_refused(case, guarded):
    contents, code = CONFIGS[case]
    contents = contents if isinstance(contents, bytes) else json.dumps(contents).encode()
    others = (file(name, b"x" * (name != "empty.py")) for name in ("empty.py", "lib/handler.py", "lib/data.json"))
    files = file(CONFIG_PATH, contents) + file("checkpoint.pt") + file("handler.py") + b"".join(others)

    error = refused_everywhere(packed(files), guarded)

    assert (error.code, error.member) == (code, CONFIG_PATH.removeprefix("./"))


def test_equal_base_names_are_both_named():
    error = refused(packed(project(file("lib/handler.py"), model_files=["lib/handler.py"])))

    assert "'handler.py'" in str(error)
    assert "'lib/handler.py'" in str(error)


@pytest.mark.parametrize("number", range(256))
def test_only_files_folders_links_and_name_extensions_are_known_types(number):
    kind = bytes([number])
    archive = packed(project(block(b"a", kind=kind, link=b"handler.py")))

    if kind in {b"0", b"\0", b"1", b"2", b"5", b"x", b"g"}:
        assert check(io.BytesIO(archive), **WANTED)
    else:
        assert refused(archive).code == ("archive_truncated" if kind in {b"L", b"K"} else WRONG_TYPE)


def test_an_archive_cut_anywhere_is_refused():
    archive = packed(project(file("noise", random.Random(1).randbytes(20_000))))
    cuts = random.Random(2).sample(range(len(archive)), 200)

    codes = {refused(archive[:cut]).code for cut in cuts}

    assert codes == {"archive_truncated"}


def test_ten_gigabytes_of_zeros_are_refused_early():
    zeros, squeeze = bytes(1024**2), zlib.compressobj(9, wbits=31)
    pieces = [squeeze.compress(block(b"zeros", raw_size=b"\x80" + (10 * 1024**3).to_bytes(11, "big")))]
    pieces += [squeeze.compress(zeros) for _ in range(200)]
    tracemalloc.start()

    error = refused(b"".join(pieces))

    assert error.code == "archive_ratio"
    assert tracemalloc.get_traced_memory()[1] < 20 * 1024**2
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"compressed": len(GOOD) - 1}, "archive_too_big"),
        ({"expanded": len(project() + END) - 1}, "archive_expands_too_far"),
        ({"ratio": 2, "ratio_from": 0}, "archive_ratio"),
        ({"members": 4}, "archive_too_many_members"),
        ({"depth": 2}, "archive_member_too_deep"),
        ({"path": len(CONFIG_PATH) - 1}, "archive_member_too_long"),
        ({"part": 16}, "archive_member_too_long"),
    ],
)
def test_one_past_a_limit_is_refused(limits, code):
    assert refused(GOOD, Limits(**limits)).code == code


@pytest.mark.parametrize(
    "limits",
    [
        {"compressed": len(GOOD)},
        {"expanded": len(project() + END)},
        {"members": 5},
        {"depth": 3},
        {"path": len(CONFIG_PATH)},
        {"part": 17},
    ],
)
def test_at_a_limit_is_accepted(limits):
    assert check(io.BytesIO(GOOD), **WANTED, limits=Limits(**limits)).files == 3


def test_folders_that_paths_only_imply_count_as_members():
    deep = b"".join(file(f"{number}/a/b/c/f") for number in range(20))

    assert refused(packed(project(deep)), Limits(members=60)).code == "archive_too_many_members"


def test_empty_headers_count_as_members():
    assert refused(packed(project(folder("./") * 30)), Limits(members=20)).code == "archive_too_many_members"
    assert refused(packed(project(pax(kind=b"g") * 30)), Limits(members=20)).code == "archive_too_many_members"


def test_a_million_empty_members_are_refused_in_time():
    started = time.monotonic()

    error = refused(packed(project(*(file(f"f{number}", b"") for number in range(21_000)))))

    assert error.code == "archive_too_many_members"
    assert time.monotonic() - started < 5


def test_copies_of_links_count_against_the_size():
    links = [link(f"copy{number}", "big") for number in range(10)]
    archive = packed(project(file("big", bytes(100_000)), *links))

    assert check(io.BytesIO(archive), **WANTED).size > 1_000_000
    assert refused(archive, Limits(expanded=1_000_000)).code == "archive_expands_too_far"


def test_a_refusal_names_member_rule_and_remedy():
    error = refused(packed(project(file("weights/../../evil"))))

    assert error.member == "weights/../../evil"
    assert str(error) == "weights/../../evil: leads out of the archive. Use paths below its root."


def test_a_refusal_can_be_printed_whatever_the_name():
    error = refused(packed(project(file("a\x1b[2J\u202eb"))))

    assert error.member == "a\\u001b[2J\\u202eb"


def tarred(root: Path, *options: str) -> bytes:
    command = ["tar", "--sort=name", *options, "-czf", "-", "."]
    return subprocess.run(command, cwd=root, check=True, capture_output=True).stdout


def python_tarred(root: Path, kind: int) -> bytes:
    with tarfile.open(fileobj=(archive := io.BytesIO()), mode="w:gz", format=kind) as tar:
        tar.add(root, arcname=".")
    return archive.getvalue()


def without_dots(root: Path) -> bytes:
    with tarfile.open(fileobj=(archive := io.BytesIO()), mode="w:gz") as tar:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                tar.add(path, arcname=str(path.relative_to(root)))
    return archive.getvalue()


LONG = "/".join(["long-folder-name" * 4] * 4)
PROJECTS = {
    "small": {},
    "empty file": {"empty.txt": b""},
    "exactly one block": {"block.bin": b"b" * 512},
    "one past a block": {"block.bin": b"b" * 513},
    "noise": {"noise.bin": random.Random(3).randbytes(3_000_000)},
    "zeros": {"zeros.bin": bytes(30_000_000)},
    "unicode": {"données/été ✓ 模型.txt": b"u", "דגם/مثال.txt": b"u", "emoji/👩‍🚀.txt": b"u"},
    "long names": {f"{LONG}/file.txt": b"l", f"{'n' * 255}": b"l"},
    "spaces and quotes": {"a b/c 'd' \"e\" $(f) *.txt": b"s", "-rf": b"s", " lead": b"s", "trail ": b"s"},
    "dots": {"...": b"d", ".hidden/..rc": b"d", "a..b": b"d"},
    "many": {f"part{number // 50}/{number}.txt": str(number).encode() for number in range(1000)},
    "deep": {f"{DEEP.removeprefix('d/')}/f": b"d"},
}
MAKERS = {
    "gnu": lambda root: tarred(root, "--format=gnu"),
    "posix": lambda root: tarred(root, "--format=posix"),
    "ownerless": lambda root: tarred(root, "--format=gnu", "--owner=u:4000000000", "--blocking-factor=1"),
    "python pax": lambda root: python_tarred(root, tarfile.PAX_FORMAT),
    "without dots": without_dots,
}


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("case", PROJECTS)
def test_a_good_archive_is_accepted_and_extracted_byte_for_byte(case, maker, tmp_path):
    write_project(tmp_path / "project", PROJECTS[case])
    (source := tmp_path / "archive.tar.gz").write_bytes(MAKERS[maker](tmp_path / "project"))

    manifest = extract(source, tmp_path / "new", **WANTED)

    wanted = tree(tmp_path / "project")
    assert tree(tmp_path / "new") == wanted
    assert manifest == Manifest(len(wanted), sum(map(len, wanted.values())), CONFIG, manifest.content_digest)
    assert check(io.BytesIO(source.read_bytes()), **WANTED) == manifest


def digest_of(root: Path, maker: str = "gnu") -> str:
    return check(io.BytesIO(MAKERS[maker](root)), **WANTED).content_digest


def test_a_project_that_is_packed_again_has_the_same_content_digest(tmp_path):
    write_project(tmp_path / "project")
    first = digest_of(tmp_path / "project")
    os.utime(tmp_path / "project", (1, 1))

    assert [digest_of(tmp_path / "project", maker) for maker in MAKERS] == [first] * len(MAKERS)


@pytest.mark.parametrize("change", ["contents", "name", "mode", "one more"])
def test_a_project_that_was_changed_has_another_content_digest(tmp_path, change):
    write_project(tmp_path / "project")
    first, handler = digest_of(tmp_path / "project"), tmp_path / "project" / "handler.py"

    if change == "contents":
        handler.write_text(handler.read_text() + "#")
    elif change == "mode":
        handler.chmod(0o755)
    elif change == "name":
        (tmp_path / "project" / "a").write_text("x")
        first = digest_of(tmp_path / "project")
        (tmp_path / "project" / "a").rename(tmp_path / "project" / "b")
    else:
        (tmp_path / "project" / "more").write_text("x")

    assert digest_of(tmp_path / "project") != first


@pytest.mark.parametrize("maker", ["gnu", "posix", "python pax"])
def test_links_inside_a_model_cache_become_copies(maker, tmp_path):
    root = tmp_path / "project"
    write_project(root, {"cache/blobs/0f3a": b"weights", "cache/snapshots/main/README": b"r"}, checkpoint="checkpoint")
    (root / "cache/snapshots/main/model.bin").symlink_to("../../blobs/0f3a")
    (root / "checkpoint").symlink_to("./cache/blobs/0f3a")
    (root / "hard").hardlink_to(root / "cache/blobs/0f3a")
    (source := tmp_path / "archive.tar.gz").write_bytes(MAKERS[maker](root))

    manifest = extract(source, tmp_path / "new", **WANTED)

    assert tree(tmp_path / "new") == tree(root)
    assert manifest.setup_config["checkpoint"] == "checkpoint"
    for path in (tmp_path / "new").rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or path.stat().st_nlink == 1


def test_git_archives_comment_for_all_members_is_no_harm():
    comment = pax(record(b"comment", b"0" * 40), kind=b"g")

    assert check(io.BytesIO(packed(comment + project())), **WANTED).files == 3


def test_base_256_sizes_and_old_headers_are_read():
    large = block(b"a", raw_size=b"\x80" + (3).to_bytes(11, "big")) + padded(b"abc")
    old = block(b"old", kind=b"\0", magic=bytes(8)) + block(b"dir/", kind=b"\0", magic=bytes(8))

    assert check(io.BytesIO(packed(project(large, old))), **WANTED).files == 5


def test_paths_of_the_setup_config_come_out_normalised():
    changes = {"checkpoint": "./checkpoint.pt", "handler": "lib/../handler.py", "model_files": ["./lib//a"]}

    manifest = check(io.BytesIO(packed(project(file("lib/a"), **changes))), **WANTED)

    assert manifest.setup_config == CONFIG | {"model_files": ["lib/a"]}


def test_requirements_and_setup_need_their_file_at_the_root():
    files = file("requirements.txt") + file("setup.py")

    assert check(io.BytesIO(packed(project(files, requirements=True, setup=True))), **WANTED).files == 5


def test_modes_are_reset_and_the_owner_is_the_worker(tmp_path):
    members = [file("plain", mode=0o4666), file("program", mode=0o6777), folder("d/")]
    (source := tmp_path / "a").write_bytes(packed(project(*members)))

    extract(source, tmp_path / "new", **WANTED)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    assert (modes["plain"], modes["program"], modes["d"], modes[".dynalab"]) == (0o644, 0o755, 0o755, 0o755)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert {path.stat().st_uid for path in tmp_path.rglob("*")} == {os.getuid()}


def test_extracting_over_something_is_refused(tmp_path):
    (source := tmp_path / "a").write_bytes(GOOD)
    (tmp_path / "new").symlink_to("elsewhere")

    with pytest.raises(FileExistsError):
        extract(source, tmp_path / "new", **WANTED)


def test_what_a_killed_attempt_left_does_not_matter(tmp_path):
    (source := tmp_path / "a").write_bytes(GOOD)
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "handler.py").write_text("half")

    extract(source, tmp_path / "new", **WANTED)

    assert (tmp_path / "new" / "handler.py").read_bytes() == b"pass\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "new"]


mutations = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8)


@settings(max_examples=200, deadline=5000, derandomize=True)
@given(changes=mutations, inside=st.booleans())
def test_no_changed_byte_crashes_or_hangs_the_reader(changes, inside):
    data = bytearray(project(gnu_name(b"l" * 120), file("a"), pax(record(b"path", b"p")), file("b")) + END)
    data = data if inside else bytearray(gzip.compress(data))
    for place, value in changes:
        data[place % len(data)] = value

    try:
        manifest = check(io.BytesIO(gzip.compress(data) if inside else bytes(data)), **WANTED)
    except ArchiveError as error:
        assert error.code.startswith("archive_")
    else:
        assert manifest.files <= 5
