"""Long texts as windows with overlap, in a graph: the rows of `data.windows`, and where each token stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow

from data.tokenizers.in_graph import code_point_properties, in_graph
from data.windows import BERT_STRIDE_TOKENS
from tasks.inputs import IDS, MASK, TYPES

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer

tf: Any = tensorflow


class WindowRows(NamedTuple):
    """The windows of T texts, R rows, which show N tokens in all; integers are int64.

    Attributes:
        features: of the rows, int32 [R, L].
        text: number of each row's text [R].
        begin: number of the first token that a row shows among the tokens of all texts [R].
        offset: place in the row of the first token of the text [R].
        row: number of the row of each token that is shown [N].
        within: its place among the row's tokens of the text [N].
        token: its number among the tokens of all texts [N].
        count: tokens that each row shows [R].
        splits: where the tokens of each text begin and end [T + 1].
        starts: first character of every token in its text [tokens].
        ends: the character behind it [tokens].
    """

    features: dict[str, Any]
    text: Any
    begin: Any
    offset: Any
    row: Any
    within: Any
    token: Any
    count: Any
    splits: Any
    starts: Any
    ends: Any


class InGraphWindows(tf.Module):
    """Texts, perhaps behind questions -> `WindowRows`; see `data.windows.encode_windows`.

    Args:
        tokenizer: of the texts.
        max_seq_length: of a row in tokens, specials counted.
        stride: tokens between two windows, as in `data.windows.cut`.
        max_query_length: longer questions are cut.
    """

    def __init__(self, tokenizer: Tokenizer, max_seq_length: int, stride: int | None, max_query_length: int = 64):
        super().__init__()
        self.ids = in_graph(tokenizer)
        self._template, self._length = tokenizer.template, max_seq_length
        self._stride, self._longest_question = stride, max_query_length

    def __call__(self, texts: Any, questions: Any = None) -> WindowRows:
        template = self._template
        ids, starts, ends = self.ids.with_places(texts)
        lengths = ids.row_lengths()
        budget = template.max_tokens(self._length, 1 if questions is None else 2)
        asked, asked_ids = tf.zeros_like(lengths), None
        if questions is not None:
            asked_ids = self.ids(questions)
            asked = tf.minimum(asked_ids.row_lengths(), min(self._longest_question, budget // 2))
        text, first, count = self._cut(lengths, budget - asked)
        row = tf.repeat(tf.range(tf.size(text, tf.int64)), count)
        within = tf.range(tf.size(row, tf.int64)) - tf.gather(tf.cumsum(count, exclusive=True), row)
        begin = tf.gather(ids.row_starts(), text) + first
        token = tf.gather(begin, row) + within
        shown = tf.RaggedTensor.from_value_rowids(tf.gather(ids.flat_values, token), row, tf.size(text, tf.int64))
        one = tf.ones_like(text, tf.int32)[:, None]
        parts, offset = [one * template.first], tf.fill(tf.shape(text), tf.constant(len(template.first), tf.int64))
        before = offset
        if asked_ids is not None:
            kept = tf.gather(asked, text)
            wide = tf.gather(asked_ids, text)
            parts += [first_of(wide, kept), one * template.between]
            offset = offset + kept + len(template.between)
            before = offset
        rows = tf.concat([*parts, shown, one * template.last], axis=1)
        mask = tf.sequence_mask(rows.row_lengths(), dtype=tf.int32)
        first_id, second_id = template.segment_ids
        is_first = tf.sequence_mask(before, tf.shape(mask)[1], tf.int32) if asked_ids is not None else mask
        features = {
            IDS: rows.to_tensor(),
            MASK: mask,
            TYPES: mask * (first_id * is_first + second_id * (1 - is_first)),
        }
        return WindowRows(features, text, begin, offset, row, within, token, count, ids.row_splits, starts, ends)

    def _cut(self, lengths: Any, rooms: Any) -> tuple[Any, Any, Any]:
        """Return of each window the text, its first token and its tokens; see `data.windows.cut`."""
        half = tf.minimum(tf.constant(BERT_STRIDE_TOKENS, tf.int64), tf.maximum(tf.constant(1, tf.int64), rooms // 2))
        step = half if self._stride is None else tf.minimum(tf.constant(self._stride, tf.int64), rooms)
        counts = 1 + (tf.maximum(tf.zeros_like(rooms), lengths - rooms) + step - 1) // step
        text = tf.repeat(tf.range(tf.size(lengths, tf.int64)), counts)
        number = tf.range(tf.size(text, tf.int64)) - tf.gather(tf.cumsum(counts, exclusive=True), text)
        first = number * tf.gather(step, text)
        return text, first, tf.minimum(tf.gather(rooms, text), tf.gather(lengths, text) - first)


class Marks(tf.Module):
    """Which characters are combining marks, that belong to the letter before them."""

    def __init__(self) -> None:
        super().__init__()
        self._marks = np.flatnonzero(code_point_properties() & 255).astype(np.int32)

    def __call__(self, codes: Any) -> Any:
        """Return whether each code point is one."""
        nearest = tf.minimum(tf.searchsorted(self._marks, codes), len(self._marks) - 1)
        return tf.gather(self._marks, nearest) == codes

    def behind(self, texts: Any, owner: Any, ends: Any) -> Any:
        """Return the ends [R, n] of spans in texts, each behind the marks that follow it; `owner` is a row's text [R].

        Example:
            "e" and two marks and "f", end 1 -> 3
        """
        codes = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
        codes = tf.concat([codes, tf.zeros([tf.size(texts), 1], tf.int32)], axis=1)
        letters = tf.where(~self(codes.flat_values))[:, 0]
        first = tf.gather(codes.row_starts(), owner)[:, None]
        flat = tf.reshape(first + ends, [-1])
        found = tf.gather(letters, tf.searchsorted(letters, flat))
        return tf.reshape(found, tf.shape(ends)) - first


def first_of(ragged: Any, lengths: Any) -> Any:
    """Return the first `lengths` elements of every row."""
    return tf.ragged.boolean_mask(ragged, tf.ragged.range(ragged.row_lengths()) < tf.expand_dims(lengths, 1))
