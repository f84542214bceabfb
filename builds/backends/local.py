"""All on this host: an image stays where it was made, and single examples are asked of it there."""

from __future__ import annotations

from typing import Literal

from builds.backends import ModelFault
from builds.models import Build, Endpoint
from builds.sandboxes.policy import Log


class LocalDeployer:
    keeps_image = True

    def publish(self, build: Build, log: Log) -> str:
        return ""

    def register(self, build: Build) -> None:
        """The image is all that inference needs here."""

    def remove(self, build: Build) -> None:
        """Nothing was taken elsewhere."""

    def start(self, endpoint: Endpoint) -> Literal["starting", "ready"]:
        return "ready"

    def stop(self, endpoint: Endpoint) -> None:
        """Nothing runs between two examples."""

    def invoke(self, endpoint: Endpoint, body: bytes, *, seconds: float) -> bytes:
        raise ModelFault("This site has no endpoints: the image on this host answers.")

    def is_idle(self, endpoint: Endpoint, *, hours: int) -> bool:
        return False
