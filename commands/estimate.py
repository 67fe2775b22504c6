"""About how much memory and time a training run will take, by the model's accounting, before a step is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from commands.options import TrainingOptions
    from modeling.accounting import Layout
    from modeling.config import Config
    from training.planning import Chip


@dataclass(frozen=True)
class Work:
    """What the steps of a run compute that are alike, which are the `share` of all.

    Of an example `predictions` positions are scored over the vocabulary, and all `target`; `other` tokens are those of
    a second text, `written` those that the model itself writes behind the text before.
    """

    batch_size: int
    length: int
    predictions: int
    num_steps: int
    target: int = 0
    other: int = 0
    written: int = 0
    share: float = 1.0


def estimate(
    config: Config, options: TrainingOptions, works: Sequence[Work], chip: Chip | None, device: str, count: int
) -> Mapping[str, str]:
    """Return a line about memory and one about time, as the preamble has lines.

    Args:
        config: of the model.
        options: of the run.
        works: what it computes, in shares of its steps: the largest decides the memory, the mean is the time.
        chip: the rates of one device; None where they are not known.
        device: the name of the devices.
        count: how many there are.
    """
    from ground.progress import format_duration
    from modeling.accounting import collective_bytes, flops_per_example, step_memory
    from training.planning import roofline_of_step

    layouts = [layout_of(options, work, device, count) for work in works]
    memories = [step_memory(config, layout) for layout in layouts]
    needed = max(memory.peak for memory in memories)
    peak = f"about {needed / 2**30:,.2f} GiB a device at the peak of a step"
    if chip is None:
        return {"plan": peak, "time": f"the rates of {device} are not known; a few steps will tell"}
    room = f"{peak}, of {chip.memory_bytes / 2**30:,.1f} GiB"
    fast = slow = 0.0
    for work, layout, memory in zip(works, layouts, memories, strict=True):
        flops = flops_per_example(config, work.length, work.predictions, work.target, work.other, written=work.written)
        flops, held = work.batch_size * flops / count, sum(memory.held.values())
        sent = collective_bytes(config, layout)
        bound = roofline_of_step(chip, options.precision, flops, held, memory.peak, layout.micro_batches, sent)
        fast += work.share * bound.fast_seconds
        slow += work.share * bound.slow_seconds
    steps = works[0].num_steps
    fits = "" if needed <= chip.memory_bytes else ": DOES NOT FIT; plan_training.py says what makes it fit"
    return {
        "plan": room + fits,
        "time": f"{1000 * fast:,.1f} to {1000 * slow:,.1f} ms a step, {format_duration(steps * fast)} to "
        f"{format_duration(steps * slow)} for {steps:,} steps, from the roofline",
    }


def layout_of(options: TrainingOptions, work: Work, device: str, count: int) -> Layout:
    """Return how the arrays of a step lie on `count` devices."""
    from modeling.accounting import Layout

    return Layout(
        batch_size=work.batch_size,
        length=work.length,
        predictions=work.predictions,
        target=work.target,
        other=work.other,
        written=work.written,
        half_precision=options.precision != "float32",
        remat=options.remat,
        scan=options.scan_layers,
        averaged=bool(options.ema_decay),
        micro_batches=options.gradient_accumulation_steps,
        data_parts=max(1, count // options.model_parallel),
        model_parts=options.model_parallel,
        fsdp=options.fsdp,
        cpu=device == "CPU",
    )
