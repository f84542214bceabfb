from __future__ import annotations

import io
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.core import signing
from django.core.management import CommandError, call_command
from django.utils import timezone

from submissions.authentication import ACCESS_SECONDS, SALT, access_token
from submissions.models import ApiToken

REFRESH = "/authenticate/refresh_from_api"
MINE = "/api/v1/submissions/"


@pytest.fixture
def token(user):
    return ApiToken.make(user=user, name="laptop")


def is_unauthorised(response):
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["WWW-Authenticate"]
    return response.status_code == 401 and response.json()["status"] == 401


def test_an_api_token_becomes_an_access_token_that_opens_the_api(token, client):
    _, secret = token

    answer = client.get(REFRESH, {"api_token": secret})

    assert answer.status_code == 200
    assert answer.json().keys() == {"token"}
    assert answer.headers["Cache-Control"] == "no-store"
    assert client.get(MINE, headers={"Authorization": f"Bearer {answer.json()['token']}"}).status_code == 200
    assert client.get(MINE, headers={"Authorization": f"Token {secret}"}).status_code == 200


def test_the_secret_is_stored_nowhere(token):
    row, secret = token
    row.refresh_from_db()

    assert secret not in {str(value) for value in vars(row).values()}
    assert len(secret) == 64


def test_its_use_is_noted(token, client):
    row, secret = token

    client.get(REFRESH, {"api_token": secret})

    row.refresh_from_db()
    assert row.last_used_at


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"api_token": ""},
        {"api_token": "0" * 64},
        {"api_token": "x"},
        {"api_token": "\0"},
        {"api_token": "é" * 10_000},
        {"api_token": "' OR 1=1 --"},
        {"token": "0" * 64},
        {"api_token[]": "x"},
    ],
)
def test_an_unknown_api_token_gives_nothing(query, token, client):
    assert is_unauthorised(client.get(REFRESH, query))


def test_neither_its_digest_nor_its_prefix_is_a_token(token, client):
    row, secret = token

    for value in (row.digest, row.prefix, secret[:-1], secret + "0", secret.upper()):
        assert is_unauthorised(client.get(REFRESH, {"api_token": value}))


def changed(text):
    return text[:-1] + ("A" if text[-1] != "A" else "B")


FORGED = {
    "no token": lambda row, good: "Bearer",
    "two tokens": lambda row, good: f"Bearer {good} {good}",
    "no scheme": lambda row, good: good,
    "another scheme": lambda row, good: f"Basic {good}",
    "the word None": lambda row, good: "None",
    "nonsense": lambda row, good: "Bearer nonsense",
    "dots": lambda row, good: "Bearer ..:..",
    "not ASCII": lambda row, good: "Bearer é",
    "last letter changed": lambda row, good: f"Bearer {changed(good)}",
    "signature cut": lambda row, good: f"Bearer {good[:-5]}",
    "no signature": lambda row, good: f"Bearer {good.rpartition(':')[0]}",
    "another's id": lambda row, good: (
        f"Bearer {signing.dumps(row.pk + 1, salt=SALT).partition(':')[0]}{good[good.index(':') :]}"
    ),
    "another salt": lambda row, good: f"Bearer {signing.dumps(row.pk, salt='dynabench.other')}",
    "another key": lambda row, good: f"Bearer {signing.dumps(row.pk, salt=SALT, key='guessed')}",
    "a token that is gone": lambda row, good: f"Bearer {signing.dumps(row.pk + 1000, salt=SALT)}",
    "an unsigned JWT": lambda row, good: "Bearer eyJhbGciOiJub25lIn0.eyJpZCI6MX0.",
    "access token as API token": lambda row, good: f"Token {good}",
    "digest as API token": lambda row, good: f"Token {row.digest}",
    "very long": lambda row, good: f"Bearer {'a' * 20_000}",
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_token_opens_nothing(case, token, client):
    row, _ = token
    header = FORGED[case](row, access_token(row))

    assert is_unauthorised(client.get(MINE, headers={"Authorization": header}))
    assert is_unauthorised(client.post("/models/upload/s3", b"", "multipart/x", headers={"Authorization": header}))


def test_an_access_token_ends_after_its_time(token, client, monkeypatch):
    row, _ = token
    good = access_token(row)
    is_later = signing.time.time() + ACCESS_SECONDS + 2
    monkeypatch.setattr(signing.time, "time", lambda: is_later)

    response = client.get(MINE, headers={"Authorization": f"Bearer {good}"})

    assert is_unauthorised(response)
    assert response.json()["code"] == "token_expired"


@pytest.mark.parametrize("end", ["revoked_at", "expires_at"])
def test_an_ended_api_token_ends_its_access_tokens_too(end, token, client):
    row, secret = token
    good = access_token(row)
    ApiToken.objects.update(**{end: timezone.now() - timedelta(seconds=1)})

    assert is_unauthorised(client.get(REFRESH, {"api_token": secret}))
    assert is_unauthorised(client.get(MINE, headers={"Authorization": f"Token {secret}"}))
    assert is_unauthorised(client.get(MINE, headers={"Authorization": f"Bearer {good}"}))


def test_a_token_that_expires_later_is_good_until_then(user, client):
    _, secret = ApiToken.make(user=user, name="week", expires_at=timezone.now() + timedelta(days=7))

    assert client.get(REFRESH, {"api_token": secret}).status_code == 200


def test_a_user_who_was_locked_out_stays_out(token, user, client):
    row, secret = token
    user.is_active = False
    user.save()

    assert is_unauthorised(client.get(REFRESH, {"api_token": secret}))
    assert is_unauthorised(client.get(MINE, headers={"Authorization": f"Bearer {access_token(row)}"}))


def api_token(*args):
    out = io.StringIO()
    call_command("api_token", *args, stdout=out)
    return out.getvalue()


def test_the_command_prints_the_token_alone(user, client):
    printed = api_token("ada", "--name", "nightly")

    assert printed == printed.strip() + "\n"
    assert client.get(REFRESH, {"api_token": printed.strip()}).status_code == 200
    assert user.api_tokens.get().name == "nightly"


def test_the_command_makes_a_user_who_has_no_password(db):
    api_token("robot", "--create")
    api_token("robot", "--create")

    robot = User.objects.get(username="robot")
    assert not robot.has_usable_password()
    assert robot.api_tokens.count() == 2


def test_the_command_leaves_an_existing_user_as_it_is(user):
    api_token("ada", "--create")

    user.refresh_from_db()
    assert user.check_password("secret")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["nobody"], "There is no user 'nobody'"),
        (["two words", "--create"], "valid username"),
        (["", "--create"], "cannot be blank"),
        (["robot", "--create", "--name", "n" * 61], "at most 60"),
    ],
)
def test_the_command_says_what_is_wrong(args, sentence, db):
    with pytest.raises(CommandError, match=sentence):
        api_token(*args)

    assert not User.objects.exists()
