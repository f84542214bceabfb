from __future__ import annotations

from django import template

from dynabench_site import admin
from dynabench_site.jobs import Job

register = template.Library()
MOST_SHOWN = 20


@register.simple_tag
def stuck_jobs() -> list[tuple[Job, str, str]]:
    """What the front page of the admin shows first: jobs that don't move, why, and where to free them."""
    return admin.stuck_jobs(MOST_SHOWN)
