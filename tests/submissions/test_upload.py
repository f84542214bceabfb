from __future__ import annotations

import hashlib
import io
import random
import resource
import time
import tracemalloc
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.core.handlers.wsgi import WSGIRequest
from django.utils import timezone

from dynabench_site.api import ApiError
from dynabench_site.views import RETRY_SECONDS
from dynabench_site.web_server import SILENT_SECONDS
from submissions.archives import Checker
from submissions.models import Submission
from submissions.services import BROKEN_SECONDS
from submissions.upload import FORM_MAX_BYTES, Arrival, read_fields, receive
from tasks_catalog.models import BuildConfig, EvalServer, Task
from tests.submissions.tarballs import CONFIG, NAME, TASK, file, packed, project

GOOD = packed(project(file("noise", random.Random(1).randbytes(300_000))))
IO_YAML = "context: []\ninput: [{name: text, type: string}]\noutput: [{name: label, type: string}]\n"
NAME_PART, TASK_PART = ("name", NAME.encode()), ("taskCode", TASK.encode())


def form(*parts, boundary="b0undary", end="--"):
    body = b""
    for name, contents in parts:
        filename = '; filename="m.tar.gz"' if name == "tarball" else ""
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'.encode()
        body += contents + b"\r\n"
    return body + f"--{boundary}{end}\r\n".encode()


class Wire(io.RawIOBase):
    """A client's connection, which may give up after some bytes."""

    def __init__(self, body, breaks_at=None, at=None):
        self.body, self.breaks_at, self.at, self.sent = io.BytesIO(body), breaks_at, at or {}, 0
        self.breaks = 0

    def read(self, size=-1):
        if self.breaks_at is not None and self.sent >= self.breaks_at:
            self.breaks += 1
            raise ConnectionResetError("the client is gone")
        piece = self.body.read(min(size, 10_000))
        self.sent += len(piece)
        for place in [place for place in self.at if place <= self.sent]:
            self.at.pop(place)()
        return piece


def request(body, *, wire=None, content_type="multipart/form-data; boundary=b0undary", length=None):
    environ = {
        "REQUEST_METHOD": "POST",
        "CONTENT_TYPE": content_type,
        "CONTENT_LENGTH": str(len(body)) if length is None else length,
        "wsgi.input": wire or Wire(body),
    }
    return WSGIRequest(environ)


def upload(archive=GOOD, **options):
    return request(form(NAME_PART, TASK_PART, ("tarball", archive)), **options)


def refused(call):
    with pytest.raises(ApiError) as caught:
        call()
    return caught.value.status, caught.value.code


def read_all(wanted, **options):
    stream = read_fields(wanted, **options)
    return stream.name, stream.task_code, b"".join(stream.chunks)


def test_fields_and_archive_come_out_as_they_were_sent():
    assert read_all(upload()) == (NAME, TASK, GOOD)


@pytest.mark.parametrize("tail", [b"\r", b"\r\n", b"\r\n-", b"\r\n--b0undar", b"\n--b0undary--", b"--b0undary "])
def test_an_archive_may_hold_what_looks_like_a_boundary(tail):
    archive = tail * 5000 + b"x" + tail

    assert read_all(upload(archive))[2] == archive


def test_other_fields_before_the_archive_are_ignored():
    body = form(("comment", b"hello"), TASK_PART, NAME_PART, ("tarball", GOOD))

    assert read_all(request(body)) == (NAME, TASK, GOOD)


FORMS = {
    "archive first": (form(("tarball", GOOD), NAME_PART, TASK_PART), "fields_first"),
    "task after the archive": (form(NAME_PART, ("tarball", GOOD), TASK_PART), "fields_first"),
    "no name": (form(TASK_PART, ("tarball", GOOD)), "fields_first"),
    "no archive": (form(NAME_PART, TASK_PART), "missing_field"),
    "nothing": (form(), "missing_field"),
    "name twice": (form(NAME_PART, NAME_PART, TASK_PART, ("tarball", GOOD)), "bad_upload"),
    "archive twice": (form(NAME_PART, TASK_PART, ("tarball", GOOD), ("tarball", GOOD)), "bad_upload"),
    "field after the archive": (form(NAME_PART, TASK_PART, ("tarball", GOOD), ("more", b"")), "bad_upload"),
    "long name": (form(("name", b"n" * 257), TASK_PART, ("tarball", GOOD)), "bad_upload"),
    "endless name": (form(("name", b"n" * 500_000), TASK_PART, ("tarball", GOOD)), "bad_upload"),
    "name not UTF-8": (form(("name", b"\xff"), TASK_PART, ("tarball", GOOD)), "bad_upload"),
    "many fields": (form(*((f"f{n}", b"") for n in range(9)), NAME_PART, TASK_PART), "bad_upload"),
    "no end": (form(NAME_PART, TASK_PART, ("tarball", GOOD), end=""), "bad_upload"),
    "cut off": (form(NAME_PART, TASK_PART, ("tarball", GOOD))[:100_000], "bad_upload"),
    "empty": (b"", "bad_upload"),
    "words": (b"words " * 100, "bad_upload"),
    "another boundary": (form(NAME_PART, TASK_PART, ("tarball", GOOD), boundary="other"), "bad_upload"),
    "endless header": (b"--b0undary\r\n" + b"h" * 10_000, "bad_upload"),
}


