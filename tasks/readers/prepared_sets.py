"""Data sets that tensorflow_datasets has prepared on this machine: `--data_dir=tfds:glue/mrpc`, or `tfds:FOLDER`.

Nothing is downloaded. A row's columns are found by the names of the features, and a label by the name that its
`ClassLabel` gives it. Preparation shuffles the examples: a feature that numbers them (`idx`) puts them in order again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from tasks.readers.lines import pick

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

PREFIX = "tfds"
_NUMBERS = ("idx", "index", "id")
# The names of released splits; a further split dev_x is validation_x.
_SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "dev": ("validation", "dev", "valid", "validation_matched"),
    "test": ("test", "test_matched"),
}


def find(name: str, split: str) -> Path | None:
    """Return the first file of a split of ours; None where the data set has no such split.

    Args:
        name: of the data set as tensorflow_datasets knows it, or the folder of a prepared one.
        split: train, dev or test, or a further one such as dev_x.

    Raises:
        UsageError: the data set is not known, or not prepared on this machine.
    """
    builder = _builder(name)
    known, (base, _, further) = builder.info.splits, split.partition("_")
    names = [f"{each}_{further}" for each in _SPLITS[base]] if further else _SPLITS[base]
    found = next((each for each in names if each in known), None)
    return Path(sorted(map(str, known[found].filepaths))[0]) if found else None


def records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place (`FOLDER split:NUMBER`) and the columns of every example of the split that `path` is a file of.

    Raises:
        UsageError: the file is none of a prepared data set, or a feature is no text.
    """
    import tensorflow_datasets as tfds

    if not (path.parent / "dataset_info.json").is_file() or not (
        found := re.search(r"-(\w+)\.\w+-\d+-of-\d+$", path.name)
    ):
        raise UsageError(f"{path} is no file of a prepared data set: give --data_dir=tfds:NAME")
    builder: Any = tfds.builder_from_directory(str(path.parent))
    split = found[1]
    features = builder.info.features
    examples = [_plain(features, each) for each in tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))]
    header_names = row.header_names
    for number, example in enumerate(_in_order(examples)):
        where = f"{path.parent} {split}:{number}"
        if (record := pick(row, header_names, example, where)) is not None:
            yield where, record


def _builder(name: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        if ":" in name:  # of another library, from which it would be downloaded
            raise ValueError(f"{name} is of another collection")
        if (Path(name) / "dataset_info.json").is_file():
            return tfds.builder_from_directory(name)
        builder = tfds.builder(name, try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"--data_dir={PREFIX}:{name}: tensorflow_datasets does not know it ({reason})") from None
    if not builder.is_prepared():
        raise UsageError(
            f"--data_dir={PREFIX}:{name} is not prepared on this machine (looked in {builder.data_dir}): run "
            f"`tfds build {name}` where there is a network, or set TFDS_DATA_DIR"
        )
    return builder


def _plain(features: Any, example: Mapping[str, Any]) -> dict[str, Any]:
    """Return an example as Python has it: text decoded, a label by its name, none where it is withheld (-1)."""
    found: dict[str, Any] = {}
    for name, value in example.items():
        feature = features[name]
        if hasattr(feature, "int2str"):
            found[name] = feature.int2str(int(value)) if value >= 0 else None
        elif isinstance(value, bytes):
            found[name] = value.decode(errors="replace")
        elif getattr(value, "ndim", 1) == 0:
            found[name] = value.item()
    return found


def _in_order(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for name in _NUMBERS:
        numbers = [example.get(name) for example in examples]
        if all(isinstance(number, int) for number in numbers) and len(set(numbers)) == len(numbers):
            return sorted(examples, key=lambda example: example[name])
    return examples
