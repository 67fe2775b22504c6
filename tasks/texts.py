"""Texts and pairs of texts as readers give them, checked, for kinds whose label is no class of the row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl.app import UsageError

from tasks.datasets import DatasetRow
from tasks.readers import find_reader


def text_records(row: DatasetRow, path: Path, *, need_labels: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every record of a file with its place; the row's texts are there, and with `need_labels` the label.

    Raises:
        UsageError: a malformed line, a text or a label that is missing, or no record at all; file and line are named.
    """
    none = True
    for where, record in find_reader(row.format).records(row, path):
        none = False
        for column in ("text_a", "text_b"):
            if column in row.columns and not record.get(column, "").strip():
                raise UsageError(f"{where}: {column} is missing or empty; expected {', '.join(row.columns)}")
        if need_labels and "label" in row.columns and record.get("label") is None:
            raise UsageError(f"{where}: no label; training and evaluation need {', '.join(row.columns)}")
        yield where, record
    if none:
        raise UsageError(f"{path} holds no example: expected a line for each, with {', '.join(row.columns)}")
