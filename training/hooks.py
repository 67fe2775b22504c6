"""Hooks: the live line and the closing table, metrics.jsonl, TensorBoard, the profiler, report.html.

A hook sees the run after each call of the engine and changes nothing of the training.
"""

from __future__ import annotations

import json
import math
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypedDict

import keras
from absl.app import UsageError

from ground.documents import check_shape, parse_json
from ground.files import check_plain, write_atomically
from ground.progress import Progress, format_duration, format_value
from training.checkpoints import checkpoint_folder
from training.engine import Batch, is_norm_of_brick
from training.processes import current
from training.report import write_report
from training.run import Record, Run

if TYPE_CHECKING:
    from tensorboard.summary import Writer


class _RecordShape(TypedDict):
    step: int
    phase: Literal["train", "eval"]


class Hook:
    """A hook that does nothing; a subclass overrides the moments it needs."""

    in_every_process = False
    """Whether the hook runs in every process. Only the first process writes files and prints; a hook that may end the
    run has to run in all, or the others wait for the one that ended."""

    def start(self, run: Run) -> None:
        """Before the first step; `run.engine.step` is where the run starts."""

    def steps(self, run: Run, batches: Sequence[Batch], results: Sequence[Record]) -> None:
        """After each call of `engine.train`; the last of `results` belongs to step `run.engine.step - 1`."""

    def recorded(self, run: Run, record: Record) -> None:
        """Every `log_every_steps`: means over the finite steps since the last record."""

    def evaluated(self, run: Run, metrics: Record, is_best: bool) -> None:
        """After an evaluation at `run.engine.step`."""

    def went_back(self, run: Run) -> None:
        """After a rollback to step `run.engine.step`: records of later steps no longer hold."""

    def end(self, run: Run, outcome: str) -> None:
        """After the last step, also when the run failed: `finished`, `stopped early`, `interrupted` or `failed`."""


def print_preamble(summary: Mapping[str, str], step: int, stream: TextIO) -> None:
    """Show the facts of a run that begins, or continues from a `step` above 0."""
    width = max(map(len, summary), default=0)
    for name, fact in summary.items():
        print(f"{name:<{width}}  {fact}", file=stream)
    if step:
        print(f"continuing from step {step:,}", file=stream, flush=True)


class Terminal(Hook):
    """Preamble, one live line (or plain lines now and then), and the closing table."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._line: Progress | None = None

    def start(self, run: Run) -> None:
        """Show the facts of the run, then the live line."""
        print_preamble(run.plan.summary, run.engine.step, self._stream)
        self._line = Progress(run.plan.num_steps, "steps", "training", done=run.engine.step, stream=self._stream)
        run.say = self._line.print

    def steps(self, run: Run, batches: Sequence[Batch], results: Sequence[Record]) -> None:
        """Move the live line."""
        if self._line:
            hidden = {"learning_rate", "gradient_norm", "skipped"}
            shown: dict[str, float | str] = {
                name: x for name, x in run.latest.items() if name not in hidden and not is_norm_of_brick(name)
            }
            self._line.update(run.engine.step, shown | run.speed_texts())

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

        held_out, folder = run.progress.evaluation, run.plan.output_dir
        table = Table(title=f"{outcome} at step {run.engine.step:,} of {run.plan.num_steps:,}", title_justify="left")
        table.add_column("")
        for column in ("training", *(["held out"] if held_out else [])):
            table.add_column(column, justify="right")
        for name in dict.fromkeys([*run.latest, *held_out]):
            if is_norm_of_brick(name):
                continue
            cells = [format_value(values[name]) if name in values else "" for values in (run.latest, held_out)]
            table.add_row(name, *cells[: 2 if held_out else 1])
        console = Console(file=self._stream, highlight=False)
        console.print(table)
        parts = {name: text.partition(" ") for name, text in run.speed_texts().items()}
        speed = "".join(f", {number} {name}{space}{share}" for name, (number, space, share) in parts.items())
        print(f"{format_duration(run.progress.seconds)} of training{speed}", file=self._stream)
        if run.progress.batches_passed_over:
            print(f"{run.progress.batches_passed_over:,} batches were passed over in rollbacks", file=self._stream)
        if run.progress.best_step:
            best = format_value(run.progress.best or 0.0)
            print(f"best      {folder / 'best'} (step {run.progress.best_step:,}: {best})", file=self._stream)
        print(f"latest    {checkpoint_folder(folder, run.engine.step)}", file=self._stream)
        print(f"report    {folder / 'report.html'}", file=self._stream, flush=True)


class MetricsFile(Hook):
    """`OUTPUT/metrics.jsonl`: a line is an object of `step`, `phase` (train, eval), `time` (Unix seconds), values."""

    def __init__(self):
        self._path = Path()

    def start(self, run: Run) -> None:
        """Drop the lines of steps that will be taken again."""
        self._path = run.plan.output_dir / "metrics.jsonl"
        self.went_back(run)

    def went_back(self, run: Run) -> None:
        """Drop the lines of steps that will be taken again."""
        ends = {"train": run.engine.step, "eval": run.progress.evaluated_step}
        kept = [record for record in read_metrics(self._path) if record["step"] <= ends[record["phase"]]]
        write_atomically(self._path, "".join(map(_line, kept)))

    def recorded(self, run: Run, record: Record) -> None:
        """Append the means."""
        self._append(run, "train", record | run.speed())

    def evaluated(self, run: Run, metrics: Record, is_best: bool) -> None:
        """Append the metrics."""
        self._append(run, "eval", metrics)

    def _append(self, run: Run, phase: str, values: Record) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(_line({"step": run.engine.step, "phase": phase, "time": round(time.time(), 3)} | values))


def _line(record: Mapping[str, Any]) -> str:
    # JSON has no NaN: other readers would refuse the line.
    finite = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in record.items()}
    return json.dumps(finite) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl, without a last line that a crash cut short; [] if there is no file.

    Raises `UsageError` for a line that no run wrote.
    """
    records = []
    lines = check_plain(path).read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            # NaN, for records of the first versions.
            records.append(parse_json(line, where=f"{path}:{number}", what="a record", nonfinite=True))
        except UsageError:
            if number < len(lines):
                raise
            break
        check_shape(
            records[-1], _RecordShape, where=f"{path}:{number}", fix="move the file away: no run wrote this line"
        )
    return records


