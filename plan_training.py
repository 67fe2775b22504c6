"""Say what a pretraining run will need before it is started: memory, operations, traffic and time on a named machine.

For a TPU slice (--topology) the real train step is compiled ahead of time, on this machine and without a TPU; for GPUs
and CPUs (--device) the model's own accounting answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from absl.app import UsageError

from commands.flags import Group, flag, run
from commands.needs import Need, check_needs
from commands.options import OPTIMIZERS
from commands.shares import as_text, shares_of
from data.objectives import OBJECTIVES

if TYPE_CHECKING:
    import jax

    from modeling.config import Config
    from training.jax_step import JaxStep
    from training.planning import Chip, Compiled


@dataclass(frozen=True, kw_only=True)
class Options:
    """Plan a pretraining run: what it needs on a TPU slice, a GPU or this CPU; exits with 1 if it does not fit."""

    _model: ClassVar = Group.MODEL
    bert_config_file: str = flag(help="JSON file of the model's shape", aliases=("albert_config_file",))
    _devices: ClassVar = Group.DEVICES
    topology: str | None = flag(
        None,
        help="TPU slice to compile for, as v4:4x4x8, v5e:4x4, v5p:2x2x4, v6e:8x8; needs libtpu, but no TPU",
        essential=True,
    )
    device: str | None = flag(
        None,
        help="instead of a slice: cpu (this machine), h200, h100, a100, a100_40gb, l40s or l4, by accounting",
        essential=True,
    )
    num_devices: int = flag(1, help="how many of --device", minimum=1)
    compile: bool = flag(
        False, help="with --device: also compile the step for this machine's own device, for XLA's own figure"
    )
    find_batch: bool = flag(
        False, help="find the largest batch that fits, beginning at --train_batch_size", essential=True
    )
    _objective: ClassVar = Group.OBJECTIVE
    objective: str = flag(
        "albert",
        help="what is learnt; of several, as masked_lm:0.5,tlm:0.5, the largest step decides the memory, and "
        "operations and time are means by their shares",
        choices=tuple(OBJECTIVES),
        mixed=True,
    )
    _examples: ClassVar = Group.EXAMPLES
    max_seq_length: int = flag(512, help="of the records", unit="tokens", minimum=1, essential=True)
    max_predictions_per_seq: int | None = flag(
        None, help="of the records; 15 % of --max_seq_length by default", unit="tokens", minimum=1
    )
    max_word_order_per_seq: int = flag(
        0, help="of the records, where they hold shuffled words", unit="tokens", minimum=0
    )
    max_target_length: int | None = flag(
        None,
        help="positions of the decoder, of records with targets; by default what they have for --max_seq_length",
        unit="tokens",
        minimum=2,
    )
    _training: ClassVar = Group.TRAINING
    train_batch_size: int = flag(
        32, help="of one optimizer step, over all devices", unit="examples", minimum=1, essential=True
    )
    gradient_accumulation_steps: int = flag(1, help="micro-batches that a batch is computed in", minimum=1)
    optimizer: str = flag("lamb", help="update rule", choices=OPTIMIZERS)
    ema_decay: float = flag(0.0, help="decay of an average of the weights; 0 keeps none", minimum=0, maximum=1)
    precision: str = flag(
        "bfloat16",
        help="compute precision; weights stay float32",
        choices=("float32", "bfloat16", "float16"),
        group=Group.DEVICES,
    )
    remat: bool = flag(
        False, help="recompute activations in the backward pass: less memory, a third more compute", group=Group.DEVICES
    )
    scan_layers: bool = flag(
        False,
        help="compile one layer and loop it over all: deep models compile in minutes; same numbers",
        group=Group.DEVICES,
    )
    model_parallel: int = flag(1, help="devices that each weight matrix is cut over", minimum=1, group=Group.DEVICES)
    fsdp: bool = flag(
        False, help="cut weights and optimizer state over the devices that share a batch, too", group=Group.DEVICES
    )

    @property
    def shares(self) -> dict[str, float]:
        """Share of the steps by objective; raises `UsageError`."""
        return shares_of(self.objective, OBJECTIVES, "objective")

    @property
    def alone(self) -> dict[str, Options]:
        """The options of every objective by itself; what follows here is of one objective."""
        return {name: dataclasses.replace(self, objective=name) for name in self.shares}

    @property
    def masked_positions(self) -> int:
        """Masked tokens of an example."""
        return self.max_predictions_per_seq or math.ceil(0.15 * self.max_seq_length)

    @property
    def predictions(self) -> int:
        """Positions of an example that are scored over the vocabulary."""
        from data.forms import scored_per_prediction

        return self.masked_positions * scored_per_prediction(as_text(self.shares)) + self.max_word_order_per_seq

    @property
    def other_positions(self) -> int:
        """Tokens of a second text that is read; 0 without one."""
        from data.forms import FORMS, texts_read

        return self.max_seq_length * (texts_read(FORMS[OBJECTIVES[as_text(self.shares)].form]) - 1)

    @property
    def lengths(self) -> tuple[int, int, int, int]:
        """Tokens, scored positions, positions of the decoder and tokens of a second text of an example."""
        return self.max_seq_length, self.predictions, self.target_positions, self.other_positions

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.train_batch_size * (self.max_seq_length + self.target_positions + self.other_positions)

    def written_positions(self, config: Config) -> int:
        """Tokens that the model itself writes behind a text; 0 with objectives that write none."""
        from tasks.across import pseudo_length

        if not OBJECTIVES[as_text(self.shares)].writes:
            return 0
        return pseudo_length(self.max_seq_length, 1.0, config.max_sequence_length)

    @property
    def target_positions(self) -> int:
        """Positions of the decoder; 0 without one."""
        from data.continuation import Continuation

        continuing = OBJECTIVES[as_text(self.shares)].continuing
        if continuing is None:
            return 0
        found = Continuation.of(continuing, self.max_seq_length, max_target_length=self.max_target_length)
        found.check(self.max_seq_length)
        return found.max_target_length


@dataclass(frozen=True)
class Plan:
    """The needs of one choice of flags on one kind of chip; bytes are per chip, of the state between steps by name.

    `peak_bytes` is None where the compiler found that it does not fit and did not say by how much. Of several
    objectives `parts` has the plan of each with its share of the steps.
    """

    options: Options
    held_bytes: Mapping[str, float]
    peak_bytes: float | None
    capacity_bytes: float
    collectives: Mapping[str, float]
    facts: Mapping[str, str]
    parts: tuple[tuple[float, Plan], ...] = ()

    @classmethod
    def of_parts(cls, options: Options, plans: Sequence[Plan]) -> Plan:
        """Return the plan of several objectives: each step has to fit, and traffic is the mean by shares."""
        parts = tuple(zip(options.shares.values(), plans, strict=True))
        peaks = [plan.peak_bytes for plan in plans]
        sent: dict[str, float] = {}
        for share, plan in parts:
            for kind, size in plan.collectives.items():
                sent[kind] = sent.get(kind, 0.0) + share * size
        facts = {f"{name}, {plan.options.objective}": fact for plan in plans for name, fact in plan.facts.items()}
        return cls(
            options,
            max((plan.held_bytes for plan in plans), key=lambda held: sum(held.values())),
            None if None in peaks else max(peak for peak in peaks if peak is not None),
            plans[0].capacity_bytes,
            sent,
            facts,
            parts,
        )

    @property
    def fits(self) -> bool:
        """Whether the peak is within the capacity."""
        return self.peak_bytes is not None and self.peak_bytes <= self.capacity_bytes


NEEDS = (
    Need(("num_devices", "compile"), "--device", lambda o: o.device),
    Need(
        ("max_target_length",),
        f"an --objective with targets ({', '.join(name for name, row in OBJECTIVES.items() if row.continuing)})",
        lambda o: any(OBJECTIVES[name].continuing for name in o.shares),
    ),
)
Planner = Callable[[Options], Plan]


def main(options: Options) -> int:
    """Plan as the flags say; returns 1 if the run does not fit."""
    from commands.session import check_files
    from modeling.config import load_config
    from training import planning

    if (options.topology is None) == (options.device is None):
        raise UsageError("give one of --topology (a TPU slice, as v4:4x4x8) and --device (as h200, or cpu)")
    check_needs(options, NEEDS)
    check_files(options, ["bert_config_file"])
    if options.topology is not None and options.precision == "float16":
        raise UsageError("a TPU has no use for float16; give --precision=bfloat16")
    if options.topology is not None:
        generation, extents = planning.parse_topology(options.topology)
        chip, chips = planning.CHIPS[generation], math.prod(extents)
    else:
        chip, chips = planning.find_chip(options.device or ""), options.num_devices
    config = load_config(options.bert_config_file)
    config.check_sequence_length(options.max_seq_length)
    # The accounting declares the model, and --compile compiles it: with the same backend.
    os.environ["KERAS_BACKEND"] = "jax"
    if options.topology is not None:
        planning.prepare_environment()
    elif options.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    check_cuts(options, config, chips)
    if any(OBJECTIVES[name].continuing for name in options.shares):
        from modeling.heads import check_decoder

        check_decoder(config)
    if len(options.shares) > 1:
        from modeling import declared

        declared(task_of(options, config).build_model)

    with planner(options, config, chip, chips) as plan_of:
        chosen = largest_that_fits(options, chips, plan_of) if options.find_batch else options
        plan = plan_of(chosen)
        show(plan, config, chip, chips)
        if plan.fits:
            return 0
        for remedy in remedies(chosen, config, chips):
            other = plan_of(remedy)
            if other.fits:
                print(f"\nIt fits with {difference(chosen, remedy)}:")
                show(other, config, chip, chips)
                return 1
    print("\nNo rematerialisation, sharding or accumulation tried makes it fit: take more chips, or a smaller model.")
    return 1


def check_cuts(options: Options, config: Config, chips: int) -> None:
    """Raise `UsageError` for a batch or a mesh that cannot be cut into equal parts."""
    parts = options.model_parallel
    if chips % parts:
        raise UsageError(f"--model_parallel={parts} does not divide the {chips} chips: choose a number that does")
    if not can_be_cut(config, parts):
        raise UsageError(
            f"--model_parallel={parts} does not divide the model: {config.num_attention_heads} heads, "
            f"{config.intermediate_size} feed-forward units in {config.ffn_groups} groups and a vocabulary of "
            f"{config.padded_vocab_size:,}; set vocab_padding_multiple to 128 in the config, or choose another number"
        )
    unit = batch_unit(options, chips)
    if options.train_batch_size % unit and not options.find_batch:
        raise UsageError(
            f"--train_batch_size={options.train_batch_size} cannot be cut into {options.gradient_accumulation_steps} "
            f"equal micro-batches on each of {chips // parts} parts of the machine: choose a multiple of {unit}"
        )


def batch_unit(options: Options, chips: int) -> int:
    """The number that a batch must be a multiple of."""
    return chips // options.model_parallel * options.gradient_accumulation_steps


def can_be_cut(config: Config, parts: int) -> bool:
    """Whether heads, feed-forward units (or their groups) and vocabulary fall into equal parts."""
    units = config.intermediate_size if config.ffn_groups == 1 else config.ffn_groups
    return not any(size % parts for size in (config.num_attention_heads, units, config.padded_vocab_size))


def largest_that_fits(options: Options, chips: int, plan_of: Planner) -> Options:
    """The options with the largest batch that fits; with the smallest possible where none does."""
    from training.planning import largest_batch

    unit = batch_unit(options, chips)

    def sized(units: int) -> Options:
        return dataclasses.replace(options, train_batch_size=units * unit)

    def peak(units: int) -> float | None:
        return plan_of(sized(units)).peak_bytes

    capacity = plan_of(sized(1)).capacity_bytes
    return sized(largest_batch(peak, capacity, start=options.train_batch_size // unit) or 1)


def remedies(options: Options, config: Config, chips: int) -> Iterator[Options]:
    """Other choices that need less memory, those that cost least time first."""
    remat = dataclasses.replace(options, remat=True)
    candidates = [remat]
    if chips > 1:
        candidates += [dataclasses.replace(choice, fsdp=True) for choice in (options, remat)]
        candidates += [
            dataclasses.replace(remat, fsdp=True, model_parallel=parts)
            for parts in (2, 4, 8, 16)
            if parts > options.model_parallel and chips % parts == 0 and can_be_cut(config, parts)
        ]
    candidates += [
        dataclasses.replace(candidates[-1], gradient_accumulation_steps=options.gradient_accumulation_steps * times)
        for times in (2, 4, 8)
    ]
    for number, candidate in enumerate(candidates):
        new = candidate not in (options, *candidates[:number])
        if new and candidate.train_batch_size % batch_unit(candidate, chips) == 0:
            yield candidate


def difference(options: Options, other: Options) -> str:
    """The flags in which `other` differs, as they are typed."""
    values = {field.name: getattr(other, field.name) for field in dataclasses.fields(other)}
    changed = {name: value for name, value in values.items() if value != getattr(options, name)}
    return " ".join(f"--{name}" if value is True else f"--{name}={value}" for name, value in changed.items())


@contextlib.contextmanager
def planner(options: Options, config: Config, chip: Chip, chips: int) -> Iterator[Planner]:
    """Give the function that plans, each choice once: by compiling for a slice, by accounting for a device."""
    known: dict[Options, Plan] = {}
    with contextlib.ExitStack() as stack:
        make = (
            (lambda choice, whole: plan_by_accounting(choice, config, chip, chips, whole))
            if options.topology is None
            else stack.enter_context(compiling_planner(chip))
        )

        def plan_of(choice: Options) -> Plan:
            if choice not in known:
                plans = [make(alone, choice) for alone in choice.alone.values()]
                known[choice] = Plan.of_parts(choice, plans) if len(plans) > 1 else plans[0]
            return known[choice]

        yield plan_of


def plan_by_accounting(options: Options, config: Config, chip: Chip, chips: int, whole: Options) -> Plan:
    """Plan the steps of one objective of `whole` by `modeling/accounting.py`, without compiling."""
    from modeling.accounting import Layout, collective_bytes, step_memory

    layout = Layout(
        batch_size=options.train_batch_size,
        length=options.max_seq_length,
        predictions=options.predictions,
        target=options.target_positions,
        other=options.other_positions,
        written=options.written_positions(config),
        half_precision=options.precision != "float32",
        remat=options.remat,
        scan=options.scan_layers,
        averaged=bool(options.ema_decay),
        micro_batches=options.gradient_accumulation_steps,
        data_parts=chips // options.model_parallel,
        model_parts=options.model_parallel,
        fsdp=options.fsdp,
        cpu=options.device == "cpu",
    )
    memory = step_memory(config, layout)
    facts = {}
    if options.compile:
        compiled = compiled_here(options, whole)
        peak = compiled.peak_bytes or math.nan
        facts["peak by XLA's own analysis"] = f"{gib(peak)} in {compiled.compile_seconds:.0f} s"
    return Plan(options, memory.held, memory.peak, chip.memory_bytes, collective_bytes(config, layout), facts)


@contextlib.contextmanager
def compiling_planner(chip: Chip) -> Iterator[Callable[[Options, Options], Plan]]:
    """Plan by compiling in a process of its own: if that needs more memory than is free, it alone dies."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    def plan_of(options: Options, whole: Options) -> Plan:
        cuts = difference(dataclasses.replace(options, remat=False, fsdp=False, model_parallel=1), options)
        cuts += "" if options == whole else f"of {options.objective} "
        print(f"compiling a batch of {options.train_batch_size} {cuts} ...", file=sys.stderr, flush=True)
        try:
            compiled = worker.submit(compiled_for_slice, options, whole, chip.memory_bytes).result()
        except BrokenProcessPool:
            hint = "" if options.scan_layers else "; --scan_layers needs far less"
            raise UsageError(f"the compiler needed more than the memory that is free on this machine{hint}") from None
        seconds = {"compiled in": f"{compiled.compile_seconds:.0f} s"} if compiled.compile_seconds else {}
        return Plan(options, compiled.held_bytes, compiled.peak_bytes, chip.memory_bytes, compiled.collectives, seconds)

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as worker:
        yield plan_of


