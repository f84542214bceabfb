"""Which faults of a host make a job wait, and which it stumbles over."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from builds.requirements import FetchError
from builds.sandboxes.policy import NoSandbox, SandboxError, SandboxUnavailable
from dynabench_site.faults import NotYet
from dynabench_site.jobs import JobStumbled

PAUSE_SECONDS = 60


@contextmanager
def hosts_faults() -> Iterator[None]:
    """What is missing on this host is waited for, without spending an attempt; what broke is tried again."""
    try:
        yield
    except (NoSandbox, SandboxUnavailable, FetchError) as error:
        raise NotYet(str(error), PAUSE_SECONDS) from error
    except SandboxError as error:
        raise JobStumbled("sandbox_failed", str(error)) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NotYet("disk space on this host", PAUSE_SECONDS) from error
        raise
