"""The processes of one run: the number of this one, and the ways in which all of them agree.

All take the same steps with the same numbers. The first writes the files of the run; the others only read them, from a
file system that all share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from absl.app import UsageError

Result = TypeVar("Result")

_TEXT_BYTES = 1000


class Processes:
    """A run of one process."""

    index = 0
    count = 1

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.index == 0

    def largest(self, number: int) -> int:
        """Return the largest of the numbers that the processes give; all wait for one another here."""
        return number

    def texts(self, text: str) -> list[str]:
        """Return the text of every process, each cut to 1000 bytes; all wait for one another here."""
        return [text]

    def together(self, function: Callable[[], Result]) -> Result:
        """Call `function` in every process; a user's mistake (`UsageError`, `OSError`) in one process ends all.

        Raises the error itself in the process where it was raised, and in the others a `UsageError` that names it.
        """
        result, failure = None, None
        try:
            result = function()
        except (UsageError, OSError) as error:
            failure = error
        texts = self.texts("" if failure is None else str(failure) or type(failure).__name__)
        if failure is not None:
            raise failure
        for index, text in enumerate(texts):
            if text:
                raise UsageError(f"process {index} of {self.count}: {text}")
        return result  # pyright: ignore[reportReturnType]

    @staticmethod
    def as_bytes(text: str) -> np.ndarray:
        """Return the text in the one length in which processes exchange texts, uint8 [1000]."""
        row = np.zeros(_TEXT_BYTES, np.uint8)
        encoded = text.encode()[:_TEXT_BYTES]
        row[: len(encoded)] = np.frombuffer(encoded, np.uint8)
        return row

    @staticmethod
    def as_text(row: np.ndarray) -> str:
        """Return the text that `as_bytes` was given, up to its length."""
        return bytes(row).rstrip(b"\0").decode(errors="replace")


class JaxProcesses(Processes):
    """The processes that `jax.distributed` has brought together."""

    def __init__(self):
        import jax

        self.index, self.count = jax.process_index(), jax.process_count()

    def largest(self, number: int) -> int:
        return int(_gathered(np.int32(number)).max())

    def texts(self, text: str) -> list[str]:
        return [self.as_text(row) for row in _gathered(self.as_bytes(text))]


def _gathered(value: Any) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value))


_started = Processes()


def current() -> Processes:
    """Return the processes of this run."""
    return _started


def use(processes: Processes) -> None:
    """Set what `current` returns, once the backend has brought the processes together."""
    global _started  # noqa: PLW0603
    _started = processes
