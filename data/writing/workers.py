"""Functions of a job run in worker processes, or in this one; finished calls leave a marker and are not run again."""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, NotRequired, Protocol, TypedDict

from absl.app import UsageError
from msgspec import Meta

from data.recipe import Recipe, Vocabulary
from data.tokenizers import Tokenizer
from ground.documents import read_json
from ground.files import write_atomically

HEARD_SECONDS = 1.0
"""How often the progress of calls that are running is reported."""
Done = dict[str, Any]
"""The outcome of a call: `files` by name and size, `seconds` by stage, and what the function adds."""


@dataclass(frozen=True)
class Job:
    """What every worker knows."""

    recipe: Recipe
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    work_path: Path


class Report(Protocol):
    """Is told how far the work is: stage, what is done of it and all of it, in bytes of input or examples."""

    def __call__(self, stage: str, done: float, total: float) -> None: ...


@dataclass(frozen=True)
class Call:
    """One unit of work of a stage.

    Attributes:
        function: takes the job and the arguments; module-level, so that it can be sent to a worker.
        arguments: of the function.
        size: its share of the stage, for the report.
        marker: file that the function writes when it is done; None: the call is not remembered.
    """

    function: Callable[..., Done]
    arguments: tuple[Any, ...]
    size: float = 0.0
    marker: Path | None = None


class _DoneShape(TypedDict):
    files: dict[Annotated[str, Meta(pattern=r"^[^\x00]+$")], int]
    seconds: dict[str, float]
    counts: NotRequired[dict[str, int]]


def finish(marker: Path, content: Mapping[str, Any]) -> Done:
    """Write the marker of a unit of work whose files are complete; return the content."""
    write_atomically(marker, json.dumps(content), sync=False)
    return dict(content)


def finished(marker: Path) -> Done | None:
    """Return the content of a marker whose files are all there in their full size, else None."""
    try:
        content = read_json(marker, _DoneShape, what="a marker")
    except (FileNotFoundError, UsageError):
        return None  # of a wrong file nothing is believed: the work is done again
    paths = {marker.parent / name: size for name, size in content["files"].items()}
    return content if all(path.is_file() and path.stat().st_size == size for path, size in paths.items()) else None


