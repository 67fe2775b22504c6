"""Examples as lines of marked tokens, for a person to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data.forms import Side


@dataclass(frozen=True)
class Mark:
    """A token, or a run of shuffled ones.

    Attributes:
        kind: "plain", "masked", "kept", "replaced" or "shuffled".
        shown: ids that the model sees.
        original: ids of the text, equal to those shown where the kind is plain or kept.
    """

    kind: str
    shown: tuple[int, ...]
    original: tuple[int, ...]


def marked_lines(example: Mapping[str, np.ndarray], side: Side, mask_id: int | None = None) -> list[list[Mark]]:
    """Return one text of an example as a line for each of its parts: segments, or sequences where it is packed.

    Example:
        input_ids 2 4 6 9 3     segment_ids 0 0 0 1 1     predicted: 1 was 5, 2 was 6, 3 was 7     [MASK] is 4
        line 0    plain 2, masked 4 of 5, kept 6
        line 1    replaced 9 of 7, plain 3

    Args:
        example: the features of one row.
        side: the text to show.
        mask_id: id of [MASK]; None takes the id seen most often where tokens are predicted.
    """
    labels = _labelled(example, side.hidden)
    shuffled = _labelled(example, side.shuffled)
    length = int(example[side.mask].sum())
    ids: list[int] = example[side.ids][:length].tolist()
    parts: list[int] = example[side.parts][:length].tolist()
    if mask_id is None:
        seen = [ids[position] for position in labels]
        mask_id = max(set(seen), key=seen.count, default=-1)
    lines: list[list[Mark]] = []
    position = 0
    while position < length:
        if not position or parts[position] != parts[position - 1]:
            lines.append([])
        end = position + 1
        token, kind, original = ids[position], "plain", ids[position : position + 1]
        if position in shuffled:
            while end < length and end in shuffled and parts[end] == parts[position]:
                end += 1
            kind, original = "shuffled", [shuffled[i] for i in range(position, end)]
        elif position in labels:
            original = [labels[position]]
            kind = "masked" if token == mask_id else "kept" if token == original[0] else "replaced"
        lines[-1].append(Mark(kind, tuple(ids[position:end]), tuple(original)))
        position = end
    return lines


def _labelled(example: Mapping[str, np.ndarray], name: str) -> dict[int, int]:
    """Return the labels of a list by position; none where the list is absent."""
    if not name or f"{name}_weights" not in example:
        return {}
    used = example[f"{name}_weights"] > 0
    positions, labels = example[f"{name}_positions"][used], example[f"{name}_ids"][used]
    return dict(zip(positions.tolist(), labels.tolist(), strict=True))
