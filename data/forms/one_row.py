"""BERT's input: one or two segments in one row, masked, with a label for the pair (Devlin et al. 2019, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from data.forms.segments import Segments, join_pairs
from data.forms.sides import Side, side_problems
from data.masking import hide_tokens
from data.schema import Feature, Schema
from data.word_order import shuffle_words

if TYPE_CHECKING:
    from data.masking import MaskVocabulary
    from data.pairing import Pairs
    from data.recipe import Recipe, Specials, Vocabulary
    from data.schema import Lengths
    from data.tokenizers.template import Template


class OneRow:
    """`[CLS] A [SEP] B [SEP]` or `[CLS] A [SEP]` in the features that BERT named."""

    # In the order in which BERT's scripts write them.
    schema: Schema = (
        Feature("input_ids", ("tokens",)),
        Feature("input_mask", ("tokens",)),
        Feature("segment_ids", ("tokens",)),
        Feature("masked_lm_positions", ("predictions",)),
        Feature("masked_lm_ids", ("predictions",)),
        Feature("masked_lm_weights", ("predictions",), "float32"),
        Feature("word_order_positions", ("shuffled",)),
        Feature("word_order_ids", ("shuffled",)),
        Feature("word_order_weights", ("shuffled",), "float32"),
        Feature("next_sentence_labels"),
    )
    optional: tuple[str, ...] = ("shuffled",)
    sides: tuple[Side, ...] = (Side(),)
    apart: bool = False
    label: str = "next_sentence_labels"
    sequences: str = ""

    def check(self, recipe: Recipe) -> None:
        """Every recipe fits."""

    def lengths(self, tokens: int, predictions: int, shuffled: int, target: int = 0) -> Lengths:
        del target
        return {"tokens": tokens, "predictions": predictions, "shuffled": shuffled}

    def width(self, recipe: Recipe) -> int:
        return recipe.max_seq_length

    def max_tokens(self, recipe: Recipe, template: Template) -> int:
        return template.max_tokens(recipe.max_seq_length, recipe.pairing.num_segments)

    def lay_out(
        self, tokens: np.ndarray, pairs: Pairs, recipe: Recipe, vocabulary: Vocabulary
    ) -> tuple[np.ndarray, Pairs, dict[str, int]]:
        """Return the pairs as they are: one example each."""
        del recipe, vocabulary
        return tokens, pairs, {}

    def join(self, tokens: np.ndarray, pairs: Pairs, recipe: Recipe, vocabulary: Vocabulary) -> Segments:
        num_texts, width = recipe.pairing.num_segments, self.width(recipe)
        return join_pairs(tokens, pairs, vocabulary.template, num_texts, width)

    def features(
        self,
        segments: Segments,
        keys_N: np.ndarray,
        recipe: Recipe,
        specials: Specials,
        vocabulary: MaskVocabulary,
    ) -> dict[str, np.ndarray]:
        """Hide tokens, shuffle words and lay out BERT's features.

        Example:
            ids       [2 10 11 3 13 3 0]      bounds [0, 4, 6], label 1
            hidden    [0  0  1 0  0 0 0]      by the key of the row
            features  input_ids [2 10 4 3 13 3 0], input_mask [1 1 1 1 1 1 0], segment_ids [0 0 0 0 1 1 0],
                      masked_lm_positions [2 0], masked_lm_ids [11 0], masked_lm_weights [1 0], next_sentence_labels 1
        """
        tokens, lengths = segments.ids, segments.lengths
        special_NL = vocabulary.special.take(tokens)
        hidden, predicted_NL = hide_tokens(
            tokens, segments.word_starts, lengths, keys_N, recipe.masking, vocabulary, special_NL
        )
        shuffled = {}
        if recipe.word_order:
            shuffled = shuffle_words(
                hidden["input_ids"], tokens, predicted_NL, lengths, keys_N, recipe.word_order, special_NL
            )
        shown_NL = (hidden | shuffled)["input_ids"]
        column_L = np.arange(tokens.shape[1])
        mask_NL = (column_L < lengths[:, None]).astype(np.int32)
        first_id, second_id = specials.segment_ids
        second_NL = column_L >= segments.bounds[:, 1:2]
        return {
            "input_ids": shown_NL,
            "input_mask": mask_NL,
            "segment_ids": mask_NL * np.where(second_NL, np.int32(second_id), np.int32(first_id)),
            **{name: value for name, value in (hidden | shuffled).items() if name != "input_ids"},
            "next_sentence_labels": segments.label.astype(np.int32),
        }

    def complete(self, features: dict[str, np.ndarray], specials: Specials) -> dict[str, np.ndarray]:
        """Return the features as they are: all of them are stored."""
        del specials
        return features

    def problems(self, features: Mapping[str, np.ndarray], manifest: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
        labels, padding = features["next_sentence_labels"], features["input_mask"] == 0
        descends = np.diff(features["segment_ids"] + 2 * padding, axis=1) < 0
        checks = {
            "segment_ids other than zeros, ones, padding": descends.any(axis=1),
            "a label below 0": labels < 0,
        }
        if manifest:
            checks["a label outside the objective's"] = labels >= manifest["num_pair_labels"]
        return side_problems(features, self.sides[0], manifest) | checks
