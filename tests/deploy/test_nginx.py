"""The sample configuration of nginx, with real web servers behind it, one of which is killed."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from django.contrib.auth.models import User

from submissions.archives import DEFAULT_LIMITS
from submissions.models import ApiToken, Submission
from submissions.upload import FORM_MAX_BYTES
from tests.deploy.site import CONFIG, HOST, Answer, Site, kill
from tests.pipeline.conftest import database_url
from tests.submissions.cli import CONTENT_TYPE, UPLOAD, archive, body

pytestmark = pytest.mark.nginx
USERS, EACH, CLIENTS = 10, 4, 8
KILLED_AT = 10
REFRESH = "/authenticate/refresh_from_api"


@pytest.fixture
def site(transactional_db, task, settings, tmp_path) -> Iterator[Site]:
    task.submission_limit = 2 * EACH  # a repetition holds a slot until it is known to be one
    task.save()
    environment = {
        "DYNABENCH_DATABASE_URL": database_url(),
        "DYNABENCH_VAR": str(settings.VAR),
        "DYNABENCH_SECRET_KEY": settings.SECRET_KEY,
        "DYNABENCH_BASE_URL": f"https://{HOST}",
        "DYNABENCH_ALLOWED_HOSTS": HOST,
    }
    folder = tmp_path / "site"
    folder.mkdir()
    site = Site(folder, environment)
    with site.nginx_running(), site.web_running():
        yield site


@pytest.fixture
def secrets(transactional_db) -> list[str]:
    """The API tokens of some researchers."""
    users = [User.objects.create_user(f"user{number}", f"user{number}@example.org") for number in range(USERS)]
    return [ApiToken.make(user=user, name="laptop")[1] for user in users]


class Researcher:
    """Sends one model as the dynalab CLI does, and again when the answer says so."""

    def __init__(
        self,
        site: Site,
        secret: str,
        name: str,
        *,
        begun: threading.Event | None = None,
        pause: threading.Event | None = None,
    ) -> None:
        self.site, self.secret, self.name = site, secret, name
        self.begun, self.pause = begun, pause
        self.tarball = archive(name, weights=name.encode() * 2000)
        self.answers: list[Answer] = []

    def send(self) -> Answer:
        refreshed = self.site.request("GET", f"{REFRESH}?api_token={self.secret}")
        assert refreshed.status == 200
        self.token = json.loads(refreshed.body)["token"]
        sent = body(self.name, self.tarball)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": CONTENT_TYPE}
        self.answers.append(
            self.site.request("POST", UPLOAD, self._pieces(sent), {**headers, "Content-Length": str(len(sent))})
        )
        return self.answers[-1]

    def send_until_accepted(self) -> Answer:
        while (answer := self.send()).status == 503:
            time.sleep(int(answer.headers["Retry-After"]))
        return answer

    def _pieces(self, sent: bytes) -> Iterator[bytes]:
        yield sent[:-500]
        if self.begun:
            self.begun.set()
        if self.pause:
            self.pause.wait(60)
        yield sent[-500:]


def test_nginx_takes_the_file(tmp_path):
    site = Site(tmp_path, {})
    site.write_config()

    run = subprocess.run(site.nginx("-t"), capture_output=True, text=True)

    assert run.returncode == 0, run.stderr
    assert "test is successful" in run.stderr


def test_the_limit_of_an_upload_is_the_archive_checkers():
    sizes = re.findall(r"client_max_body_size (\d+);", CONFIG.read_text())

    assert sizes == [str(DEFAULT_LIMITS.compressed + FORM_MAX_BYTES)]


@pytest.mark.timeout(600)
def test_a_killed_web_server_loses_no_upload_and_doubles_none(site, secrets):
    killed, accepted = threading.Event(), threading.Semaphore(0)
    # The first half of two of them is on its way when the server dies.
    researchers = [
        Researcher(site, secret, f"model-{number}", pause=killed if (index, number) in {(0, 0), (1, 0)} else None)
        for number in range(EACH)
        for index, secret in enumerate(secrets)
    ]

    def upload(researcher: Researcher) -> str:
        answer = researcher.send_until_accepted()
        accepted.release()
        return answer.headers["X-Submission-Id"]

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = pool.map(upload, researchers)
        for _ in range(KILLED_AT):
            accepted.acquire()
        kill(site.web[0])
        killed.set()
        ids = list(answers)

    assert {answer.status for researcher in researchers for answer in researcher.answers} == {200, 503}
    assert len(set(ids)) == Submission.objects.accepted().count() == USERS * EACH
    assert not Submission.objects.filter(status="receiving").exists()
    for researcher, pk in zip(researchers, ids, strict=True):
        submission = Submission.objects.get(pk=pk, name=researcher.name)
        with submission.task.storage().open(submission.archive_key) as stored:
            assert hashlib.sha256(stored.read()).hexdigest() == submission.sha256
        assert submission.sha256 == hashlib.sha256(researcher.tarball).hexdigest()
        assert researcher.token not in site.logs()
        assert researcher.secret not in site.logs()
    assert researchers[-1].send().headers["X-Submission-Id"] == ids[-1]
    assert "?" not in site.logs()


def test_a_web_server_that_is_told_to_stop_finishes_its_uploads(site, secrets):
    begun, stopping = threading.Event(), threading.Event()
    researcher = Researcher(site, secrets[0], "model", begun=begun, pause=stopping)

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(researcher.send)
        assert begun.wait(60)
        time.sleep(1)  # for the first half to arrive
        for web in site.web:
            web.terminate()
        time.sleep(1)
        stopping.set()

        assert answer.result().status == 200
    assert [web.wait(60) for web in site.web] == [0, 0]


def test_without_a_web_server_everyone_is_told_when_to_come_back(site, secrets):
    for web in site.web:
        kill(web)

    for path in ("/api/v1/submissions/", "/tasks/submitable", f"{REFRESH}?api_token={secrets[0]}"):
        answer = site.request("GET", path)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "30")
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert json.loads(answer.body).keys() == {"type", "title", "status", "detail", "code"}
    page = site.request("GET", "/")
    assert (page.status, page.headers["Retry-After"], page.headers["Content-Type"]) == (503, "30", "text/html")
    assert secrets[0] not in site.logs()


def test_an_archive_above_the_limit_is_refused_before_it_is_sent(site):
    length = str(DEFAULT_LIMITS.compressed + FORM_MAX_BYTES + 1)

    answer = site.request("POST", UPLOAD, [b"-"], {"Content-Length": length, "Content-Type": CONTENT_TYPE})

    assert (answer.status, json.loads(answer.body)["code"]) == (413, "archive_too_big")


def test_no_security_header_comes_twice(site):
    page = site.request("GET", "/accounts/login/")

    assert page.status == 200
    for name in ("Strict-Transport-Security", "X-Content-Type-Options", "Content-Security-Policy", "Referrer-Policy"):
        assert len(page.headers.get_all(name)) == 1


def test_a_web_server_itself_sends_people_to_https_but_answers_health_checks(site):
    def status(path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", site.web_ports[0], timeout=60)
        connection.request("GET", path, headers={"Host": HOST})
        return connection.getresponse().status

    assert [status(path) for path in ("/healthz", "/readyz", "/")] == [200, 200, 301]


@pytest.fixture
def upstream(tmp_path) -> Iterator[tuple[Site, list[BaseHTTPRequestHandler]]]:
    """nginx before two servers that take a request, note it, and hang up; /fine is answered."""
    seen: list[BaseHTTPRequestHandler] = []

    class Upstream(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self)
            if self.path == "/fine":
                self.send_response(204)
                self.end_headers()

        do_POST = do_GET

    site = Site(tmp_path, {})
    servers = [ThreadingHTTPServer(("127.0.0.1", port), Upstream) for port in site.web_ports]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    with site.nginx_running():
        yield site, seen
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("path", [UPLOAD, "/api/v1/submissions/1/retry/"])
def test_what_may_have_taken_effect_is_not_sent_to_the_other_server(upstream, path):
    site, seen = upstream

    assert site.request("POST", path, [b"1"], {"Content-Length": "1"}).status == 503
    assert [request.command for request in seen] == ["POST"]

    assert site.request("GET", path).status == 503
    assert [request.command for request in seen] == ["POST", "GET", "GET"]


def test_the_web_server_learns_the_clients_address_not_what_the_client_claims(upstream):
    site, seen = upstream

    assert site.request("GET", "/fine", headers={"X-Forwarded-For": "203.0.113.9"}).status == 204

    headers = seen[0].headers
    assert (headers["X-Forwarded-For"], headers["X-Forwarded-Proto"], headers["Host"]) == ("127.0.0.1", "https", HOST)
