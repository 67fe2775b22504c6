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
from training.hooks import Hook, MetricsFile, Profiler, Report, TensorBoard, Terminal
from training.processes import Processes, current
from training.run import LoopProgress, Record, Run, RunPlan


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
    plan: RunPlan,
    *,
    evaluate: Callable[[], dict[str, float]] | None = None,
    hooks: Sequence[Hook] | None = None,
) -> Outcome:
    """Train up to step `plan.num_steps`, continuing from the newest checkpoint in `plan.output_dir` if there is one.

    Args:
        engine: at step 0, or at the step that the caller set; a checkpoint in `plan.output_dir` overrides that.
        dataset: the batches.
        plan: everything else that is settled about the run.
        evaluate: returns metrics on held-out data.
        hooks: by default `default_hooks()`.

    Returns:
        How the run ended.

    Raises:
        UsageError: the checkpoint is of another model or seed, or early stopping has nothing to decide by.
        DivergedError: the loss stays non-finite, or `MAX_ROLLBACKS` rollbacks to one checkpoint did not help.
        SystemExit: SIGTERM (143) or Ctrl-C (130) arrived, in any process. The run ends after the current step, or at
            once during an evaluation, and saves.
    """
    processes = current()
    run = Run(engine, plan)
    if plan.early_stopping_evaluations and (evaluate is None or plan.best_metric is None):
        raise UsageError("early stopping needs an evaluation and the metric that decides")
    if not processes.writes:
        run.say = lambda line: None
    saved_step = _resume(run, processes)
    if checkpoint_folder(plan.output_dir, run.progress.return_step) not in list_checkpoints(plan.output_dir):
        run.progress.return_step = engine.step
    chosen_hooks = [*(default_hooks() if hooks is None else hooks)]
    if plan.profile_steps:
        chosen_hooks.append(Profiler(*plan.profile_steps))
    loop = _Loop(run, processes, [hook for hook in chosen_hooks if processes.writes or hook.in_every_process])

    def due(every_steps: int) -> bool:
        return bool(every_steps) and engine.step > 0 and engine.step % every_steps == 0

    def stopped_early() -> bool:
        return 0 < plan.early_stopping_evaluations <= run.progress.evaluations_without_improvement

    outcome = "failed"
    with _Signals() as signals, _Prefetcher(dataset, plan.prefetch_batches) as prefetched:
        for hook in loop.hooks:
            hook.start(run)
        try:
            if plan.on_spike == "rollback" and saved_step is None:
                loop.save()
                saved_step = engine.step
            while True:
                last = engine.step >= plan.num_steps or stopped_early()
                if evaluate and run.progress.evaluated_step < engine.step and (last or due(plan.eval_every_steps)):
                    # Processes that evaluate together have to finish together.
                    at_once = signals.raised() if processes.count == 1 else contextlib.nullcontext()
                    with contextlib.suppress(_StoppedError), at_once:
                        loop.evaluated(evaluate())
                        saved_step = None
                        last = last or stopped_early()
                asked_to_stop = processes.largest(signals.received)
                if saved_step != engine.step and (last or due(plan.save_every_steps) or asked_to_stop):
                    if due(plan.save_every_steps):
                        run.progress.return_step, run.progress.rollbacks = engine.step, 0
                    loop.save()
                    saved_step = engine.step
                if asked_to_stop or last:
                    outcome = "interrupted" if asked_to_stop else "stopped early" if stopped_early() else "finished"
                    break
                # A limit holds for all steps of a call.
                renewed = RENEWED_EVERY_STEPS if plan.on_spike == "skip" else 0
                periods = (plan.save_every_steps, plan.eval_every_steps, plan.log_every_steps, renewed)
                ends = [step for step in run.call_ends if step > engine.step]
                end = min(plan.num_steps, *ends, *(_next_multiple(engine.step, every) for every in periods if every))
                if not loop.take(prefetched, min(plan.steps_per_call, end - engine.step)):
                    saved_step = engine.step
        finally:
            for hook in loop.hooks:
                hook.end(run, outcome)
    if outcome == "interrupted":
        name = signal.Signals(asked_to_stop).name
        folder = checkpoint_folder(plan.output_dir, engine.step)
        run.say(f"{name}: saved {folder}; the same command continues from there")
        raise SystemExit(128 + asked_to_stop)
    progress = run.progress
    return Outcome(engine.step, outcome == "stopped early", progress.evaluation, progress.best, progress.best_step)


