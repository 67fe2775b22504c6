"""`tfds:NAME` and `tfds:NAME@SPLIT`: data sets of tensorflow-datasets as inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl.app import UsageError

from data.corpus.formats import running_text
from data.corpus.lines import decode
from data.corpus.spans import Counts, Span
from ground.words import did_you_mean

PREFIX = "tfds:"


def is_tfds(path: Path) -> bool:
    """Whether an input is a name of tensorflow-datasets and not a file."""
    return str(path).startswith(PREFIX)


def builder_of(path: Path) -> tuple[Any, str]:
    """Return the prepared builder and the split of a name; the split is train by default."""
    name, _, split = str(path).removeprefix(PREFIX).partition("@")
    try:
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder(name)
        except ValueError as error:
            # The library's own message lists all of a thousand names.
            if type(error).__name__ != "DatasetNotFoundError":
                raise
            hint = (
                did_you_mean(f"{PREFIX}{name}", [f"{PREFIX}{known}" for known in tfds.list_builders()])
                or "; see tensorflow.org/datasets/catalog"
            )
            raise UsageError(f"{path}: tensorflow-datasets has no set of this name{hint}") from None
        builder.download_and_prepare()
    except ModuleNotFoundError as error:
        # Also where preparing a set needs a package, which tfds imports late.
        package = str(error.name).partition(".")[0]
        raise UsageError(f"{path} needs {package}; pip install {package.replace('_', '-')}") from error
    split = split or "train"
    if split not in builder.info.splits:
        raise UsageError(f"{path}: no split {split!r}; choose one of {', '.join(sorted(builder.info.splits))}")
    return builder, split


def tfds_documents(span: Span, counts: Counts, text_field: str) -> Iterator[list[str]]:
    """Yield the documents of a range of examples; raises `UsageError` where there is no feature `text_field`."""
    import tensorflow_datasets as tfds

    builder, split = builder_of(span.path)
    if text_field not in builder.info.features:
        fields = ", ".join(sorted(builder.info.features))
        raise UsageError(f"{span.path}: no feature {text_field!r}; set one of {fields} with --text_field")
    examples = builder.as_dataset(
        split=tfds.core.ReadInstruction(split, from_=span.start, to=span.end, unit="abs"), shuffle_files=False
    )
    for example in tfds.as_numpy(examples):
        raw = example[text_field]
        counts.bytes += len(raw)
        yield running_text(decode(raw, counts), counts)
