"""The texts of a batch by the names of their features: what statistics, checks and display go through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Side:
    """One text of an example. BERT's input has one, source and target would be two.

    Attributes:
        ids: feature of the token ids as they are shown.
        mask: feature that is 1 for tokens and 0 for padding.
        parts: feature that numbers the lines to show, such as segments or sequences.
        hidden: prefix of `_positions`, `_ids` and `_weights` of masked tokens; may be empty.
        shuffled: prefix of those of shuffled words; may be empty, and its features absent from a batch.
    """

    ids: str = "input_ids"
    mask: str = "input_mask"
    parts: str = "segment_ids"
    hidden: str = "masked_lm"
    shuffled: str = "word_order"

    def lists(self, features: Mapping[str, Any]) -> list[str]:
        """Return the prefixes of the labelled positions that are there, in the order that undoes them."""
        return [name for name in (self.shuffled, self.hidden) if name and f"{name}_weights" in features]


def original_ids(batch: Mapping[str, np.ndarray], side: Side) -> np.ndarray:
    """Return the ids [B, L] as they were before masking and shuffling (all labels known).

    Example:
        input_ids [2 7 4 3]   masked_lm positions [2 0], ids [9 0], weights [1 0]
        result    [2 7 9 3]
    """
    ids = batch[side.ids].copy()
    for name in side.lists(batch):
        row, slot = np.nonzero(batch[f"{name}_weights"])
        ids[row, batch[f"{name}_positions"][row, slot]] = batch[f"{name}_ids"][row, slot]
    return ids


def side_problems(features: Mapping[str, Any], side: Side, manifest: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    """Return what is wrong with one text, each with the rows it is true of; `manifest` gives size and choices."""
    ids, mask, hidden = features[side.ids], features[side.mask], side.hidden
    lengths, columns_L = mask.sum(axis=1), np.arange(mask.shape[1])
    checks: dict[str, np.ndarray] = {
        f"{side.mask} is not ones and then zeros": (mask != (columns_L < lengths[:, None])).any(axis=1),
        "an id behind the end": ((ids != 0) & (columns_L >= lengths[:, None])).any(axis=1),
    }
    if f"{hidden}_weights" in features:
        checks |= _list_problems(features, hidden, lengths, "predicted", "weights")
        checks["a position predicted twice"] = _twice([features], [hidden])
    if manifest:
        size = manifest["tokenizer"]["vocab_size"]
        outside = ((ids < 0) | (ids >= size)).any(axis=1)
        if f"{hidden}_ids" in features:
            outside |= (features[f"{hidden}_ids"] >= size).any(axis=1)
        checks["an id outside the vocabulary"] = outside
    if side.shuffled and f"{side.shuffled}_weights" in features:
        checks |= _shuffled_problems(features, side, lengths, manifest)
    return checks


def _list_problems(
    features: Mapping[str, Any], name: str, lengths: np.ndarray, verb: str, weights_title: str
) -> dict[str, np.ndarray]:
    """Return the rows with labelled positions outside of the text or weights that are no weights."""
    positions, weights = features[f"{name}_positions"], features[f"{name}_weights"]
    no_weight: np.ndarray = ~np.isin(weights, (0, 1))
    outside: np.ndarray = (weights > 0) & ((positions < 1) | (positions >= lengths[:, None]))
    checks = {f"a {verb} position outside the text": outside, f"{weights_title} other than 0 and 1": no_weight}
    return {name: np.asarray(wrong.any(axis=1)) for name, wrong in checks.items()}


def _twice(sources: list[Mapping[str, np.ndarray]], names: list[str]) -> np.ndarray:
    """Return the rows in which some position is used more than once in all of the lists; bool [N]."""
    positions = np.concatenate([f[f"{name}_positions"] for f in sources for name in names], axis=1)
    used = np.concatenate([f[f"{name}_weights"] > 0 for f in sources for name in names], axis=1)
    return np.asarray([len(np.unique(row[chosen])) < chosen.sum() for row, chosen in zip(positions, used, strict=True)])


def _shuffled_problems(
    features: Mapping[str, np.ndarray], side: Side, lengths: np.ndarray, manifest: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    """Return what is wrong with shuffled words; of windows only what the manifest's choices imply."""
    name = side.shuffled
    checks = _list_problems(features, name, lengths, "shuffled", "word order weights")
    checks["a position shuffled twice, or masked as well"] = _twice([features], side.lists(features))
    choices = (manifest or {}).get("recipe", {}).get("word_order")
    if not (manifest and choices):
        return checks
    positions, used = features[f"{name}_positions"], features[f"{name}_weights"] > 0
    outside = features[f"{name}_ids"] >= manifest["tokenizer"]["vocab_size"]
    checks["a shuffled id outside the vocabulary"] = outside.any(axis=1)
    if choices["labels"] == "all" and not choices["overlap"]:
        incomplete = used.sum(axis=1) % choices["tokens"] > 0
        checks[f"shuffled words that are not {choices['tokens']} to a window"] = incomplete
    if choices["windows"] == "unmasked" and (choices["labels"] == "all" or not choices["overlap"]):
        last = features[side.ids].shape[1] - 1
        now = np.take_along_axis(features[side.ids], np.clip(positions, 0, last), axis=1)
        now, before = (np.sort(np.where(used, x, -1), axis=1) for x in (now, features[f"{name}_ids"]))
        checks["shuffled words that are not those that stood there"] = (now != before).any(axis=1)
    return checks
