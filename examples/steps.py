"""The steps of a recipe: commands of this project, each run once, shown before it runs, with the time that is left.

The same command of a recipe goes on where the last one was stopped: a step is done when its products are there.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl.app import UsageError

from ground.files import write_atomically
from ground.progress import format_duration


@dataclass(frozen=True)
class Step:
    """One command and the files that are there when it has been done; the seconds are an estimate."""

    name: str
    command: list[str]
    products: list[Path]
    seconds: float

    @property
    def kind(self) -> str:
        return self.name.split()[0]

    @property
    def done(self) -> bool:
        return all(path.is_file() for path in self.products)

    @property
    def shown(self) -> str:
        return f"python3 {shlex.join(self.command)}"


class Pace:
    """How long steps take: their estimates, corrected by the seconds that steps of their kind have taken here."""

    def __init__(self, path: Path, steps: Sequence[Step]):
        self._path = path
        self._taken: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self._steps = steps

    def seconds_of(self, steps: Sequence[Step]) -> float:
        """Estimate of all of them."""
        return sum(step.seconds * self._factor(step.kind) for step in steps)

    def _factor(self, kind: str) -> float:
        alike = [step for step in self._steps if step.kind == kind and step.name in self._taken]
        return sum(self._taken[step.name] for step in alike) / sum(step.seconds for step in alike) if alike else 1.0

    def took(self, step: Step, seconds: float) -> None:
        """Remember it, in the output too."""
        self._taken[step.name] = seconds
        write_atomically(self._path, json.dumps(self._taken, indent=2) + "\n")


def command(verb: str, flags: Mapping[str, object]) -> list[str]:
    """Return the words of a command of this project."""
    return [f"{verb}.py", *(f"--{name}={value}" for name, value in flags.items())]


def run_steps(recipe: str, steps: Sequence[Step], folder: Path, after: Callable[[], object], *, dry_run: bool) -> int:
    """Run the steps that are left, in order; return the exit status of the first that fails.

    Args:
        recipe: its name, for messages.
        steps: all, those that are done too.
        folder: of the recipe's output.
        after: called when a step is done.
        dry_run: only list the commands that are left.
    """
    pace = Pace(folder / "seconds.json", steps)
    left = [step for step in steps if not step.done]
    print(f"{len(steps)} steps, {len(left)} left, about {format_duration(pace.seconds_of(left))}", flush=True)
    if dry_run:
        for step in left:
            print(f"\n# {step.name}, about {format_duration(pace.seconds_of([step]))}\n{step.shown}")
        return 0
    former = signal.signal(signal.SIGTERM, _terminated)
    try:
        for number, step in enumerate(left, start=1):
            times = [format_duration(pace.seconds_of(some)) for some in ([step], left[number - 1 :])]
            print(f"\n[{number}/{len(left)}] {step.name}, about {times[0]} of {times[1]}\n$ {step.shown}", flush=True)
            begin_seconds = time.monotonic()
            status = execute(step.command)
            if status or not step.done:
                reason = f"exit status {status}; the same command goes on from there"
                print(f"{recipe}: {step.name} ended with {reason}", file=sys.stderr)
                return status or 1
            pace.took(step, time.monotonic() - begin_seconds)
            after()
    finally:
        signal.signal(signal.SIGTERM, former)
    return 0


def execute(words: Sequence[str]) -> int:
    """Run a verb and return its exit status; a signal that ends this process lets the verb save before it ends."""
    with subprocess.Popen([sys.executable, *words]) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def check_same(options: Any, growing: Collection[str]) -> None:
    """Raise `UsageError` where --output_dir was made with another value of a flag that is not among the `growing`."""
    path = Path(options.output_dir) / "config.json"
    former: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, value in json.loads(json.dumps(dataclasses.asdict(options))).items():
        if name in former and name not in growing and former[name] != value:
            theirs, ours = (",".join(map(str, v)) if isinstance(v, list) else v for v in (former[name], value))
            raise UsageError(
                f"--output_dir={options.output_dir} was made with --{name}={theirs}, this run has {ours}: "
                "give the same, or another --output_dir"
            )


def write_model_config(
    bert_config_file: str, vocab_file: str | None, vocab_size: int, folder: Path, **changes: Any
) -> None:
    """Write the model's shape with the size of the vocabulary; raises `UsageError` for a config that cannot be read."""
    from data.tokenizers import load_tokenizer

    config = json.loads(Path(bert_config_file).read_text(encoding="utf-8"))
    size = load_tokenizer(vocab_file=vocab_file).vocab_size if vocab_file else vocab_size
    content = json.dumps({**config, "vocab_size": size, **changes}, indent=2) + "\n"
    write_atomically(folder / "model_config.json", content)


def results_in(path: Path) -> dict[str, Any]:
    """Return the scores of a JSON file; none where it is not there yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _terminated(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)
