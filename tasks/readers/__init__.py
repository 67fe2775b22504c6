"""How the files of labelled data are read: a row of datasets.toml names its `format`, a format is a module here.

A reader knows the form of a file and nothing of what is made of it: a kind makes its examples from the records.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

READERS: dict[str, str] = {
    "lines": "tasks.readers.lines",
    "bio": "tasks.readers.bio",
    "span_json": "tasks.readers.span_json",
    "squad": "tasks.readers.squad",
    "aligned": "tasks.readers.aligned",
    "mined": "tasks.readers.mined",
    "choices": "tasks.readers.choices",
    "c3": "tasks.readers.c3",
    "chid": "tasks.readers.chid",
    "race": "tasks.readers.race",
    "csv": "tasks.readers.csv_tables",
    "tfds": "tasks.readers.prepared_sets",
}
"""format -> the module that implements it; imported when a row of that format is read."""


class Reader(Protocol):
    """One form of files."""

    def records(self, row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield, for every record of the file in order, its place (`FILE:LINE`) and its values by column of the kind.

        Raises:
            UsageError: the file is not of this form; the message names file and place.
        """
        ...


def find_reader(name: str) -> Reader:
    """Return the reader called `name`, a key of READERS."""
    return importlib.import_module(READERS[name])  # pyright: ignore[reportReturnType]
