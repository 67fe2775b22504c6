"""Labelled texts -> batches in the template of a tokenizer, padded to the longest example of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from data.lengths import WINDOW_BATCHES, count_of_lengths, longest_of_batches, padded_lengths
from data.token_cache import ids_of
from data.tokenizers.template import Template, kept_lengths
from ground.ragged import bounds_of, span_indices

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """Tokenised examples of varying length, one after the other."""

    ids: np.ndarray  # int32 [total]
    segments: np.ndarray  # int32 [total], as the template numbers them
    splits: np.ndarray  # int64 [N + 1]
    labels: np.ndarray  # int32 [N] or [N, 2] (-1 without a label) or float32 [N]; several of an example [N, C]
    truncated_examples: int = 0

    @property
    def num_examples(self) -> int:
        return len(self.splits) - 1

    @property
    def lengths_tokens(self) -> np.ndarray:
        return np.diff(self.splits)


def encode_examples(
    texts_a: Sequence[str],
    texts_b: Sequence[str] | None,
    labels: Sequence[int] | Sequence[float] | np.ndarray,
    tokenizer: Tokenizer,
    max_seq_length: int,
) -> EncodedExamples:
    """Tokenise single texts or pairs and cut each to `max_seq_length` tokens with specials.

    A pair that is too long loses tokens from the end of its longer text, one by one, as BERT does (`kept_lengths`).

    Example:
        texts [5 6] and [7 8 9], max_seq_length 7, [CLS] 2, [SEP] 3
        kept      [[2, 2]]                     7 tokens less three specials leave 4
        ids       2 5 6 3 7 8 3                segments  0 0 0 0 1 1 1

    Args:
        texts_a: first texts.
        texts_b: second texts, or None for single-text tasks.
        labels: a class id or a value each, -1 where unknown; or a row of 0 and 1 each, [N, C].
        tokenizer: any tokenizer of `data.tokenizers`.
        max_seq_length: in tokens, specials counted.
    """
    template = tokenizer.template
    sides = [ids_of(texts, tokenizer) for texts in (texts_a, texts_b) if texts is not None]
    budget = template.max_tokens(max_seq_length, len(sides))
    lengths = np.stack([np.diff(splits) for _, splits in sides], axis=1)
    if len(sides) == 1:
        kept = np.minimum(lengths, budget)
    else:
        kept = np.stack(kept_lengths(lengths[:, 0], lengths[:, 1], budget), axis=1)
    ids, segments, splits = assembled(
        template, [(flat, bounds[:-1], kept[:, side]) for side, (flat, bounds) in enumerate(sides)]
    )
    values = np.asarray(labels)
    return EncodedExamples(
        ids,
        segments,
        splits,
        values.astype(np.float32 if values.dtype.kind == "f" else np.int32),
        truncated_examples=int((kept < lengths).any(axis=1).sum()),
    )


def assembled(
    template: Template, sides: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids and segments int32 [total] and bounds int64 [N + 1] of rows of one or two texts in a template.

    Args:
        template: where the special tokens go.
        sides: for each of the texts the ids that it is cut from, where it begins there in each row, and its length.
    """
    splits = bounds_of(np.sum([lengths for _, _, lengths in sides], axis=0) + template.num_specials(len(sides)))
    ids, segments = np.empty(splits[-1], np.int32), np.empty(splits[-1], np.int32)
    begin = splits[:-1]
    before = template.first
    for side, ((flat, starts, lengths), behind) in enumerate(zip(sides, template.behind(len(sides)), strict=True)):
        size = len(before) + lengths + len(behind)
        segments[span_indices(begin, size)] = template.segment_ids[side]
        for place, token in enumerate(before):
            ids[begin + place] = token
        begin = begin + len(before)
        ids[span_indices(begin, lengths)] = flat[span_indices(starts, lengths)]
        begin = begin + lengths
        for place, token in enumerate(behind):
            ids[begin + place] = token
        begin, before = begin + len(behind), ()
    return ids, segments, splits


def padded(examples: EncodedExamples, members: np.ndarray, rows: int, length: int) -> dict[str, np.ndarray]:
    """Return the features of the chosen examples, int32 [rows, `length`]; rows behind them are zeros."""
    lengths = examples.lengths_tokens[members]
    mask = np.zeros((rows, length), np.int32)
    mask[: len(members)] = np.arange(length) < lengths[:, None]
    source = span_indices(examples.splits[members], lengths)
    features = {"input_ids": np.zeros_like(mask), "input_mask": mask, "segment_ids": np.zeros_like(mask)}
    features["input_ids"][mask == 1] = examples.ids[source]
    features["segment_ids"][mask == 1] = examples.segments[source]
    return features


