"""SIGTERM and Ctrl-C end a run after the current step, or at once where waiting is pointless."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class StoppedError(BaseException):
    """A signal arrived inside of `Signals.raised`."""


class Signals:
    """Remembers SIGTERM and Ctrl-C while it is entered; a second Ctrl-C raises `KeyboardInterrupt`.

    Attributes:
        received: number of the last signal; 0 before the first.
    """

    def __init__(self):
        self.received = 0
        self._raises = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        # Python delivers signals to the main thread alone; elsewhere there is nothing to set.
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Inside, a signal raises `StoppedError` at once."""
        self._raises = True
        try:
            if self.received:
                raise StoppedError
            yield
        finally:
            self._raises = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if self._raises:
            raise StoppedError
