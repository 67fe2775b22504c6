"""The one validation of examples, whoever wrote them: what no graph can take is found in many examples at once.

`inspect_records.py verify` asks it about every record, the reader about the first of every file and, of records that
have no manifest, about the first batches. What is odd, but does no harm to a graph, is for `Form.problems`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data.forms.segments import Segments
from data.schema import present
from data.tfrecord.frames import MalformedRecordError

if TYPE_CHECKING:
    from data.forms import Form
    from data.forms.sides import Side
    from data.schema import Lengths
    from data.tfrecord.decoding import Column

OUTSIDE_VOCABULARY = "an id outside the vocabulary"


@dataclass(frozen=True)
class Bounds:
    """Behind the last value that is one; None where it is not known.

    Attributes:
        vocab_size: of ids.
        num_labels: of the classes of pairs.
        num_segments: of segment ids; BERT's two.
    """

    vocab_size: int | None = None
    num_labels: int | None = None
    num_segments: int = 2

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any] | None) -> Bounds:
        """Return the bounds that a manifest tells."""
        if manifest is None:
            return cls()
        return cls(manifest["tokenizer"]["vocab_size"], manifest["num_pair_labels"])


@dataclass(frozen=True)
class Fault:
    """One class of what is wrong with some of N examples.

    Attributes:
        what: in words; equal for equal classes.
        rows: bool [N].
        value: the first wrong one, with the name of its feature.
    """

    what: str
    rows: np.ndarray
    value: str

    @property
    def first(self) -> int:
        """The first example that it is true of."""
        return int(np.argmax(self.rows))


def faults(columns: Mapping[str, Column], form: Form, lengths: Lengths, bounds: Bounds) -> list[Fault]:
    """Return what is wrong with decoded records, static or compact; the features that they must have are there.

    Example:
        input_ids  [[2 7 99 3], [2 8 -1 3]], vocab_size 21128
        wrong      [[0 0 0 0], [0 0 1 0]]      rows [0, 1]
        result     [Fault("an id outside the vocabulary", rows, "input_ids -1")]

    Raises:
        MalformedRecordError: a list has another length than the others or than `lengths` say.
    """
    checks = _compact(columns, bounds) if Segments.are_in(columns) else _static(columns, form, lengths, bounds)
    found: dict[str, Fault] = {}
    for what, name, values, wrong in checks:
        rows = np.asarray(wrong.reshape(len(wrong), -1).any(axis=1))
        if not rows.any():
            continue
        former = found.get(what)
        value = former.value if former else f"{name} {_as_text(values[wrong][0])}"
        found[what] = Fault(what, np.logical_or(rows, former.rows) if former else rows, value)
    return list(found.values())


def _as_text(value: np.generic) -> str:
    return f"{value:g}" if value.dtype.kind == "f" else f"{value}"


_Check = tuple[str, str, np.ndarray, np.ndarray]


def _beyond(values: np.ndarray, end: int | None) -> np.ndarray:
    """Return which values are not in [0, end)."""
    return (values < 0) | (values >= (2**31 if end is None else end))


def _static(columns: Mapping[str, Column], form: Form, lengths: Lengths, bounds: Bounds) -> Iterator[_Check]:
    """Yield (what, feature, values, which are wrong) of the features of a form."""
    features = {}
    for feature in present(form.schema, lengths):
        if not feature.stored:
            continue
        try:
            # Not in the feature's own type: an id beyond 32 bits would wrap around to one that is none or, worse, is.
            raw = columns[feature.name].array(feature.shape(lengths), str(columns[feature.name].values.dtype))
        except MalformedRecordError as error:
            raise MalformedRecordError(f"{feature.name}: {error}") from None
        features[feature.name] = raw
        fraction = raw.dtype.kind == "f" and feature.dtype == "int32"
        yield "fractions where whole numbers are expected", feature.name, raw, np.full(raw.shape, fraction)
    for side in form.sides:
        yield from _of_side(features, side, bounds)
    if form.label in features:
        labels = features[form.label]
        yield "a label below 0", form.label, labels, labels < 0
        if bounds.num_labels is not None:
            yield "a label outside the objective's", form.label, labels, labels >= bounds.num_labels


def _of_side(features: Mapping[str, np.ndarray], side: Side, bounds: Bounds) -> Iterator[_Check]:
    ids, mask = features[side.ids], features[side.mask]
    yield OUTSIDE_VOCABULARY, side.ids, ids, _beyond(ids, bounds.vocab_size)
    yield f"{side.mask} other than 0 and 1", side.mask, mask, ~np.isin(mask, (0, 1))
    amounts = mask.sum(axis=1)
    yield f"no token: {side.mask} is empty", side.mask, amounts, amounts == 0
    if (parts := features.get("segment_ids")) is not None:
        what = f"a segment outside 0 to {bounds.num_segments - 1}"
        yield what, "segment_ids", parts, _beyond(parts, bounds.num_segments)
    for prefix in side.lists(features):
        positions, labels, weights = (features[f"{prefix}_{part}"] for part in ("positions", "ids", "weights"))
        yield "a position outside the row", f"{prefix}_positions", positions, _beyond(positions, ids.shape[1])
        yield OUTSIDE_VOCABULARY, f"{prefix}_ids", labels, _beyond(labels, bounds.vocab_size)
        no_weight = ~(np.isfinite(weights) & (weights >= 0))
        yield "a weight that is negative or no number", f"{prefix}_weights", weights, no_weight


def _compact(columns: Mapping[str, Column], bounds: Bounds) -> Iterator[_Check]:
    """Yield (what, feature, values, which are wrong) of compact records, whose lists are as long as their texts."""
    ids, label = columns["input_ids"], columns["next_sentence_labels"].matrix(1)
    sizes = np.diff(ids.splits)
    padded = np.zeros((len(sizes), int(sizes.max(initial=0))), ids.values.dtype)
    padded[np.arange(padded.shape[1]) < sizes[:, None]] = ids.values
    yield OUTSIDE_VOCABULARY, "input_ids", padded, _beyond(padded, bounds.vocab_size)
    yield "no token: input_ids is empty", "input_ids", sizes, sizes == 0
    yield "a label below 0", "next_sentence_labels", label, label < 0
    if bounds.num_labels is not None:
        yield "a label outside the objective's", "next_sentence_labels", label, label >= bounds.num_labels
