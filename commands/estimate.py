"""About how much memory and time a training run will take, by the model's accounting, before a step is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from commands.options import TrainingOptions
    from modeling.config import Config
    from training.planning import Chip


@dataclass(frozen=True)
class Work:
    """What a run computes: of an example `predictions` positions are scored over the vocabulary, and all `target`.

    `other` tokens are those of a second text, `written` those that the model itself writes behind the text before.
    """

    batch_size: int
    length: int
    predictions: int
    num_steps: int
    target: int = 0
    other: int = 0
    written: int = 0


def estimate(
    config: Config, options: TrainingOptions, work: Work, chip: Chip | None, device: str, count: int
) -> Mapping[str, str]:
    """Return a line about memory and one about time, as the preamble has lines.

    Args:
        config: of the model.
        options: of the run.
        work: what it computes.
        chip: the rates of one device; None where they are not known.
        device: the name of the devices.
        count: how many there are.
    """
    from ground.progress import format_duration
    from modeling.accounting import Layout, collective_bytes, flops_per_example, step_memory
    from training.planning import roofline_of_step

    layout = Layout(
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
    memory = step_memory(config, layout)
    peak = f"about {memory.peak / 2**30:,.2f} GiB a device at the peak of a step"
    if chip is None:
        return {"plan": peak, "time": f"the rates of {device} are not known; a few steps will tell"}
    room = f"{peak}, of {chip.memory_bytes / 2**30:,.1f} GiB"
    flops = flops_per_example(config, work.length, work.predictions, work.target, work.other, written=work.written)
    flops *= work.batch_size / count
    held, sent = sum(memory.held.values()), collective_bytes(config, layout)
    bound = roofline_of_step(chip, options.precision, flops, held, memory.peak, layout.micro_batches, sent)
    milliseconds = [1000 * bound.fast_seconds, 1000 * bound.slow_seconds]
    whole = [format_duration(work.num_steps * bound.fast_seconds), format_duration(work.num_steps * bound.slow_seconds)]
    fits = "" if memory.peak <= chip.memory_bytes else ": DOES NOT FIT; plan_training.py says what makes it fit"
    return {
        "plan": room + fits,
        "time": f"{milliseconds[0]:,.1f} to {milliseconds[1]:,.1f} ms a step, {whole[0]} to {whole[1]} for "
        f"{work.num_steps:,} steps, from the roofline",
    }
