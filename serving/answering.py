"""From a request to its answers: admitted, tokenised by a few threads, computed in batches, told; never on the loop.

A request is admitted where the texts that are not yet answered leave room for its own, else refused at once. What was
admitted is answered, or refused with its deadline; whoever leaves takes its rows out of the queue.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from absl.app import UsageError

from serving.batching import Batcher, LateError, Work
from serving.limits import Limits
from serving.metrics import Metrics
from serving.refusals import RefusalError, busy
from serving.requests import LEAST_LENGTH, Request
from serving.rows import Asked, ask, told
from serving.searching import NEW_TOKENS, check_parameters
from serving.served import GENERATING_ROWS, Batched, Served, Streamed

_TOKENIZING_THREADS = 2


@dataclass
class Timing:
    """Where the time of a request went, in seconds."""

    queue: float = 0.0
    tokenize: float = 0.0
    compute: float = 0.0

    def as_json(self) -> dict[str, float]:
        """Return milliseconds by name."""
        return {name: round(1000 * seconds, 2) for name, seconds in vars(self).items()}

    @property
    def header(self) -> str:
        """The value of Server-Timing."""
        return ", ".join(f"{name};dur={milliseconds}" for name, milliseconds in self.as_json().items())

    def add(self, works: list[Work]) -> None:
        """Take over when rows were begun and ended: the longest wait, and the time until the last was there."""
        self.queue = max(work.begun - work.submitted for work in works)
        self.compute = max(max(work.ended for work in works) - min(work.begun for work in works), 0.0)


@dataclass(frozen=True)
class Answers:
    """What there is to say to a request.

    Attributes:
        found: the answer to each instance.
        timing: of all.
        lengths: of each in tokens; None where its kind does not say.
        cut: whether each was longer than what is read of it; None where its kind does not say.
    """

    found: list[dict[str, Any]]
    timing: Timing
    lengths: list[int | None]
    cut: list[bool | None]

    def as_json(self) -> dict[str, Any]:
        """Return what stands beside the answers."""
        told: dict[str, Any] = {"timing_ms": self.timing.as_json()}
        told |= {} if None in self.lengths else {"tokens": self.lengths}
        return told | ({} if None in self.cut else {"truncated": self.cut})


class AbandonedError(Exception):
    """Whoever asked has left."""


class Answering:
    """Answers requests.

    Args:
        batcher: computes.
        limits: of the server.
        metrics: count.
    """

    def __init__(self, batcher: Batcher, limits: Limits, metrics: Metrics):
        self._batcher, self._limits, self._metrics = batcher, limits, metrics
        self._pool = ThreadPoolExecutor(_TOKENIZING_THREADS, thread_name_prefix="tokenize")
        self.texts = 0
        """Admitted and not yet answered."""

    async def answers(self, served: Served, request: Request) -> Answers:
        """Return the answer to each instance; raises `RefusalError`."""
        deadline = self._batcher.clock() + self._limits.deadline_seconds
        timing = Timing()
        self._admit(len(request.instances))
        try:
            asked = await self._asked(served, request, timing)
            works = [[self._work(served, row, deadline) for row in each.rows] for each in asked]
            flat = [work for each in works for work in each]
            predictions = iter(await self._computed(flat, deadline))
            timing.add(flat)
            found = [[next(predictions) for _ in each] for each in works]
            answers = await self._in_pool(
                lambda: [told(served.loaded, one, each) for one, each in zip(asked, found, strict=True)]
            )
            return Answers(answers, timing, [each.length for each in asked], [each.cut for each in asked])
        finally:
            self.texts -= len(request.instances)

    async def stream(self, served: Served, request: Request) -> Stream:
        """Return the one instance's answer in parts; raises `RefusalError`. Whoever takes it releases it."""
        self._admit(1)
        timing = Timing()
        try:
            (asked,) = await self._asked(served, request, timing)
        except BaseException:
            self.texts -= 1
            raise
        return Stream(self, served, asked, timing)

    def release(self) -> None:
        """Give back the place of a stream."""
        self.texts -= 1

    def submit(self, work: Work) -> None:
        """Put one work into the queue."""
        self._batcher.submit([work])

    def deadline(self) -> float:
        """Return until when a request that comes now is to be answered, on the batcher's clock."""
        return self._batcher.clock() + self._limits.deadline_seconds

    def is_late(self, deadline: float) -> bool:
        """Return whether a deadline has passed."""
        return self._batcher.clock() > deadline

    def close(self) -> None:
        """Compute what waits, and end all threads."""
        self._batcher.stop()
        self._pool.shutdown()

    def _admit(self, count: int) -> None:
        if self.texts + count > self._limits.queue_texts:
            self._metrics.rejected.labels("queue_full").inc()
            raise busy("queue_full", f"{self.texts} texts wait for answers, at most {self._limits.queue_texts} may")
        self.texts += count

    async def _asked(self, served: Served, request: Request, timing: Timing) -> list[Asked]:
        begin = time.perf_counter()
        try:
            return await self._in_pool(lambda: self._tokenised(served, request))
        finally:
            timing.tokenize = time.perf_counter() - begin
            self._metrics.tokenize_seconds.observe(timing.tokenize)

    def _tokenised(self, served: Served, request: Request) -> list[Asked]:
        most, wanted = served.loaded.max_seq_length, request.max_seq_length
        if wanted is not None and not min(LEAST_LENGTH, most) <= wanted <= most:
            message = f"max_seq_length is {wanted:,}; expected {min(LEAST_LENGTH, most)} to {most:,} tokens"
            raise RefusalError(422, "wrong_input", message, "parameters.max_seq_length")
        asked = {**request.search} | ({} if request.max_new_tokens is None else {NEW_TOKENS: request.max_new_tokens})
        check_parameters(served, asked)
        search = served.search_of(request.search)
        found = []
        for instance, place in zip(request.instances, request.places, strict=True):
            try:
                length = None if wanted == most else wanted
                found.append(ask(served.loaded, instance, length, request.max_new_tokens, search))
            except UsageError as error:
                raise RefusalError(422, "wrong_input", str(error), place) from None
            if found[-1].cut:
                if not request.truncate:
                    message = f"more than the {wanted or most:,} tokens that are read; shorten it, or allow truncate"
                    raise RefusalError(422, "too_long", message, place)
                self._metrics.truncated.labels(served.name).inc()
        return found

    def _work(self, served: Served, row: Any, deadline: float) -> Work:
        self._metrics.tokens.labels(served.name).inc(row.tokens)
        most = GENERATING_ROWS if served.streams else None
        return Work(Batched(served, row.shape), row, row.tokens, deadline, most)

    async def _computed(self, works: list[Work], deadline: float) -> list[Any]:
        """Return the prediction of each work; whatever goes wrong, none is left in the queue."""
        waiting = [asyncio.wrap_future(work.future) for work in works]
        try:
            self._batcher.submit(works)
            gathered = asyncio.gather(*waiting)
            return await asyncio.wait_for(gathered, max(deadline - self._batcher.clock(), 0.0))
        except (TimeoutError, LateError):
            self._metrics.rejected.labels("deadline").inc()
            raise late() from None
        finally:
            for future in waiting:
                future.cancel()

    async def _in_pool(self, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)


