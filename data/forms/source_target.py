"""An encoder's row and a decoder's: the source masked, the target whole (PALM, Bi et al. 2020, section 2.3).

A decoder reads `target_ids` without the last column and is to give them without the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from data.forms.one_row import OneRow
from data.forms.segments import Segments, join_apart
from data.forms.sides import Side, side_problems
from data.schema import Feature, Schema

if TYPE_CHECKING:
    from data.masking import MaskVocabulary
    from data.pairing import Pairs
    from data.recipe import Recipe, Specials, Vocabulary
    from data.schema import Lengths
    from data.tokenizers.template import Template


class SourceTarget(OneRow):
    """`[CLS] source [SEP]` in BERT's features, and `[CLS] target [SEP]`, one longer than the decoder's positions."""

    schema: Schema = (
        *(feature for feature in OneRow.schema if feature.axes),
        Feature("target_ids", ("target",)),
        Feature("target_mask", ("target",)),
    )
    sides: tuple[Side, ...] = (
        Side(),
        Side(ids="target_ids", mask="target_mask", parts="target_mask", hidden="", shuffled=""),
    )
    apart: bool = True
    label: str = ""

    def check(self, recipe: Recipe) -> None:
        if recipe.continuation is None:
            raise UsageError(f"a target belongs to --objective=palm or plug, not to {recipe.objective}")
        recipe.continuation.check(recipe.max_seq_length)

    def lengths(self, tokens: int, predictions: int, shuffled: int, target: int = 0) -> Lengths:
        return {**super().lengths(tokens, predictions, shuffled), "target": target + 1}

    def width(self, recipe: Recipe) -> int:
        return recipe.max_seq_length + recipe.lengths["target"]

    def max_tokens(self, recipe: Recipe, template: Template) -> int:
        del template
        assert recipe.continuation
        return recipe.continuation.most_tokens

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
        """Hide tokens and shuffle words of the sources; lay out the targets as they are.

        Example:
            ids       [2 10 11 12 3 2 13 3 0 0]     bounds [0, 5, 8]; rows of 6 and of 4
            source    [2 10 11 12 3 0]              masked as BERT's input is
            features  target_ids [2 13 3 0], target_mask [1 1 1 0]
        """
        source = segments.text(0, recipe.max_seq_length, "a source")
        target = segments.text(1, recipe.lengths["target"], "a target")
        features = super().features(source, keys_N, recipe, specials, vocabulary)
        del features[OneRow.label]
        mask_NT = np.arange(target.ids.shape[1]) < target.lengths[:, None]
        return {**features, "target_ids": target.ids, "target_mask": mask_NT.astype(np.int32)}

    def problems(self, features: Mapping[str, np.ndarray], manifest: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
        source, target = self.sides
        ids_NT, sizes_N = features[target.ids], features[target.mask].sum(axis=1)
        checks = side_problems(features, source, manifest)
        checks |= {f"{target.ids}: {what}": rows for what, rows in side_problems(features, target, manifest).items()}
        checks[f"{target.ids}: no token between its specials"] = sizes_N < 3
        if manifest and "cls_id" in manifest["tokenizer"]:
            first = manifest["tokenizer"]["cls_id"]
            checks[f"{target.ids}: not begun by the tokenizer's first special"] = ids_NT[:, 0] != first
        return checks
