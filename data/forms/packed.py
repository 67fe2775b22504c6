"""Several sequences in one row, each with its specials, none seeing another: full rows without pairs.

Best-fit packing as in Krell et al. 2021 ("Efficient sequence packing without cross-contamination"); the attention mask
and the positions of the model keep the sequences apart by `sequence_ids`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from absl.app import UsageError

from data.forms.one_row import OneRow
from data.forms.sides import Side
from data.pairing import Pairs, pack
from data.schema import Feature, Schema
from ground.ragged import bounds_of, span_indices

if TYPE_CHECKING:
    from data.recipe import Recipe, Specials, Vocabulary


class Packed(OneRow):
    """`OneRow` whose single segment is a run of whole sequences, with a number for the sequence of every position."""

    schema: Schema = (*OneRow.schema, Feature("sequence_ids", ("tokens",), stored=False))
    sides: tuple[Side, ...] = (Side(parts="sequence_ids"),)
    sequences: str = "sequence_ids"

    def check(self, recipe: Recipe) -> None:
        if recipe.pairing.num_segments > 1:
            raise UsageError(
                f"--pack_sequences needs --objective=masked_lm: with {recipe.objective} an example is one pair"
            )
        if recipe.word_order and recipe.word_order.windows == "any":
            raise UsageError(
                "--pack_sequences tells sequences apart by their [CLS], which windows of any tokens may move: give "
                "--trigram_windows=unmasked"
            )

    def lay_out(
        self, tokens: np.ndarray, pairs: Pairs, recipe: Recipe, vocabulary: Vocabulary
    ) -> tuple[np.ndarray, Pairs, dict[str, int]]:
        """Lay single sequences one behind the other, specials between them, as many as an example holds.

        The first [CLS] and the last [SEP] of an example are left to `join`, as for any other text.

        Example:
            sequences  a of 2, b of 4, c of 1 tokens; max_seq_length 9, so sizes [4, 6, 3] with [CLS] and [SEP]
            bins       [1, 0, 0]                     best fit, longest first: b and c, then a
            packed     b b b b [SEP] [CLS] c [SEP] [CLS] a a [SEP] [CLS]
            examples   start [0, 9], length [7, 2]   b [SEP] [CLS] c, and a
        """
        template = vocabulary.template
        between = (*template.last, *template.first)
        sizes = pairs.first_length + len(between)
        bins = pack(sizes, recipe.max_seq_length)
        order = np.argsort(bins, kind="stable")
        bounds = bounds_of(sizes[order])
        begins, lengths = bounds[:-1], pairs.first_length[order]
        packed = np.empty(bounds[-1], tokens.dtype)
        packed[span_indices(begins, lengths)] = tokens[span_indices(pairs.first_start[order], lengths)]
        for place, special in enumerate(between):
            packed[begins + lengths + place] = special * 2 + 1
        # Truncation may begin a sequence inside a word; the rest of the word is a word.
        packed[begins] |= 1
        examples = bounds_of(np.bincount(bins, weights=sizes).astype(np.int64))
        zeros = np.zeros(len(examples) - 1, np.int64)
        spans = Pairs(examples[:-1], np.diff(examples) - len(between), zeros, zeros, zeros)
        return packed, spans, {"sequences": len(pairs)}

    def complete(self, features: dict[str, np.ndarray], specials: Specials) -> dict[str, np.ndarray]:
        numbers = sequence_ids(features["input_ids"], features["input_mask"], specials.cls_id)
        return {**features, "sequence_ids": numbers}


def sequence_ids(input_ids: np.ndarray, input_mask: np.ndarray, cls_id: int) -> np.ndarray:
    """Return the number of each position's sequence, from 1; 0 for padding. int32 [N, L].

    Positions may attend to those with the same number only.

    Example:
        input_ids  [2 10 3 2 11 12 3 0]      [CLS] 2, [SEP] 3
        result     [1  1 1 2  2  2 2 0]      how many [CLS] there are up to each position
    """
    return (np.cumsum(input_ids == cls_id, axis=1) * input_mask).astype(np.int32)