_END: Any = object()


class Stream:
    """An answer that comes while it is generated, as parts that JSON can hold."""

    def __init__(self, answering: Answering, served: Served, asked: Asked, timing: Timing):
        self._answering, self._served, self._asked, self._timing = answering, served, asked, timing
        self._left = False
        self._work: Work | None = None

    def release(self) -> None:
        """Stop what nobody hears any more, and give its place to others."""
        self._left = True
        if self._work is not None:
            self._work.future.cancel()
        self._answering.release()

    async def parts(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what is generated so far and, at the end, the answer or what went wrong."""
        loop, heard = asyncio.get_running_loop(), asyncio.Queue[str]()
        deadline = self._answering.deadline()

        def listen(text: str) -> None:
            if self._left:
                raise AbandonedError
            if self._answering.is_late(deadline):
                raise LateError("the deadline passed while it generated")
            loop.call_soon_threadsafe(heard.put_nowait, text)

        (row,) = self._asked.rows
        self._work = work = Work(Streamed(self._served, listen), row, row.tokens, deadline, most_rows=1)
        # The end stands behind all that was heard.
        work.future.add_done_callback(lambda _: loop.call_soon_threadsafe(heard.put_nowait, _END))
        self._answering.submit(work)
        before = ""
        while (text := await heard.get()) is not _END:
            if text != before:
                yield {"token": text[_common(before, text) :], "text": text}
                before = text
        error = work.future.exception()
        if error is not None:
            yield (late() if isinstance(error, LateError) else failed()).content
            return
        self._timing.add([work])
        answer = told(self._served.loaded, self._asked, [work.future.result()])
        found = Answers([answer], self._timing, [self._asked.length], [self._asked.cut])
        named = {"model": self._served.name, "version": self._served.version}
        yield {"done": True, "prediction": answer, **named, **found.as_json()}


def late() -> RefusalError:
    """Return the refusal of a request whose answer came too late."""
    return RefusalError(504, "deadline", "the answer was not there in time: send less, or later")


def failed() -> RefusalError:
    """Return what a defect of this project is to whoever asked; the log has it."""
    return RefusalError(500, "failed", "the answer failed; the server's log has the reason under the request's id")


def _common(one: str, other: str) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
