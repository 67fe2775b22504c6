"""What accompanies a run: the live line and tables, metrics.jsonl, TensorBoard, the guard against non-finite losses.

A hook sees the run after each call of the engine; it changes nothing of the training.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from absl.app import UsageError

from training.checkpoints import Checkpoint, checkpoint_folder, write_checkpoint
from training.engine import Batch, Engine
from training.files import write_atomically
from training.progress import Progress, format_duration, format_value
from training.report import write_report

if TYPE_CHECKING:
    from tensorboard.summary import Writer

Record = dict[str, float]


@dataclasses.dataclass
class LoopProgress:
    """What the loop remembers from step to step; it travels in the checkpoints."""

    evaluated_step: int = 0
    evaluation: Record = dataclasses.field(default_factory=dict)
    best: float | None = None
    best_step: int = 0
    evaluations_without_improvement: int = 0
    seconds: float = 0.0
    """Time spent in training steps, without evaluations and saving."""


@dataclasses.dataclass
class Run:
    """One run, as hooks see it."""

    engine: Engine
    output_dir: Path
    num_steps: int
    unit: str
    """Plural name of what throughput counts: tokens, examples."""
    config: Mapping[str, Any]
    """Configuration of the model."""
    options: Mapping[str, Any]
    """Flags of the command."""
    summary: Mapping[str, str]
    """Facts for the preamble and the report: model, parameters, devices."""
    progress: LoopProgress
    latest: Record = dataclasses.field(default_factory=dict)
    """Means over the steps since the last record, or the last record right after it."""
    units_per_second: float = 0.0
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    """Shows a line to the person, above the live one."""


class Hook:
    """Does nothing; override what is needed."""

    def start(self, run: Run) -> None:
        """Before the first step; `run.engine.step` is where the run starts."""

    def steps(self, run: Run, batches: Sequence[Batch], results: Sequence[Record]) -> None:
        """After each call of `engine.train`; the last of `results` belongs to step `run.engine.step - 1`."""

    def recorded(self, run: Run, record: Record) -> None:
        """Every `log_every_steps`: means over the finite steps since the last record."""

    def evaluated(self, run: Run, metrics: Record, is_best: bool) -> None:
        """After an evaluation at `run.engine.step`."""

    def end(self, run: Run, outcome: str) -> None:
        """After the last step, also when the run failed: `finished`, `stopped early`, `interrupted` or `failed`."""


class Terminal(Hook):
    """Preamble, one live line (or plain lines now and then), and the closing table."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._line: Progress | None = None

    def start(self, run: Run) -> None:
        """Show the facts of the run, then the live line."""
        width = max(map(len, run.summary), default=0)
        for name, fact in run.summary.items():
            print(f"{name:<{width}}  {fact}", file=self._stream)
        if run.engine.step:
            print(f"continuing from step {run.engine.step:,}", file=self._stream, flush=True)
        self._line = Progress(run.num_steps, "steps", "training", done=run.engine.step, stream=self._stream)
        run.say = self._line.print

    def steps(self, run: Run, batches: Sequence[Batch], results: Sequence[Record]) -> None:
        """Move the live line."""
        if self._line:
            hidden = {"learning_rate", "gradient_norm", "skipped"}
            shown: dict[str, float | str] = {name: x for name, x in run.latest.items() if name not in hidden}
            speed = {f"{run.unit}/s": round(run.units_per_second)} if run.units_per_second else {}
            self._line.update(run.engine.step, shown | speed)

    def evaluated(self, run: Run, metrics: Record, is_best: bool) -> None:
        """Leave a line with the metrics."""
        values = "  ".join(f"{name} {format_value(value)}" for name, value in metrics.items())
        run.say(f"step {run.engine.step:,} held out: {values}{'  (best)' if is_best else ''}")

    def end(self, run: Run, outcome: str) -> None:
        """Close the live line; unless the run failed, show the closing table."""
        if self._line:
            self._line.close()
        if outcome == "failed":
            return
        from rich.console import Console
        from rich.table import Table

        held_out = run.progress.evaluation
        table = Table(title=f"{outcome} at step {run.engine.step:,} of {run.num_steps:,}", title_justify="left")
        table.add_column("")
        for column in ("training", *(["held out"] if held_out else [])):
            table.add_column(column, justify="right")
        for name in dict.fromkeys([*run.latest, *held_out]):
            cells = [format_value(values[name]) if name in values else "" for values in (run.latest, held_out)]
            table.add_row(name, *cells[: 2 if held_out else 1])
        console = Console(file=self._stream, highlight=False)
        console.print(table)
        speed = f", {run.units_per_second:,.0f} {run.unit}/s" if run.units_per_second else ""
        print(f"{format_duration(run.progress.seconds)} of training{speed}", file=self._stream)
        if run.progress.best_step:
            best = format_value(run.progress.best or 0.0)
            print(f"best      {run.output_dir / 'best'} (step {run.progress.best_step:,}: {best})", file=self._stream)
        print(f"latest    {checkpoint_folder(run.output_dir, run.engine.step)}", file=self._stream)
        print(f"report    {run.output_dir / 'report.html'}", file=self._stream, flush=True)


