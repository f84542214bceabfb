"""Where code of strangers runs. `choose` gives the strongest sandbox that works on this host."""

from __future__ import annotations

import logging
from collections.abc import Container
from functools import cache

from django.conf import settings

from builds.sandboxes.bwrap import BwrapSandbox
from builds.sandboxes.docker import DockerSandbox
from builds.sandboxes.policy import NoSandbox, Sandbox, SandboxError, SandboxUnavailable
from builds.sandboxes.process import ProcessSandbox

logger = logging.getLogger(__name__)

SANDBOXES: dict[str, type[Sandbox]] = {
    "docker": DockerSandbox,
    "bwrap": BwrapSandbox,
    "process": ProcessSandbox,
}


def choose(*, trusted: bool = False) -> Sandbox:
    """The first sandbox that passes its self-test; `trusted` code may do without isolation.

    Remembered per process once found. Raises `NoSandbox` with what to install.
    """
    return _chosen(settings.SANDBOX, trusted or settings.ALLOW_UNSANDBOXED)


def sweep(live: Container[str]) -> list[str]:
    """Ends and removes what dead workers left on this host of jobs not in `live`; the names of those jobs."""
    swept = set()
    for name in SANDBOXES:
        try:
            swept.update(by_name(name).sweep(live))
        except SandboxUnavailable:
            continue  # where it can't run it left nothing
    return sorted(swept)


@cache
def by_name(name: str) -> Sandbox:
    """The sandbox that a build was made in."""
    try:
        return SANDBOXES[name]()
    except KeyError:
        raise NoSandbox(f"there is no sandbox {name!r}: it is one of {', '.join(SANDBOXES)}") from None


@cache
def _chosen(forced: str, is_unsandboxed_allowed: bool) -> Sandbox:
    reasons = {}
    for name in [forced] if forced else SANDBOXES:
        reason = _refusal(name, is_unsandboxed_allowed)
        if reason is None:
            logger.info("sandbox %s passed its self-test", name)
            return by_name(name)
        reasons[name] = reason
        logger.warning("sandbox %s refused: %s", name, reason)
    if forced:
        raise NoSandbox(f"DYNABENCH_SANDBOX={forced} can't be used: {reasons[forced]}")
    raise NoSandbox("no sandbox on this host: install docker or bubblewrap")


def _refusal(name: str, is_unsandboxed_allowed: bool) -> str | None:
    """Why this sandbox is not used; None when it passed."""
    sandbox = by_name(name)
    if name == ProcessSandbox.name and not is_unsandboxed_allowed:
        return "it can't close the network or hide files; DYNABENCH_ALLOW_UNSANDBOXED=1 allows it all the same"
    try:
        sandbox.self_test()
    except SandboxError as error:
        return str(error)
    return None
