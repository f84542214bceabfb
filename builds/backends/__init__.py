"""What becomes of an image outside the host that made it. A deployer publishes it, and serves single examples."""

from __future__ import annotations

from typing import Literal, Protocol

from django.conf import settings
from django.utils.module_loading import import_string

from builds.models import Build, Endpoint
from builds.sandboxes.policy import Log


class ModelFault(Exception):
    """The model itself could not answer; the message is for its owner."""


class Deployer(Protocol):
    keeps_image: bool  # whether the host that made an image goes on needing it

    def publish(self, build: Build, log: Log) -> str:
        """The image lies where other hosts get it: its address there, by digest."""

    def register(self, build: Build) -> None:
        """Inference can be asked of it, also when it was registered before."""

    def remove(self, build: Build) -> None:
        """Nothing of the build is left outside this host, also when nothing was there."""

    def start(self, endpoint: Endpoint) -> Literal["starting", "ready"]:
        """Start it, or see how it goes; raises JobFailed when the model does not come up."""

    def stop(self, endpoint: Endpoint) -> None:
        """It runs no longer, also when it never did."""

    def invoke(self, endpoint: Endpoint, body: bytes, *, seconds: float) -> bytes:
        """Its answer to one example; raises ModelFault."""

    def is_idle(self, endpoint: Endpoint, *, hours: int) -> bool:
        """Whether nobody asked it anything for so long."""


def deployer() -> Deployer:
    return import_string(settings.DEPLOYER)()
