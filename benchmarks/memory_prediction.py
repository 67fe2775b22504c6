"""Measures how far training steps raise this machine's memory, beside what plan_training.py predicts for a CPU.

python3 -m benchmarks.memory_prediction writes its results to benchmarks/results. Each case trains in a process of its
own. After the steps in which it is compiled, the kernel's high-water mark of resident memory is reset; what it rises to
over the state between steps, plus the state itself, is the measured peak: compiler, libraries and records are left
out, as a plan leaves them out.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from commands.flags import flag, run
from ground.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: a config, the sizes of a batch, and how it is computed."""

    config: str
    batch_size: int
    length: int
    predictions: int
    backend: str = "jax"
    precision: str = "float32"
    scan: bool = False
    remat: bool = False


CASES = (
    Case(config="albert_config_tiny", batch_size=32, length=128, predictions=20),
    Case(config="albert_config_base_google_en", batch_size=8, length=128, predictions=20),
    Case(config="bert_config_base_en", batch_size=8, length=128, predictions=20),
    Case(config="bert_config_base_en", batch_size=2, length=512, predictions=77),
    Case(config="bert_config_base_en", batch_size=8, length=128, predictions=20, scan=True, remat=True),
    Case(config="structbert_tiny_zh", batch_size=16, length=256, predictions=39, precision="bfloat16"),
    Case(config="albert_config_tiny", batch_size=32, length=128, predictions=20, backend="tensorflow"),
    Case(config="bert_config_base_en", batch_size=8, length=128, predictions=20, backend="tensorflow"),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the memory of training steps on this CPU beside its prediction."""

    cases: tuple[int, ...] = flag((), help=f"numbers of the cases to measure, 0 to {len(CASES) - 1}; by default all")
    output_dir: str = flag("benchmarks/results", help="folder for memory_prediction.json and .md")
    worker: int | None = flag(None, help="measure this case in this process and print it as JSON")


def main(options: Options) -> None:
    """Measure every case in a process of its own and write the results; those of other cases stay."""
    if options.worker is not None:
        print(json.dumps(measure(CASES[options.worker])))
        return
    path = ROOT / options.output_dir / "memory_prediction.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for number in options.cases or range(len(CASES)):
        case = CASES[number]
        command = [sys.executable, "-m", "benchmarks.memory_prediction", f"--worker={number}"]
        environment = {**os.environ, "KERAS_BACKEND": case.backend, "JAX_PLATFORMS": "cpu"}
        finished = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        known[json.dumps(asdict(case))] = json.loads(finished.stdout.splitlines()[-1])
        print(finished.stdout.splitlines()[-1], flush=True)
    write_atomically(path, json.dumps(known, indent=2) + "\n")
    write_atomically(path.with_suffix(".md"), page(known))


def measure(case: Case) -> dict[str, float]:
    """Train a few steps; return the measured and the predicted peak and their difference."""
    import numpy as np

    from data.forms import FORMS
    from data.schema import padding
    from modeling import DTYPES, Computation, load_config
    from modeling.accounting import Layout, step_memory
    from optimization import Constant, create_optimizer
    from tasks.pretraining import PretrainingTask

    config = load_config(ROOT / f"albert_config/{case.config}.json")
    computation = Computation(DTYPES[case.precision], remat=case.remat, scan=case.scan)
    task = PretrainingTask(config, computation=computation)
    if case.backend == "jax":
        from training.jax_engine import JaxEngine as ChosenEngine
    else:
        from training.tensorflow_engine import TensorFlowEngine as ChosenEngine
    engine: Any = ChosenEngine(task, create_optimizer("adamw", Constant(1e-4)), seed=1)

    generator = np.random.default_rng(1)
    lengths = {"tokens": case.length, "predictions": case.predictions}
    batch = padding(FORMS["one_row"].schema, lengths, case.batch_size)
    for name, below in (("input_ids", config.vocab_size), ("masked_lm_positions", case.length)):
        batch[name] = generator.integers(0, below, batch[name].shape, dtype=np.int32)
    batch["masked_lm_ids"] = generator.integers(0, config.vocab_size, batch["masked_lm_ids"].shape, dtype=np.int32)
    for name in ("input_mask", "masked_lm_weights"):
        batch[name][:] = 1
    for _ in range(2):
        engine.train([batch])
    state = 3 * sum(4 * int(np.prod(variable.shape)) for variable in engine.model.trainable_variables)
    Path("/proc/self/clear_refs").write_text("5")
    between = resident_bytes("VmRSS")
    for _ in range(2):
        engine.train([batch])
    measured = state + resident_bytes("VmHWM") - between
    layout = Layout(
        batch_size=case.batch_size,
        length=case.length,
        predictions=case.predictions,
        half_precision=case.precision != "float32",
        remat=case.remat,
        scan=case.scan,
        cpu=True,
    )
    predicted_bytes = step_memory(config, layout).peak
    return {"measured_bytes": measured, "predicted_bytes": predicted_bytes, "error": predicted_bytes / measured - 1}


def resident_bytes(name: str) -> int:
    """A line of this process's status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def page(known: dict[str, dict[str, float]]) -> str:
    """The results as a page of Markdown."""
    rows = []
    for text, found in known.items():
        case = Case(**json.loads(text))
        how = ", ".join([case.backend, case.precision, *(name for name in ("scan", "remat") if getattr(case, name))])
        peaks = " | ".join(f"{found[name] / 2**20:,.0f}" for name in ("measured_bytes", "predicted_bytes"))
        rows.append(
            f"| {case.config} | {case.batch_size} x {case.length}, {case.predictions} predictions | {how} | {peaks} "
            f"| {found['error']:+.1%} |"
        )
    return "\n".join(
        [
            "# Memory: predicted and measured",
            "",
            f"{platform.machine()}, {os.cpu_count()} cores. Peak of a training step with AdamW in MiB: state, "
            "gradients and activations, without what libraries and the compiler take. Plans for a CPU are for JAX.",
            "",
            "| config | batch | engine | measured | predicted | error |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    run(main, Options)
