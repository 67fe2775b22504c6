"""The guard against steps that are skipped one after the other, and the replay of a step that failed."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl.app import UsageError

from ground.files import write_atomically
from training.checkpoints import RunState, write_state
from training.engine import Batch
from training.hooks import Hook
from training.processes import current
from training.run import Record, Run


class DivergedError(UsageError):
    """The loss stayed non-finite, or leapt again and again."""


class SkipGuard(Hook):
    """Reports every skipped step (not finite, or a spike) and stops the run after `max_skipped_steps` in a row.

    `OUTPUT/replay/step_N` then holds the first batch of the streak, the state (which no skipped step changed), seed and
    flags, so that the step can be run again.
    """

    in_every_process = True

    def __init__(self, max_skipped_steps: int = 5):
        self._limit = max_skipped_steps
        self._streak: list[int] = []
        self._batch: Batch = {}

    def steps(self, run: Run, batches: Sequence[Batch], results: Sequence[Record]) -> None:
        """Count skipped steps in a row; raises `DivergedError` at `max_skipped_steps`."""
        first = run.engine.step - len(results)
        for step, (batch, result) in enumerate(zip(batches, results, strict=True), first):
            if not result["skipped"]:
                self._streak = []
                continue
            loss, norm = result["loss"], result["gradient_norm"]
            if math.isfinite(loss) and not math.isfinite(norm) and result.get("loss_scale", 1.0) > 1.0:
                # The gradients overflow float16, and the scale halves until they fit. Counted as divergence, the first
                # steps of every run with a large initial scale would end the run.
                run.say(f"step {step:,} was skipped: gradients do not fit a loss scale of {result['loss_scale']:g}")
                continue
            if not self._streak:
                self._batch = batch
            self._streak.append(step)
            finite = math.isfinite(loss) and math.isfinite(norm)
            limit = run.limits.get(run.plan.kind_of(batch), run.engine.loss_limit)
            why = f"above {limit:g}" if finite else f"gradient norm {norm:g}"
            run.say(f"step {step:,} was skipped: loss {loss:g}, {why}")
            if len(self._streak) >= self._limit:
                folder = save_replay(run, self._streak[0], self._batch, result, with_state=True)
                remedy = "lengthen the warmup" + finite * ", or raise --spike_threshold"
                raise DivergedError(
                    f"{len(self._streak)} steps in a row were {'spikes' if finite else 'not finite'} "
                    f"(steps {self._streak[0]} to {step}); batch, seed, flags and weights are in {folder}; "
                    f"lower the learning rate or {remedy}"
                )


def save_replay(run: Run, step: int, batch: Batch, result: Record, *, with_state: bool) -> Path:
    """Write batch, seed, flags and result of `step` to `OUTPUT/replay/step_N`; return that folder.

    Without the state `replay.json` names the checkpoint from which the steps before it can be taken again.
    """
    folder = run.plan.output_dir / "replay" / f"step_{step:08d}"
    if with_state:
        state = run.engine.state(whole=False)
        write_state(folder, RunState(step, run.engine.seed, run.plan.config, {}, state), processes=current())
    if not current().writes:
        return folder
    facts = {
        "step": step,
        "batch": step + run.progress.batches_passed_over,
        "seed": run.engine.seed,
        "options": run.plan.options,
        "result": {name: value if math.isfinite(value) else str(value) for name, value in result.items()},
    }
    if not with_state:
        limit = run.progress.limit(run.plan.kind_of(batch))
        facts |= {"after_checkpoint": run.progress.return_step, "loss_limit": limit}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **batch)
    write_atomically(folder / "batch.npz", buffer.getvalue())
    write_atomically(folder / "replay.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    return folder
