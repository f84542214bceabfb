from __future__ import annotations

import errno

import pytest

from builds.faults import hosts_faults
from builds.requirements import FetchError
from builds.sandboxes.policy import NoSandbox, SandboxError, SandboxUnavailable
from dynabench_site.jobs import JobStumbled, NotYet


@pytest.mark.parametrize("fault", [NoSandbox, SandboxUnavailable, FetchError])
def test_what_is_missing_on_the_host_is_waited_for_with_its_reason(fault):
    with pytest.raises(NotYet, match="docker is away"), hosts_faults():
        raise fault("docker is away")


def test_what_broke_on_the_host_is_tried_again():
    with pytest.raises(JobStumbled, match="image is not on this host"), hosts_faults():
        raise SandboxError("image is not on this host")


def test_a_full_disk_is_waited_for():
    with pytest.raises(NotYet, match="disk space"), hosts_faults():
        raise OSError(errno.ENOSPC, "No space left on device")


def test_another_fault_of_the_system_passes():
    with pytest.raises(PermissionError), hosts_faults():
        raise PermissionError(errno.EACCES, "Permission denied")
