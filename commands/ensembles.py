"""PET's second half (Schick and Schütze 2021, sections 3.2 and 3.3): a model for each pattern, their joint answers to
unlabelled texts, and a classifier that learns these.

    OUTPUT_DIR/pattern_N                 the model of a pattern, and its answers to the texts
    OUTPUT_DIR/soft_labels/train_...     the texts with a probability for every label
    OUTPUT_DIR                           the classifier, which no longer asks in words
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from commands.fine_tuning import Course, fine_tune
from commands.task_files import without_counts

if TYPE_CHECKING:
    from commands.session import Session
    from tasks.datasets import DatasetRow

BETWEEN = "||"


def run_ensemble(
    session: Session,
    options: Any,
    row: DatasetRow,
    files: Mapping[str, Sequence[Path]],
    course: Callable[[], Course],
) -> None:
    """Train a model for each pattern and then the classifier; `course` makes that of one run.

    Raises:
        UsageError: there is no such file, or flags do not go with it.
    """
    from tasks.prompts.soft_labels import NAME, write_soft_labels

    path = Path(options.unlabelled_file)
    if not path.is_file():
        raise UsageError(f"--unlabelled_file={path}: no such file; expected texts in the form of the test file")
    for flag in ("seeds", "num_seeds", "restart_degenerate"):
        if getattr(options, flag):
            raise UsageError(f"--{flag} with --unlabelled_file: an ensemble has one seed; give --seed and leave it out")
    if options.dev_share:
        raise UsageError(
            f"--dev_share={options.dev_share:g} with --unlabelled_file: the classifier is chosen by a development "
            "file; give one, and leave the flag out"
        )
    patterns = [pattern.strip() for pattern in (options.pattern or row.pattern).split(BETWEEN)]
    folder, answers = Path(options.output_dir), []
    for number, pattern in enumerate(patterns, start=1):
        below = folder / f"pattern_{number}"
        session.say(f"pattern {number} of {len(patterns)}, {pattern} -> {below}")
        own = dataclasses.replace(
            options,
            pattern=pattern,
            unlabelled_file=None,
            do_predict=True,
            do_export=False,
            export_model_dir=None,
            output_dir=str(below),
        )
        of_pattern = without_counts(dataclasses.replace(row, pattern=pattern), ("test",))
        given = {**{split: paths for split, paths in files.items() if split in ("train", "dev")}, "test": (path,)}
        fine_tune(session.with_options(own), own, of_pattern, given, course())
        answers.append(below / "test_predictions.jsonl")
    if options.dry_run:
        return
    target = folder / "soft_labels" / NAME

    def write() -> int:
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_soft_labels(answers, row.labels, target) if session.writes else 0

    count = session.together(write)
    session.say(f"joint answers to {count:,} texts  {target}")
    last = dataclasses.replace(options, unlabelled_file=None, method=None, pattern=None, verbalizer=(), dev_share=0.0)
    learns = dataclasses.replace(row, kind="soft_labels")
    fine_tune(session.with_options(last), last, learns, {**files, "train": (target,)}, course())
