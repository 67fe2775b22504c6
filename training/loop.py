"""The one training loop: any engine, any task; evaluates, saves, resumes exactly, stops when asked to.

A run that was interrupted at any moment and is started again ends with the same weights, bit for bit: the batch and all
randomness are functions of the step, and everything else that a step changes is in the checkpoint.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from absl.app import UsageError

from ground.words import nearest
from training.checkpoints import (
    Checkpoint,
    best_of,
    checkpoint_folder,
    latest_checkpoint,
    list_checkpoints,
    rotate,
    write_checkpoint,
)
from training.engine import Batch, Dataset, Engine
from training.health import MAX_ROLLBACKS, RENEWED_EVERY_STEPS, DivergedError, SkipGuard, observe, save_replay
from training.hooks import Hook, LoopProgress, MetricsFile, Profiler, Record, Report, Run, TensorBoard, Terminal
from training.processes import Processes, current


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    stopped_early: bool
    evaluation: Mapping[str, float]
    """The last evaluation; empty without one."""
    best: float | None
    best_step: int


def default_hooks(max_skipped_steps: int = 5) -> list[Hook]:
    """Return the terminal, metrics.jsonl, TensorBoard, the report and the guard against steps that are skipped."""
    return [Terminal(), MetricsFile(), TensorBoard(), Report(), SkipGuard(max_skipped_steps)]


def train(
    engine: Engine,
    dataset: Dataset,
    *,
    num_steps: int,
    output_dir: str | Path,
    config: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    summary: Mapping[str, str] | None = None,
    save_every_steps: int = 1000,
    eval_every_steps: int = 0,
    evaluate: Callable[[], dict[str, float]] | None = None,
    best_metric: str | None = None,
    lower_is_better: bool = False,
    early_stopping_evaluations: int = 0,
    keep_checkpoint_max: int = 5,
    log_every_steps: int = 50,
    steps_per_call: int = 1,
    prefetch_batches: int = 2,
    on_spike: str = "ignore",
    spike_threshold: float = 10.0,
    profile_steps: tuple[int, int] | None = None,
    flops_per_unit: float = 0.0,
    peak_flops_per_second: float = 0.0,
    unit: str = "examples",
    count_units: Callable[[Batch], int] | None = None,
    hooks: Sequence[Hook] | None = None,
) -> Outcome:
    """Train up to step `num_steps`, continuing from the newest checkpoint in `output_dir` if there is one.

    Args:
        engine: at step 0, or wherever its owner put it; a checkpoint in `output_dir` overrides that.
        dataset: the batches.
        num_steps: where to stop, counted from the very first step.
        output_dir: receives checkpoints/, best/, metrics.jsonl, tensorboard/ and report.html.
        config: of the model, JSON values; a checkpoint of another model is an error.
        options: flags of the command, JSON values, for the replay of a failed step.
        summary: facts for the preamble and the report.
        save_every_steps: 0 saves at the end only.
        eval_every_steps: 0 evaluates at the end only.
        evaluate: returns metrics on held-out data.
        best_metric: the one of them that decides which weights are kept in best/.
        lower_is_better: whether a smaller `best_metric` is better.
        early_stopping_evaluations: stop after so many evaluations in a row without a better one; 0 never stops.
        keep_checkpoint_max: 0 keeps all.
        log_every_steps: steps over which a record averages.
        steps_per_call: steps that the engine takes at once, fewer before an evaluation or a checkpoint.
        prefetch_batches: batches made ahead in a thread of their own.
        on_spike: what to do about a loss that leaps (`training/health.py`): `ignore`, `warn`, `skip` the step before
            it changes anything, or `rollback`: go back to the newest checkpoint and pass over all batches since.
        spike_threshold: how many times the usual spread above the median is a leap.
        profile_steps: (first, last): the steps from the first up to the last are profiled.
        flops_per_unit: model FLOPs of one unit in training; 0 if not known.
        peak_flops_per_second: of all devices together; 0 if not known.
        unit: what throughput counts.
        count_units: how many of them a batch holds; by default its examples.
        hooks: by default `default_hooks()`.

    SIGTERM and Ctrl-C end the run after the step at hand (at once during an evaluation), save, and exit with 143 and
    130. Of several processes one that gets a signal is enough; only the first writes and talks. Raises `UsageError` if
    the checkpoint is of another model or seed, and `DivergedError` if a checkpoint is rolled back to in vain.
    """
    processes = current()
    run = Run(
        engine=engine,
        output_dir=Path(output_dir),
        num_steps=num_steps,
        unit=unit,
        config=config,
        options=options or {},
        summary=summary or {},
        progress=LoopProgress(),
        flops_per_unit=flops_per_unit,
        peak_flops_per_second=peak_flops_per_second,
    )
    if early_stopping_evaluations and (evaluate is None or best_metric is None):
        raise UsageError("early stopping needs an evaluation and the metric that decides")
    if not processes.writes:
        run.say = lambda line: None
    saved_step = _resume(run, processes)
    if checkpoint_folder(run.output_dir, run.progress.return_step) not in list_checkpoints(run.output_dir):
        run.progress.return_step = engine.step
    chosen_hooks = [*(default_hooks() if hooks is None else hooks)]
    if profile_steps:
        chosen_hooks.append(Profiler(*profile_steps))
    loop = _Loop(
        run=run,
        processes=processes,
        best_metric=best_metric,
        lower_is_better=lower_is_better,
        keep_checkpoint_max=keep_checkpoint_max,
        count_units=count_units or (lambda batch: len(next(iter(batch.values())))),
        hooks=[hook for hook in chosen_hooks if processes.writes or hook.in_every_process],
        log_every_steps=log_every_steps,
        on_spike=on_spike,
        spike_threshold=spike_threshold,
    )

    def due(every_steps: int) -> bool:
        return bool(every_steps) and engine.step > 0 and engine.step % every_steps == 0

    def stopped_early() -> bool:
        return 0 < early_stopping_evaluations <= run.progress.evaluations_without_improvement

    outcome = "failed"
    with _Signals() as signals, _Prefetcher(dataset, prefetch_batches) as prefetched:
        for hook in loop.hooks:
            hook.start(run)
        try:
            if on_spike == "rollback" and saved_step is None:
                loop.save()
                saved_step = engine.step
            while True:
                last = engine.step >= num_steps or stopped_early()
                if evaluate and run.progress.evaluated_step < engine.step and (last or due(eval_every_steps)):
                    # Processes that evaluate together have to finish together.
                    at_once = signals.raised() if processes.count == 1 else contextlib.nullcontext()
                    with contextlib.suppress(_StoppedError), at_once:
                        loop.evaluated(evaluate())
                        saved_step = None
                        last = last or stopped_early()
                asked_to_stop = processes.largest(signals.received)
                if saved_step != engine.step and (last or due(save_every_steps) or asked_to_stop):
                    if due(save_every_steps):
                        run.progress.return_step, run.progress.rollbacks = engine.step, 0
                    loop.save()
                    saved_step = engine.step
                if asked_to_stop or last:
                    outcome = "interrupted" if asked_to_stop else "stopped early" if stopped_early() else "finished"
                    break
                # A limit holds for all steps of a call.
                renewed = RENEWED_EVERY_STEPS if on_spike == "skip" else 0
                periods = [every for every in (save_every_steps, eval_every_steps, log_every_steps, renewed) if every]
                ends = [step for step in run.call_ends if step > engine.step]
                end = min(num_steps, *ends, *(_next_multiple(engine.step, every) for every in periods))
                if not loop.take(prefetched, min(steps_per_call, end - engine.step), num_steps):
                    saved_step = engine.step
        finally:
            for hook in loop.hooks:
                hook.end(run, outcome)
    if outcome == "interrupted":
        name = signal.Signals(asked_to_stop).name
        folder = checkpoint_folder(run.output_dir, engine.step)
        run.say(f"{name}: saved {folder}; the same command continues from there")
        raise SystemExit(128 + asked_to_stop)
    progress = run.progress
    return Outcome(engine.step, outcome == "stopped early", progress.evaluation, progress.best, progress.best_step)


def _next_multiple(step: int, of: int) -> int:
    return (step // of + 1) * of


def _resume(run: Run, processes: Processes) -> int | None:
    """Load the newest checkpoint, if any, and return its step."""
    found = latest_checkpoint(run.output_dir, processes=processes)
    if found is None:
        return None
    where = checkpoint_folder(run.output_dir, found.step)
    if found.seed != run.engine.seed:
        raise UsageError(
            f"{where} was trained with seed {found.seed}, this run has {run.engine.seed}: "
            "use the same seed, or another output folder"
        )
    for key in [*run.config, *found.config]:
        if run.config.get(key) != found.config.get(key):
            raise UsageError(
                f"{where} is of another model: {key} is {found.config.get(key)!r}, this run has "
                f"{run.config.get(key)!r}; use the same configuration, or another output folder"
            )
    run.engine.load_state(found.state)
    run.engine.step = found.step
    run.progress = LoopProgress(**found.progress)
    return found.step


@dataclasses.dataclass
class _Loop:
    run: Run
    processes: Processes
    best_metric: str | None
    lower_is_better: bool
    keep_checkpoint_max: int
    count_units: Callable[[Batch], int]
    hooks: list[Hook]
    log_every_steps: int
    on_spike: str
    spike_threshold: float

    def __post_init__(self):
        self._window: list[Record] = []
        self._timed_units = 0
        self._timed_seconds = 0.0
        self._sizes_seen: set[Any] = set()
        self._in_spike = False

    def take(self, prefetched: _Prefetcher, count: int, num_steps: int) -> bool:
        """Take `count` steps and tell the hooks; False if the run went back to a checkpoint instead."""
        run, started, first = self.run, time.monotonic(), self.run.engine.step
        passed_over = run.progress.batches_passed_over
        batches = prefetched.take(first + passed_over, count, num_steps + passed_over)
        if self.on_spike == "skip":
            limit = run.progress.loss_limit
            run.engine.loss_limit = math.inf if limit is None else limit
        results = run.engine.train(batches)
        seconds = time.monotonic() - started
        run.progress.seconds += seconds
        # The first call with a shape compiles; throughput is about the others.
        shapes = {tuple((name, value.shape) for name, value in batch.items()) for batch in batches}
        if shapes <= self._sizes_seen:
            self._timed_seconds += seconds
            self._timed_units += sum(map(self.count_units, batches))
        self._sizes_seen |= shapes
        run.units_per_second = self._timed_units / self._timed_seconds if self._timed_seconds else 0.0
        for number, result in enumerate(results if self.on_spike != "ignore" else ()):
            step = first + number
            exceeded = observe(run.progress, step, result, self.spike_threshold)
            spike = f"step {step:,}: loss {result['loss']:.4g} is a spike, above {exceeded or 0:.4g}"
            if exceeded is not None and self.on_spike == "rollback":
                self._roll_back(spike, step, batches[number], result)
                prefetched.restart()
                return False
            if exceeded is not None and self.on_spike == "warn" and not self._in_spike:
                run.say(spike)
            self._in_spike = exceeded is not None
        self._window += results
        run.latest = _means(self._window)
        record = run.latest | {"skipped": sum(result["skipped"] for result in self._window)}
        for hook in self.hooks:
            hook.steps(run, batches, results)
        if run.engine.step % self.log_every_steps == 0 or run.engine.step >= num_steps:
            for hook in self.hooks:
                hook.recorded(run, record)
            self._window, self._timed_units, self._timed_seconds = [], 0, 0.0
        return True

    def _roll_back(self, spike: str, step: int, batch: Batch, result: Record) -> None:
        """Go back to the checkpoint; what comes after it is learnt from batches that were not seen yet.

        What was evaluated stays on record: `best/` holds it.
        """
        run, progress = self.run, self.run.progress
        replay = save_replay(run, step, batch, result, with_state=False)
        if progress.rollbacks == MAX_ROLLBACKS:
            raise DivergedError(
                f"{spike}, after {MAX_ROLLBACKS} rollbacks to step {progress.return_step:,}: lower the learning rate, "
                "raise --spike_threshold, or remove the newest checkpoints to go on from an earlier one; "
                f"the batch is in {replay}"
            )
        found = latest_checkpoint(run.output_dir, up_to_step=progress.return_step, processes=self.processes)
        if found is None:
            raise DivergedError(f"{spike}, and the checkpoint of step {progress.return_step:,} to go back to is gone")
        run.engine.load_state(found.state)
        run.engine.step = found.step
        count = step + 1 - found.step
        run.progress = dataclasses.replace(
            LoopProgress(**found.progress),
            evaluated_step=min(progress.evaluated_step, found.step),
            evaluation=progress.evaluation,
            best=progress.best,
            best_step=progress.best_step,
            evaluations_without_improvement=progress.evaluations_without_improvement,
            seconds=progress.seconds,
            batches_passed_over=progress.batches_passed_over + count,
            return_step=found.step,
            rollbacks=progress.rollbacks + 1,
        )
        self._window, self._timed_units, self._timed_seconds = [], 0, 0.0
        run.say(
            f"{spike}; back to step {found.step:,}, its {count:,} batches are passed over "
            f"(rollback {run.progress.rollbacks} of {MAX_ROLLBACKS}; {replay})"
        )
        for hook in self.hooks:
            hook.went_back(run)

    def evaluated(self, metrics: dict[str, float]) -> None:
        """Remember the evaluation, keep the weights if they are the best, and tell the hooks."""
        run, progress = self.run, self.run.progress
        is_best = False
        if self.best_metric:
            if self.best_metric not in metrics:
                raise UsageError(
                    f"the evaluation has no metric {self.best_metric!r} to choose the best weights by; "
                    f"the nearest is {nearest(self.best_metric, metrics)!r}"
                )
            value = metrics[self.best_metric]
            better = progress.best is None or (value < progress.best if self.lower_is_better else value > progress.best)
            is_best = better and not np.isnan(value)
            if is_best:
                write_checkpoint(run.output_dir / "best", best_of(self._checkpoint()), processes=self.processes)
                progress.best, progress.best_step, progress.evaluations_without_improvement = value, run.engine.step, 0
            else:
                progress.evaluations_without_improvement += 1
        progress.evaluated_step, progress.evaluation = run.engine.step, dict(metrics)
        for hook in self.hooks:
            hook.evaluated(run, metrics, is_best)

    def save(self) -> None:
        """Write the checkpoint of this step and remove those that are too many."""
        folder = checkpoint_folder(self.run.output_dir, self.run.engine.step)
        write_checkpoint(folder, self._checkpoint(), processes=self.processes)
        spared = self.run.progress.return_step if self.on_spike == "rollback" else None
        if self.processes.writes:
            rotate(self.run.output_dir, self.keep_checkpoint_max, spared_step=spared)

    def _checkpoint(self) -> Checkpoint:
        engine = self.run.engine
        progress = dataclasses.asdict(self.run.progress)
        return Checkpoint(engine.step, engine.seed, self.run.config, progress, engine.state(whole=False))


def _means(results: Sequence[Record]) -> Record:
    """Return the mean of each value over the steps that were not skipped; the learning rate is the last."""
    taken = [result for result in results if not result["skipped"]]
    names = dict.fromkeys(name for result in taken for name in result if name != "skipped")
    means = {name: float(np.mean([result[name] for result in taken if name in result])) for name in names}
    return means | ({"learning_rate": taken[-1]["learning_rate"]} if taken else {})


class _StoppedError(BaseException):
    """A signal arrived where waiting is pointless."""


class _Signals:
    """Remembers SIGTERM and Ctrl-C; a second Ctrl-C stops at once."""

    def __init__(self):
        self.received = 0
        self._raises = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Inside, a signal raises `_StoppedError` at once."""
        self._raises = True
        try:
            if self.received:
                raise _StoppedError
            yield
        finally:
            self._raises = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if self._raises:
            raise _StoppedError


class _Prefetcher:
    """Makes the batches of the next steps in a thread of its own."""

    def __init__(self, dataset: Dataset, ahead: int):
        self._dataset, self._ahead = dataset, ahead
        self._executor = ThreadPoolExecutor(1, "batches")
        self._pending: collections.deque[Future[Batch]] = collections.deque()
        self._next_step = 0

    def __enter__(self) -> _Prefetcher:
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def restart(self) -> None:
        """Forget what was made ahead."""
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
