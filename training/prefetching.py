"""Batches of the next steps are made in a thread while the devices compute."""

from __future__ import annotations

import collections
from concurrent.futures import Future, ThreadPoolExecutor

from training.engine import Batch, Dataset


class Prefetcher:
    """Makes up to `ahead` batches of `dataset` in advance, in a thread that lives while this is entered."""

    def __init__(self, dataset: Dataset, ahead: int):
        self._dataset, self._ahead = dataset, ahead
        self._executor = ThreadPoolExecutor(1, "batches")
        self._pending: collections.deque[Future[Batch]] = collections.deque()
        self._next_step = 0

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def restart(self) -> None:
        """Drop the batches made in advance: the next `take` may begin at any step."""
        while self._pending:
            self._pending.pop().cancel()

    def take(self, step: int, count: int, end: int) -> list[Batch]:
        """Return the batches of `count` steps from `step` on and start those that follow, up to step `end`."""
        if not self._pending:
            self._next_step = step
        while self._next_step < min(step + count + self._ahead, end):
            self._pending.append(self._executor.submit(self._dataset.batch, self._next_step))
            self._next_step += 1
        return [self._pending.popleft().result() for _ in range(count)]