class TensorBoard(Hook):
    """`OUTPUT/tensorboard`: the same values as scalars `train/NAME` and `eval/NAME`."""

    def __init__(self):
        self._writer: Writer | None = None

    def start(self, run: Run) -> None:
        """Open an event file; TensorBoard drops the events of a former run beyond the first step of this one."""
        if "tensorflow" not in sys.modules:
            # With this module loaded TensorBoard writes event files by itself; else it would import TensorFlow.
            sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
        from tensorboard.summary import Writer

        self._writer = Writer(str(run.plan.output_dir / "tensorboard"))

    def went_back(self, run: Run) -> None:
        """Continue in a new event file, as a restarted run does."""
        self.end(run, "")
        self.start(run)

    def recorded(self, run: Run, record: Record) -> None:
        """Write the means."""
        self._write(run, "train", record | run.speed())

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


class Profiler(Hook):
    """A profile of the steps from `first` up to `last` in `OUTPUT/tensorboard`, by the profiler of the backend.

    A run that starts between them profiles the steps that are left. Only the first process is profiled.
    """

    in_every_process = True

    def __init__(self, first: int, last: int):
        self._first, self._last = first, last
        self._running = False

    def start(self, run: Run) -> None:
        """Let calls of the engine end at the steps where the profile begins and ends."""
        run.call_ends += (self._first, self._last)
        self._switch(run)

    def steps(self, run: Run, batches: Sequence[Batch], results: Sequence[Record]) -> None:
        """Begin before the first step, end after the last."""
        self._switch(run)

    def end(self, run: Run, outcome: str) -> None:
        """End a profile that has begun."""
        if self._running:
            self._stop(run)

    def _switch(self, run: Run) -> None:
        inside = self._first <= run.engine.step < self._last
        if inside and not self._running and current().writes:
            _profiler()[0](str(run.plan.output_dir / "tensorboard"))
            self._running = True
        elif self._running and not inside:
            self._stop(run)

    def _stop(self, run: Run) -> None:
        _profiler()[1]()
        self._running = False
        folder = run.plan.output_dir / "tensorboard"
        run.say(f"profile of steps {self._first} to {self._last}: tensorboard --logdir={folder}")


def _profiler() -> tuple[Callable[[str], None], Callable[[], None]]:
    """Return the functions that start and stop a profile of the backend."""
    if keras.config.backend() == "jax":
        import jax

        return jax.profiler.start_trace, jax.profiler.stop_trace
    import tensorflow as tf

    return tf.profiler.experimental.start, tf.profiler.experimental.stop


class Report(Hook):
    """`OUTPUT/report.html`, rewritten at every evaluation and at the end."""

    def evaluated(self, run: Run, metrics: Record, is_best: bool) -> None:
        """Rewrite the page."""
        self._write(run, "running")

    def end(self, run: Run, outcome: str) -> None:
        """Write the final page."""
        self._write(run, outcome)

    def _write(self, run: Run, outcome: str) -> None:
        facts = dict(run.plan.summary)
        facts["training time"] = format_duration(run.progress.seconds)
        if run.progress.best_step:
            facts["best"] = f"step {run.progress.best_step:,}: {format_value(run.progress.best or 0.0)}"
        title = f"{run.plan.output_dir.resolve().name}: {outcome} at step {run.engine.step:,} of {run.plan.num_steps:,}"
        write_report(
            run.plan.output_dir / "report.html", title, facts, read_metrics(run.plan.output_dir / "metrics.jsonl")
        )
