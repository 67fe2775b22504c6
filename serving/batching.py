"""Rows of many requests in batches of few tokens, computed by one thread; what nobody waits for is never computed.

    batcher = Batcher(budget_tokens=4096, most_rows=32)
    work = Work(group, row, tokens=64, deadline=time.monotonic() + 10)
    batcher.submit([work])                      # from any thread
    work.future.result()                        # group.compute([row, ...])[i]

The oldest work is always computed next, so nobody starves, with others of its group of about its
size. No work waits for others: a batch is what lies there when the thread is free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

BATCH_TOKENS = 32
"""What a batch costs besides its rows, as many tokens as take equally long: the weights are read, and all is called."""


class Group(Protocol):
    """What computes works together; those of one group (by equality) may be in one batch."""

    def compute(self, given: Sequence[Any], /) -> Sequence[Any]:
        """Return the result of each row."""
        ...

    def size_of(self, count: int) -> int:
        """Return the rows that a batch of `count` is filled up to."""
        ...


class LateError(Exception):
    """The deadline of a work passed before it was computed."""


@dataclass(eq=False)
class Work:
    """One row that is to be computed.

    Attributes:
        group: which computes it.
        row: what it is.
        tokens: that it costs in a batch, padding counted.
        deadline: on the batcher's clock, in seconds; it is not begun later.
        future: of the result; whoever cancels it before it is begun has it thrown away.
        most_rows: of a batch with it, where the batcher allows more.
        submitted, begun, ended: on the batcher's clock, in seconds.
    """

    group: Group
    row: Any
    tokens: int
    deadline: float
    most_rows: int | None = None
    future: Future[Any] = field(default_factory=Future)
    submitted: float = 0.0
    begun: float = 0.0
    ended: float = 0.0


def chosen(waiting: Sequence[Work], budget_tokens: int, most_rows: int) -> list[Work]:
    """Return what is computed next of works that wait, oldest first.

    The batch has the oldest and others of its group, and costs at most the budget. A batch is padded to its longest row
    and filled up to a size. Of all batches this is the one of whose cost the tokens that were asked for are the largest
    share, where every batch costs `BATCH_TOKENS` besides its rows: rows of about a length go together.

    Example: tokens 32 16 32 64 32 of one group, a budget of 128, sizes powers of two
        32 32 32 16 are 112 of 4 x 32 + 32 tokens; 32 32 would be 64 of 2 x 32 + 32, and 64 32 96 of 2 x 64 + 32
    """
    oldest = waiting[0]
    others = [work for work in waiting[1:] if work.group == oldest.group]
    # Longest first, and of a length the oldest first.
    others.sort(key=lambda work: -work.tokens)
    found, best = [oldest], 0.0
    for longest in sorted({work.tokens for work in (oldest, *others) if work.tokens >= oldest.tokens}):
        asked, most = 0, most_rows
        batch = [oldest, *(work for work in others if work.tokens <= longest)]
        for count, work in enumerate(batch, 1):
            asked, most = asked + work.tokens, min(most, work.most_rows or most)
            if count > 1 and (count > most or count * longest > budget_tokens):
                break
            share = asked / (oldest.group.size_of(count) * longest + BATCH_TOKENS)
            if share > best:
                found, best = batch[:count], share
    return found


class Batcher:
    """The queue and its thread.

    Args:
        budget_tokens: that a batch costs at most, unless one work alone costs more.
        most_rows: of a batch.
        clock: seconds.
        computed: called by the thread with each batch that was computed.
        failed: called with what went wrong where a batch failed.
    """

    def __init__(
        self,
        budget_tokens: int,
        most_rows: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        computed: Callable[[Sequence[Work]], None] = lambda batch: None,
        failed: Callable[[Exception], None] = lambda error: None,
    ):
        self.budget_tokens, self.most_rows, self.clock = budget_tokens, most_rows, clock
        self._computed, self._failed = computed, failed
        self._waiting: list[Work] = []
        self._changed = threading.Condition()
        self._stops = False
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many works are in the queue."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the thread computes."""
        return self._thread.is_alive()

    def submit(self, works: Sequence[Work]) -> None:
        """Put works into the queue; each future has a result, an exception or is cancelled, some time."""
        now = self.clock()
        for work in works:
            work.submitted = now
        with self._changed:
            if self._stops:
                raise RuntimeError("the batcher was stopped")
            self._waiting += works
            self._changed.notify()

    def stop(self, seconds: float | None = None) -> None:
        """Compute what waits, then end the thread."""
        with self._changed:
            self._stops = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            self._compute(batch)

    def _next(self) -> list[Work] | None:
        """Wait for works; return those of the next batch, begun, or None at the end."""
        while True:
            with self._changed:
                while not self._waiting and not self._stops:
                    self._changed.wait()
                if not self._waiting:
                    return None
                now = self.clock()
                late = [work for work in self._waiting if work.deadline < now]
                self._waiting = [work for work in self._waiting if work.deadline >= now and not work.future.cancelled()]
                batch = chosen(self._waiting, self.budget_tokens, self.most_rows) if self._waiting else []
                taken = {id(work) for work in batch}
                self._waiting = [work for work in self._waiting if id(work) not in taken]
            for work in late:
                if work.future.set_running_or_notify_cancel():
                    work.future.set_exception(LateError("its deadline passed in the queue"))
            batch = [work for work in batch if work.future.set_running_or_notify_cancel()]
            if batch:
                return batch

    def _compute(self, batch: list[Work]) -> None:
        begun = self.clock()
        for work in batch:
            work.begun = begun
        try:
            results = list(batch[0].group.compute([work.row for work in batch]))
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results of {len(batch)} rows")
        except Exception as error:
            if len(batch) > 1:
                # What is wrong with one is not to fail the others.
                for work in batch:
                    self._compute([work])
                return
            self._failed(error)
            batch[0].ended = self.clock()
            batch[0].future.set_exception(error)
            return
        ended = self.clock()
        for work in batch:
            work.ended = ended
        self._computed(batch)
        for work, result in zip(batch, results, strict=True):
            work.future.set_result(result)
