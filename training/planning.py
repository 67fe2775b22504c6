"""The cost of a run before it runs: the real train step compiled for TPUs of another machine, and a roofline.

Compiling needs libtpu and no TPU. The compiler reports the memory, and the text of the program gives the bytes sent
between chips. Operations are a closed form of the caller, because the compiler counts the body of a loop once.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from ground.words import nearest

if TYPE_CHECKING:
    from training.jax_step import JaxStep

GIB = 2**30
EFFICIENCY = 0.4
"""Share of a chip's peak that the slow end of a predicted time assumes, with nothing overlapped."""


@dataclass(frozen=True)
class Chip:
    """One row of CHIPS; rates are per second and chip."""

    bfloat16_flops: float
    float32_flops: float
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    """To other chips over all links, one direction."""
    source: str

    def flops(self, precision: str) -> float:
        """Peak of matrix products at what JAX computes for `precision` by default."""
        return self.float32_flops if precision == "float32" else self.bfloat16_flops


# Memory of a TPU is what its compiler lets a program use. JAX multiplies float32 in one bfloat16 pass on TPUs and in
# TF32 on GPUs unless told otherwise.
CHIPS: Mapping[str, Chip] = {
    "v4": Chip(275e12, 275e12, 30.75 * GIB, 1228e9, 300e9, "Google Cloud TPU documentation, TPU v4"),
    "v5e": Chip(197e12, 197e12, 15.75 * GIB, 819e9, 200e9, "Google Cloud TPU documentation, TPU v5e"),
    "v5p": Chip(459e12, 459e12, 95.74 * GIB, 2765e9, 600e9, "Google Cloud TPU documentation, TPU v5p"),
    "v6e": Chip(918e12, 918e12, 31.25 * GIB, 1638e9, 400e9, "Google Cloud TPU documentation, TPU v6e"),
    "h200": Chip(989e12, 494e12, 141e9, 4800e9, 450e9, "NVIDIA H200 data sheet, SXM, dense"),
    "h100": Chip(989e12, 494e12, 80e9, 3350e9, 450e9, "NVIDIA H100 data sheet, SXM, dense"),
    "a100": Chip(312e12, 156e12, 80e9, 2039e9, 300e9, "NVIDIA A100 data sheet, SXM 80 GB, dense"),
    "a100_40gb": Chip(312e12, 156e12, 40e9, 1555e9, 300e9, "NVIDIA A100 data sheet, SXM 40 GB, dense"),
    "l40s": Chip(362e12, 183e12, 48e9, 864e9, 32e9, "NVIDIA L40S data sheet, dense"),
    "l4": Chip(121e12, 60e12, 24e9, 300e9, 32e9, "NVIDIA L4 data sheet, dense"),
}
GENERATIONS = ("v4", "v5e", "v5p", "v6e")
DEVICES = ("cpu", *(name for name in CHIPS if name not in GENERATIONS))


@dataclass(frozen=True)
class Compiled:
    """The report of the compiler on a step; bytes are per chip, `held_bytes` those kept between steps.

    `peak_bytes` is None where the program does not fit and the compiler does not say by how much; all other fields are
    then empty.
    """

    peak_bytes: float | None
    held_bytes: Mapping[str, float] = field(default_factory=dict)
    collectives: Mapping[str, float] = field(default_factory=dict)
    compile_seconds: float = 0.0


def parse_topology(topology: str) -> tuple[str, tuple[int, ...]]:
    """Return generation and extents of "v4:4x4x8"; raises `UsageError` for any other text."""
    generation, _, extents = topology.partition(":")
    if generation not in GENERATIONS:
        near = nearest(generation, GENERATIONS)
        raise UsageError(
            f"--topology={topology}: unknown TPU generation {generation!r}; the nearest is {near}, "
            f"known are {', '.join(GENERATIONS)}"
        )
    axes = 2 if generation in ("v5e", "v6e") else 3
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (axes - 1), extents):
        example = f"{generation}:" + "x".join(["4"] * axes)
        raise UsageError(
            f"--topology={topology}: expected the {axes} extents of a {generation} slice in chips, as in {example}"
        )
    return generation, tuple(map(int, extents.split("x")))


def find_chip(device: str) -> Chip:
    """Return the row of `device`, measured now where it is this machine's "cpu".

    Raises `UsageError` for another name than those of DEVICES; names the nearest.
    """
    if device == "cpu":
        return measure_this_machine()
    if device not in DEVICES:
        near = nearest(device, DEVICES)
        hint = "; TPUs are given as --topology" if device.partition(":")[0] in GENERATIONS else ""
        raise UsageError(f"--device={device} is unknown; the nearest is {near} of {', '.join(DEVICES)}{hint}")
    return CHIPS[device]