@pytest.mark.parametrize("case", FORMS)
def test_a_form_that_is_not_as_the_cli_sends_it_is_refused(case):
    body, code = FORMS[case]

    assert refused(lambda: read_all(request(body))) == (400, code)


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed"]
)
def test_a_body_that_is_no_form_is_refused(content_type):
    assert refused(lambda: read_all(upload(content_type=content_type))) == (400, "bad_upload")


@pytest.mark.parametrize("length", ["", "-1", "1e3", "+5", "\u0661"])
def test_a_body_without_a_length_is_refused(length):
    assert refused(lambda: read_all(upload(length=length))) == (411, "length_required")


def test_a_body_that_says_it_is_too_big_is_refused_unread():
    wire = Wire(b"")

    too_big = upload(wire=wire, length=str(1000 + FORM_MAX_BYTES + 1))

    assert refused(lambda: read_fields(too_big, max_bytes=1000)) == (413, "archive_too_big")
    assert wire.sent == 0


def test_an_archive_one_byte_too_big_is_refused_while_it_streams():
    archive = GOOD[:20_000]

    assert read_all(upload(archive), max_bytes=20_000)[2] == archive
    assert refused(lambda: read_all(upload(archive), max_bytes=19_999)) == (413, "archive_too_big")


def test_a_body_longer_than_it_said_is_cut_off_there():
    body = form(NAME_PART, TASK_PART, ("tarball", GOOD))

    assert refused(lambda: read_all(request(body, length=str(len(body) - 100)))) == (400, "bad_upload")


def test_a_client_that_goes_away_is_told_nothing_worse_than_400():
    wire = Wire(form(NAME_PART, TASK_PART, ("tarball", GOOD)), breaks_at=50_000)

    assert refused(lambda: read_all(upload(wire=wire))) == (400, "bad_upload")


def test_memory_stays_flat():
    head, tail = form(NAME_PART, TASK_PART, ("tarball", b"|")).split(b"|")
    size = 100 * 1024**2

    class Long(Wire):
        left = size

        def read(self, wanted=-1):
            if self.sent < len(head) or not self.left:
                return super().read(min(wanted, len(head) - self.sent) if self.sent < len(head) else wanted)
            piece = bytes(min(wanted, self.left))
            self.left -= len(piece)
            return piece

    tracemalloc.start()

    stream = read_fields(upload(wire=Long(head + tail), length=str(len(head) + size + len(tail))))

    assert sum(map(len, stream.chunks)) == size
    assert tracemalloc.get_traced_memory()[1] < 2 * 1024**2
    tracemalloc.stop()


@pytest.fixture
def files(settings, tmp_path):
    """Where archives are stored."""
    settings.VAR = tmp_path
    return tmp_path / "files"


@pytest.fixture
def owner(db):
    return User.objects.create_user("ada")


@pytest.fixture
def task(db):
    EvalServer.objects.get_or_create(name="default")
    task = Task.objects.create(code=TASK, name="Sentiment", io_yaml=IO_YAML)
    BuildConfig.objects.create(task=task)
    return task


def nothing_is_left(files):
    return not Submission.objects.exists() and not [path for path in files.rglob("*") if path.is_file()]


def test_an_accepted_archive_is_stored_under_its_key(owner, task, files):
    submission = receive(upload(), owner=owner)

    assert submission.status == Submission.Status.UPLOADED
    assert (submission.owner, submission.task, submission.name) == (owner, task, NAME)
    assert (submission.size, submission.sha256) == (len(GOOD), hashlib.sha256(GOOD).hexdigest())
    assert submission.setup_config == CONFIG
    assert (files / task.build_config.bucket / submission.archive_key).read_bytes() == GOOD


def test_the_same_archive_again_is_the_first_upload(owner, task, files):
    first = receive(upload(), owner=owner)

    assert receive(upload(), owner=owner) == first
    assert Submission.objects.count() == 1
    assert len([path for path in files.rglob("*") if path.is_file()]) == 1


