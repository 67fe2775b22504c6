"""Measures what a teacher costs: a student's step alone, with a live teacher, with a cached one, and the teacher alone.

python3 -m benchmarks.distillation prints a table and writes it to benchmarks/results. All four take turns in one
process on the same batches of random tokens, so that what else the machine does hits all alike. The figures that count
are ratios: a live teacher's step to teacher forward + student step, and a cached teacher's step to the student's.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import ROOT
from commands.flags import flag, run
from ground.files import write_atomically

if TYPE_CHECKING:
    from data.labelled import ClassificationDataset
    from modeling.config import Config

STUDENT, LIVE, CACHED, TEACHER = "student", "live teacher", "cached teacher", "teacher alone"
MOST_LIVE, MOST_CACHED = 1.1, 1.02
_CLASSES, _VOCABULARY = 2, 1000


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the steps of a student with and without a teacher, side by side."""

    backend: str = flag("tensorflow", help="of all", choices=("tensorflow", "jax"))
    student: str = flag("albert_config/albert_config_tiny_google.json", help="config of the student")
    teacher: str = flag("albert_config/bert_config.json", help="config of the teacher")
    batch_size: int = flag(16, help="examples side by side", unit="examples", minimum=1)
    max_seq_length: int = flag(64, help="of every example", unit="tokens", minimum=4)
    steps: int = flag(4, help="of a turn", unit="steps", minimum=1)
    rounds: int = flag(5, help="turns of each, after one that nobody measures", minimum=1)
    results: str = flag("benchmarks/results/distillation", help="where to write, without .json and .md")


def main(options: Options) -> int:
    """Measure, print the table and write it."""
    os.environ["KERAS_BACKEND"] = options.backend
    from modeling.config import load_config

    student, teacher = (
        replace(load_config(ROOT / path), vocab_size=_VOCABULARY) for path in (options.student, options.teacher)
    )
    seconds = take_turns(turns_of(options, student, teacher), options.rounds)
    result = {
        "machine": f"{len(os.sched_getaffinity(0))} cores",
        "options": vars(options),
        "seconds_per_step": {name: [each / options.steps for each in found] for name, found in seconds.items()},
        "ratios": ratios(seconds),
    }
    table = as_markdown(result)
    path = ROOT / options.results
    write_atomically(path.with_suffix(".json"), json.dumps(result, indent=2) + "\n")
    write_atomically(path.with_suffix(".md"), table + "\n")
    print(table)
    return 0


def take_turns(turns: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every turn but the first of each, which compiles; the order changes from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        names = list(turns)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begin = time.perf_counter()
            turns[name]()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the two ratios of medians."""
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        LIVE: middle[LIVE] / (middle[TEACHER] + middle[STUDENT]),
        CACHED: middle[CACHED] / middle[STUDENT],
    }


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the table of a result."""
    options, found = result["options"], result["ratios"]
    lines = [
        f"A step of {options['batch_size']} examples of {options['max_seq_length']} tokens; {options['student']} "
        f"learns from {options['teacher']}; {options['backend']}, {result['machine']}, float32.",
        "",
        "| | ms a step (least to most) |",
        "|---|---|",
    ]
    for name, seconds in result["seconds_per_step"].items():
        low, middle, high = (f"{1e3 * each:,.1f}" for each in (min(seconds), statistics.median(seconds), max(seconds)))
        lines.append(f"| {name} | {middle} ({low} to {high}) |")
    return "\n".join(
        [
            *lines,
            "",
            f"{LIVE} / ({TEACHER} + {STUDENT}): {found[LIVE]:.3f}, at most {MOST_LIVE:g} is wanted; "
            f"{CACHED} / {STUDENT}: {found[CACHED]:.3f}, at most {MOST_CACHED:g}.",
        ]
    )


class RandomTeacher:
    """A teacher of a shape with random weights."""

    def __init__(self, config: Config):
        from tasks.classification import ClassificationTask

        self.config, self.task = config, ClassificationTask(config, _CLASSES)

    def build(self) -> Any:
        """Return the model."""
        return self.task.build_model()


def turns_of(options: Options, student: Config, teacher: Config) -> dict[str, Callable[[], None]]:
    """Return a turn of each: `steps` steps, or passes of the teacher."""
    import numpy as np

    from optimization import Constant, create_optimizer
    from tasks.classification import ClassificationTask
    from tasks.distillation import Distillation
    from tasks.taught import ScoringTask, TaughtDataset, content_keys

    dataset = random_examples(options)
    wise = RandomTeacher(teacher)
    batches = list(dataset.evaluation_batches(options.batch_size))
    scores = np.zeros((1, 1, 1, _CLASSES), np.float32)
    taught: Any = TaughtDataset(dataset, {key: scores for batch in batches for key in content_keys(batch)})

    def engine(task: Any) -> Any:
        optimizer = create_optimizer("adamw", Constant(1e-5))
        if options.backend == "jax":
            from training.jax_engine import JaxEngine

            return JaxEngine(task, optimizer, seed=1)
        from training.tensorflow_engine import TensorFlowEngine

        return TensorFlowEngine(task, optimizer, seed=1)

    def trains(task: Any, data: Any) -> Callable[[], None]:
        own = engine(task)

        def turn() -> None:
            for step in range(options.steps):
                own.train([data.batch(step)])

        return turn

    def passes() -> Callable[[], None]:
        own = engine(ScoringTask(wise))

        def turn() -> None:
            for _ in own.predict(dataset.batch(step) for step in range(options.steps)):
                pass

        return turn

    plain = ClassificationTask(student, _CLASSES)
    return {
        STUDENT: trains(plain, dataset),
        LIVE: trains(Distillation(wise)(ClassificationTask(student, _CLASSES)), dataset),
        CACHED: trains(Distillation(wise, cached=True)(ClassificationTask(student, _CLASSES)), taught),
        TEACHER: passes(),
    }


def random_examples(options: Options) -> ClassificationDataset:
    """Return as many examples of random tokens as a turn has, all of one length."""
    import numpy as np

    from data.labelled import ClassificationDataset, EncodedExamples

    random, length = np.random.default_rng(0), options.max_seq_length
    count = options.steps * options.batch_size
    ids = random.integers(200, _VOCABULARY, count * length).astype(np.int32)
    labels = random.integers(0, _CLASSES, count).astype(np.int32)
    splits = np.arange(count + 1, dtype=np.int64) * length
    examples = EncodedExamples(ids, 0 * ids, splits, labels)
    return ClassificationDataset(examples, options.batch_size, length, seed=1, lengths=(length,))


if __name__ == "__main__":
    run(main, Options)
