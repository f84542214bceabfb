"""How values read on pages and in mails; only here are numbers rounded."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from builds.log import culprit, numbered
from builds.models import BuildStep

register = template.Library()
NOTHING = "–"
SHORT_DIGEST = 12


@register.filter
def number(value: float | None, unit: str = "") -> str:
    """A value in that unit, without the unit: percentages with two decimals, else three significant digits."""
    if value is None:
        return NOTHING
    if unit == "%":
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


@register.filter
def share(value: float) -> str:
    return f"{100 * value:.0f} %"


@register.filter
def weight(value: float) -> str:
    """A weight as a number input takes it."""
    return f"{value:.12g}"


@register.filter
def item(mapping: Mapping[str, Any], key: str) -> Any:
    return mapping.get(key)


@register.filter
def when(at: datetime | None) -> SafeString | str:
    """A time in UTC that a reader, and the page's script, can tell."""
    if at is None:
        return NOTHING
    at = timezone.localtime(at, timezone.get_fixed_timezone(0))
    return format_html('<time datetime="{}">{}</time>', f"{at:%Y-%m-%dT%H:%M:%SZ}", f"{at:%Y-%m-%d %H:%M} UTC")


@register.filter
def lasting(elapsed: timedelta | float | None) -> str:
    """A length of time: 0.52 s, 43 s, 7 min 21 s, 2 h 5 min."""
    if elapsed is None:
        return NOTHING
    seconds = elapsed.total_seconds() if isinstance(elapsed, timedelta) else elapsed
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@register.filter
def digest(value: str) -> SafeString | str:
    """The beginning of a digest; the whole of it as its title."""
    if not value:
        return NOTHING
    return format_html('<code class="digest" title="{}">{}</code>', value, value.removeprefix("sha256:")[:SHORT_DIGEST])


@register.filter
def tail(text: str, lines: int) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])


@register.filter
def log_anchor(step: BuildStep) -> str:
    """Where in its build's log page the step says what went wrong: `?run=1#L12`."""
    line = culprit(numbered(step.build.steps.all()), step)
    return f"?run={step.build.run}" + (f"#L{line.number}" if line else "")