def _next_multiple(step: int, of: int) -> int:
    return (step // of + 1) * of


def _resume(run: Run, processes: Processes) -> int | None:
    """Load the newest checkpoint, if any, and return its step."""
    plan = run.plan
    found = latest_checkpoint(plan.output_dir, processes=processes)
    if found is None:
        return None
    where = checkpoint_folder(plan.output_dir, found.step)
    if found.seed != run.engine.seed:
        raise UsageError(
            f"{where} was trained with seed {found.seed}, this run has {run.engine.seed}: "
            "use the same seed, or another output folder"
        )
    config = plan.complete_config(found.config)
    for key in [*plan.config, *config]:
        if plan.config.get(key) != config.get(key):
            raise UsageError(
                f"{where} is of another model: {key} is {config.get(key)!r}, this run has {plan.config.get(key)!r}; "
                "use the same configuration, or another output folder"
            )
    run.engine.load_state(found.state)
    run.engine.step = found.step
    run.progress = LoopProgress(**found.progress)
    return found.step


@dataclasses.dataclass
class _Loop:
    run: Run
    processes: Processes
    hooks: list[Hook]

    def __post_init__(self):
        self._window: list[Record] = []
        self._timed_units = 0
        self._timed_seconds = 0.0
        self._sizes_seen: set[Any] = set()
        self._in_spike = False

    def take(self, prefetched: _Prefetcher, count: int) -> bool:
        """Take `count` steps and tell the hooks; False if the run went back to a checkpoint instead."""
        run, plan, started, first = self.run, self.run.plan, time.monotonic(), self.run.engine.step
        passed_over = run.progress.batches_passed_over
        batches = prefetched.take(first + passed_over, count, plan.num_steps + passed_over)
        if plan.on_spike == "skip":
            limit = run.progress.loss_limit
            run.engine.loss_limit = math.inf if limit is None else limit
        results = run.engine.train(batches)
        seconds = time.monotonic() - started
        run.progress.seconds += seconds
        # The first call with a shape compiles; throughput is about the others.
        shapes = {tuple((name, value.shape) for name, value in batch.items()) for batch in batches}
        if shapes <= self._sizes_seen:
            self._timed_seconds += seconds
            self._timed_units += sum(map(plan.count_units, batches))
        self._sizes_seen |= shapes
        run.units_per_second = self._timed_units / self._timed_seconds if self._timed_seconds else 0.0
        for number, result in enumerate(results if plan.on_spike != "ignore" else ()):
            step = first + number
            exceeded = observe(run.progress, step, result, plan.spike_threshold)
            spike = f"step {step:,}: loss {result['loss']:.4g} is a spike, above {exceeded or 0:.4g}"
            if exceeded is not None and plan.on_spike == "rollback":
                self._roll_back(spike, step, batches[number], result)
                prefetched.restart()
                return False
            if exceeded is not None and plan.on_spike == "warn" and not self._in_spike:
                run.say(spike)
            self._in_spike = exceeded is not None
        self._window += results
        run.latest = _means(self._window)
        record = run.latest | {"skipped": sum(result["skipped"] for result in self._window)}
        for hook in self.hooks:
            hook.steps(run, batches, results)
        if run.engine.step % plan.log_every_steps == 0 or run.engine.step >= plan.num_steps:
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
        found = latest_checkpoint(run.plan.output_dir, up_to_step=progress.return_step, processes=self.processes)
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
        run, plan, progress = self.run, self.run.plan, self.run.progress
        is_best = False
        if plan.best_metric:
            if plan.best_metric not in metrics:
                raise UsageError(
                    f"the evaluation has no metric {plan.best_metric!r} to choose the best weights by; "
                    f"the nearest is {nearest(plan.best_metric, metrics)!r}"
                )
            value = metrics[plan.best_metric]
            better = progress.best is None or (value < progress.best if plan.lower_is_better else value > progress.best)
            is_best = better and not np.isnan(value)
            if is_best:
                write_checkpoint(plan.output_dir / "best", best_of(self._checkpoint()), processes=self.processes)
                progress.best, progress.best_step, progress.evaluations_without_improvement = value, run.engine.step, 0
            else:
                progress.evaluations_without_improvement += 1
        progress.evaluated_step, progress.evaluation = run.engine.step, dict(metrics)
        for hook in self.hooks:
            hook.evaluated(run, metrics, is_best)

    def save(self) -> None:
        """Write the checkpoint of this step and remove those that are too many."""
        plan = self.run.plan
        folder = checkpoint_folder(plan.output_dir, self.run.engine.step)
        write_checkpoint(folder, self._checkpoint(), processes=self.processes)
        spared = self.run.progress.return_step if plan.on_spike == "rollback" else None
        if self.processes.writes:
            rotate(plan.output_dir, plan.keep_checkpoint_max, spared_step=spared)

    def _checkpoint(self) -> Checkpoint:
        engine = self.run.engine
        progress = dataclasses.asdict(self.run.progress)
        return Checkpoint(engine.step, engine.seed, self.run.plan.config, progress, engine.state(whole=False))


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
