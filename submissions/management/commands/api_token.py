"""A token for a script, without a browser."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from submissions.models import ApiToken


class Command(BaseCommand):
    help = "Make an API token and print it, alone, on stdout. Nobody can read it again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("username")
        parser.add_argument("--name", default="command line", help="What the token is for, as its owner reads it.")
        parser.add_argument("--create", action="store_true", help="Make the user, without a password, if absent.")

    def handle(self, *args: Any, username: str, name: str, create: bool, **options: Any) -> None:
        try:
            ApiToken(name=name).clean_fields(exclude=["user", "digest", "prefix", "created_at"])
            user = _made(username) if create else User.objects.filter(username=username).first()
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        if user is None:
            raise CommandError(f"There is no user {username!r}. Check the name, or add --create to make that user.")
        _, token = ApiToken.make(user=user, name=name)
        self.stdout.write(token)


def _made(username: str) -> User:
    User(username=username).clean_fields(exclude=["password"])
    return User.objects.get_or_create(username=username, defaults={"password": make_password(None)})[0]
