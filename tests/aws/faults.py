"""Makes calls fail, hang or lose their answers, by rules that a test sets."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.aws.calls import OWN_ROLE, Call, Refused, Unanswered

EFFECTS = ("throttle", "quota", "error", "expired", "denied", "slow", "reset", "lost", "truncated")


@dataclass(slots=True)
class Rule:
    """Calls that fit all of what is given get the effect, `times` times, each with the probability `share`."""

    effect: str
    service: str = ""
    action: str = ""
    region: str = ""
    role: str = ""
    access: str = ""  # read or write
    name: str = ""  # a part of the resource's name or the object's key
    times: int | None = None
    share: float = 1.0
    seed: int = 0
    seconds: float = 1.0
    fired: int = 0
    _random: random.Random = field(init=False, repr=False, default_factory=random.Random)

    def __post_init__(self) -> None:
        if self.effect not in EFFECTS:
            raise ValueError(f"{self.effect!r} is no effect; there are {', '.join(EFFECTS)}.")
        self._random.seed(self.seed)

    def fires(self, call: Call) -> bool:
        wanted = ("service", "action", "region", "role", "access")
        if any(getattr(self, key) not in ("", getattr(call, key)) for key in wanted):
            return False
        if self.name not in (call.name or call.key or "") or self.fired == self.times:
            return False
        if self.effect == "truncated" and call.method != "GET":
            return False
        if self._random.random() >= self.share:
            return False
        self.fired += 1
        return True

    def shown(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if not key.startswith("_")}


class Faults:
    def __init__(self, app: Any) -> None:
        self.app = app
        self.rules: list[Rule] = []
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        call = environ["stand.call"]
        with self._lock:
            rule = next((rule for rule in self.rules if rule.fires(call)), None) if call.role != OWN_ROLE else None
        if rule is None:
            return self.app(environ, start_response)
        call.fault = rule.effect
        match rule.effect:
            case "reset":
                raise Unanswered
            case "lost":
                self._answer(environ, start_response)
                raise Unanswered
            case "slow":
                time.sleep(rule.seconds)
                return self.app(environ, start_response)
            case "truncated":
                body = self._answer(environ, start_response)
                return [body[: len(body) // 2]]
        return call.refusal(refused(rule.effect, call))(environ, start_response)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> bytes:
        return b"".join(self.app(environ, start_response))

    def set(self, rules: list[dict[str, Any]]) -> None:
        self.rules = [Rule(**rule) for rule in rules]


def refused(effect: str, call: Call) -> Refused:
    is_s3 = call.service == "s3"
    match effect:
        case "throttle" if is_s3:
            return Refused("SlowDown", "Reduce your request rate.", 503)
        case "throttle":
            return Refused("ThrottlingException", "Rate exceeded")
        case "quota":
            return Refused("ResourceLimitExceeded", "The account-level service limit is reached.")
        case "expired":
            code = "ExpiredToken" if is_s3 or call.service == "sts" else "ExpiredTokenException"
            return Refused(code, "The security token included in the request is expired")
        case "denied":
            return Refused("AccessDenied" if is_s3 else "AccessDeniedException", f"No right to {call.action}.", 403)
        case _:
            return Refused("InternalError" if is_s3 else "InternalFailure", "We encountered an internal error.", 500)
