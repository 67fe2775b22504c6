"""The answer of a run to a loss that leaps: keep the step, skip it, or go back to a checkpoint.

A loss is a spike above median + threshold * spread of the losses of the last 128 steps; the spread is 1.4826 times the
median absolute deviation (the standard deviation, for a normal distribution), at least 1 % of the median. Medians
rather than mean and deviation, because one spike must not hide the next.
The limit is renewed every 16 steps, so that it is a function of the step and not of the number of steps per call.
Batches of several kinds (`RunPlan.kind_of`), such as of several objectives, have losses of sizes of their own: each
kind has its limit. The limits and the losses that they are computed from are part of a checkpoint, so that a run that
was interrupted decides as one that was not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from training.checkpoints import latest_state
from training.engine import Batch
from training.health import DivergedError, save_replay
from training.processes import Processes
from training.run import LoopProgress, Record, Run, RunPlan

WINDOW_STEPS = 128
LEAST_STEPS = 32
RENEWED_EVERY_STEPS = 16
MAX_ROLLBACKS = 3
"""Rollbacks to one checkpoint; each passes over more batches than the one before."""


def limit_of(losses: Sequence[float], threshold: float) -> float | None:
    """Return the loss, exact in float32, above which the next is a spike; None for less than `LEAST_STEPS` losses."""
    if len(losses) < LEAST_STEPS:
        return None
    median = float(np.median(losses))
    deviation = 1.4826 * float(np.median(np.abs(np.asarray(losses) - median)))
    return float(np.float32(median + threshold * max(deviation, 0.01 * abs(median))))


def observe(progress: LoopProgress, step: int, result: Record, threshold: float, kind: str = "") -> float | None:
    """Record the loss of `step` unless the step was skipped; return the limit that it exceeds, None for no spike."""
    limit, loss = progress.limit(kind), result["loss"]
    if not result["skipped"] and kind:
        losses = [*progress.losses_of_kinds.get(kind, ()), loss][-WINDOW_STEPS:]
        progress.losses_of_kinds = progress.losses_of_kinds | {kind: losses}
    elif not result["skipped"]:
        progress.recent_losses = [*progress.recent_losses, loss][-WINDOW_STEPS:]
    if (step + 1) % RENEWED_EVERY_STEPS == 0:
        progress.loss_limit = limit_of(progress.recent_losses, threshold)
        limits = {name: limit_of(losses, threshold) for name, losses in progress.losses_of_kinds.items()}
        progress.limits_of_kinds = {name: found for name, found in limits.items() if found is not None}
    return limit if limit is not None and limit < loss < math.inf else None


@dataclasses.dataclass(frozen=True)
class Decision:
    """The answer to one step."""

    action: Literal["keep", "skip", "back"]
    """`skip`: the engine left the weights as they were; `back`: go back to a checkpoint."""
    spike: str = ""
    """Description of the spike for a person; empty for an ordinary loss."""


def decide(progress: LoopProgress, step: int, result: Record, plan: RunPlan, kind: str = "") -> Decision:
    """Return the answer of `plan.on_spike` to the result of `step`, and record its loss in `progress`."""
    exceeded = None if plan.on_spike == "ignore" else observe(progress, step, result, plan.spike_threshold, kind)
    if exceeded is None:
        return Decision("keep")
    of = f" of {kind}" if kind else ""
    spike = f"step {step:,}: loss {result['loss']:.4g}{of} is a spike, above {exceeded:.4g}"
    if plan.on_spike == "rollback":
        return Decision("back", spike)
    return Decision("skip" if result["skipped"] else "keep", spike)


def engine_limit(progress: LoopProgress, plan: RunPlan, kind: str = "") -> float:
    """Return the loss above which the engine skips batches of a kind; infinite unless spikes are skipped."""
    limit = progress.limit(kind)
    return math.inf if plan.on_spike != "skip" or limit is None else limit


def roll_back(run: Run, processes: Processes, spike: str, step: int, batch: Batch, result: Record) -> None:
    """Go back to the checkpoint of `return_step`; the steps after it learn from batches that were not used yet.

    Evaluations stay on record: `best/` holds the weights of one of them.

    Raises:
        DivergedError: `MAX_ROLLBACKS` rollbacks to that checkpoint did not help, or the checkpoint is gone.
    """
    progress = run.progress
    replay = save_replay(run, step, batch, result, with_state=False)
    if progress.rollbacks == MAX_ROLLBACKS:
        raise DivergedError(
            f"{spike}, after {MAX_ROLLBACKS} rollbacks to step {progress.return_step:,}: lower the learning rate, "
            "raise --spike_threshold, or remove the newest checkpoints to go on from an earlier one; "
            f"the batch is in {replay}"
        )
    found = latest_state(run.plan.output_dir, up_to_step=progress.return_step, processes=processes)
    if found is None:
        raise DivergedError(f"{spike}, and the checkpoint of step {progress.return_step:,} to go back to is gone")
    run.engine.load_state(found.tensors)
    run.engine.step = found.step
    count = step + 1 - found.step
    run.progress = dataclasses.replace(
        LoopProgress.of(found),
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
    run.say(
        f"{spike}; back to step {found.step:,}, its {count:,} batches are passed over "
        f"(rollback {run.progress.rollbacks} of {MAX_ROLLBACKS}; {replay})"
    )
