"""Two texts, each masked in a row of its own, to be read alone and with the other in sight (VECO, Luo et al. 2021).

The two are adjacent segments of a document, or a sentence and its translation; records of both are of one schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from data.forms.one_row import OneRow
from data.forms.segments import Segments, join_apart
from data.forms.sides import Side, side_problems
from data.masking import hide_tokens
from data.randomness import keys, stream_number
from data.schema import Feature, Schema

if TYPE_CHECKING:
    from data.masking import MaskVocabulary
    from data.pairing import Pairs
    from data.recipe import Recipe, Specials, Vocabulary
    from data.schema import Lengths
    from data.tokenizers.template import Template

OTHER = "other_"
_OTHER_SIDE = stream_number("masks of the other side")


class TwoSides(OneRow):
    """`[CLS] A [SEP]` and `[CLS] B [SEP]`, equally wide; the features of B have `other_` before their names."""

    schema: Schema = tuple(
        Feature(prefix + name, (axis,), dtype)
        for prefix in ("", OTHER)
        for name, axis, dtype in (
            ("input_ids", "tokens", "int32"),
            ("input_mask", "tokens", "int32"),
            ("masked_lm_positions", "predictions", "int32"),
            ("masked_lm_ids", "predictions", "int32"),
            ("masked_lm_weights", "predictions", "float32"),
        )
    )
    optional: tuple[str, ...] = ()
    sides: tuple[Side, ...] = tuple(
        Side(f"{prefix}input_ids", f"{prefix}input_mask", f"{prefix}input_mask", f"{prefix}masked_lm", shuffled="")
        for prefix in ("", OTHER)
    )
    apart: bool = True
    label: str = ""

    def check(self, recipe: Recipe) -> None:
        if recipe.pairing.num_segments < 2:
            raise UsageError(f"two sides need an --objective of pairs, which {recipe.objective} is not")
        if recipe.word_order:
            raise UsageError(
                f"--trigram_rate={recipe.word_order.rate:g}: --objective={recipe.objective} reads two texts, whose "
                "words stay in order; leave it out"
            )

    def lengths(self, tokens: int, predictions: int, shuffled: int, target: int = 0) -> Lengths:
        del shuffled, target
        return {"tokens": tokens, "predictions": predictions}

    def width(self, recipe: Recipe) -> int:
        return 2 * recipe.max_seq_length

    def max_tokens(self, recipe: Recipe, template: Template) -> int:
        return 2 * template.max_tokens(recipe.max_seq_length, 1)

    def join(self, tokens: np.ndarray, pairs: Pairs, recipe: Recipe, vocabulary: Vocabulary) -> Segments:
        return join_apart(tokens, pairs, vocabulary.template, self.width(recipe))

    def features(
        self,
        segments: Segments,
        keys_N: np.ndarray,
        recipe: Recipe,
        specials: Specials,
        vocabulary: MaskVocabulary,
    ) -> dict[str, np.ndarray]:
        """Hide tokens of each text by a key of its own, so that what is hidden of one says nothing of the other.

        Example:
            ids       [2 10 11 12 3 2 13 14 3 0 0 0]     bounds [0, 5, 9]; rows of 6
            hidden    [0 0 1 0 0] of the first, [0 1 0 0] of the second
            features  input_ids [2 10 4 12 3 0], masked_lm_positions [2], masked_lm_ids [11], and so on;
                      other_input_ids [2 4 14 3 0 0], other_masked_lm_positions [1], other_masked_lm_ids [13]
        """
        del specials
        L = recipe.max_seq_length
        features = {}
        for number, (prefix, keys_of_side) in enumerate((("", keys_N), (OTHER, keys(keys_N, _OTHER_SIDE)))):
            text = segments.text(number, L, "a text")
            hidden, predicted_NL = hide_tokens(
                text.ids,
                text.word_starts,
                text.lengths,
                keys_of_side,
                recipe.masking,
                vocabulary,
                vocabulary.special.take(text.ids),
            )
            hidden["input_ids"] = self.shown(hidden["input_ids"], predicted_NL, vocabulary)
            hidden["input_mask"] = (np.arange(L) < text.lengths[:, None]).astype(np.int32)
            features |= {prefix + name: value for name, value in hidden.items()}
        return {feature.name: features[feature.name] for feature in self.schema}

    def shown(self, ids_NL: np.ndarray, predicted_NL: np.ndarray, vocabulary: MaskVocabulary) -> np.ndarray:
        """Return the ids with what is shown of predicted tokens: as masking left them."""
        del predicted_NL, vocabulary
        return ids_NL

    def problems(self, features: Mapping[str, np.ndarray], manifest: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
        checks = {}
        for side, prefix in zip(self.sides, ("", OTHER), strict=True):
            found = side_problems(features, side, manifest)
            found["no token between its specials"] = features[side.mask].sum(axis=1) < 3
            # The first text is reported as texts of one row are.
            checks |= {f"{prefix}input_ids: {what}" if prefix else what: rows for what, rows in found.items()}
        return checks
