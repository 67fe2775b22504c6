"""Long texts -> rows that are windows with overlap, and where each token stands in its text (BERT's run_squad.py).

Differs from BERT's script in the words of padding, which no row has here, and in a step that never passes over a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from data.labelled import ClassificationDataset, EncodedExamples, assembled
from data.token_cache import encoding_of, ids_of
from ground.ragged import bounds_of, span_indices

if TYPE_CHECKING:
    from data.tokenizers import Encoding, Tokenizer

BERT_STRIDE_TOKENS = 128
"""The step of BERT's script, for windows of 384 tokens; shorter windows step by half of their room."""


@dataclass(frozen=True, slots=True)
class Window:
    """One row of a data set, which holds a part of the text of an example.

    Attributes:
        example: its number.
        offset: place in the row of the first token of the text.
        first: number of that token among those of the text.
        starts: first character of each token in the text, int32 [n].
        ends: the characters behind them.
        total: tokens of the whole text.
    """

    example: int
    offset: int
    first: int
    starts: np.ndarray
    ends: np.ndarray
    total: int


@dataclass(frozen=True, slots=True)
class Windows:
    """All windows of the examples of a split, in the order of the examples.

    Attributes:
        rows: ids and segments with the special tokens.
        encoding: of the distinct texts.
        text_of: number of the text of each example, int64 [E].
        example: of each window, int64 [R].
        first: number of its first token in the text.
        count: its tokens of the text.
        offset: place of the first in the row.
    """

    rows: EncodedExamples
    encoding: Encoding
    text_of: np.ndarray
    example: np.ndarray
    first: np.ndarray
    count: np.ndarray
    offset: np.ndarray

    @property
    def begin(self) -> np.ndarray:
        """Number of each window's first token among the tokens of all texts, int64 [R]."""
        return self.encoding.splits[self.text_of[self.example]] + self.first

    def window(self, row: int) -> Window:
        """Return what there is to know of a row."""
        example = int(self.example[row])
        text = self.text_of[example]
        text_begin, text_end = self.encoding.splits[text], self.encoding.splits[text + 1]
        begin = text_begin + self.first[row]
        end = begin + self.count[row]
        return Window(
            example,
            int(self.offset[row]),
            int(self.first[row]),
            self.encoding.starts[begin:end],
            self.encoding.ends[begin:end],
            int(text_end - text_begin),
        )


def cut(lengths: np.ndarray, rooms: np.ndarray, stride: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the windows over token lists of the given lengths: number of the list, first token, tokens; int64 [R].

    Example:
        lengths [5, 2], rooms [3, 3], stride 1
        list    0 0 0 1     first 0 1 2 0     tokens 3 3 3 2

    Args:
        lengths: in tokens.
        rooms: tokens that a window of each list holds.
        stride: from the beginning of a window to that of the next, at most the room; None is half of the room, and at
            most `BERT_STRIDE_TOKENS`.
    """
    longest = np.minimum(BERT_STRIDE_TOKENS, np.maximum(1, rooms // 2)) if stride is None else np.minimum(stride, rooms)
    counts = 1 + -(-np.maximum(0, lengths - rooms) // longest)
    which = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = number * longest[which]
    return which, first, np.minimum(rooms[which], lengths[which] - first)


def encode_windows(
    questions: Sequence[str] | None,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    max_seq_length: int,
    *,
    stride: int | None = None,
    max_query_length: int = 64,
) -> Windows:
    """Tokenise texts, each distinct one once, and cut them into windows behind their questions, if there are any.

    Args:
        questions: one for each text, or None.
        texts: of the examples.
        tokenizer: any tokenizer of `data.tokenizers`.
        max_seq_length: of a row in tokens, specials counted.
        stride: as in `cut`.
        max_query_length: longer questions are cut, always to half of the row.

    Raises:
        UsageError: `max_seq_length` has room for no token beside the specials.
    """
    template, sides = tokenizer.template, 1 if questions is None else 2
    budget = template.max_tokens(max_seq_length, sides)
    if budget < 1:
        raise UsageError(
            f"--max_seq_length={max_seq_length}: the special tokens alone are {template.num_specials(sides)}; expected "
            f"at least {template.num_specials(sides) + sides}"
        )
    number_of: dict[str, int] = {}
    text_of = np.array([number_of.setdefault(text, len(number_of)) for text in texts], np.int64)
    encoding = encoding_of(list(number_of), tokenizer)
    lengths = np.diff(encoding.splits)[text_of]
    asked_ids, asked_splits = ids_of(questions if questions is not None else [""] * len(texts), tokenizer)
    asked = np.minimum(np.diff(asked_splits), min(max_query_length, budget // 2))
    example, first, count = cut(lengths, budget - asked, stride)
    parts = [(encoding.ids, encoding.splits[text_of[example]] + first, count)]
    offset = np.full(len(example), len(template.first), np.int64)
    if questions is not None:
        parts.insert(0, (asked_ids, asked_splits[:-1][example], asked[example]))
        offset += asked[example] + len(template.between)
    ids, segments, splits = assembled(template, parts)
    rows = EncodedExamples(ids, segments, splits, np.full(len(example), -1, np.int32))
    return Windows(rows, encoding, text_of, example, first, count, offset)


@dataclass
class WindowedDataset(ClassificationDataset):
    """Batches of windows. Labels are one or several numbers a row, or with `token_labels` one a token of the row.

    Attributes:
        windows: of the examples.
        token_labels: int32 [total]; -1 where a token has none.
        further: by example, what else the kind's `answers` has to know.
        notes: what is to be said of the encoded examples; empty for nothing.
    """

    windows: Windows = field(kw_only=True)
    token_labels: np.ndarray | None = None
    further: dict[str, Sequence[Any]] = field(default_factory=dict)
    notes: str = ""

    def facts(self, row: int) -> dict[str, Any]:
        """Return what the kind's `answers` has to know of a row beside what the model predicted of it."""
        example = self.windows.example[row]
        return {"window": self.windows.window(row)} | {name: each[example] for name, each in self.further.items()}

    def _collate(self, members: np.ndarray, batch_size: int | None = None) -> dict[str, np.ndarray]:
        """Return, with labels of tokens, `label_ids` and `label_weights` int32 [B, L]."""
        if self.token_labels is None:
            return super()._collate(members, batch_size)
        features = self._features(members, batch_size or self.batch_size)
        mask = features["input_mask"]
        labels = np.full_like(mask, -1)
        labels[mask == 1] = self.token_labels[
            span_indices(self.examples.splits[members], self.examples.lengths_tokens[members])
        ]
        return {**features, "label_ids": np.maximum(labels, 0), "label_weights": (labels >= 0).astype(np.int32)}


def labels_in_rows(windows: Windows, labels: Sequence[np.ndarray]) -> np.ndarray:
    """Return labels of the tokens of each example as those of the tokens of all rows, int32; -1 for other tokens."""
    flat = np.concatenate([np.zeros(0, np.int32), *labels])
    bounds = bounds_of([len(each) for each in labels])
    found = np.full(len(windows.rows.ids), -1, np.int32)
    found[span_indices(windows.rows.splits[:-1] + windows.offset, windows.count)] = flat[
        span_indices(bounds[:-1][windows.example] + windows.first, windows.count)
    ]
    return found
