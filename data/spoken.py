"""Which language each of an example's two texts is of, as two features of a batch: int32 [B], numbers of languages.

The second text is a translation, whose language is known, or a sentence that the model is yet to write. Then its
language is drawn by (seed, place of the example), so that a batch stays a pure function of the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data.randomness import keys, stream_number

if TYPE_CHECKING:
    from data.reading import PretrainingDataset

OWN_LANGUAGE, OTHER_LANGUAGE = "language_ids", "other_language_ids"
_DRAWN = stream_number("languages of second texts")


@dataclass(frozen=True)
class Languages:
    """Of the examples of a data set.

    Attributes:
        own: number of the language of the first text.
        others: numbers of the languages that the second may be of, all alike.
    """

    own: int
    others: tuple[int, ...]

    def features(self, seed: int, begin: int, count: int) -> dict[str, np.ndarray]:
        """Return the two features of `count` examples, of which the first has the place `begin` in the run."""
        places = np.arange(begin, begin + count, dtype=np.int64)
        drawn = keys(seed, _DRAWN, places) % np.uint64(len(self.others))
        others = np.asarray(self.others, np.int32)
        return {OWN_LANGUAGE: np.full(count, self.own, np.int32), OTHER_LANGUAGE: others[drawn.astype(np.int64)]}


class Spoken:
    """A data set whose batches say their languages."""

    def __init__(self, dataset: PretrainingDataset, languages: Languages):
        self._dataset, self._languages = dataset, languages

    @property
    def num_examples(self) -> int:
        """Examples of one epoch."""
        return self._dataset.num_examples

    def batch(self, step: int) -> Mapping[str, Any]:
        """Return the batch of optimizer step `step` (from 0)."""
        size, (index, count) = self._dataset.batch_size, self._dataset.shard
        begin = (step * count + index) * size
        return self._dataset.batch(step) | self._languages.features(self._dataset.seed, begin, size)

    def evaluation_batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield every example once; see `PretrainingDataset.evaluation_batches`."""
        for number, batch in enumerate(self._dataset.evaluation_batches(batch_size)):
            yield batch | self._languages.features(self._dataset.seed, number * batch_size, batch_size)
