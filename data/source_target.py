"""Sources and targets of generation -> batches, both sides padded to the longest of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from data.labelled import ClassificationDataset, EncodedExamples, encode_examples, padded
from data.lengths import count_of_lengths, longest_of_batches, padded_lengths
from ground.ragged import span_indices

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """Tokenised sources, and targets between the template's first and last special.

    Attributes:
        sources: as the encoder reads them.
        targets: one token longer than what the decoder reads.
        max_target_length: most positions of the decoder.
    """

    sources: EncodedExamples
    targets: EncodedExamples
    max_target_length: int

    @property
    def num_examples(self) -> int:
        return self.sources.num_examples

    @property
    def lengths_tokens(self) -> np.ndarray:
        return self.sources.lengths_tokens


def encode_sources_targets(
    texts_a: Sequence[str],
    texts_b: Sequence[str] | None,
    targets: Sequence[str],
    tokenizer: Tokenizer,
    max_seq_length: int,
    max_target_length: int,
) -> EncodedPairs:
    """Tokenise both sides; sources are cut to `max_seq_length` tokens, targets so that the decoder has
    `max_target_length` positions.
    """
    nothing = [-1] * len(targets)
    return EncodedPairs(
        encode_examples(texts_a, texts_b, nothing, tokenizer, max_seq_length),
        encode_examples(targets, None, nothing, tokenizer, max_target_length + 1),
        max_target_length,
    )


@dataclass
class SourceTargetDataset(ClassificationDataset):
    """Batches as those of `ClassificationDataset`, by the length of the source, with targets in place of labels."""

    examples: EncodedPairs  # pyright: ignore[reportIncompatibleVariableOverride]
    target_lengths: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        # Every pair of a source's and a target's length is a program: as many pairs as there are lengths elsewhere.
        pairs, count = self.examples, count_of_lengths(self.steps_per_epoch)
        longest = longest_of_batches(pairs.lengths_tokens, self.batch_size)
        self.lengths = self.lengths or padded_lengths(longest, max(1, count // 2), self.max_seq_length)
        # Batches are in the order of their sources: the targets of each may be any.
        positions = np.maximum(pairs.targets.lengths_tokens - 1, 1)
        longest = np.maximum.reduceat(positions, np.arange(0, len(positions), self.batch_size))
        self.target_lengths = padded_lengths(np.sort(longest), min(2, count), pairs.max_target_length)

    def _collate(self, members: np.ndarray, batch_size: int | None = None) -> dict[str, np.ndarray]:
        """Return `target_ids` and `target_mask`, int32 [B, T + 1], beside the features of the source.

        Example:
            targets [2 8 9 3] and [2 7 3], most positions 16, a batch of three
            target_ids  [2 8 9 3 0 ..], [2 7 3 0 0 ..], [0 ..]      5 columns: the shortest length is 4 positions
            target_mask [1 1 1 1 0 ..], [1 1 1 0 0 ..], [0 ..]
        """
        rows, pairs = batch_size or self.batch_size, self.examples
        lengths = pairs.targets.lengths_tokens[members]
        positions = next(length for length in self.target_lengths if length + 1 >= lengths.max())
        mask = np.zeros((rows, positions + 1), np.int32)
        mask[: len(members)] = np.arange(positions + 1) < lengths[:, None]
        ids = np.zeros_like(mask)
        ids[mask == 1] = pairs.targets.ids[span_indices(pairs.targets.splits[members], lengths)]
        features = padded(pairs.sources, members, rows, self._padded_length(members))
        return {**features, "target_ids": ids, "target_mask": mask}

    def sources(self) -> dict[str, np.ndarray]:
        """Return the features of all sources in the order of the examples, int32 [N, S]."""
        examples = self.examples.sources
        return padded(examples, np.arange(examples.num_examples), examples.num_examples, self.max_seq_length)
