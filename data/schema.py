"""The features of a batch: names, axes and types, once for reader, inspector, planner and benchmarks.

An axis is the name of a length, such as "tokens"; a manifest holds the lengths by name. A feature with an axis of
length 0 is absent: where no words are shuffled, "shuffled" is 0 and a batch has no `word_order_positions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Lengths = Mapping[str, int]


@dataclass(frozen=True)
class Feature:
    """One array of a batch.

    Attributes:
        name: its key in a batch, and in a record.
        axes: names of the lengths behind the batch axis; () is one number an example.
        dtype: of the array; "float32" is a list of floats in a record, any other a list of integers.
        stored: whether records hold it; a feature that is not stored is a function of the others.
    """

    name: str
    axes: tuple[str, ...] = ()
    dtype: str = "int32"
    stored: bool = True

    def shape(self, lengths: Lengths) -> tuple[int, ...]:
        """Return the shape of one example."""
        return tuple(lengths[axis] for axis in self.axes)

    def width(self, lengths: Lengths) -> int:
        """Return how many values a record holds of it."""
        return int(np.prod(self.shape(lengths), dtype=np.int64))


Schema = tuple[Feature, ...]


def present(schema: Schema, lengths: Lengths) -> Schema:
    """Return the features without an axis of length 0."""
    return tuple(feature for feature in schema if all(lengths.get(axis, 0) for axis in feature.axes))


def required(schema: Schema, lengths: Lengths, optional: tuple[str, ...]) -> list[str]:
    """Return the names that a record must have: stored, and present unless an axis of theirs is `optional`."""
    here = present(schema, lengths)
    return [f.name for f in schema if f.stored and (f in here or not set(f.axes) & set(optional))]


def shapes(schema: Schema, lengths: Lengths, batch_size: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of every present feature of a batch.

    Example:
        schema    (Feature("input_ids", ("tokens",)), Feature("word_order_ids", ("shuffled",)), Feature("label"))
        lengths   {"tokens": 4, "shuffled": 0}, batch_size 2
        result    {"input_ids": ((2, 4), "int32"), "label": ((2,), "int32")}
    """
    return {f.name: ((batch_size, *f.shape(lengths)), f.dtype) for f in present(schema, lengths)}


def widths_of(schema: Schema, lengths: Lengths, names: Iterable[str]) -> list[int]:
    """Return how many values an example has of each of the features that are named."""
    features = {feature.name: feature for feature in schema}
    return [features[name].width(lengths) for name in names]


def padding(schema: Schema, lengths: Lengths, rows: int) -> dict[str, np.ndarray]:
    """Return a batch of `rows` rows of zeros, which count nothing because masks and weights are zero."""
    return {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes(schema, lengths, rows).items()}


def lengths_of(schema: Schema, widths: Mapping[str, int]) -> dict[str, int]:
    """Return the lengths by name that records of these widths by feature have; 0 where a feature is missing.

    Only features of one axis tell a length, which is every axis of the forms of today.
    """
    lengths: dict[str, int] = {}
    for feature in schema:
        if len(feature.axes) == 1:
            (axis,) = feature.axes
            lengths[axis] = max(lengths.get(axis, 0), widths.get(feature.name, 0))
    return lengths


def schema_to_json(schema: Schema) -> list[dict[str, Any]]:
    """Return a schema as a manifest holds it."""
    return [{**asdict(feature), "axes": list(feature.axes)} for feature in schema]


def schema_from_json(rows: Iterable[Mapping[str, Any]]) -> Schema:
    """Return the schema of a manifest; raises `ValueError`, `KeyError` or `TypeError` for what is none."""
    schema = tuple(Feature(str(r["name"]), tuple(r["axes"]), str(r["dtype"]), bool(r["stored"])) for r in rows)
    for feature in schema:
        if feature.dtype not in ("int32", "float32"):
            raise ValueError(f"feature {feature.name} has dtype {feature.dtype}")
    return schema