def measure_this_machine() -> Chip:
    """Return this machine's processors as one chip: a float32 product and a copy are timed, which takes a moment."""
    import numpy as np

    def best_seconds(work: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(4):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    matrix = np.ones((1024, 1024), np.float32)
    source, target = (np.ones(2**24, np.float32) for _ in range(2))
    flops = 2 * 1024**3 / best_seconds(lambda: matrix @ matrix)
    bandwidth = 2 * source.nbytes / best_seconds(lambda: np.copyto(target, source))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Chip(flops, flops, memory, bandwidth, bandwidth, "float32 product and copy timed here and now")


def prepare_environment() -> None:
    """Let JAX compile for TPUs on a machine without one; call it before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # Two plans at once, and none of the warnings of a pod's host.
    for name, value in (
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_WORKER_ID", "0"),
    ):
        os.environ.setdefault(name, value)


def topology_devices(topology: str) -> Sequence[Any]:
    """Return the devices, none of them here, of a slice; raises `UsageError` where libtpu is missing or refuses it."""
    generation, extents = parse_topology(topology)
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
        from jax.experimental import topologies
    except ImportError as error:
        raise UsageError(
            f"--topology needs the package {error.name}, which is not installed: pip install 'jax' 'libtpu==0.0.42.*'"
        ) from None
    # A host holds 2x2 chips, fewer in a slice of fewer.
    options: dict[str, Any] = {"chips_per_host_bounds": (min(extents[0], 2), min(extents[1], 2), 1)}
    if generation == "v4":
        # Otherwise each chip's two cores are two devices.
        options["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:
        # JAX gives whatever libtpu says as errors of several types.
        reason = str(error).strip().splitlines()[0][:200]
        raise UsageError(f"--topology={topology}: libtpu knows no such slice ({reason})") from None


def limit_memory() -> None:
    """Let this process take no more than the memory that is free now, so that it dies before anything else does."""
    import resource
    from pathlib import Path

    def kibibytes(path: str, name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(path).read_text(), re.MULTILINE)
        return int(found[1]) if found else 0

    if sys.platform == "linux":
        limit = 1024 * (kibibytes("/proc/self/status", "VmSize") + kibibytes("/proc/meminfo", "MemAvailable"))
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def compile_step(step: JaxStep, batch: Mapping[str, Any], capacity_bytes: float) -> Compiled:
    """Compile the step for its placement's devices, for a global batch of the shapes of `batch`, [B, ...]."""
    import jax

    started = time.monotonic()
    try:
        program = step.lower(batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # "Used 27.79G of 15.75G hbm", or "total memory required for ... (236.95G) exceeds available HBM (30.75G)".
        used = re.search(r"Used ([\d.]+)([KMG]?) of|required for [^(]*\(([\d.]+)([KMG]?)\) exceeds", str(error))
        peak = None if used is None else _bytes(used[1] or used[3], used[2] or used[4] or "")
        # What the first message counts leaves out what the compiler would have rearranged.
        return Compiled(None if peak is None else max(peak, capacity_bytes + 1))
    memory: Any = program.memory_analysis()
    state, fixed = step.shapes()
    groups = {"weights": {**state["trained"], **fixed}, "optimizer slots": state["slots"], "average": state["ema"]}
    held = {name: sum(map(_bytes_on_one, jax.tree.leaves(group))) for name, group in groups.items()}
    # The CPU compiler reports no peak, only the memory that it reserves.
    set_aside = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    on_tpu = step.placement.mesh.devices.flat[0].platform == "tpu"
    return Compiled(
        peak_bytes=memory.peak_memory_in_bytes if on_tpu else set_aside,
        held_bytes={name: size for name, size in held.items() if size},
        collectives=collectives(program.as_text() or ""),
        compile_seconds=time.monotonic() - started,
    )


def _bytes(number: str, unit: str) -> float:
    return float(number) * 1024 ** " KMG".index(unit or " ")


def _bytes_on_one(array: Any) -> float:
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_ITEM_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}


def collectives(text: str) -> dict[str, float]:
    """Return the bytes on one chip that a step sends, by kind of collective, from the text of a compiled program.

    Of a gathered or scattered tensor that is the whole one. Loops count as often as they run, where the compiler says
    so; the loop over steps counts once.
    """
    bodies = dict(_computations(text))
    total: defaultdict[str, float] = defaultdict(float)

    def walk(name: str, times: float) -> None:
        for line in bodies.get(name, ()):
            found = re.search(r"= (.*?) ([a-z][a-z-]*?)(-start)?\(", line)
            if found is None:
                continue
            kind = found[2]
            if kind in _COLLECTIVES:
                total[kind] += times * _moved_bytes(kind, found[1], line, asynchronous=bool(found[3]))
            inner = times * (_trips(line, bodies) if kind == "while" else 1)
            for called in re.findall(r"(?:body|calls|to_apply|branch_computations)=\{?%?([\w.-]+)", line):
                if kind not in _COLLECTIVES:
                    walk(called, inner)

    entry = re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)
    if entry:
        walk(entry[1], 1.0)
    return dict(total)


