"""PET's second half (Schick and Schütze 2021, sections 3.2 and 3.3): a model for each pattern, their joint answers to
unlabelled texts, and a classifier that learns these.

    OUTPUT_DIR/pattern_N                 the model of a pattern, and its answers to the texts
    OUTPUT_DIR/generation_G/pattern_N    with --pet_generations (iPET) that of a further generation
    OUTPUT_DIR/generation_G/labelled_N   the texts that it learns from beside its examples
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
    folder, answers = Path(options.output_dir), []
    for generation in range(1 if options.dry_run else options.pet_generations + 1):
        answers = run_generation(session, options, row, files, course, generation, answers)
    if options.dry_run:
        return
    target = folder / "soft_labels" / NAME

    def write() -> int:
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_soft_labels(answers, row.labels, target) if session.writes else 0

    count = session.together(write)
    session.say(f"joint answers to {count:,} texts  {target}")
    last = dataclasses.replace(
        options,
        unlabelled_file=None,
        pet_generations=0,
        method=None,
        pattern=None,
        verbalizer=(),
        dev_share=0.0,
    )
    learns = dataclasses.replace(row, kind="soft_labels")
    fine_tune(session.with_options(last), last, learns, {**files, "train": (target,)}, course())


def run_generation(
    session: Session,
    options: Any,
    row: DatasetRow,
    files: Mapping[str, Sequence[Path]],
    course: Callable[[], Course],
    generation: int,
    former: Sequence[Path],
) -> list[Path]:
    """Train a model for each pattern; return the files of their answers to the unlabelled texts.

    Args:
        session: of the command.
        options: its flags.
        row: of the task.
        files: of its splits.
        course: makes that of one run.
        generation: from 0; those after the first learn from texts that the one before has labelled too.
        former: answers of the generation before.
    """
    patterns = [pattern.strip() for pattern in (options.pattern or row.pattern).split(BETWEEN)]
    folder, answers = Path(options.output_dir), []
    folder = folder / f"generation_{generation}" if generation else folder
    for number, pattern in enumerate(patterns, start=1):
        below = folder / f"pattern_{number}"
        of = f"generation {generation}, pattern" if generation else "pattern"
        session.say(f"{of} {number} of {len(patterns)}, {pattern} -> {below}")
        own = dataclasses.replace(
            options,
            pattern=pattern,
            unlabelled_file=None,
            pet_generations=0,
            do_predict=True,
            do_export=False,
            export_model_dir=None,
            output_dir=str(below),
        )
        given = {split: tuple(paths) for split, paths in files.items() if split in ("train", "dev")}
        given["test"] = (Path(options.unlabelled_file),)
        if generation:
            given["train"] += (labelled(session, options, row, files, generation, number - 1, former),)
        of_pattern = without_counts(dataclasses.replace(row, pattern=pattern), ("train", "test"))
        fine_tune(session.with_options(own), own, of_pattern, given, course())
        answers.append(below / "test_predictions.jsonl")
    return answers


def labelled(
    session: Session,
    options: Any,
    row: DatasetRow,
    files: Mapping[str, Sequence[Path]],
    generation: int,
    pattern: int,
    former: Sequence[Path],
) -> Path:
    """Write the texts that the model of a pattern learns in a generation; return their file."""
    from tasks.kinds import classification
    from tasks.prompts.generations import NAME, write_next

    target = Path(options.output_dir) / f"generation_{generation}" / f"labelled_{pattern + 1}" / NAME

    def write() -> int:
        examples = [each for path in files["train"] for each in classification.read(row, path, need_labels=True)]
        counts = [sum(each.label == label for each in examples) for label in row.labels]
        return write_next(former, pattern, row, counts, generation, options.seed, target) if session.writes else 0

    count = session.together(write)
    session.say(f"labelled by the generation before: {count:,} texts  {target}")
    return target
