"""Masks filled and texts embedded, as SavedModels on strings do it: the answers of `tasks/pretrained.py`, in a graph.

Outputs are embedding [B, D], and of each [MASK] tokens and probabilities [B, P, N], best first, "" and 0 for none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow

from data.tokenizers.in_graph import in_graph
from serving.exporting import whole
from serving.strings.told import ToldMasks
from serving.strings.windows import first_of
from tasks.inputs import IDS, MASK, POSITIONS, TYPES
from tasks.pretrained import MASK as MASK_NAME

if TYPE_CHECKING:
    from serving.loading import Loaded

tf: Any = tensorflow


class Masks(tf.Module, ToldMasks):
    """See the head of this file."""

    def __init__(self, loaded: Loaded):
        super().__init__()
        tokenizer = loaded.tokenizer
        self.model, self.task, self.ids = loaded.model, loaded.task, in_graph(tokenizer)
        self.inputs = {"text_a": [None]}
        self.mask_id, self.room = tokenizer.mask_id, tokenizer.template.max_tokens(loaded.max_seq_length, 1)
        self.template = (list(tokenizer.template.first), list(tokenizer.template.last))
        self.segment = tokenizer.template.segment_ids[0]
        (self.mask,) = tokenizer.tokens([tokenizer.mask_id])
        # The table of words may have more rows than the vocabulary has tokens.
        more = loaded.config.padded_vocab_size - tokenizer.vocab_size
        self.words = np.array([*tokenizer.tokens(range(tokenizer.vocab_size)), *[""] * more])
        self.fills = loaded.fills_masks

    def __call__(self, texts: Any) -> dict[str, Any]:
        rows = self._rows(texts)
        first, last = self.template
        one = tf.ones([tf.size(texts), 1], tf.int32)
        ids = tf.concat([one * first, rows, one * last], axis=1)
        mask = tf.sequence_mask(ids.row_lengths(), dtype=tf.int32)
        features = {IDS: ids.to_tensor(), MASK: mask, TYPES: mask * self.segment}
        if not self.fills:
            return dict(self.task.predictions(whole(self.model), features))
        is_mask = features[IDS] == self.mask_id
        count = tf.reduce_max(tf.reduce_sum(tf.cast(is_mask, tf.int32), axis=1))
        places = tf.zeros_like(mask) + tf.range(tf.shape(mask)[1])
        places = tf.ragged.boolean_mask(places, is_mask)
        given = features | {POSITIONS: places.to_tensor(shape=[None, tf.maximum(count, 1)])}
        found = self.task.predictions(whole(self.model), given)
        there = tf.sequence_mask(places.row_lengths(), count)[:, :, None]
        words = tf.where(there, tf.gather(self.words, found["tokens"][:, :count]), "")
        return {
            "embedding": found["embedding"],
            "tokens": words,
            "probabilities": tf.where(words == "", 0.0, found["chances"][:, :count]),
        }

    def _rows(self, texts: Any) -> Any:
        """Return the ids of the texts, ragged, with that of the mask where a text has its name."""
        if self.mask != MASK_NAME:
            texts = tf.strings.regex_replace(texts, re.escape(self.mask), MASK_NAME)
        parts = tf.strings.split(texts, MASK_NAME)
        ids, row = self.ids(parts.flat_values), parts.value_rowids()
        follows = tf.concat([tf.zeros_like(row[:1], tf.bool), row[1:] == row[:-1]], axis=0)
        masks = tf.fill([tf.reduce_sum(tf.cast(follows, tf.int32))], self.mask_id)
        masks = tf.RaggedTensor.from_row_lengths(masks, tf.cast(follows, tf.int64))
        joined = tf.concat([masks, ids], axis=1)
        rows = tf.RaggedTensor.from_row_splits(joined.flat_values, tf.gather(joined.row_splits, parts.row_splits))
        behind = first_of(rows, tf.fill(tf.shape(rows.row_lengths()), tf.constant(self.room, tf.int64)))
        lost = tf.reduce_sum(tf.cast(rows.flat_values == self.mask_id, tf.int32)) - tf.reduce_sum(
            tf.cast(behind.flat_values == self.mask_id, tf.int32)
        )
        message = f"a {MASK_NAME} stands behind the {self.room} tokens that the model reads: shorten the text"
        with tf.control_dependencies([tf.debugging.Assert(lost == 0, [message])]):
            return behind.with_flat_values(tf.identity(behind.flat_values))
