"""Where special tokens go around the texts of an example: `[CLS] A [SEP] B [SEP]` (Devlin et al. 2019) and its kin.

XLM-R (Conneau et al. 2020) writes `<s> A </s></s> B </s>` and has one kind of segment. A template is a property of a
tokenizer, because published weights expect the form that they were trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Template:
    """The ids before, between and behind the texts of an example.

    Attributes:
        first: before the first text.
        between: behind every text but the last; belongs to the segment before it.
        last: behind the last text.
        segment_ids: of the first and of the second text, with the specials that belong to them.
    """

    first: tuple[int, ...]
    between: tuple[int, ...]
    last: tuple[int, ...]
    segment_ids: tuple[int, int] = (0, 1)

    @classmethod
    def of_bert(cls, cls_id: int, sep_id: int) -> Template:
        """Return `[CLS] A [SEP] B [SEP]`."""
        return cls((cls_id,), (sep_id,), (sep_id,))

    @classmethod
    def of_roberta(cls, start_id: int, end_id: int) -> Template:
        """Return `<s> A </s></s> B </s>`, whose texts have the same segment id."""
        return cls((start_id,), (end_id, end_id), (end_id,), segment_ids=(0, 0))

    def num_specials(self, num_texts: int) -> int:
        """Return how many special tokens an example of `num_texts` texts has."""
        return len(self.first) + (num_texts - 1) * len(self.between) + len(self.last)

    def max_tokens(self, max_seq_length: int, num_texts: int) -> int:
        """Return how many tokens of text fit beside the specials into `max_seq_length` tokens."""
        return max_seq_length - self.num_specials(num_texts)

    def behind(self, num_texts: int) -> list[tuple[int, ...]]:
        """Return the ids behind each of the texts."""
        return [*[self.between] * (num_texts - 1), self.last]


def kept_lengths(a: Any, b: Any, max_tokens: int, minimum: Callable[[Any, Any], Any] = np.minimum) -> tuple[Any, Any]:
    """Return the lengths that are left when the longer of two texts loses a token until both fit (BERT's truncation).

    Of two equally long texts the second loses the token. Removing tokens one by one first makes both equal and then
    alternates; in closed form, elementwise:

    Example:
        a [3, 9, 9]   b [4, 2, 8]   max_tokens 8, so half 4
        a keeps       [3, 6, 4]     8 less what the other takes of its half: min(a, 8 - min(b, 4))
        b keeps       [4, 2, 4]     what is left: min(b, 8 - [3, 6, 4])

    Args:
        a: lengths in tokens, an integer or an array of any library.
        b: lengths of the second texts, likewise.
        max_tokens: of both together.
        minimum: elementwise minimum of the arrays' library.
    """
    kept_a = minimum(a, max_tokens - minimum(b, max_tokens // 2))
    return kept_a, minimum(b, max_tokens - kept_a)
