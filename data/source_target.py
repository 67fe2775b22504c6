"""Sources and targets of generation -> batches, both sides padded to the longest of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data.labelled import ClassificationDataset, EncodedExamples, bucket_length_tokens, encode_examples, padded
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

    def _collate(self, members: np.ndarray, batch_size: int | None = None) -> dict[str, np.ndarray]:
        """Return `target_ids` and `target_mask`, int32 [B, T + 1], beside the features of the source.

        Example:
            targets [2 8 9 3] and [2 7 3], most positions 16, a batch of three
            target_ids  [2 8 9 3 0 ..], [2 7 3 0 0 ..], [0 ..]      17 columns: the first bucket is of 16 positions
            target_mask [1 1 1 1 0 ..], [1 1 1 0 0 ..], [0 ..]
        """
        rows, pairs = batch_size or self.batch_size, self.examples
        features = padded(pairs.sources, members, rows, self.max_seq_length)
        lengths = pairs.targets.lengths_tokens[members]
        positions = bucket_length_tokens(int(lengths.max(initial=2)) - 1, pairs.max_target_length)
        mask = np.zeros((rows, positions + 1), np.int32)
        mask[: len(members)] = np.arange(positions + 1) < lengths[:, None]
        ids = np.zeros_like(mask)
        ids[mask == 1] = pairs.targets.ids[span_indices(pairs.targets.splits[members], lengths)]
        return {**features, "target_ids": ids, "target_mask": mask}

    def sources(self) -> dict[str, np.ndarray]:
        """Return the features of all sources in the order of the examples, int32 [N, S]."""
        examples = self.examples.sources
        return padded(examples, np.arange(examples.num_examples), examples.num_examples, self.max_seq_length)