def compiled_for_slice(options: Options, whole: Options, capacity_bytes: float) -> Compiled:
    """Compile the step of an objective of `whole` for --topology; runs in a process of its own."""
    from training import planning

    planning.prepare_environment()
    os.environ["KERAS_BACKEND"] = "jax"
    devices = planning.topology_devices(options.topology or "")
    step, batch = abstract_step(options, devices, whole)
    planning.limit_memory()
    return planning.compile_step(step, batch, capacity_bytes)


def compiled_here(options: Options, whole: Options) -> Compiled:
    """Compile the step of an objective of `whole` for this machine's own devices.

    Raises `UsageError` where they are not those of --device.
    """
    import jax

    from training import planning

    devices = jax.devices()
    kind = "cpu" if devices[0].platform == "cpu" else devices[0].device_kind.lower()
    if (options.device or "").split("_")[0] not in kind or len(devices) < options.num_devices:
        raise UsageError(
            f"--compile: this machine has {len(devices)} x {kind}, not {options.num_devices} x {options.device}; "
            "leave --compile away"
        )
    step, batch = abstract_step(options, devices[: options.num_devices], whole)
    return planning.compile_step(step, batch, math.inf)


def task_of(options: Options, config: Config) -> Any:
    """Return the task of all objectives of the options; raises `UsageError` where one model cannot learn them."""
    from modeling import DTYPES, Computation
    from tasks.across import Pseudo
    from tasks.mixing import MixedTask
    from tasks.pretraining import PretrainingTask

    computation = Computation(DTYPES[options.precision], remat=options.remat, scan=options.scan_layers)
    weights = {"word_order": 1.0} if options.max_word_order_per_seq else {}
    tasks = {
        name: PretrainingTask(
            config,
            name,
            weights=weights,
            pseudo=Pseudo(mask_id=0, special_ids=(0,)) if OBJECTIVES[name].writes else None,
            computation=computation,
        )
        for name in options.shares
    }
    return MixedTask(tasks) if len(tasks) > 1 else next(iter(tasks.values()))


