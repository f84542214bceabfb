"""Who calls the API: an access token (Bearer) or an API token (Token)."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.core import signing
from django.db.models.functions import Now
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from submissions.models import ApiToken

SALT = "dynabench.access"
ACCESS_SECONDS = 15 * 60


def access_token(token: ApiToken) -> str:
    """A signed value that stands for the token's user for 15 minutes."""
    return signing.dumps(token.pk, salt=SALT)


def find_token(secret: str) -> ApiToken:
    """The valid token with this secret; notes its use."""
    return _valid_token(digest=ApiToken.hash(secret))


def _valid_token(**where: Any) -> ApiToken:
    token = ApiToken.objects.valid().filter(user__is_active=True, **where).select_related("user").first()
    if token is None:
        raise AuthenticationFailed("This token is unknown, expired or revoked. Make a new one at /generate_api_token.")
    ApiToken.objects.filter(pk=token.pk).update(last_used_at=Now())
    return token


def _from_access_token(value: str) -> ApiToken:
    try:
        pk = signing.loads(value, salt=SALT, max_age=ACCESS_SECONDS)
    except signing.SignatureExpired as error:
        raise AuthenticationFailed("This access token has expired. Log in again.", "token_expired") from error
    except signing.BadSignature as error:
        raise AuthenticationFailed("This access token is not one of ours. Log in again.") from error
    return _valid_token(pk=pk)


class TokenAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[User, ApiToken] | None:
        words = get_authorization_header(request).decode("latin-1").split()
        if not words:
            return None
        if len(words) != 2 or words[0].lower() not in {"bearer", "token"}:
            raise AuthenticationFailed("Write `Authorization: Bearer <access token>` or `Token <API token>`.")
        token = _from_access_token(words[1]) if words[0].lower() == "bearer" else find_token(words[1])
        return token.user, token

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="dynabench"'
