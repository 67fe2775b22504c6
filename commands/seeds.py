"""Fine-tuning with several seeds: mean, deviation and each run, and another seed where a run has learnt nothing.

Deep pretrained models sometimes learn nothing on small data (Devlin et al. 2019; Mosbach et al. 2021): every answer is
one label from then on. Such a run is said in one line, and with --restart_degenerate another seed takes its place; what
the failed one scored stays in the results.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from commands.fine_tuning import Course, Finished, fine_tune, reads
from commands.resuming import results_name
from ground.bounds import BOUNDS
from ground.files import write_atomically

if TYPE_CHECKING:
    from commands.session import Session
    from tasks.datasets import DatasetRow


def seeds_of(options: Any) -> tuple[int, ...]:
    """Return the seeds of the runs below the output folder; none where there is one run, in the folder itself.

    --num_seeds=N is 1 to N whatever --seed, so that the runs of two people are the same ones.

    Raises:
        UsageError: the seeds of restarts would not be seeds.
    """
    seeds = options.seeds or tuple(range(1, (options.num_seeds or 0) + 1))
    if not seeds and options.restart_degenerate:
        seeds = (options.seed,)
    last = max(seeds, default=0) + len(seeds) * options.restart_degenerate
    if complaint := BOUNDS["seed"].complaint(last):
        raise UsageError(f"--restart_degenerate={options.restart_degenerate} would come to seed {last}: {complaint}")
    return seeds


def run_seeds(
    session: Session,
    options: Any,
    row: DatasetRow,
    files: Mapping[str, Sequence[Path]],
    course: Callable[[Any], Course],
) -> None:
    """Run once, or once a seed, and report mean and deviation; `course` makes that of a run's options.

    A course keeps what belongs to one model, such as its compiled search: every run has one of its own.
    """
    seeds = seeds_of(options)
    if not seeds:
        finished = fine_tune(session, options, row, files, course(options))
        if finished.degenerate:
            session.say(f"{_told(options.seed, finished)}; {_advice(session.options)} (--restart_degenerate=2)")
        return

    former: Session | None = None

    def run(seed: int) -> Finished:
        nonlocal former
        folder = str(Path(options.output_dir) / f"seed_{seed}")
        session.say(f"seed {seed} -> {folder}")
        own = dataclasses.replace(options, seed=seed, seeds=(), num_seeds=None, restart_degenerate=0, output_dir=folder)
        if getattr(options, "export_model_dir", None):
            own = dataclasses.replace(own, export_model_dir=str(Path(options.export_model_dir) / f"seed_{seed}"))
        own_session = session.with_options(own, former)
        finished = fine_tune(own_session, own, row, files, course(own))
        former = own_session
        return finished

    with session.entered_for_seeds(reads(options, files)):
        kept: dict[int, Finished] = {}
        failed: dict[int, Finished] = {}
        further = itertools.count(max(seeds) + 1)
        # The runs differ in nothing that a dry run shows.
        for first in seeds[:1] if options.dry_run else seeds:
            *before, (seed, finished) = attempts(session, options, first, further, run)
            failed |= dict(before)
            kept[seed] = finished
        report_seeds(session, options, kept, failed)


def attempts(
    session: Session, options: Any, seed: int, further: Iterator[int], run: Callable[[int], Finished]
) -> list[tuple[int, Finished]]:
    """Run with `seed`, and with `further` ones while nothing is learnt and restarts are left; return all, in order.

    Raises:
        DivergedError: in the last attempt.
    """
    from training.health import DivergedError

    found: list[tuple[int, Finished]] = []
    for left in range(options.restart_degenerate, -1, -1):
        try:
            finished = run(seed)
        except DivergedError as error:
            if not left:
                raise
            finished = Finished({}, f"it diverged: {error}")
        found.append((seed, finished))
        if not finished.degenerate:
            break
        told, seed = _told(seed, finished), next(further) if left else seed
        session.say(f"{told}; trained again with seed {seed}" if left else f"{told}; {_advice(options)}")
    return found


def _told(seed: int, finished: Finished) -> str:
    return f"degenerate: with seed {seed} nothing was learnt, {finished.degenerate}"


def _advice(options: Any) -> str:
    rate = "" if options.learning_rate is None else f" (now {options.learning_rate:g})"
    return (
        f"try a lower --learning_rate{rate}, a longer warmup (--warmup_proportion=0.2), more steps, or another --seed"
    )


def report_seeds(session: Session, options: Any, kept: Mapping[int, Finished], failed: Mapping[int, Finished]) -> None:
    """Print and write mean, deviation and each value of the scores over the runs, by split.

    The file has runs that learnt nothing as `degenerate`, each with the reason, its scores, and whether it counts: it
    does where no restart was left.
    """
    from ground.tables import print_table
    from tasks.metrics import mean_and_deviation

    first = next(iter(kept.values())).scores
    for split in first if session.writes else ():
        runs = {seed: finished.scores[split] for seed, finished in kept.items()}
        content: dict[str, Any] = {
            name: {
                "mean": mean,
                "deviation": deviation,
                "runs": {str(seed): scores[name] for seed, scores in runs.items()},
            }
            for name, (mean, deviation) in mean_and_deviation(list(runs.values())).items()
        }
        print_table(
            f"{options.task_name}, {split}, {len(runs)} seeds: {', '.join(map(str, runs))}",
            ["score", "mean", "deviation", "each run"],
            [
                [name, f"{each['mean']:.4f}", f"{each['deviation']:.4f}", _in_a_row(each["runs"].values())]
                for name, each in content.items()
            ],
        )
        if nothing := {seed: each for seed, each in {**failed, **kept}.items() if each.degenerate}:
            content["degenerate"] = {
                str(seed): {"why": each.degenerate, "counts": seed in kept, **each.scores.get(split, {})}
                for seed, each in nothing.items()
            }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(Path(options.output_dir) / f"{results_name(split)}.json", text)


def _in_a_row(values: Any) -> str:
    return " ".join(f"{value:.4f}" for value in values)
