"""Two texts of one sequence in a row each, to be recovered from one another (ERNIE-M's CAMLM, Ouyang et al. 2021).

The rows are `[CLS] A [SEP]` and `[SEP] B [SEP]`: one behind the other they are XLM-R's pair, whatever the template of
the tokenizer is. Every predicted token is shown as [MASK]: one that stayed, or a random one, would be read by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from absl.app import UsageError

from data.forms.segments import Segments, join_apart
from data.forms.two_sides import TwoSides

if TYPE_CHECKING:
    from data.masking import MaskVocabulary
    from data.pairing import Pairs
    from data.recipe import Recipe, Vocabulary


class Halves(TwoSides):
    """The features of `TwoSides`; positions of the second text may go on behind the first."""

    def check(self, recipe: Recipe) -> None:
        super().check(recipe)
        if recipe.masking.permute:
            raise UsageError(
                f"--do_permutation: --objective={recipe.objective} shows every predicted token as [MASK], since one "
                "that is shown as another reads that one; leave it out"
            )

    def join(self, tokens: np.ndarray, pairs: Pairs, recipe: Recipe, vocabulary: Vocabulary) -> Segments:
        template = vocabulary.template
        return join_apart(tokens, pairs, template, self.width(recipe), second=template.last)

    def shown(self, ids_NL: np.ndarray, predicted_NL: np.ndarray, vocabulary: MaskVocabulary) -> np.ndarray:
        return np.where(predicted_NL, np.int32(vocabulary.mask_id), ids_NL)
