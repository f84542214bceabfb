"""What a task's model server needs of the sandbox that its models are built in."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from builds import torchserve_image
from builds.sandboxes.docker import DockerSandbox
from builds.sandboxes.policy import Sandbox, SandboxError, SandboxUnavailable
from tasks_catalog.models import BuildConfig

logger = logging.getLogger(__name__)


def equipped(sandbox: Sandbox, config: BuildConfig) -> tuple[Sandbox, Mapping[str, str]]:
    """The sandbox, on the model server's own base image where it has one, and the packages which that offers.

    Raises `SandboxUnavailable` where this host can't have it.
    """
    if config.served_by != BuildConfig.ModelServer.TORCHSERVE:
        return sandbox, {}
    if not isinstance(sandbox, DockerSandbox):
        raise SandboxUnavailable(
            f"TorchServe, which serves models of {config.task}, needs the docker sandbox, and this host has "
            f"{sandbox.name}: install docker, or choose asgi in the task's build config"
        )
    try:
        image = torchserve_image.ensure(logger.info, gpu=config.gpu)
    except SandboxError as error:
        raise SandboxUnavailable(f"the image for TorchServe can't be made: {error}") from error
    return sandbox.on(image.tag), image.offers