def abstract_step(
    options: Options, devices: Sequence[Any], whole: Options | None = None
) -> tuple[JaxStep, Mapping[str, Any]]:
    """The train step of the options on `devices`, and the shapes of a batch; allocates no weights.

    Where `options` are of one objective of several, `whole` are the options of all.
    """
    from modeling import declared, load_config
    from optimization import Constant, create_optimizer
    from training.jax_step import JaxStep
    from training.placement import create_placement

    task = task_of(whole or options, load_config(options.bert_config_file))
    step = JaxStep(
        task,
        create_optimizer(options.optimizer, Constant(1e-4)),
        declared(task.build_model),
        create_placement(devices, model_parallel=options.model_parallel, fsdp=options.fsdp),
        micro_batches=options.gradient_accumulation_steps,
        ema_decay=options.ema_decay or None,
    )
    return step, abstract_batch(options, is_marked=whole is not None and len(whole.shares) > 1)


def abstract_batch(options: Options, *, is_marked: bool = False) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Return shape and type of every feature of the batches that the reader yields with these lengths.

    A batch that `is_marked` says which of several objectives it is of.
    """
    import jax
    import numpy as np

    from data.forms import FORMS
    from data.mixture import mark_name
    from data.schema import shapes

    form = FORMS[OBJECTIVES[options.objective].form]
    further = {"target": options.target_positions} if options.target_positions else {}
    lengths = form.lengths(options.max_seq_length, options.masked_positions, options.max_word_order_per_seq, **further)
    features = shapes(form.schema, lengths, options.train_batch_size)
    if is_marked:
        features[mark_name(options.objective)] = ((options.train_batch_size,), "int32")
    return {name: jax.ShapeDtypeStruct(shape, np.dtype(dtype)) for name, (shape, dtype) in features.items()}


def operations_of(options: Options, config: Config) -> int:
    """Return the floating-point operations of a step of one objective."""
    from modeling.accounting import flops_per_example

    return options.train_batch_size * flops_per_example(
        config, *options.lengths, written=options.written_positions(config)
    )


def times_of(plan: Plan, config: Config, chip: Chip, chips: int) -> tuple[float, float]:
    """Return the fast and the slow end of the seconds of a step, of several objectives the mean by shares."""
    from training.planning import roofline_of_step

    fast = slow = 0.0
    for share, part in plan.parts or ((1.0, plan),):
        options = part.options
        bound = roofline_of_step(
            chip,
            options.precision,
            operations_of(options, config) / chips,
            sum(part.held_bytes.values()),
            part.peak_bytes or 0.0,
            options.gradient_accumulation_steps,
            part.collectives,
        )
        fast, slow = fast + share * bound.fast_seconds, slow + share * bound.slow_seconds
    return fast, slow


def show(plan: Plan, config: Config, chip: Chip, chips: int) -> None:
    """Print the table of one plan."""
    from ground.tables import print_table
    from modeling.accounting import parameter_count
    from training.planning import EFFICIENCY

    options = plan.options
    parts = plan.parts or ((1.0, plan),)
    flops = sum(share * operations_of(part.options, config) for share, part in parts)
    rows = [[f"{name}, a chip", gib(size)] for name, size in plan.held_bytes.items()]
    held = sum(plan.held_bytes.values())
    if plan.peak_bytes is None:
        rows.append(["peak, a chip", f"more than {gib(plan.capacity_bytes)}: DOES NOT FIT"])
    else:
        if held:
            rows.append(["activations, gradients and workspace, a chip", gib(plan.peak_bytes - held)])
        share = f"{plan.peak_bytes / plan.capacity_bytes:.0%} of {gib(plan.capacity_bytes)}"
        for _, part in plan.parts:
            rows.append([f"peak of {part.options.objective}, a chip", gib(part.peak_bytes or 0.0)])
        rows.append(["peak, a chip", f"{gib(plan.peak_bytes)}, {share}{'' if plan.fits else ': DOES NOT FIT'}"])
    rows.append(["operations of a step", f"{flops / 1e12:,.2f} TFLOP"])
    rows += [[f"{kind} of a step, a chip", gib(size)] for kind, size in plan.collectives.items()]
    if plan.fits:
        fast, slow = times_of(plan, config, chip, chips)
        tokens = sum(share * part.options.tokens for share, part in parts)
        share = flops / chips / slow / chip.flops(options.precision)
        rows += [
            ["time of a step, from the roofline", f"{1000 * fast:,.1f} to {1000 * slow:,.1f} ms"],
            ["tokens a second", f"{tokens / slow:,.0f} to {tokens / fast:,.0f}"],
            ["model FLOP utilisation at the slow end", f"{share:.0%}"],
        ]
    rows += [[name, value] for name, value in plan.facts.items()]
    mesh = f"{chips // options.model_parallel} x {options.model_parallel}" + (", FSDP" if options.fsdp else "")
    machine = options.topology or options.device
    print_table(
        f"{config.family}, {parameter_count(config):,} parameters, on {machine}: {chips} chips as data x model {mesh}; "
        f"{options.precision}{', remat' if options.remat else ''}; batch {options.train_batch_size} x "
        f"{options.max_seq_length} tokens in {options.gradient_accumulation_steps} micro-batches",
        ["", "value"],
        rows,
    )
    print(
        f"Peak of {chip.flops(options.precision) / 1e12:,.4g} TFLOP/s, {chip.memory_bandwidth / 1e9:,.0f} GB/s memory, "
        f"{chip.link_bandwidth / 1e9:,.0f} GB/s links a chip ({chip.source}). The fast end overlaps everything at "
        f"these peaks; the slow end overlaps nothing, at {EFFICIENCY:.0%} of them. Not measured on such a machine."
    )


def gib(size: float) -> str:
    """A number of bytes as text."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**27 else f"{size / 2**20:,.2f} MiB"


if __name__ == "__main__":
    run(main, Options)
