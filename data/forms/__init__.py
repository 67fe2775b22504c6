"""Forms: how the segments of examples become the features of a batch. A form is one file here and one row of `FORMS`.

A pairing (`data.pairing`) says which spans of text are the segments of an example. A form joins the segments and the
specials to `Segments`, which compact records store, and turns those into features: `one_row` is BERT's input, `packed`
has several sequences in a row, `source_target` a row for an encoder and one for a decoder, `two_sides` a masked row for
each of two texts, `halves` one for each text of a pair that is one sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from data.forms.halves import Halves
from data.forms.one_row import OneRow
from data.forms.packed import Packed
from data.forms.segments import Segments
from data.forms.sides import Side
from data.forms.source_target import SourceTarget
from data.forms.two_sides import TwoSides
from data.objectives import OBJECTIVES

if TYPE_CHECKING:
    from data.masking import MaskVocabulary
    from data.pairing import Pairs
    from data.recipe import Recipe, Specials, Vocabulary
    from data.schema import Lengths, Schema
    from data.tokenizers.template import Template

__all__ = ["FORMS", "Form", "Segments", "Side", "scored_per_prediction", "texts_read"]


class Form(Protocol):
    """The layout of an example. Rows of N examples go through every method at once."""

    @property
    def schema(self) -> Schema:
        """All features that a batch may have; those with an axis of length 0 are absent."""
        ...

    @property
    def optional(self) -> tuple[str, ...]:
        """The axes whose length may be 0."""
        ...

    @property
    def sides(self) -> tuple[Side, ...]:
        """The texts of an example, for statistics, checks and display."""
        ...

    @property
    def apart(self) -> bool:
        """Whether each text of an example has a row of its own, so that none takes room from another."""
        ...

    @property
    def label(self) -> str:
        """The feature of the pair's class; empty where examples have none."""
        ...

    @property
    def sequences(self) -> str:
        """The feature that numbers the sequences of a row; empty where a row is one example."""
        ...

    def check(self, recipe: Recipe) -> None:
        """Raise `UsageError`, naming the flags, where a recipe is impossible in this form."""
        ...

    def lengths(self, tokens: int, predictions: int, shuffled: int, target: int = 0) -> Lengths:
        """Return the length of every axis of the schema, for texts of `tokens` and room for so many labels in each.

        `target` is how many positions a decoder has, in forms with a target.
        """
        ...

    def width(self, recipe: Recipe) -> int:
        """Return how many tokens the segments of an example have at most, specials counted."""
        ...

    def max_tokens(self, recipe: Recipe, template: Template) -> int:
        """Return how many tokens of text an example holds beside its specials."""
        ...

    def lay_out(
        self, tokens: np.ndarray, pairs: Pairs, recipe: Recipe, vocabulary: Vocabulary
    ) -> tuple[np.ndarray, Pairs, dict[str, int]]:
        """Return tokens and spans of the examples that paired spans make, and counts for the manifest."""
        ...

    def join(self, tokens: np.ndarray, pairs: Pairs, recipe: Recipe, vocabulary: Vocabulary) -> Segments:
        """Return the examples with their specials; `pairs` points into `tokens` (id * 2 + begins a word)."""
        ...

    def features(
        self,
        segments: Segments,
        keys_N: np.ndarray,
        recipe: Recipe,
        specials: Specials,
        vocabulary: MaskVocabulary,
    ) -> dict[str, np.ndarray]:
        """Hide tokens; return the stored features, each [N, ...] as the schema says. Row n depends on keys_N[n]."""
        ...

    def complete(self, features: dict[str, np.ndarray], specials: Specials) -> dict[str, np.ndarray]:
        """Return the features with those that are not stored."""
        ...

    def problems(self, features: Mapping[str, np.ndarray], manifest: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
        """Return what no recipe makes, each with the rows it is true of, bool [N]; `manifest` may tell more."""
        ...


FORMS: dict[str, Form] = {
    "one_row": OneRow(),
    "packed": Packed(),
    "source_target": SourceTarget(),
    "two_sides": TwoSides(),
    "halves": Halves(),
}


def texts_read(form: Form) -> int:
    """Return how many texts of an example are masked and read, each in rows of `max_seq_length`; a target is not."""
    return sum(bool(side.hidden) for side in form.sides)


def scored_per_prediction(objective: str) -> int:
    """Return how often a model scores a position for each of `max_predictions_per_seq`: in every text and stream."""
    row = OBJECTIVES[objective]
    return texts_read(FORMS[row.form]) * row.streams
