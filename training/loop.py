"""The one training loop: any engine, any task; evaluates, saves, resumes exactly, stops on a signal.

A run that was interrupted at any moment and is started again ends with the same weights, bit for bit: the batch and all
randomness are functions of the step, and everything else that a step changes is in the checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl.app import UsageError

from ground.words import nearest
from training.checkpoints import (
    RunState,
    best_of,
    checkpoint_folder,
    latest_state,
    list_checkpoints,
    rotate,
    write_state,
)
from training.engine import Batch, Dataset, Engine
from training.health import SkipGuard
from training.hooks import Hook, MetricsFile, Profiler, Report, TensorBoard, Terminal
from training.prefetching import Prefetcher
from training.processes import Processes, current
from training.run import LoopProgress, Record, Run, RunPlan
from training.signals import Signals, StoppedError
from training.spikes import RENEWED_EVERY_STEPS, decide, engine_limit, roll_back


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
    if plan.early_stopping_evaluations and (evaluate is None or plan.best_metric is None):
        raise UsageError("early stopping needs an evaluation and the metric that decides")
    processes, run, outcome = current(), Run(engine, plan), "failed"
    if not processes.writes:
        run.say = lambda line: None
    saved_step = _resume(run, processes)
    with Signals() as signals, Prefetcher(dataset, plan.prefetch_batches) as prefetcher:
        loop = _Loop(run, processes, signals, prefetcher, evaluate, _hooks(plan, hooks, processes), saved_step)
        for hook in loop.hooks:
            hook.start(run)
        try:
            if plan.on_spike == "rollback" and saved_step is None:
                loop.save()
            while True:
                if loop.evaluation_is_due:
                    loop.evaluate()
                # All processes have to agree: one that stopped alone would leave the others waiting for it.
                asked_to_stop = processes.largest(signals.received)
                if loop.checkpoint_is_due or (asked_to_stop and not loop.is_saved):
                    loop.save()
                if asked_to_stop or loop.is_last:
                    break
                loop.take(loop.steps_of_call())
            outcome = "interrupted" if asked_to_stop else "stopped early" if loop.stops_early else "finished"
        finally:
            for hook in loop.hooks:
                hook.end(run, outcome)
    if outcome == "interrupted":
        name, folder = signal.Signals(asked_to_stop).name, checkpoint_folder(plan.output_dir, engine.step)
        run.say(f"{name}: saved {folder}; the same command continues from there")
        raise SystemExit(128 + asked_to_stop)
    progress = run.progress
    return Outcome(engine.step, outcome == "stopped early", progress.evaluation, progress.best, progress.best_step)


def _hooks(plan: RunPlan, hooks: Sequence[Hook] | None, processes: Processes) -> list[Hook]:
    chosen = [*(default_hooks() if hooks is None else hooks)]
    if plan.profile_steps:
        chosen.append(Profiler(*plan.profile_steps))
    return [hook for hook in chosen if processes.writes or hook.in_every_process]


def _resume(run: Run, processes: Processes) -> int | None:
    """Load the newest checkpoint, if any, and return its step."""
    plan, engine = run.plan, run.engine
    found = latest_state(plan.output_dir, processes=processes)
    if found is not None:
        _check_continues(plan, engine.seed, found)
        engine.load_state(found.tensors)
        engine.step = found.step
        run.progress = LoopProgress.of(found)
    if checkpoint_folder(plan.output_dir, run.progress.return_step) not in list_checkpoints(plan.output_dir):
        run.progress.return_step = engine.step
    return found and found.step


def _check_continues(plan: RunPlan, seed: int, found: RunState) -> None:
    """Raise `UsageError` unless the checkpoint that was found is one of this run."""
    where = checkpoint_folder(plan.output_dir, found.step)
    check_seed(seed, found.seed, where)
    check_config(plan.config, plan.complete_config(found.config), where)


def check_seed(seed: int, former: int, where: Path) -> None:
    """Raise `UsageError` unless the checkpoint `where`, of the seed `former`, is one of this seed."""
    if former != seed:
        raise UsageError(
            f"{where} was trained with seed {former}, this run has {seed}: use the same --seed, or another --output_dir"
        )


def check_config(config: Mapping[str, Any], former: Mapping[str, Any], where: Path) -> None:
    """Raise `UsageError` unless the checkpoint `where`, of config `former`, is one of this model."""
    for key in [*config, *former]:
        if config.get(key) != former.get(key):
            raise UsageError(
                f"{where} is of another model: {key} is {former.get(key)!r}, this run has "
                f"{config.get(key)!r}; give the former --bert_config_file, or another --output_dir"
            )


def step_to_continue_from(plan: RunPlan, seed: int) -> int:
    """Return the step that `train` would continue from; raises what it would raise. Nothing is written."""
    found = latest_state(plan.output_dir, processes=current(), only_reads=True)
    if found is None:
        return 0
    _check_continues(plan, seed, found)
    return found.step


@dataclasses.dataclass
class _Loop:
    run: Run
    processes: Processes
    signals: Signals
    prefetcher: Prefetcher
    evaluation: Callable[[], dict[str, float]] | None
    hooks: list[Hook]
    saved_step: int | None
    """Step of the checkpoint that holds the current state; `save`, `evaluate` and `_go_back` set it."""

    def __post_init__(self):
        self._window: list[Record] = []
        self._timed_units = 0
        self._timed_seconds = 0.0
        self._sizes_seen: set[Any] = set()
        self._in_spike = False

    @property
    def stops_early(self) -> bool:
        """Whether so many evaluations in a row brought nothing better that the run ends."""
        return 0 < self.run.plan.early_stopping_evaluations <= self.run.progress.evaluations_without_improvement

    @property
    def is_last(self) -> bool:
        """Whether no step follows."""
        return self.run.engine.step >= self.run.plan.num_steps or self.stops_early

    @property
    def is_saved(self) -> bool:
        """Whether the current state is in a checkpoint."""
        return self.saved_step == self.run.engine.step

    @property
    def evaluation_is_due(self) -> bool:
        """Whether to evaluate the current weights."""
        is_new = self.run.progress.evaluated_step < self.run.engine.step
        return self.evaluation is not None and is_new and (self.is_last or self._is_due(self.run.plan.eval_every_steps))

    @property
    def checkpoint_is_due(self) -> bool:
        """Whether to save the current state."""
        return not self.is_saved and (self.is_last or self._is_due(self.run.plan.save_every_steps))

    def _is_due(self, every_steps: int) -> bool:
        step = self.run.engine.step
        return bool(every_steps) and step > 0 and step % every_steps == 0

    def steps_of_call(self) -> int:
        """Return the steps until something is due, at most `plan.steps_per_call`."""
        step, plan = self.run.engine.step, self.run.plan
        # The engine has one limit for all steps of a call.
        renewed = RENEWED_EVERY_STEPS if plan.on_spike == "skip" else 0
        periods = (plan.save_every_steps, plan.eval_every_steps, plan.log_every_steps, renewed)
        ends = [end for end in self.run.call_ends if end > step]
        end = min(plan.num_steps, *ends, *((step // every + 1) * every for every in periods if every))
        return min(plan.steps_per_call, end - step)

    def take(self, count: int) -> None:
        """Take `count` steps and tell the hooks, or go back to a checkpoint if one of the losses is a spike."""
        run, plan, first = self.run, self.run.plan, self.run.engine.step
        started = time.monotonic()
        shift = run.progress.batches_passed_over
        batches = self.prefetcher.take(first + shift, count, plan.num_steps + shift)
        results = self._trained(batches)
        for batch, result in zip(batches, results, strict=True):
            if kind := plan.kind_of(batch):
                # The mean of `loss` over steps is one over kinds; a kind that has no loss of its name has this one.
                result.setdefault(f"{kind}_loss", result["loss"])
        self._measure(batches, time.monotonic() - started)
        for step, (batch, result) in enumerate(zip(batches, results, strict=True), first):
            decision = decide(run.progress, step, result, plan, plan.kind_of(batch))
            if decision.action == "back":
                self._go_back(decision.spike, step, batch, result)
                return
            if plan.on_spike == "warn" and decision.spike and not self._in_spike:
                run.say(decision.spike)
            self._in_spike = bool(decision.spike)
        self._window += results
        run.latest = _means(self._window)
        record = run.latest | {"skipped": sum(result["skipped"] for result in self._window)}
        for hook in self.hooks:
            hook.steps(run, batches, results)
        if run.engine.step % plan.log_every_steps == 0 or run.engine.step >= plan.num_steps:
            for hook in self.hooks:
                hook.recorded(run, record)
            self._begin_window()

    def _trained(self, batches: Sequence[Batch]) -> list[Record]:
        """Take a step a batch; where losses are limited, batches of one kind at a time, which have one limit."""
        run, plan, results = self.run, self.run.plan, []
        if plan.on_spike != "skip":
            return run.engine.train(batches)
        for kind, alike in itertools.groupby(batches, plan.kind_of):
            run.engine.loss_limit = run.limits[kind] = engine_limit(run.progress, plan, kind)
            results += run.engine.train([*alike])
        return results

    def _measure(self, batches: Sequence[Batch], seconds: float) -> None:
        """Add a call to the throughput, unless it was the first with a shape, which compiles."""
        run = self.run
        run.progress.seconds += seconds
        shapes = {tuple((name, value.shape) for name, value in batch.items()) for batch in batches}
        if shapes <= self._sizes_seen:
            self._timed_seconds += seconds
            self._timed_units += sum(map(run.plan.count_units, batches))
        self._sizes_seen |= shapes
        run.units_per_second = self._timed_units / self._timed_seconds if self._timed_seconds else 0.0

    def _begin_window(self) -> None:
        self._window, self._timed_units, self._timed_seconds = [], 0, 0.0

    def _go_back(self, spike: str, step: int, batch: Batch, result: Record) -> None:
        roll_back(self.run, self.processes, spike, step, batch, result)
        self.saved_step = self.run.engine.step
        self.prefetcher.restart()
        self._begin_window()
        for hook in self.hooks:
            hook.went_back(self.run)

    def evaluate(self) -> None:
        """Evaluate, record the metrics, keep the weights if they are the best, and tell the hooks.

        A signal ends an evaluation at once; the next start repeats it. Several processes finish it together.
        """
        assert self.evaluation is not None
        at_once = self.signals.raised() if self.processes.count == 1 else contextlib.nullcontext()
        with contextlib.suppress(StoppedError), at_once:
            self._evaluated(self.evaluation())
            self.saved_step = None

    def _evaluated(self, metrics: dict[str, float]) -> None:
        run, plan, progress = self.run, self.run.plan, self.run.progress
        is_best = False
        if plan.best_metric and run.engine.step >= plan.best_from_step:
            if plan.best_metric not in metrics:
                raise UsageError(
                    f"the evaluation has no metric {plan.best_metric!r} to choose the best weights by; "
                    f"the nearest is {nearest(plan.best_metric, metrics)!r}"
                )
            value = metrics[plan.best_metric]
            better = progress.best is None or (value < progress.best if plan.lower_is_better else value > progress.best)
            is_best = better and not np.isnan(value)
            if is_best:
                write_state(plan.output_dir / "best", best_of(self._state()), processes=self.processes)
                progress.best, progress.best_step, progress.evaluations_without_improvement = value, run.engine.step, 0
            else:
                progress.evaluations_without_improvement += 1
        progress.evaluated_step, progress.evaluation = run.engine.step, dict(metrics)
        for hook in self.hooks:
            hook.evaluated(run, metrics, is_best)

    def save(self) -> None:
        """Write the checkpoint of this step and remove those that are too many."""
        run, plan = self.run, self.run.plan
        if self._is_due(plan.save_every_steps):
            run.progress.return_step, run.progress.rollbacks = run.engine.step, 0
        write_state(checkpoint_folder(plan.output_dir, run.engine.step), self._state(), processes=self.processes)
        if self.processes.writes:
            spared = run.progress.return_step if plan.on_spike == "rollback" else None
            rotate(plan.output_dir, plan.keep_checkpoint_max, spared_step=spared)
        self.saved_step = run.engine.step

    def _state(self) -> RunState:
        engine, progress = self.run.engine, dataclasses.asdict(self.run.progress)
        return RunState(engine.step, engine.seed, self.run.plan.config, progress, engine.state(whole=False))


def _means(results: Sequence[Record]) -> Record:
    """Return the mean of each value over the steps that were not skipped; the learning rate is the last."""
    taken = [result for result in results if not result["skipped"]]
    names = dict.fromkeys(name for result in taken for name in result if name != "skipped")
    means = {name: float(np.mean([result[name] for result in taken if name in result])) for name in names}
    return means | ({"learning_rate": taken[-1]["learning_rate"]} if taken else {})
