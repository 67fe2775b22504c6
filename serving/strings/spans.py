"""Answers cut from a text, as SavedModels on strings find them: the answers of `tasks/kinds/span.py`, in a graph.

    question [B], context [B] -> answer [B] ("" for none), begin, end int32 [B] (-1 for none), probability [B]

Long contexts are read in windows that the graph makes; the best answer of all windows counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow

from serving.exporting import whole
from serving.strings.told import ToldSpans
from serving.strings.windows import InGraphWindows, Marks, WindowRows
from tasks.kinds.span import MAX_ANSWER_TOKENS

if TYPE_CHECKING:
    from serving.loading import Loaded

tf: Any = tensorflow
_NONE = -np.inf
_N_BEST, _QUERY = 20, 64


class Spans(tf.Module, ToldSpans):
    """See the head of this file; what decides answers is that of the run's last command."""

    untold = ("n_best",)

    def __init__(self, loaded: Loaded):
        super().__init__()
        assert loaded.row is not None
        settings = {name: value for name, value in loaded.settings.items() if value is not None}
        self.model, self.task = loaded.model, loaded.task
        self.inputs = {"question": [None], "context": [None]}
        self.windows = InGraphWindows(
            loaded.tokenizer,
            loaded.max_seq_length,
            settings.get("doc_stride"),
            settings.get("max_query_length", _QUERY),
        )
        self.marks = Marks()
        self.n_best = settings.get("n_best_size", _N_BEST)
        self.longest = settings.get("max_answer_length", MAX_ANSWER_TOKENS)
        self.may_be_none = bool(settings.get("version_2_with_negative") or loaded.row.no_answer)
        self.threshold = settings.get("null_score_diff_threshold", 0.0)

    def __call__(self, question: Any, context: Any) -> dict[str, Any]:
        rows = self.windows(context, question)
        predicted = self.task.predictions(whole(self.model), rows.features)
        start, end = (tf.cast(predicted[f"{name}_logits"], tf.float64) for name in ("start", "end"))
        score, begin, behind = self._candidates(rows, context, start, end)
        texts, score, begin, behind = _by_text(rows, context, score, begin, behind)
        kept = self._kept(texts, score)
        some = tf.reduce_any(kept, axis=1)
        best = tf.argmax(kept, axis=1)
        nothing = tf.math.unsorted_segment_min(start[:, 0] + end[:, 0], rows.text, tf.size(context, tf.int64))
        found = tf.where(some, tf.gather(score, best, batch_dims=1), nothing)
        empty = ~some | ((nothing - found > self.threshold) & self.may_be_none)
        shown = tf.where(~some | self.may_be_none, nothing, tf.constant(_NONE, tf.float64))
        chances = tf.nn.softmax(tf.concat([shown[:, None], tf.where(kept, score, _NONE)], axis=1))
        chance = tf.where(empty, chances[:, 0], tf.gather(chances, best + 1, batch_dims=1))
        texts, begin, behind = (tf.gather(x, best, batch_dims=1) for x in (texts, begin, behind))
        return {
            "answer": tf.where(empty, "", texts),
            "begin": tf.where(empty, -1, tf.cast(begin, tf.int32)),
            "end": tf.where(empty, -1, tf.cast(behind, tf.int32)),
            "probability": tf.cast(chance, tf.float32),
        }

    def _candidates(self, rows: WindowRows, context: Any, start: Any, end: Any) -> tuple[Any, Any, Any]:
        """Return score [R, n], first character and the one behind of the best pairs of each window; see `Candidate`."""
        place = tf.gather(rows.offset, rows.row) + rows.within
        at, count = tf.stack([rows.row, place], axis=1), tf.size(rows.text, tf.int64)
        flat = (tf.RaggedTensor.from_value_rowids(tf.gather_nd(x, at), rows.row, count) for x in (start, end))
        start, end = (each.to_tensor(_NONE) for each in flat)
        most = tf.minimum(self.n_best, tf.shape(start)[1])
        (first, one), (last, other) = (tf.math.top_k(x, most) for x in (start, end))
        tokens = other[:, None, :] - one[:, :, None] + 1
        pairs = first[:, :, None] + last[:, None, :]
        pairs = tf.where((tokens >= 1) & (tokens <= self.longest), pairs, tf.constant(_NONE, tf.float64))
        score, which = tf.math.top_k(tf.reshape(pairs, [-1, most * most]), tf.minimum(self.n_best, most * most))
        one, other = (
            rows.begin[:, None] + tf.cast(tf.gather(x, y, batch_dims=1), tf.int64)
            for x, y in ((one, which // tf.maximum(most, 1)), (other, which % tf.maximum(most, 1)))
        )
        # Of no pair the places may lie behind all tokens.
        starts, ends = (tf.concat([x, tf.zeros([1], tf.int64)], axis=0) for x in (rows.starts, rows.ends))
        real = tf.math.is_finite(score)
        begin, behind = (
            tf.gather(x, tf.where(real, y, tf.size(x, tf.int64) - 1)) for x, y in ((starts, one), (ends, other))
        )
        score = tf.where(real & (begin < behind), score, tf.constant(_NONE, tf.float64))
        return score, begin, self.marks.behind(context, rows.text, behind)

    def _kept(self, texts: Any, score: Any) -> Any:
        """Return which candidates [B, M], best first, are the first `n_best_size` of different texts."""
        size = tf.shape(score)[1]
        before = tf.cast(tf.linalg.band_part(tf.ones((size, size), tf.int32), -1, 0), tf.bool)
        before = before & ~tf.eye(size, dtype=tf.bool)
        again = tf.reduce_any((texts[:, :, None] == texts[:, None, :]) & before[None], axis=-1)
        new = tf.math.is_finite(score) & ~again
        return new & (tf.cumsum(tf.cast(new, tf.int32), axis=1) <= self.n_best)


def _by_text(rows: WindowRows, context: Any, score: Any, begin: Any, behind: Any) -> tuple[Any, Any, Any, Any]:
    """Return texts, scores and places of the candidates of all windows of a text, best first, [B, M] each."""
    width, count = tf.shape(score)[1], tf.size(context, tf.int64)
    owner = tf.repeat(rows.text, width)
    score, begin, behind = (
        tf.RaggedTensor.from_value_rowids(tf.reshape(x, [-1]), owner, count).to_tensor(fill)
        for x, fill in ((score, _NONE), (begin, 0), (behind, 0))
    )
    order = tf.argsort(score, axis=1, direction="DESCENDING", stable=True)
    score, begin, behind = (tf.gather(x, order, batch_dims=1) for x in (score, begin, behind))
    wide = tf.repeat(context[:, None], tf.shape(score)[1], axis=1)
    size = tf.where(tf.math.is_finite(score), behind - begin, 0)
    texts = tf.strings.substr(wide, tf.cast(begin, tf.int32), tf.cast(size, tf.int32), unit="UTF8_CHAR")
    return texts, score, begin, behind
