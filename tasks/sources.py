"""Where the files of a row are: in the folder --data_dir, or where another library keeps data sets (`tfds:NAME`)."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Collection
from pathlib import Path

from absl.app import UsageError

from tasks.datasets import DatasetRow, find_file

LIBRARIES = {"tfds": "tasks.readers.prepared_sets"}
"""What may stand before the colon of --data_dir -> the reader, which also finds the files."""


def find_files(row: DatasetRow, data_dir: str, wanted: Collection[str]) -> tuple[DatasetRow, dict[str, Path]]:
    """Return the file of every split that is wanted, and the row as these files are read.

    With dev or test go the further splits of the row, such as dev_mismatched, whose files are there.

    Raises:
        UsageError: a file of train, dev or test is missing; the message names the candidates.
    """
    prefix, _, name = data_dir.partition(":")
    library = LIBRARIES.get(prefix) if name and not Path(data_dir).exists() else None
    splits = [split for split in row.files if split.partition("_")[0] in wanted]
    # A row without a file for it: the message is that of a file which is not there.
    splits += [split for split in wanted if split not in row.files]
    files: dict[str, Path | None] = {}
    for split in splits:
        if library:
            files[split] = importlib.import_module(library).find(name, split)
            if files[split] is None and split in wanted:
                raise UsageError(f"--data_dir={data_dir} has no split for {split}: it is not one of that data set")
        elif split in wanted:
            files[split] = find_file(row, Path(data_dir), split)
        else:
            there = (Path(data_dir) / candidate for candidate in row.files[split])
            files[split] = next((path for path in there if path.is_file()), None)
    row = dataclasses.replace(row, format=prefix) if library else row
    return row, {split: path for split, path in files.items() if path is not None}
