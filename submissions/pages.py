"""The page that the CLI opens: make an API token, see which exist, revoke one."""

from __future__ import annotations

from datetime import timedelta

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST

from submissions.models import ApiToken

DEFAULT_NAME, DEFAULT_DAYS = "my computer", 365


class TokenForm(forms.Form):
    name = forms.CharField(
        max_length=60,
        required=False,
        initial=DEFAULT_NAME,
        empty_value=DEFAULT_NAME,
        help_text="Where you will use it.",
    )
    days = forms.TypedChoiceField(
        label="Valid for",
        choices=[(30, "30 days"), (90, "90 days"), (365, "a year"), (0, "ever")],
        required=False,
        initial=DEFAULT_DAYS,
        coerce=int,
        empty_value=DEFAULT_DAYS,
    )


@login_required
@never_cache
def tokens(request: HttpRequest) -> HttpResponse:
    """GET: a form and the valid tokens. POST: a new token, shown this once."""
    form, secret = TokenForm(request.POST if request.method == "POST" else None), ""
    if request.method == "POST" and form.is_valid():
        days = form.cleaned_data["days"]
        expires_at = timezone.now() + timedelta(days=days) if days else None
        _, secret = ApiToken.make(user=request.user, name=form.cleaned_data["name"], expires_at=expires_at)
        form = TokenForm()
    valid = ApiToken.objects.valid().filter(user=request.user)
    return render(request, "submissions/tokens.html", {"form": form, "secret": secret, "tokens": valid})


@login_required
@require_POST
def revoke(request: HttpRequest, pk: int) -> HttpResponse:
    token = get_object_or_404(ApiToken, pk=pk, user=request.user)
    ApiToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=Now())
    messages.success(request, f"The token {token} no longer works.")
    return redirect("generate_api_token")
