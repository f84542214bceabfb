from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import time
import zlib

import psutil
import pytest

from submissions.archives import PROJECT, ArchiveError, Checker, Limits, Manifest, check, extract_apart
from tests.submissions.tarballs import CONFIG, NAME, TASK, file, packed, project

WANTED = {"model_name": NAME, "task_code": TASK}
GOOD = packed(project())
ESCAPES = "archive_member_escapes"


def checked(archive: bytes, **options) -> Manifest:
    with Checker(**WANTED, **options) as checker:
        for start in range(0, len(archive), 10_000):
            checker.write(archive[start : start + 10_000])
        return checker.verdict()


def test_the_checker_accepts_what_streams_in():
    archive = packed(project(file("noise", random.Random(4).randbytes(1_000_000))))

    assert checked(archive) == check(io.BytesIO(archive), **WANTED)


def test_the_checker_refuses_as_the_reader_does():
    archive = packed(project(file("../evil")) + file("noise", random.Random(5).randbytes(5_000_000)))

    with pytest.raises(ArchiveError) as caught:
        checked(archive)

    assert (caught.value.code, caught.value.member) == (ESCAPES, "../evil")
    assert str(caught.value) == "../evil: leads out of the archive. Use paths below its root."


def test_the_checker_takes_other_limits():
    with pytest.raises(ArchiveError, match="bigger than 100 bytes"):
        checked(GOOD, limits=Limits(compressed=100))


def test_a_refusing_checker_wants_no_more():
    with Checker(**WANTED) as checker:
        while checker.write(b"words" * 1000):
            time.sleep(0.01)

        with pytest.raises(ArchiveError, match="no gzip"):
            checker.verdict()


def test_a_checker_that_hangs_is_killed():
    with Checker(**WANTED, patience=0.3) as checker:
        psutil.Process(checker._child.pid).suspend()
        started = time.monotonic()

        while checker.write(bytes(100_000)):
            pass
        with pytest.raises(ArchiveError, match=r"could not be read in 0 s"):
            checker.verdict()

    assert time.monotonic() - started < 5


def test_a_verdict_that_never_comes_is_not_awaited():
    with Checker(**WANTED, patience=0.3) as checker:
        psutil.Process(checker._child.pid).suspend()

        with pytest.raises(ArchiveError) as caught:
            checker.verdict()

    assert caught.value.code == "archive_unreadable"


def test_a_checker_nobody_asks_leaves_no_process():
    with Checker(**WANTED) as checker:
        checker.write(GOOD[:50])

    assert checker._child.returncode is not None


def test_the_checker_needs_little_memory_for_hostile_names():
    squeeze = zlib.compressobj(1, wbits=31)
    names = (file("/".join(["ΐ" * 120] * 3 + [f"{number:05}" + "ΐ" * 100]), b"") for number in range(19_900))
    archive = b"".join(squeeze.compress(name) for name in names)

    with Checker(**WANTED) as checker:
        checker.write(archive)
        process = psutil.Process(checker._child.pid)
        peak = process.memory_info().rss
        with pytest.raises(ArchiveError):
            checker.verdict()

    assert peak < 300 * 1024**2


def run(*paths, archive=b""):
    wanted = WANTED | {"limits": {}, "paths": list(map(str, paths))}
    command = [sys.executable, "-m", "submissions.archives", json.dumps(wanted)]
    done = subprocess.run(command, cwd=PROJECT, input=archive, capture_output=True, check=False)
    return done.returncode, json.loads(done.stdout)


def test_the_command_answers_with_a_verdict():
    code, verdict = run(archive=GOOD)

    assert len(verdict.pop("content_digest")) == 64
    assert (code, verdict) == (0, {"ok": True, "files": 3, "size": verdict["size"], "setup_config": CONFIG})


def test_the_command_answers_a_refusal_with_code_member_and_detail():
    code, verdict = run(archive=packed(project(file("../evil"))))

    detail = "../evil: leads out of the archive. Use paths below its root."
    assert (code, verdict) == (1, {"ok": False, "code": ESCAPES, "member": "../evil", "detail": detail})


def test_the_command_extracts(tmp_path):
    (tmp_path / "a").write_bytes(GOOD)

    code, _ = run(tmp_path / "a", tmp_path / "new")

    assert code == 0
    assert (tmp_path / "new" / "checkpoint.pt").read_bytes() == b"weights"


def test_extracting_apart_gives_manifest_or_reason(tmp_path):
    (tmp_path / "good").write_bytes(GOOD)
    (tmp_path / "bad").write_bytes(GOOD[:100])

    manifest = extract_apart(tmp_path / "good", tmp_path / "new", **WANTED)

    assert manifest.files == 3
    with pytest.raises(ArchiveError, match="cut off"):
        extract_apart(tmp_path / "bad", tmp_path / "other", **WANTED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "good", "new"]
