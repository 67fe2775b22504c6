"""One input as rows of features, of which rows of other requests may be beside in a batch, and from predictions back.

The three steps of an answer:

    asked = ask(loaded, "今天天气很好")               # tokens: the part that needs no model
    predictions = predicted(loaded, asked.rows)      # with rows of others
    told(loaded, asked, predictions)                 # what Loaded.predict says of the input

Rows of one `shape` may be in one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from tasks.kinds import in_order

if TYPE_CHECKING:
    from serving.loading import Loaded
    from tasks.kinds import Prediction

Features = Mapping[str, np.ndarray]
Search = tuple[tuple[str, Any], ...]
MOST_ROWS = 64
"""Windows of a long text and choices of a question, each a row that the model reads."""


@dataclass(frozen=True)
class Row:
    """One row for the model.

    Attributes:
        features: each of one row, [1, ..., L].
        tokens: that it costs, padding counted.
        max_new_tokens: of what is generated for it; None for as many as the run's settings say.
        search: settings of generation in the place of the model's own.
    """

    features: Features
    tokens: int
    max_new_tokens: int | None = None
    search: Search = ()

    @property
    def shape(self) -> tuple[Any, ...]:
        """What rows have in common that may be in one batch: the names of their features, with their axes; a search."""
        return (*((name, value.ndim) for name, value in sorted(self.features.items())), *self.search)


@dataclass(frozen=True)
class Asked:
    """One input.

    Attributes:
        example: of the kind.
        dataset: of the example alone.
        rows: of features, in the order of its evaluation.
        length: of the example in tokens, all that are read; None where the kind does not say.
        cut: whether the text is longer than what is read of it; None where the kind does not say.
    """

    example: Any
    dataset: Any
    rows: tuple[Row, ...]
    length: int | None
    cut: bool | None


class _Sources:
    """Stands for a data set of sources of several requests."""

    def __init__(self, given: Sequence[Row]):
        self._features = joined([row.features for row in given], len(given))
        self.limits = [row.max_new_tokens for row in given]

    def sources(self) -> Features:
        return self._features


def ask(
    loaded: Loaded,
    given: Any,
    max_seq_length: int | None = None,
    max_new_tokens: int | None = None,
    search: Search = (),
) -> Asked:
    """Return an input, as `Loaded.predict` takes it, as rows of features.

    Raises:
        UsageError: it is none of the kind's, or has too many rows.
    """
    example = loaded.example(given)
    dataset = loaded.dataset(example, max_seq_length)
    if hasattr(dataset, "sources") and loaded.generates() is not None:
        return _source(loaded, example, dataset, max_new_tokens, search)
    count = dataset.num_examples
    if count > MOST_ROWS:
        raise UsageError(f"the text has {count:,} windows of {loaded.max_seq_length:,} tokens; at most {MOST_ROWS}")
    rows = []
    for batch in dataset.evaluation_batches(1):
        number = len(next(iter(batch.values())))
        rows += [Row(each, _tokens(each)) for each in (_part(batch, place) for place in range(number))]
    rows = rows[:count]
    if max(row.tokens for row in rows) > MOST_ROWS * loaded.max_seq_length:
        raise UsageError(f"the input has more than {MOST_ROWS} texts of {loaded.max_seq_length:,} tokens")
    if getattr(loaded.programs, "texts", ()):
        if max_seq_length is not None:
            raise UsageError("an export with the tokenizer inside cuts texts itself; leave max_seq_length out")
        rows = [Row(loaded.strings([example]), sum(row.tokens for row in rows))]
    return Asked(example, dataset, tuple(rows), *_lengths(getattr(dataset, "examples", None)))


def told(loaded: Loaded, asked: Asked, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return the answer to an input, from the prediction of each of its rows."""
    if (tells := getattr(loaded.programs, "told", None)) is not None:
        (one,) = predictions
        return tells.answers({name: np.asarray(value)[None] for name, value in one.items()}, [asked.example])[0]
    if loaded.generates() is not None:
        found: list[Any] = list(predictions)
    else:
        single = ({name: value[None] for name, value in each.items()} for each in predictions)
        found = in_order(asked.dataset, single)
        if facts := getattr(asked.dataset, "facts", None):
            found = [{**each, **facts(number)} for number, each in enumerate(found)]
    (answer,) = loaded.host.answers(loaded.row, found, [asked.example], **loaded.settings)
    return loaded.host.told(loaded.row, answer, asked.example)


