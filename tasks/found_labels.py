"""Labels and columns of a user's own table, found in its training file (rows with `find_labels`).

The found row is what `run.json` keeps: a run that goes on and a later prediction have its labels in its order.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from absl.app import UsageError

from ground.words import few_names
from tasks.datasets import DatasetRow
from tasks.readers import find_reader

MAX_LABELS = 10_000
"""Of more classes nobody trains a softmax on a table; a column of numbers or texts was taken for the label."""
_NUMBER = re.compile(r"-?\d{1,18}")


def with_columns(row: DatasetRow, path: Path) -> DatasetRow:
    """Return the row with those of its optional columns that the file has; raises `UsageError` as its reader does."""
    if not row.optional:
        return row
    _, found = next(find_reader(row.format).records(row, path), ("", {}))
    return dataclasses.replace(
        row, columns=(*row.columns, *(each for each in row.optional if each in found)), optional=()
    )


def labels_in(row: DatasetRow, paths: Sequence[Path], separator: str = "") -> tuple[str, ...]:
    """Return the labels of the training files, numbers in their order and words sorted.

    Args:
        row: says how the files are read.
        paths: of the files.
        separator: between the labels of a cell, where it may have several.

    Raises:
        UsageError: there are fewer than two labels, or so many that it is another column.
    """
    found: dict[str, int] = {}
    examples = 0
    path = paths[0]
    for _, record in itertools.chain.from_iterable(find_reader(row.format).records(row, each) for each in paths):
        examples += 1
        cell = record.get("label", "")
        for label in map(str.strip, cell.split(separator)) if separator else (cell,):
            if label.strip() and label not in row.ignored_labels:
                found[label] = found.get(label, 0) + 1
    shown = few_names(found)
    if len(found) < 2:
        raise UsageError(
            f"{path}: found {len(found)} labels ({shown}) in {examples:,} examples, expected two or more: name the "
            "column with --label_column"
        )
    if len(found) > MAX_LABELS or (len(found) > 20 and len(found) > examples / 2):
        raise UsageError(
            f"{path}: found {len(found):,} labels ({shown}) in {examples:,} examples, which are no classes: name the "
            "column with --label_column"
        )
    numbers = all(_NUMBER.fullmatch(label) for label in found)
    return tuple(sorted(found, key=int if numbers else None))
