"""Labelled texts -> padded batches: BERT's [CLS] a [SEP] b [SEP] input, padded to the batch and not to the maximum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer

# A handful of static lengths, so that a compiler sees a handful of programs.
BUCKET_LENGTHS_TOKENS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Batches of alike length are cut from windows of this many batches: enough to waste little, few enough to stay random.
WINDOW_BATCHES = 64


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """Tokenised examples of varying length, one after the other."""

    ids: np.ndarray  # int32 [total]
    segments: np.ndarray  # int32 [total], 0 up to and with the first [SEP], then 1
    splits: np.ndarray  # int64 [N + 1]
    labels: np.ndarray  # int32 [N] (-1 without a label) or float32 [N]
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
    labels: Sequence[int] | Sequence[float],
    tokenizer: Tokenizer,
    max_seq_length: int,
) -> EncodedExamples:
    """Tokenises single texts or pairs and cuts each to `max_seq_length` tokens with specials.

    A pair that is too long loses tokens from the end of its longer side, one by one (of two equal sides, b's), as BERT
    does.

    Args:
        texts_a: first texts.
        texts_b: second texts, or None for single-text tasks.
        labels: a class id or a value each; -1 where unknown.
        tokenizer: any tokenizer of `data.tokenizers`.
        max_seq_length: in tokens, [CLS] and [SEP] counted.
    """
    sides = [_ragged(texts_a, tokenizer)] + ([_ragged(texts_b, tokenizer)] if texts_b is not None else [])
    budget = max_seq_length - 1 - len(sides)
    lengths = np.stack([np.diff(splits) for _, splits in sides], axis=1)
    kept = np.minimum(lengths, budget) if len(sides) == 1 else _pair_lengths(lengths, budget)
    splits = np.concatenate([[0], np.cumsum(kept.sum(axis=1) + 1 + len(sides))])
    ids = np.full(splits[-1], tokenizer.sep_id, np.int32)
    segments = np.zeros(splits[-1], np.int32)
    ids[splits[:-1]] = tokenizer.cls_id
    begin = splits[:-1] + 1
    for side, (flat, flat_splits) in enumerate(sides):
        target = _spans(begin, kept[:, side])
        ids[target] = flat[_spans(flat_splits[:-1], kept[:, side])]
        if side:
            segments[_spans(begin, kept[:, side] + 1)] = 1
        begin = begin + kept[:, side] + 1
    values = np.asarray(labels)
    return EncodedExamples(
        ids,
        segments,
        splits,
        values.astype(np.float32 if values.dtype.kind == "f" else np.int32),
        truncated_examples=int((kept < lengths).any(axis=1).sum()),
    )


def _ragged(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    encoding = tokenizer.encode_batch(texts)
    return encoding.ids, encoding.splits


def _pair_lengths(lengths: np.ndarray, budget: int) -> np.ndarray:
    """The lengths that are left when the longer side loses a token until both fit, in closed form."""
    a, b = lengths[:, 0], lengths[:, 1]
    # Popping first makes the sides equal, then alternates beginning with b; a short side is left alone.
    half = budget // 2
    kept_a = np.where(b <= half, np.minimum(a, budget - b), np.where(a <= budget - half, a, budget - half))
    kept_b = np.minimum(b, budget - kept_a)
    fits = a + b <= budget
    return np.stack([np.where(fits, a, kept_a), np.where(fits, b, kept_b)], axis=1)


def _spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The indices of all spans [start, start + length), one span after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def bucket_length_tokens(length_tokens: int, max_seq_length: int) -> int:
    """The static length that a batch whose longest example has `length_tokens` is padded to."""
    return next((b for b in BUCKET_LENGTHS_TOKENS if length_tokens <= b < max_seq_length), max_seq_length)


@dataclass
class ClassificationDataset:
    """Batches of encoded examples by length; `batch(step)` is a pure function of (seed, step).

    In every epoch each example occurs exactly once: examples are permuted, sorted by length within windows, cut into
    batches, and the batches permuted. The last batch is filled up with rows of zeros, whose `input_mask` is zero
    throughout and which therefore weigh nothing.
    """

    examples: EncodedExamples
    batch_size: int
    max_seq_length: int
    seed: int = 0
    _plan: tuple[int, list[np.ndarray]] = field(default=(-1, []), repr=False)

    @property
    def num_examples(self) -> int:
        return self.examples.num_examples

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The batch of optimizer step `step` (from 0): int32 [B, L] features and `label_ids` [B]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._plan[0] != epoch:
            self._plan = (epoch, self._epoch_batches(epoch))
        return self._collate(self._plan[1][position])

    def evaluation_batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """All examples once, short ones first (see `evaluation_order` for the way back)."""
        order = self.evaluation_order()
        for begin in range(0, self.num_examples, batch_size):
            yield self._collate(order[begin : begin + batch_size], batch_size)

    def evaluation_order(self) -> np.ndarray:
        """The example indices in the order of `evaluation_batches`."""
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
        lengths = self.examples.lengths_tokens[members]
        length = bucket_length_tokens(int(lengths.max(initial=1)), self.max_seq_length)
        mask = np.zeros((rows, length), np.int32)
        mask[: len(members)] = np.arange(length) < lengths[:, None]
        source = _spans(self.examples.splits[members], lengths)
        features = {"input_ids": np.zeros_like(mask), "input_mask": mask, "segment_ids": np.zeros_like(mask)}
        features["input_ids"][mask == 1] = self.examples.ids[source]
        features["segment_ids"][mask == 1] = self.examples.segments[source]
        labels = np.zeros(rows, self.examples.labels.dtype)
        labels[: len(members)] = self.examples.labels[members]
        return {**features, "label_ids": labels}
