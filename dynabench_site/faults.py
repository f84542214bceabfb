"""What isn't there now, but will be: a job waits for it, a request is answered 503."""

from __future__ import annotations


class NotYet(Exception):
    """Something that the work needs isn't there: step back, without spending the attempt.

    `seconds` is the first pause; with `most`, each further one in a row is twice as long, up to that.
    """

    def __init__(self, reason: str, seconds: float, *, most: float = 0) -> None:
        super().__init__(reason)
        self.reason, self.seconds, self.most = reason, seconds, most

    def pause(self, waits: int) -> float:
        """Seconds to wait after that many waits in a row."""
        return min(self.most, self.seconds * 2 ** min(waits, 20)) if self.most else self.seconds


class Throttled(NotYet):
    """Whoever asks next would be refused as well."""
