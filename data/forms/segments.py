"""Examples with their specials, before anything is hidden: joined from pairs, and stored by compact records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from data.tfrecord.decoding import Column
from data.tfrecord.encoding import Rows
from data.tfrecord.frames import MalformedRecordError

if TYPE_CHECKING:
    from data.pairing import Pairs
    from data.tokenizers.template import Template

# Google's names, and what compact shards have been written with since the first.
COMPACT_FEATURES = ("input_ids", "token_boundary", "first_segment_length", "next_sentence_labels")


@dataclass
class Segments:
    """N examples: their segments one behind the other, each with the specials that belong to it.

    Attributes:
        ids: int32 [N, K], zero padded.
        word_starts: bool [N, K]; a special is a word of its own.
        bounds: int64 [N, S + 1]; segment s of example n is ids[n, bounds[n, s] : bounds[n, s + 1]]. An example of one
            text has an empty second segment.
        label: int64 [N], class of the pair.
    """

    ids: np.ndarray
    word_starts: np.ndarray
    bounds: np.ndarray
    label: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, specials counted; int64 [N]."""
        return self.bounds[:, -1]

    def text(self, number: int, width: int, name: str) -> Segments:
        """Return the examples of one of the segments alone, in rows of `width`.

        Example:
            ids      [2 10 11 3 2 13 3]     bounds [0 4 7]
            text 1   [2 13 3 0], bounds [0 3 3] of width 4

        Raises:
            MalformedRecordError: one is longer than its row; `name` stands in the message.
        """
        begin_N, end_N = self.bounds[:, number], self.bounds[:, number + 1]
        lengths_N = end_N - begin_N
        if (lengths_N > width).any():
            raise MalformedRecordError(f"{name} of {lengths_N.max()} tokens, for rows of {width}")
        column_W = np.arange(width)
        inside_NW = column_W < lengths_N[:, None]
        if number == 0:
            ids, starts = self.ids[:, :width], self.word_starts[:, :width]
        else:
            source_NW = np.minimum(begin_N[:, None] + column_W, self.ids.shape[1] - 1)
            ids, starts = (np.take_along_axis(x, source_NW, axis=1) for x in (self.ids, self.word_starts))
        bounds = np.stack([np.zeros_like(lengths_N), lengths_N, lengths_N], axis=1)
        return Segments(np.where(inside_NW, ids, np.int32(0)), starts & inside_NW, bounds, self.label)

    def to_record(self) -> dict[str, Rows]:
        """Return the features of compact records, which are not padded."""
        return {
            "input_ids": (self.ids, self.lengths),
            "token_boundary": (self.word_starts.astype(np.int32), self.lengths),
            "first_segment_length": self.bounds[:, 1:-1],
            "next_sentence_labels": self.label,
        }

    @staticmethod
    def are_in(columns: Mapping[str, Column]) -> bool:
        """Whether records are compact: they have word starts, which the records of no form have."""
        return COMPACT_FEATURES[1] in columns

    @staticmethod
    def problems(
        columns: Mapping[str, Column], manifest: Mapping[str, Any] | None, widths: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Return what is wrong with compact records, each with its rows; raises `MalformedRecordError`.

        `widths` are those of the rows that the segments fill: of one row together, of several one each.
        """
        _check_whole_numbers(columns)
        ids, starts = columns["input_ids"], columns["token_boundary"]
        lengths = np.diff(ids.splits)
        ends = columns["first_segment_length"]
        ends_NS = ends.matrix(int(ends.splits[1]))
        checks = {
            "token_boundary has another length than input_ids": np.diff(starts.splits) != lengths,
            "first_segment_length is outside the example": ((ends_NS < 1) | (ends_NS > lengths[:, None])).any(axis=1),
        }
        if manifest:
            bounds_NS = np.concatenate([np.zeros((len(lengths), 1), np.int64), ends_NS, lengths[:, None]], axis=1)
            if len(widths) == 1:
                checks["longer than max_seq_length"] = lengths > widths[0]
            else:
                checks["a segment longer than its row"] = (np.diff(bounds_NS, axis=1) > np.asarray(widths)).any(axis=1)
            wrong = (ids.values < 0) | (ids.values >= manifest["tokenizer"]["vocab_size"])
            row = np.repeat(np.arange(len(lengths)), lengths)[wrong]
            checks["an id outside the vocabulary"] = np.bincount(row, minlength=len(lengths)).astype(bool)
        return checks

    @classmethod
    def from_record(cls, columns: Mapping[str, Column], width: int) -> Segments:
        """Return the examples of compact records, padded to `width`; raises `MalformedRecordError`."""
        _check_whole_numbers(columns)
        lengths = np.diff(columns["input_ids"].splits)
        if (np.diff(columns["token_boundary"].splits) != lengths).any():
            # Without word starts nothing would be masked, and nothing learnt.
            raise MalformedRecordError("token_boundary has another length than input_ids")
        ends = columns["first_segment_length"]
        inner = ends.matrix(len(ends.values) // max(len(lengths), 1))
        return cls(
            columns["input_ids"].padded(width).astype(np.int32),
            columns["token_boundary"].padded(width).astype(bool),
            np.concatenate([np.zeros((len(lengths), 1), np.int64), inner, lengths[:, None]], axis=1),
            columns["next_sentence_labels"].matrix(1)[:, 0],
        )


def _check_whole_numbers(columns: Mapping[str, Column]) -> None:
    """Raise `MalformedRecordError` where a feature of compact records holds other numbers."""
    for name in COMPACT_FEATURES:
        if columns[name].values.dtype.kind != "i":
            raise MalformedRecordError(f"{name} holds {columns[name].values.dtype} values; expected whole numbers")


def join_apart(
    tokens: np.ndarray, pairs: Pairs, template: Template, width: int, *, second: tuple[int, ...] | None = None
) -> Segments:
    """Put two texts, each with the specials of a row of its own, one behind the other.

    `second` is what the row of the second text begins with; None: what every row does.
    """
    second = template.first if second is None else second
    both = replace(template, between=(*template.last, *second))
    segments = join_pairs(tokens, pairs, both, 2, width)
    # The first special of the second text belongs to it.
    segments.bounds[:, 1] -= len(second)
    return segments


def join_pairs(tokens: np.ndarray, pairs: Pairs, template: Template, num_texts: int, width: int) -> Segments:
    """Put one or two texts with their specials together, in one gather.

    Example:
        tokens    [10, 11, 12, 13, 14, 15] * 2         (ids; no token begins a word), template [CLS] 2, [SEP] 3
        pairs     first 0 : 2, second 3 : 6            width 10
        source    [-1  0  1  2 | 2  3  4  5 | 6  7]    of every column, in `tokens`: specials and padding are wrong yet
        ids       [ 2 10 11  3  13 14 15  3   0  0]
        starts    [ 1  1  0  1   1  0  0  1   0  0]    truncation may begin inside a word: its rest is a word

    Args:
        tokens: id * 2 + (begins a word), which `pairs` points into.
        pairs: N pairs of spans.
        template: the specials.
        num_texts: 1 or 2.
        width: K of the result.
    """
    column_K = np.arange(width, dtype=np.int32)
    first, last = template.first, template.last
    behind_first = template.behind(num_texts)[0]
    a_N, b_N = pairs.first_length, pairs.second_length
    first_N = len(first) + a_N + len(behind_first)
    lengths_N = first_N + (b_N + len(last) if num_texts == 2 else 0)
    offset_first, offset_second = pairs.first_start - len(first), pairs.second_start - first_N
    source_NK = np.where(column_K < first_N[:, None], offset_first[:, None], offset_second[:, None])
    source_NK += column_K
    packed_NK = tokens.take(source_NK, mode="clip")
    ids_NK = (packed_NK >> 1).astype(np.int32)
    starts_NK = (packed_NK & 1).astype(bool)
    rows = np.arange(len(a_N))

    def put(begin_N: np.ndarray, specials: tuple[int, ...]) -> None:
        for place, special in enumerate(specials):
            ids_NK[rows, begin_N + place] = special
            starts_NK[rows, begin_N + place] = True
        starts_NK[rows, np.minimum(begin_N + len(specials), width - 1)] = True

    put(np.zeros_like(a_N), first)
    put(len(first) + a_N, behind_first)
    if num_texts == 2:
        put(lengths_N - len(last), last)
    padding_NK = column_K >= lengths_N[:, None]
    ids_NK[padding_NK] = 0
    starts_NK[padding_NK] = False
    bounds = np.stack([np.zeros_like(first_N), first_N, lengths_N], axis=1)
    return Segments(ids_NK, starts_NK, bounds, pairs.label)