class MetricsFile(Hook):
    """`OUTPUT/metrics.jsonl`: a line is an object of `step`, `phase` (train, eval), `time` (Unix seconds), values."""

    def __init__(self):
        self._path = Path()

    def start(self, run: Run) -> None:
        """Drop the lines of steps that will be taken again."""
        self._path = run.output_dir / "metrics.jsonl"
        ends = {"train": run.engine.step, "eval": run.progress.evaluated_step}
        kept = [record for record in read_metrics(self._path) if record["step"] <= ends[record["phase"]]]
        write_atomically(self._path, "".join(map(_line, kept)))

    def recorded(self, run: Run, record: Record) -> None:
        """Append the means."""
        self._append(run, "train", record | {f"{run.unit}_per_second": run.units_per_second})

    def evaluated(self, run: Run, metrics: Record, is_best: bool) -> None:
        """Append the metrics."""
        self._append(run, "eval", metrics)

    def _append(self, run: Run, phase: str, values: Record) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(_line({"step": run.engine.step, "phase": phase, "time": round(time.time(), 3)} | values))


def _line(record: Mapping[str, Any]) -> str:
    # JSON knows no nan; what is not finite is null.
    finite = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in record.items()}
    return json.dumps(finite) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl, without a last line that a crash cut short; [] if there is no file."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


class TensorBoard(Hook):
    """`OUTPUT/tensorboard`: the same values as scalars `train/NAME` and `eval/NAME`."""

    def __init__(self):
        self._writer: Writer | None = None

    def start(self, run: Run) -> None:
        """Open an event file; TensorBoard itself drops what a former, longer run wrote beyond the first step of it."""
        from tensorboard.summary import Writer

        self._writer = Writer(str(run.output_dir / "tensorboard"))

    def recorded(self, run: Run, record: Record) -> None:
        """Write the means."""
        self._write(run, "train", record | {f"{run.unit}_per_second": run.units_per_second})

    def evaluated(self, run: Run, metrics: Record, is_best: bool) -> None:
        """Write the metrics."""
        self._write(run, "eval", metrics)

    def end(self, run: Run, outcome: str) -> None:
        """Close the file."""
        if self._writer:
            self._writer.close()

    def _write(self, run: Run, phase: str, values: Record) -> None:
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(f"{phase}/{name}", value, step=run.engine.step)
            self._writer.flush()


class Report(Hook):
    """`OUTPUT/report.html`, rewritten at every evaluation and at the end."""

    def evaluated(self, run: Run, metrics: Record, is_best: bool) -> None:
        """Rewrite the page."""
        self._write(run, "running")

    def end(self, run: Run, outcome: str) -> None:
        """Rewrite the page for good."""
        self._write(run, outcome)

    def _write(self, run: Run, outcome: str) -> None:
        facts = dict(run.summary)
        facts["training time"] = format_duration(run.progress.seconds)
        if run.progress.best_step:
            facts["best"] = f"step {run.progress.best_step:,}: {format_value(run.progress.best or 0.0)}"
        title = f"{run.output_dir.resolve().name}: {outcome} at step {run.engine.step:,} of {run.num_steps:,}"
        write_report(run.output_dir / "report.html", title, facts, read_metrics(run.output_dir / "metrics.jsonl"))


class DivergedError(UsageError):
    """The loss stayed non-finite."""


class NonFiniteGuard(Hook):
    """Says when a step was skipped because it was not finite; stops the run when that goes on.

    `OUTPUT/replay/step_N` then holds the first batch of the streak, the state (which no skipped step changed), seed and
    flags, so that the step can be run again.
    """

    def __init__(self, max_skipped_steps: int = 5):
        self._limit = max_skipped_steps
        self._streak: list[int] = []
        self._batch: Batch = {}

    def steps(self, run: Run, batches: Sequence[Batch], results: Sequence[Record]) -> None:
        """Count skipped steps in a row; raises `DivergedError` at the limit."""
        first = run.engine.step - len(results)
        for step, (batch, result) in enumerate(zip(batches, results, strict=True), first):
            if not result["skipped"]:
                self._streak = []
                continue
            if not self._streak:
                self._batch = batch
            self._streak.append(step)
            what = f"loss {result['loss']:g}, gradient norm {result['gradient_norm']:g}"
            run.say(f"step {step:,} was skipped: {what}")
            if len(self._streak) >= self._limit:
                folder = self._save(run, result)
                raise DivergedError(
                    f"{len(self._streak)} steps in a row were not finite (steps {self._streak[0]} to {step}); "
                    f"batch, seed, flags and weights are in {folder}; lower the learning rate or lengthen the warmup"
                )

    def _save(self, run: Run, result: Record) -> Path:
        step = self._streak[0]
        folder = run.output_dir / "replay" / f"step_{step:08d}"
        state = run.engine.state()
        write_checkpoint(folder, Checkpoint(step, run.engine.seed, run.config, {}, state))
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **self._batch)
        write_atomically(folder / "batch.npz", buffer.getvalue())
        facts = {"step": step, "seed": run.engine.seed, "options": run.options, "result": _printable(result)}
        write_atomically(folder / "replay.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        return folder


def _printable(record: Record) -> dict[str, float | str]:
    return {name: value if math.isfinite(value) else str(value) for name, value in record.items()}