@dataclass
class ClassificationDataset:
    """Batches of encoded examples by length; `batch(step)` is a pure function of (seed, step).

    In every epoch each example occurs exactly once: examples are permuted, sorted by length within windows, cut into
    batches, and the batches permuted. The last batch is filled up with rows of zeros, whose `input_mask` is zero
    throughout and which therefore weigh nothing.

    Attributes:
        examples: of all batches.
        batch_size: of training.
        max_seq_length: no example is longer.
        seed: of the order.
        lengths: what batches may be padded to, ascending; by default the few that pad least (`data.lengths`).
    """

    examples: EncodedExamples
    batch_size: int
    max_seq_length: int
    seed: int = 0
    lengths: tuple[int, ...] = ()
    _plan: tuple[int, list[np.ndarray]] = field(default=(-1, []), repr=False)

    def __post_init__(self) -> None:
        if not self.lengths:
            longest = longest_of_batches(self.examples.lengths_tokens, self.batch_size)
            self.lengths = padded_lengths(longest, count_of_lengths(self.steps_per_epoch), self.max_seq_length)

    @property
    def num_examples(self) -> int:
        return self.examples.num_examples

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def _padded_length(self, members: np.ndarray) -> int:
        """Return what a batch of these examples is padded to."""
        longest = self.examples.lengths_tokens[members].max()
        return next(length for length in self.lengths if length >= longest)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return the batch of optimizer step `step` (from 0): int32 [B, L] features and `label_ids` [B]."""
        return self._collate(self.members(step))

    def members(self, step: int) -> np.ndarray:
        """Return the numbers of the examples of the batch of `step`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._plan[0] != epoch:
            self._plan = (epoch, self._epoch_batches(epoch))
        return self._plan[1][position]

    def evaluation_batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield all examples once, short ones first (`evaluation_order` maps them back).

        A batch of short examples has twice, four times ... as many, so that it has no more tokens than `batch_size`
        examples of full length, and as few programs are compiled as there are such sizes. The last one is filled up.

        Example: batch_size 2, max_seq_length 64, lengths 10 10 11 11 12 12 12 12 40 60 60
            batches   8 x 16, 2 x 64, 1 x 64 and a row of zeros
        """
        order = self.evaluation_order()
        most, begin = batch_size * self.max_seq_length, 0
        while begin < len(order):
            rows = batch_size
            while (end := begin + 2 * rows) <= len(order) and (
                2 * rows * self._padded_length(order[end - 1 : end]) <= most
            ):
                rows *= 2
            yield self._collate(order[begin : begin + rows], rows)
            begin += rows

    def evaluation_order(self) -> np.ndarray:
        """Return the example indices in the order of `evaluation_batches`."""
        return np.argsort(self.examples.lengths_tokens, kind="stable")

    def _epoch_batches(self, epoch: int) -> list[np.ndarray]:
        generator = np.random.Generator(np.random.Philox(key=[self.seed % 2**64, epoch]))
        order = generator.permutation(self.num_examples)
        window = WINDOW_BATCHES * self.batch_size
        batches = []
        for begin in range(0, len(order), window):
            members = order[begin : begin + window]
            members = members[np.argsort(self.examples.lengths_tokens[members], kind="stable")]
            batches += [members[i : i + self.batch_size] for i in range(0, len(members), self.batch_size)]
        return [batches[i] for i in generator.permutation(len(batches))]

    def _collate(self, members: np.ndarray, batch_size: int | None = None) -> dict[str, np.ndarray]:
        rows = batch_size or self.batch_size
        labels = np.zeros((rows, *self.examples.labels.shape[1:]), self.examples.labels.dtype)
        labels[: len(members)] = self.examples.labels[members]
        return {**self._features(members, rows), "label_ids": labels}

    def _features(self, members: np.ndarray, rows: int) -> dict[str, np.ndarray]:
        """Return what the model reads of the chosen examples, int32 [rows, L]."""
        return padded(self.examples, members, rows, self._padded_length(members))


@dataclass(frozen=True, slots=True)
class EncodedGroups:
    """Tokenised rows, several an example: the choices of a question, the two texts of a pair.

    Attributes:
        rows: of all examples, one example's after the other's; their labels are not read.
        splits: int64 [N + 1]; example n has the rows from splits[n] to before splits[n + 1], one at least.
        labels: of the examples, int32 or float32 [N].
    """

    rows: EncodedExamples
    splits: np.ndarray
    labels: np.ndarray

    @property
    def num_examples(self) -> int:
        return len(self.splits) - 1

    @property
    def lengths_tokens(self) -> np.ndarray:
        """The longest row of each example."""
        return np.maximum.reduceat(self.rows.lengths_tokens, self.splits[:-1])

    @property
    def most_rows(self) -> int:
        """C, the rows of the example that has most."""
        return int(np.diff(self.splits).max())


@dataclass
class GroupedDataset(ClassificationDataset):
    """Batches as those of `ClassificationDataset`, by the longest row of an example, with features int32 [B, C, L].

    All rows of an example are in its batch. C is the same in every batch, so that there is one program a length.
    """

    examples: EncodedGroups  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def rows_per_example(self) -> int:
        """C: rows that the model computes for every example of a batch."""
        return self.examples.most_rows

    def _collate(self, members: np.ndarray, batch_size: int | None = None) -> dict[str, np.ndarray]:
        """Return features [B, C, L] and `label_ids` [B]; what an example has not, is rows of zeros.

        Example:
            splits [0 2 5], most rows 3, members 1 and 0, a batch of three
            rows     2 3 4  0 1
            places   0 1 2  3 4           in [3 * 3, L]; places 5 to 8 stay zeros
        """
        rows, groups, width = batch_size or self.batch_size, self.examples, self.examples.most_rows
        sizes = np.diff(groups.splits)[members]
        chosen = span_indices(groups.splits[members], sizes)
        places = span_indices(np.arange(len(members)) * width, sizes)
        batch = {}
        for name, found in padded(groups.rows, chosen, len(chosen), self._padded_length(members)).items():
            feature = np.zeros((rows * width, found.shape[1]), np.int32)
            feature[places] = found
            batch[name] = feature.reshape(rows, width, -1)
        labels = np.zeros(rows, groups.labels.dtype)
        labels[: len(members)] = groups.labels[members]
        return {**batch, "label_ids": labels}
