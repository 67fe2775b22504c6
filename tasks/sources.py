"""Where the files of a row are: in the folder --data_dir, or where another library keeps data sets (`tfds:NAME`)."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Collection
from pathlib import Path

from absl.app import UsageError

from tasks.datasets import DatasetRow, find_split

LIBRARIES = {"tfds": "tasks.readers.prepared_sets"}
"""What may stand before the colon of --data_dir -> the reader, which also finds the files."""


def find_files(
    row: DatasetRow, data_dir: str, wanted: Collection[str]
) -> tuple[DatasetRow, dict[str, tuple[Path, ...]]]:
    """Return the files of every split that is wanted, and the row as these files are read.

    With dev or test go the further splits of the row, such as dev_mismatched, whose files are there.

    Raises:
        UsageError: a file of train, dev or test is missing; the message names the candidates.
    """
    prefix, _, name = data_dir.partition(":")
    library = LIBRARIES.get(prefix) if name and not Path(data_dir).exists() else None
    splits = [split for split in row.files if split.partition("_")[0] in wanted]
    # A row without a file for it: the message is that of a file which is not there.
    splits += [split for split in wanted if split not in row.files]
    files: dict[str, tuple[Path, ...]] = {}
    for split in splits:
        if library:
            path = importlib.import_module(library).find(name, split)
            if path is None and split in wanted:
                raise UsageError(f"--data_dir={data_dir} has no split for {split}: it is not one of that data set")
            files[split] = () if path is None else (path,)
        elif split in wanted:
            files[split] = find_split(row, Path(data_dir), split)
        else:
            with contextlib.suppress(UsageError):
                files[split] = find_split(row, Path(data_dir), split)
    row = dataclasses.replace(row, format=prefix) if library else row
    return row, {split: paths for split, paths in files.items() if paths}
