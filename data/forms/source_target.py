"""An encoder's row and a decoder's: the source masked, the target whole (PALM, Bi et al. 2020, section 2.3).

A decoder reads `target_ids` without the last column and is to give them without the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from data.forms.one_row import OneRow
from data.forms.segments import Segments, join_pairs
from data.forms.sides import Side, side_problems
from data.schema import Feature, Schema
from data.tfrecord.frames import MalformedRecordError
from data.tokenizers.template import Template

if TYPE_CHECKING:
    from data.masking import MaskVocabulary
    from data.pairing import Pairs
    from data.recipe import Recipe, Specials, Vocabulary
    from data.schema import Lengths


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
        first, last = vocabulary.template.first, vocabulary.template.last
        segments = join_pairs(tokens, pairs, Template(first, (*last, *first), last), 2, self.width(recipe))
        # The first special of a target belongs to the target.
        segments.bounds[:, 1] -= len(first)
        return segments

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
        L, T = recipe.max_seq_length, recipe.lengths["target"]
        begin_N, sizes_N = segments.bounds[:, 1], segments.bounds[:, 2] - segments.bounds[:, 1]
        if (begin_N > L).any() or (sizes_N > T).any():
            raise MalformedRecordError(
                f"a source of {begin_N.max()} or a target of {sizes_N.max()} tokens, for rows of {L} and of {T}"
            )
        inside_NL = np.arange(L) < begin_N[:, None]
        source = Segments(
            np.where(inside_NL, segments.ids[:, :L], np.int32(0)),
            segments.word_starts[:, :L] & inside_NL,
            np.stack([np.zeros_like(begin_N), begin_N, begin_N], axis=1),
            segments.label,
        )
        features = super().features(source, keys_N, recipe, specials, vocabulary)
        del features[OneRow.label]
        mask_NT = np.arange(T) < sizes_N[:, None]
        column_NT = np.minimum(begin_N[:, None] + np.arange(T), segments.ids.shape[1] - 1)
        target_NT = np.where(mask_NT, np.take_along_axis(segments.ids, column_NT, axis=1), np.int32(0))
        return {**features, "target_ids": target_NT, "target_mask": mask_NT.astype(np.int32)}

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