def predicted(
    loaded: Loaded, rows: Sequence[Row], listener: Callable[[int, str], None] | None = None
) -> list[Prediction]:
    """Return the prediction of each row; all of one `shape`. Rows that only fill the batch up are zeros."""
    generate = loaded.generates(search=rows[0].search)
    if generate is not None:
        return generate(_Sources(rows), listener)[: len(rows)]
    features = joined([row.features for row in rows], size_of(loaded, len(rows)))
    outputs = loaded.predictions(features)
    return [{name: value[place] for name, value in outputs.items()} for place in range(len(rows))]


def size_of(loaded: Loaded, count: int) -> int:
    """Return the rows of a batch that so many rows are given: where each shape is a program, a power of two."""
    return count if loaded.free else 1 << (count - 1).bit_length()


def joined(rows: Sequence[Features], size: int) -> dict[str, np.ndarray]:
    """Return features of one row each as one batch of `size` rows, filled up with zeros.

    Example: ids [1, 2] and [1, 4] in a batch of 4
        [[5 6 0 0], [7 8 9 9], [0 0 0 0], [0 0 0 0]]

    Axes between the first and the last (choices) become powers of two, for few programs.
    """
    found = {}
    for name in rows[0]:
        values = [each[name] for each in rows]
        longest = [max(lengths) for lengths in zip(*(value.shape[1:] for value in values), strict=True)]
        axes = [1 << (length - 1).bit_length() for length in longest[:-1]] + longest[-1:]
        batch = np.full((size, *axes), "" if values[0].dtype == object else 0, values[0].dtype)
        for place, value in enumerate(values):
            batch[(place, *(slice(length) for length in value.shape[1:]))] = value[0]
        found[name] = batch
    return found


def warm(loaded: Loaded, inputs: Iterable[Any], sizes: Sequence[int], budget_tokens: int) -> int:
    """Ask the model once in every shape that is a program of its own; return how many there were.

    Where one program takes every shape it is asked single rows of a few lengths.

    Args:
        loaded: the model.
        inputs: of its kind, one of which has another shape perhaps.
        sizes: numbers of rows, ascending.
        budget_tokens: no batch of several rows costs more.
    """
    done = 0
    if loaded.free:
        sizes = sizes[:1]
    for row in {row.shape: row for given in inputs for row in ask(loaded, given).rows}.values():
        is_text = bool(getattr(loaded.programs, "texts", ()))
        for length in (row.tokens,) if is_text else loaded.few_lengths:
            longer = row if is_text else _of_length(row, length)
            for size in sizes:
                if size == 1 or size * longer.tokens <= budget_tokens:
                    predicted(loaded, [longer] * size)
                    done += 1
    return done


def _of_length(row: Row, length: int) -> Row:
    """Return a row padded, or cut, to a length."""
    own = max((value.shape[-1] for value in row.features.values() if value.ndim > 1), default=length)
    features = {}
    for name, value in row.features.items():
        if value.ndim > 1 and value.shape[-1] == own:
            part = value[..., :length]
            value = np.pad(part, [*[(0, 0)] * (part.ndim - 1), (0, length - part.shape[-1])])
        features[name] = value
    return Row(features, _tokens(features) if own != length else row.tokens)


def _source(loaded: Loaded, example: Any, dataset: Any, max_new_tokens: int | None, search: Search) -> Asked:
    """Return a source of generation, padded to one of the lengths."""
    features = dict(dataset.sources())
    used = max(int(np.max(np.sum(value != 0, axis=-1))) for value in features.values())
    length = next(length for length in loaded.lengths if length >= min(used, loaded.max_seq_length))
    features = {name: value[:, :length] for name, value in features.items()}
    return Asked(
        example,
        dataset,
        (Row(features, length, max_new_tokens, search),),
        *_lengths(getattr(dataset.examples, "sources", None)),
    )


def _lengths(encoded: Any) -> tuple[int | None, bool | None]:
    """Return how many tokens encoded examples have, and whether one was cut, where they say so."""
    lengths = getattr(encoded, "lengths_tokens", None)
    cut = getattr(encoded, "truncated_examples", None)
    return None if lengths is None else int(np.sum(lengths)), None if cut is None else bool(cut)


def _part(batch: Features, place: int) -> dict[str, np.ndarray]:
    return {name: value[place : place + 1] for name, value in batch.items()}


def _tokens(features: Features) -> int:
    return max(
        math.prod(1 << (axis - 1).bit_length() for axis in value.shape[1:-1]) * value.shape[-1]
        for value in features.values()
    )