def _trips(line: str, bodies: Mapping[str, list[str]]) -> int:
    """How often a loop runs: as the compiler says, or the constant that its condition compares the counter with."""
    known = re.search(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    lines = "\n".join(bodies.get(condition[1], ()) if condition else ())
    compared = re.search(r"ROOT .* compare\(%?[\w.-]+, %?([\w.-]+)\), direction=LT", lines)
    limit = re.search(rf"%?{re.escape(compared[1])} = s32\[\]\S* constant\((\d+)\)", lines) if compared else None
    return int(limit[1]) if limit else 1


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = None, []
    for line in text.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$", line)
        if header:
            name, lines = header[1], []
        elif line.startswith("}") and name:
            yield name, lines
            name = None
        else:
            lines.append(line)


def _moved_bytes(kind: str, shapes: str, line: str, *, asynchronous: bool) -> float:
    sizes = [
        math.prod(map(int, filter(None, extents.split(",")))) * _item_bytes(item)
        for item, extents in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    ]
    if kind == "reduce-scatter":
        groups = re.search(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\})", line)
        parts = int(groups[1]) if groups and groups[1] else len(groups[2].split(",")) if groups else 1
        return sum(sizes) * parts
    # What starts such an operation returns its operand beside the result.
    return (max(sizes) if kind != "all-reduce" else sum(sizes)) if asynchronous and sizes else sum(sizes)


def _item_bytes(item: str) -> int:
    return _ITEM_BYTES.get(item) or max(int(re.sub(r"\D", "", item) or 8) // 8, 1)


@dataclass(frozen=True)
class Roofline:
    """Seconds of one step: by what bounds it, and the range from all overlapped at peak to nothing at EFFICIENCY."""

    compute_seconds: float
    memory_seconds: float
    link_seconds: float

    @property
    def fast_seconds(self) -> float:
        """Everything overlaps and runs at its peak."""
        return max(self.compute_seconds, self.memory_seconds, self.link_seconds)

    @property
    def slow_seconds(self) -> float:
        """Nothing overlaps and all run at EFFICIENCY of their peak."""
        return (self.compute_seconds + self.memory_seconds + self.link_seconds) / EFFICIENCY


def roofline(
    chip: Chip, precision: str, flops: float, memory_bytes: float, collectives: Mapping[str, float]
) -> Roofline:
    """Return the bounds of a step from the operations, the memory traffic and the bytes sent of one chip."""
    # An all-reduce is a scatter and a gather (Patarasuk and Yuan 2009).
    sent = sum(size * (2 if kind == "all-reduce" else 1) for kind, size in collectives.items())
    return Roofline(flops / chip.flops(precision), memory_bytes / chip.memory_bandwidth, sent / chip.link_bandwidth)


def roofline_of_step(
    chip: Chip,
    precision: str,
    flops: float,
    held_bytes: float,
    peak_bytes: float,
    micro_batches: int,
    collectives: Mapping[str, float],
) -> Roofline:
    """Return the bounds of a training step of one chip from its operations and its memory."""
    # State is read and written once; activations are written, and read backward; gradients likewise.
    moved = 2 * held_bytes + 2 * micro_batches * (peak_bytes - held_bytes)
    return roofline(chip, precision, flops, moved, collectives)


def largest_batch(peak_of: Callable[[int], float | None], capacity_bytes: float, start: int) -> int:
    """Return the largest number of examples (or of another unit) whose peak is within the capacity; 0 if 1 is not.

    Secant search through the two sizes measured nearest to the capacity; every third try bisects, in case memory is not
    linear. A try compiles the step, which takes up to minutes, and bisection alone needs about twice as many tries.
    `peak_of` grows with its argument; a peak of None means: too large, amount unknown.

        capacity 1000, peak 100 + 7 n, start 16:  tries 16, 64, 128 (secant: 996), 512 (too large), 129 (1003)  ->  128
    """
    peaks: dict[int, float] = {}
    fits, too_large = 0, math.inf
    guess = max(start, 1)
    for tried in itertools.count(1):
        peak = peak_of(guess)
        if peak is not None:
            peaks[guess] = peak
        if peak is not None and peak <= capacity_bytes:
            fits = guess
        else:
            too_large = guess
        if too_large - fits <= 1:
            break
        guess = 4 * fits if math.isinf(too_large) else (fits + int(too_large)) // 2
        near = sorted(sorted(peaks, key=lambda number: abs(peaks[number] - capacity_bytes))[:2])
        if tried % 3 and len(near) == 2 and peaks[near[0]] < peaks[near[1]]:
            slope = (peaks[near[1]] - peaks[near[0]]) / (near[1] - near[0])
            # Beyond four times as many no line is trusted.
            guess = min(near[0] + math.floor((capacity_bytes - peaks[near[0]]) / slope), max(4 * fits, 1))
        guess = int(min(max(guess, fits + 1), too_large - 1))
    return fits
