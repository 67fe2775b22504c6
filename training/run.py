"""One training run: its plan, its progress from step to step, and the view that hooks have of it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from absl.app import UsageError
from msgspec import Meta

from ground.documents import check_shape
from ground.progress import format_flops, format_value
from training.checkpoints import RunState
from training.engine import Batch, Engine

Record = dict[str, float]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]


def count_examples(batch: Batch) -> int:
    """Return the number of examples of a batch."""
    return len(next(iter(batch.values())))


def one_kind(batch: Batch) -> str:
    """Return the kind of a batch where all are of one."""
    return ""


def same_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration of a checkpoint as it was written."""
    return config


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything that is settled about a run before its first step."""

    num_steps: int
    """The step to stop at, counted from step 0 of the first start."""
    output_dir: Path
    """Folder that receives checkpoints/, best/, metrics.jsonl, tensorboard/ and report.html."""
    config: Mapping[str, Any]
    """Configuration of the model as JSON values; it is written into every checkpoint."""
    complete_config: Callable[[Mapping[str, Any]], Mapping[str, Any]] = same_config
    """Fills in the fields that the configuration of an older checkpoint lacks; the run goes on from a checkpoint whose
    completed configuration equals `config`."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Flags of the command as JSON values; they are written beside the batch of a failed step."""
    summary: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Facts for the preamble and the report: model, parameters, devices."""
    save_every_steps: int = 1000
    """Steps between checkpoints; 0 saves at the end only."""
    eval_every_steps: int = 0
    """Steps between evaluations; 0 evaluates at the end only."""
    best_metric: str | None = None
    """The metric of the evaluation that decides which weights are kept in best/; None keeps none."""
    lower_is_better: bool = False
    """Whether a smaller `best_metric` is better."""
    best_from_step: int = 0
    """The first step whose weights may be the best, and whose evaluation may stop the run."""
    early_stopping_evaluations: int = 0
    """Evaluations in a row without a better `best_metric` after which the run stops; 0 never stops it."""
    keep_checkpoint_max: int = 5
    """Checkpoints to keep, the newest ones; 0 keeps all."""
    log_every_steps: int = 50
    """Steps over which one record of metrics.jsonl averages."""
    steps_per_call: int = 1
    """Steps per call of the engine, at most: a call ends where an evaluation, a checkpoint or a record is due."""
    prefetch_batches: int = 2
    """Batches that a thread prepares ahead."""
    on_spike: str = "ignore"
    """The answer to a loss that leaps (`training/spikes.py`): `ignore`, `warn`, `skip` (the step changes nothing) or
    `rollback` (go back to the newest checkpoint and pass over all batches since)."""
    spike_threshold: float = 10.0
    """A loss is a spike above median + `spike_threshold` robust standard deviations."""
    profile_steps: tuple[int, int] | None = None
    """(first, last): profile the steps from `first` up to, without, `last`."""
    unit: str = "examples"
    """Plural name of the unit of throughput: tokens, examples."""
    count_units: Callable[[Batch], int] = count_examples
    """Returns the number of units in a batch."""
    kind_of: Callable[[Batch], str] = one_kind
    """Returns the kind of a batch: what is a leap of the loss is judged among the batches of one kind."""
    flops_per_unit: float = 0.0
    """Model FLOPs of one unit in training: forward and backward, without recomputation; 0 if unknown."""
    peak_flops_per_second: float = 0.0
    """Peak of all devices together at the precision of the run; 0 if unknown."""


@dataclasses.dataclass
class LoopProgress:
    """The state of the loop that every checkpoint holds."""

    evaluated_step: Count = 0
    evaluation: Record = dataclasses.field(default_factory=dict)
    best: float | None = None
    best_step: Count = 0
    evaluations_without_improvement: Count = 0
    seconds: Seconds = 0.0
    """Time spent in training steps, without evaluations and saving."""
    recent_losses: list[float] = dataclasses.field(default_factory=list)
    """Losses of the last steps that were not skipped, oldest first; the limit of a spike is computed from them."""
    loss_limit: float | None = None
    """A loss above this limit is a spike; None while too few losses are known."""
    losses_of_kinds: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """`recent_losses` of each kind of batches that has a name."""
    limits_of_kinds: dict[str, float] = dataclasses.field(default_factory=dict)
    """`loss_limit` of each of these kinds, as far as it is known."""
    batches_passed_over: Count = 0
    """Batches that rollbacks passed over: step s learns from batch s + batches_passed_over."""
    return_step: Count = 0
    """Step of the checkpoint that a rollback goes back to: the newest one written at a regular step."""
    rollbacks: Count = 0
    """Rollbacks to that checkpoint so far."""

    def limit(self, kind: str) -> float | None:
        """Return the loss above which a batch of a kind is a spike; None while too few losses are known."""
        return self.limits_of_kinds.get(kind) if kind else self.loss_limit

    @classmethod
    def of(cls, saved: RunState) -> LoopProgress:
        """Return the progress that a checkpoint holds; raises `UsageError` where it is none of the loop's."""
        known = {field.name for field in dataclasses.fields(cls)}
        where, fix = f"the checkpoint of step {saved.step}", "remove it, to go on from the one before"
        if unknown := sorted(saved.progress.keys() - known):
            raise UsageError(f"{where}: progress has the unknown key {unknown[0]!r}; {fix}")
        return cls(**check_shape(dict(saved.progress), cls, where=f"{where}, progress", fix=fix))


@dataclasses.dataclass
class Run:
    """One run as hooks see it."""

    engine: Engine
    plan: RunPlan
    progress: LoopProgress = dataclasses.field(default_factory=LoopProgress)
    latest: Record = dataclasses.field(default_factory=dict)
    """Means over the steps since the last record, or the last record right after it."""
    limits: dict[str, float] = dataclasses.field(default_factory=dict)
    """Losses above which the last call of the engine skipped a step, by the kind of its batch."""
    units_per_second: float = 0.0
    """Throughput since the last record; 0 while unknown."""
    call_ends: tuple[int, ...] = ()
    """Steps at which a call of the engine ends; a hook that has to see the run there adds its own in `start`."""
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    """Shows a line above the live one."""

    def speed(self) -> Record:
        """Return units a second, model FLOPs a second and the share of the devices' peak, as far as they are known."""
        if not self.units_per_second:
            return {}
        speed = {f"{self.plan.unit}_per_second": self.units_per_second}
        if self.plan.flops_per_unit:
            speed["flops_per_second"] = self.units_per_second * self.plan.flops_per_unit
            if self.plan.peak_flops_per_second:
                speed["flop_utilization"] = speed["flops_per_second"] / self.plan.peak_flops_per_second
        return speed

    def speed_texts(self) -> dict[str, str]:
        """Return `speed()` formatted for a person: {"tokens/s": "12,345", "FLOP/s": "61.2T (31% of peak)"}."""
        speed = self.speed()
        texts = {f"{self.plan.unit}/s": format_value(round(self.units_per_second))} if speed else {}
        if "flops_per_second" in speed:
            share = f" ({speed['flop_utilization']:.0%} of peak)" if "flop_utilization" in speed else ""
            texts["FLOP/s"] = format_flops(speed["flops_per_second"]) + share
        return texts
