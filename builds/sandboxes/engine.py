"""A connection to the docker engine; the SDK's exceptions stop here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import docker
from docker.errors import DockerException
from requests.exceptions import RequestException

from builds.sandboxes.policy import SandboxError, SandboxUnavailable


@contextmanager
def engine(timeout: float = 60) -> Iterator[docker.DockerClient]:
    """The engine that DOCKER_HOST names, else the local one; no single call takes longer than `timeout` s."""
    try:
        client = docker.from_env(timeout=timeout)
    except (DockerException, RequestException) as error:
        raise SandboxUnavailable(f"no docker engine answers: {error}") from error
    try:
        yield client
    except (DockerException, RequestException) as error:
        raise SandboxError(f"docker: {error}") from error
    finally:
        client.close()