@pytest.mark.parametrize(
    ("archive", "code"),
    [
        (b"", "archive_truncated"),
        (b"words", "archive_not_gzip"),
        (GOOD[:-1], "archive_truncated"),
        (
            packed(project(file("../evil"), file("noise", random.Random(2).randbytes(5_000_000)))),
            "archive_member_escapes",
        ),
        (packed(project(task="nli")), "archive_task_mismatch"),
    ],
)
def test_a_refused_archive_leaves_nothing(archive, code, owner, task, files):
    assert refused(lambda: receive(upload(archive), owner=owner)) == (422, code)

    assert nothing_is_left(files)


def test_an_upload_cut_off_leaves_nothing(owner, task, files):
    body = form(NAME_PART, TASK_PART, ("tarball", GOOD))

    for wire in (Wire(body, breaks_at=200_000), Wire(body[:200_000])):
        assert refused(lambda wire=wire: receive(request(body, wire=wire), owner=owner)) == (400, "bad_upload")

        assert nothing_is_left(files)


def test_a_connection_that_broke_is_not_read_again(owner, task):
    body = form(NAME_PART, TASK_PART, ("tarball", GOOD))
    wire = Wire(body, breaks_at=200_000)
    refused(lambda: receive(request(body, wire=wire), owner=owner))

    assert wire.breaks == 1


def test_a_disk_that_fails_gives_the_slot_back(owner, task, files):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    with pytest.raises(OSError, match="File too large"):
        receive(upload(), owner=owner)

    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert nothing_is_left(files)


def test_an_upload_that_the_sweep_gave_up_is_not_accepted(owner, task, files):
    body = form(NAME_PART, TASK_PART, ("tarball", GOOD))
    wire = Wire(body, at={150_000: Submission.objects.all().delete})

    assert refused(lambda: receive(request(body, wire=wire), owner=owner)) == (408, "upload_given_up")

    assert nothing_is_left(files)


def test_an_upload_whose_web_server_died_may_be_repeated_after_half_a_minute(owner, task, files):
    died = Submission.objects.create(owner=owner, task=task, name=NAME)
    alive = Submission.objects.create(owner=owner, task=task, name="another")
    assert refused(lambda: receive(upload(), owner=owner)) == (409, "upload_in_progress")
    Submission.objects.filter(pk=died.pk).update(touched_at=timezone.now() - timedelta(seconds=BROKEN_SECONDS + 1))

    accepted = receive(upload(), owner=owner)

    assert set(Submission.objects.all()) == {alive, accepted}
    assert SILENT_SECONDS < BROKEN_SECONDS < int(RETRY_SECONDS)


def test_a_long_upload_keeps_its_row_alive_and_a_slow_one_is_refused(owner, task):
    submission = Submission.objects.create(owner=owner, task=task, name=NAME)
    Submission.objects.update(touched_at="2020-01-01T00:00Z")

    def slowly(size):
        for _ in range(3):
            time.sleep(0.02)
            yield bytes(size)

    with Checker(model_name=NAME, task_code=TASK) as checker:
        fast = Arrival(slowly(1000), submission, checker, pace_seconds=0.01)
        slow = Arrival(slowly(1), submission, checker, pace_seconds=0.01)

        assert len(fast.read()) >= 1000
        assert refused(slow.read) == (408, "upload_too_slow")

    submission.refresh_from_db()
    assert submission.touched_at.year > 2020


@pytest.mark.parametrize(
    ("parts", "refusal"),
    [
        ([("name", b"Bad Name"), TASK_PART], (400, "bad_name")),
        ([("name", b""), TASK_PART], (400, "bad_name")),
        ([NAME_PART, ("taskCode", b"unknown")], (404, "unknown_task")),
    ],
)
def test_a_wrong_field_is_refused_before_the_archive_is_stored(parts, refusal, owner, task, files):
    body = form(*parts, ("tarball", GOOD))

    assert refused(lambda: receive(request(body), owner=owner)) == refusal
    assert nothing_is_left(files)


def test_a_closed_task_takes_no_models(owner, task, files):
    Task.objects.update(submitable=False)

    assert refused(lambda: receive(upload(), owner=owner)) == (403, "task_not_submitable")


def test_at_the_limit_nothing_is_stored_but_the_client_may_finish(owner, task, files):
    for number in range(task.submission_limit):
        Submission.objects.create(owner=owner, task=task, name=f"m{number}", status=Submission.Status.EVALUATED)
    wire = Wire(body := form(NAME_PART, TASK_PART, ("tarball", GOOD)))

    assert refused(lambda: receive(request(body, wire=wire), owner=owner)) == (429, "submission_limit")

    assert not files.exists()
    assert wire.sent == len(body)


def test_a_second_upload_at_the_same_time_is_refused(owner, task, files):
    Submission.objects.create(owner=owner, task=task, name=NAME)

    assert refused(lambda: receive(upload(), owner=owner)) == (409, "upload_in_progress")