class _Total:
    """A number of this process, with the members of one that processes share."""

    value = 0.0

    def get_lock(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class _Advance:
    """How much of the running calls is done, added up over processes; what a call does not tell is added at its end."""

    def __init__(self, total: Any, heard: Callable[[], None] = lambda: None):
        self._total, self._heard, self._left = total, heard, 0.0

    def begin(self, size: float) -> None:
        """Begin a call of this size."""
        self._left = size

    def add(self, done: float) -> None:
        """Add what is done of the call; no more than its size counts."""
        done = min(done, self._left)
        self._left -= done
        with self._total.get_lock():
            self._total.value += done
        self._heard()


# Of a worker process: the job is sent once, when the process starts, and not with every call.
_job_of_worker: list[Job] = []
_advance_of_worker: list[_Advance] = []


def advance(done: float) -> None:
    """Tell that so much of the running call is done, in the units of its size; in a process without a pool, nothing."""
    for each in _advance_of_worker:
        each.add(done)


_STOPPING = (signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def _start_worker(job: Job, total: Any, parent: int) -> None:
    _job_of_worker[:] = [job]
    _advance_of_worker[:] = [_Advance(total)]
    # Signals reach every process of a terminal or a service; the parent ends the workers.
    for number in (signal.SIGINT, *_STOPPING):
        signal.signal(number, signal.SIG_IGN)
    _end_with(parent)


def _end_with(parent: int) -> None:
    """Let this process end when its parent does, even by SIGKILL: nobody would want its work any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # It was gone before the call.
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Stopped(BaseException):
    """SIGTERM or SIGHUP arrived; the argument is its number."""


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP end the work like an error: the workers end, then this process, in one line.

    Raises `SystemExit` with 128 + the number of the signal.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        raise _Stopped(number)

    # Python delivers signals to the main thread alone; elsewhere there is nothing to set.
    here = threading.current_thread() is threading.main_thread()
    # `nohup` ignores SIGHUP, and so does what it starts.
    numbers = [number for number in _STOPPING if here and signal.getsignal(number) is not signal.SIG_IGN]
    former = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except _Stopped as stopped:
        number = signal.Signals(stopped.args[0])
        print(f"{Path(sys.argv[0]).name}: {number.name}: the same command continues from here", file=sys.stderr)
        raise SystemExit(128 + number) from None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _in_worker(function: Callable[..., Done], arguments: tuple[Any, ...], size: float) -> Done:
    _advance_of_worker[0].begin(size)
    done = function(_job_of_worker[0], *arguments)
    advance(size)
    return done


class Pool:
    """Worker processes that know a job; with one worker, this process.

    Attributes:
        seconds: of work by stage, summed over workers; of calls that an earlier run finished nothing is added.
    """

    def __init__(self, num_workers: int, job: Job):
        self.num_workers, self._job = num_workers, job
        self.seconds: dict[str, float] = defaultdict(float)
        self._executor: ProcessPoolExecutor | None = None
        self._advanced: Any = _Total()
        if num_workers > 1:
            # Forked workers share what the parent has loaded and start in milliseconds.
            method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
            context = multiprocessing.get_context(method)
            self._advanced = context.Value("d", 0.0)
            self._executor = ProcessPoolExecutor(
                num_workers, mp_context=context, initializer=_start_worker, initargs=(job, self._advanced, os.getpid())
            )

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close(cancel=kind is not None)

    def run(self, stage: str, calls: list[Call], report: Report) -> list[Done]:
        """Run the calls that no marker says are done; return the outcomes of all, in the order of `calls`."""
        results = {i: found for i, call in enumerate(calls) if call.marker and (found := finished(call.marker))}
        total, done = sum(call.size for call in calls), sum(calls[i].size for i in results)
        report(stage, done, total)
        self._advanced.value = 0.0

        def heard() -> None:
            report(stage, done + self._advanced.value, total)

        for i, found in self._map({i: call for i, call in enumerate(calls) if i not in results}, heard):
            results[i] = found
            for name, value in found["seconds"].items():
                self.seconds[name] += value
            heard()
        return [results[i] for i in range(len(calls))]

    def _map(self, calls: Mapping[int, Call], heard: Callable[[], None]) -> Iterator[tuple[int, Done]]:
        """Yield (number, outcome) as outcomes come; no more than two calls a worker wait, so that memory is bounded."""
        if self._executor is None:
            _job_of_worker[:], _advance_of_worker[:] = [self._job], [_Advance(self._advanced, heard)]
            for number, call in calls.items():
                yield number, _in_worker(call.function, call.arguments, call.size)
            return
        running: dict[Future[Done], int] = {}
        for number, call in calls.items():
            running[self._executor.submit(_in_worker, call.function, call.arguments, call.size)] = number
            if len(running) >= 2 * self.num_workers:
                yield from self._ready(running, heard)
        while running:
            yield from self._ready(running, heard)

    @staticmethod
    def _ready(running: dict[Future[Done], int], heard: Callable[[], None]) -> Iterator[tuple[int, Done]]:
        while not (ready := wait(running, HEARD_SECONDS, return_when=FIRST_COMPLETED).done):
            heard()
        for future in ready:
            try:
                yield running.pop(future), future.result()
            except BrokenProcessPool:
                raise UsageError(
                    "a worker process was killed, most likely for want of memory: run the same command again to go on "
                    "from here, with fewer --num_workers"
                ) from None

    def close(self, *, cancel: bool) -> None:
        """End the workers: with `cancel` at once, whatever they do, which the same job does again when it continues."""
        if self._executor is None:
            return
        if cancel:
            # Private until Python 3.14 gives it a name; without it, running calls are waited for.
            for process in list((getattr(self._executor, "_processes", None) or {}).values()):
                process.kill()
        self._executor.shutdown(wait=True, cancel_futures=cancel)
