"""Ending work from outside, wherever it waits."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[Callable[[Exception], None]]:
    """A function that raises an exception in the main thread, also while that waits for a model's answer.

    Elsewhere than in the main thread nothing can be interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda error: None
        return
    raised: list[Exception] = []

    def interrupt(error: Exception) -> None:
        raised.append(error)
        os.kill(os.getpid(), signal.SIGUSR1)

    def receive(*_: object) -> None:
        raise raised[0]

    before = signal.signal(signal.SIGUSR1, receive)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGUSR1, before)
