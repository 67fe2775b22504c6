"""Entities in a text, as SavedModels on strings find them: the answers of `tasks/kinds/tagging.py`, in a graph.

    text_a [B] -> types, texts [B, E] ("" behind the last), begin, end int32 [B, E], probability [B, E]

Long texts are read in windows that the graph makes and joins again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow

from serving.exporting import whole
from serving.strings.told import ToldEntities
from serving.strings.windows import InGraphWindows, Marks, WindowRows

if TYPE_CHECKING:
    from serving.loading import Loaded

tf: Any = tensorflow
_SPACE = 32
_FAR = 1 << 40
"""More than any text has characters: places of several texts side by side are told apart by it."""


class Entities(tf.Module, ToldEntities):
    """See the head of this file."""

    def __init__(self, loaded: Loaded):
        super().__init__()
        assert loaded.row is not None
        self.model, self.task, self.types = loaded.model, loaded.task, np.array(["", *loaded.labels])
        self.of_characters = loaded.row.units == "characters"
        self.inputs = {"text_a": [None]}
        self.windows = InGraphWindows(loaded.tokenizer, loaded.max_seq_length, loaded.settings.get("doc_stride"))
        self.marks = Marks()

    def __call__(self, texts: Any) -> dict[str, Any]:
        rows = self.windows(texts)
        log_chances = self.task.predictions(whole(self.model), rows.features)["log_probabilities"]
        scores = tf.cast(joined(rows, log_chances), tf.float64)
        words = self._words(texts)
        token, first = self._carriers(rows, words)
        return self._marked(texts, words, *self._tags(rows, scores, words, token, first))

    def _words(self, texts: Any) -> dict[str, Any]:
        """Return of each word its text, first character and the one behind, and whether it begins with a mark."""
        codes = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
        if not self.of_characters:
            # A space behind each text ends its last word.
            ends = tf.fill([tf.size(texts), 1], tf.constant(_SPACE, tf.int32))
            codes = tf.concat([codes, ends], axis=1)
        flat, row = codes.flat_values, codes.value_rowids()
        place = tf.range(tf.size(flat, tf.int64)) - tf.gather(codes.row_starts(), row)
        begin, end = place, place + 1
        if not self.of_characters:
            stop = tf.where(flat == _SPACE)[:, 0]
            row, end = tf.gather(row, stop), tf.gather(place, stop)
            follows = tf.concat([tf.zeros_like(row[:1], tf.bool), row[1:] == row[:-1]], axis=0)
            begin = tf.where(follows, tf.concat([tf.zeros_like(end[:1]), end[:-1]], axis=0) + 1, 0)
            flat = tf.gather(flat, tf.gather(codes.row_starts(), row) + begin)
        is_mark = self.marks(flat)
        return {"text": row, "begin": begin, "end": end, "is_mark": is_mark, "texts": tf.size(texts, tf.int64)}

    def _carriers(self, rows: WindowRows, words: dict[str, Any]) -> tuple[Any, Any]:
        """Return the token that carries each word, -1 for none, and whether the word is the first that it carries."""
        lengths = rows.splits[1:] - rows.splits[:-1]
        text = tf.repeat(tf.range(tf.size(lengths, tf.int64)), lengths)
        # A token without extent, as a mark alone is, carries nothing.
        real = tf.where(rows.ends > rows.starts)[:, 0]
        text, starts, ends = (tf.gather(x, real) for x in (text, rows.starts, rows.ends))
        # The first token that ends behind the beginning of the word, if it begins before the end of the word.
        place = tf.searchsorted(text * _FAR + ends, words["text"] * _FAR + words["begin"], "right", tf.int64)
        there = place < tf.size(text, tf.int64)
        near = tf.where(there, place, 0)
        text, starts, real = (tf.concat([x, tf.zeros([1], tf.int64)], axis=0) for x in (text, starts, real))
        carried = there & (tf.gather(text, near) == words["text"]) & (tf.gather(starts, near) < words["end"])
        token = tf.where(carried, tf.gather(real, near), -1)
        which = tf.where(carried)[:, 0]
        tokens = tf.gather(token, which)
        new = tf.concat([tf.ones_like(tokens[:1], tf.bool), tokens[1:] != tokens[:-1]], axis=0)
        first = tf.tensor_scatter_nd_update(carried, which[:, None], new)
        return token, first

    def _tags(self, rows: WindowRows, scores: Any, words: dict[str, Any], token: Any, first: Any) -> tuple[Any, Any]:
        """Return the tag of every word, 0 outside and 1, 2 for begin and inside of a type, and its chance."""
        which = tf.where(first)[:, 0]
        carrying, text = tf.gather(token, which), tf.gather(words["text"], which)
        of_text = tf.RaggedTensor.from_value_rowids(tf.gather(scores, carrying), text, words["texts"])
        best = best_tags(of_text.to_tensor(), of_text.row_lengths())
        chosen = tf.RaggedTensor.from_tensor(best, lengths=of_text.row_lengths()).flat_values
        certain = tf.exp(tf.gather(tf.gather(scores, carrying), chosen, batch_dims=1))
        # Words without a token, and those that share one, continue what is before them.
        number = tf.cumsum(tf.cast(first, tf.int64)) - 1
        begin, end = (tf.gather(x, words["text"]) for x in (of_text.row_starts(), of_text.row_limits()))
        known = number >= begin
        padded, chances = tf.concat([chosen, [0]], axis=0), tf.concat([certain, tf.ones([1], certain.dtype)], axis=0)
        tag = tf.where(known, tf.gather(padded, tf.maximum(number, 0)), 0)
        following = tf.where(number + 1 < end, tf.gather(padded, tf.minimum(number + 1, tf.size(chosen, tf.int64))), 0)
        inside = tag + tag % 2
        ends = (token < 0) & (following != inside) & ~words["is_mark"]
        tag = tf.where(first | (tag == 0), tag, tf.where(ends, 0, inside))
        return tag, tf.where(known, tf.gather(chances, tf.maximum(number, 0)), 1.0)

    def _marked(self, texts: Any, words: dict[str, Any], tag: Any, chance: Any) -> dict[str, Any]:
        """Return the entities of the tags of words: runs of one type, each with the least chance of its words."""
        kind, text = (tag + 1) // 2, words["text"]
        same = tf.concat([tf.zeros_like(text[:1], tf.bool), (kind[1:] == kind[:-1]) & (text[1:] == text[:-1])], axis=0)
        begins = (kind > 0) & ((tag % 2 == 1) | ~same)
        entity = tf.cumsum(tf.cast(begins, tf.int64)) - 1
        count = tf.reduce_sum(tf.cast(begins, tf.int64))
        (which, inside) = (tf.where(flags)[:, 0] for flags in (begins, kind > 0))
        entity = tf.gather(entity, inside)
        text, begin = tf.gather(text, which), tf.gather(words["begin"], which)
        end = tf.math.unsorted_segment_max(tf.gather(words["end"], inside), entity, count)
        least = tf.math.unsorted_segment_min(tf.gather(chance, inside), entity, count)
        size = tf.cast(end - begin, tf.int32)
        found = {
            "types": tf.gather(self.types, tf.gather(kind, which)),
            "texts": tf.strings.substr(tf.gather(texts, text), tf.cast(begin, tf.int32), size, unit="UTF8_CHAR"),
            "begin": tf.cast(begin, tf.int32),
            "end": tf.cast(end, tf.int32),
            "probability": tf.cast(least, tf.float32),
        }
        return {
            name: tf.RaggedTensor.from_value_rowids(value, text, words["texts"]).to_tensor()
            for name, value in found.items()
        }


def joined(rows: WindowRows, values: Any) -> Any:
    """Return the values [R, L, C] of every token of the texts, from the window in which it has most text around it."""
    count = tf.gather(rows.count, rows.row)
    context = 100 * tf.minimum(rows.within, count - 1 - rows.within) + count
    tokens = tf.size(rows.starts, tf.int64)
    most = tf.gather(tf.math.unsorted_segment_max(context, rows.token, tokens), rows.token)
    number = tf.range(tf.size(context, tf.int64))
    shown = tf.math.unsorted_segment_min(
        tf.where(context == most, number, tf.size(context, tf.int64)), rows.token, tokens
    )
    row, place = tf.gather(rows.row, shown), tf.gather(tf.gather(rows.offset, rows.row) + rows.within, shown)
    return tf.gather_nd(values, tf.stack([row, place], axis=1))


def best_tags(scores: Any, lengths: Any) -> Any:
    """Return the most probable tags of each row of tokens, none continuing what did not begin, int32 [B, M] (Viterbi).

    Args:
        scores: log-probabilities float64 [B, M, C] of the tags of `tasks.kinds.tagging.tag_names`.
        lengths: tokens of each row, int64 [B].
    """
    count = scores.shape[-1]
    tag = np.arange(count)
    continues = (tag > 0) & (tag % 2 == 0)
    allowed = ~continues[None, :] | (tag[:, None] == tag[None, :]) | (tag[:, None] == tag[None, :] - 1)
    forbidden = tf.constant(np.where(allowed, 0.0, -np.inf), tf.float64)
    # A token of no score behind all rows, so that there is a first and a next one.
    scores = tf.pad(scores, [[0, 0], [0, 2], [0, 0]])
    first = tf.where(continues, tf.constant(-np.inf, tf.float64), scores[:, 0])
    places = tf.range(1, tf.shape(scores, tf.int64)[1])
    itself = tf.zeros_like(first, tf.int32) + tf.range(count)

    def step(carried: Any, given: Any) -> Any:
        values, place = given
        paths = carried[0][:, :, None] + forbidden
        goes_on = (place < lengths)[:, None]
        back = tf.where(goes_on, tf.argmax(paths, axis=1, output_type=tf.int32), itself)
        return tf.where(goes_on, tf.reduce_max(paths, axis=1) + values, carried[0]), back

    by_place = tf.transpose(scores[:, 1:], (1, 0, 2))
    total, back = tf.scan(step, (by_place, places), initializer=(first, itself))
    last = tf.argmax(total[-1], axis=-1, output_type=tf.int32)
    before = tf.scan(lambda at, pointers: tf.gather(pointers, at, batch_dims=1), back, initializer=last, reverse=True)
    return tf.transpose(tf.concat([before, last[None]], axis=0))[:, :-2]
