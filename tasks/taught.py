"""A data set whose batches bring what a teacher says of their examples, so that a step needs no teacher.

An example is known by a digest of its tokens: whatever order, epoch or batch it comes in, and whatever it is padded to,
its scores are its own. Those of many runs lie in the cache (`data/teacher_scores.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from data import teacher_scores
from data.teacher_scores import KEY_BYTES, Scores
from ground.tensors import Tensor, ops
from tasks.distillation import TAUGHT, Teacher, Watched
from tasks.kinds import Batch, LabelledDataset

_SCORES = "scores"


class ScoringTask:
    """A teacher alone, whose predictions are its scores; implements as much of `training.engine.Task` as predicts."""

    loss_weights: Mapping[str, float] = {}
    metrics = ()

    def __init__(self, teacher: Teacher):
        self._teacher = teacher

    def build_model(self) -> keras.Model:
        """Return the teacher."""
        return self._teacher.build()

    def companions(self) -> Mapping[str, keras.Model]:
        """Return no further models."""
        return {}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return nothing: nothing is learnt."""
        return {}

    def terms(self, model: Any, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool) -> tuple[dict, dict]:
        """Return nothing: nothing is learnt."""
        return {}, {}

    def predictions(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `scores` float32 [B, outputs, rows of an example, tokens or 1, classes]."""
        watched = Watched(model, scores_only=True)
        self._teacher.task.predictions(watched, batch)
        found = []
        for _, value in sorted(watched.outputs.items()):
            tokens = value.shape[1] if len(value.shape) == 3 else 1
            shape = (batch["input_ids"].shape[0], -1, tokens, value.shape[-1])
            found.append(ops.reshape(ops.cast(value, "float32"), shape))
        return {_SCORES: ops.stack(found, axis=1)}


class WithFeatures:
    """The batches of a data set with further features of `further`; everything else is the data set's."""

    def __init__(self, dataset: LabelledDataset):
        self._dataset = dataset
        self.lengths: tuple[int, ...] = getattr(dataset, "lengths", ())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def further(self, batch: Batch) -> dict[str, np.ndarray]:
        """Return the further features of a batch; leading axis: examples."""
        raise NotImplementedError

    @property
    def num_examples(self) -> int:
        """Rows of one epoch."""
        return self._dataset.num_examples

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""
        return self._dataset.steps_per_epoch

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return the batch of `step`."""
        return self._with_further(self._dataset.batch(step))

    def evaluation_batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield every row once."""
        return map(self._with_further, self._dataset.evaluation_batches(batch_size))

    def evaluation_order(self) -> np.ndarray:
        """Return the number of each row in the order of `evaluation_batches`."""
        return self._dataset.evaluation_order()

    def _with_further(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**batch, **self.further(batch)}


class TaughtDataset(WithFeatures):
    """Batches with TAUGHT, float32 [B, outputs, rows of an example, tokens or 1, classes]."""

    def __init__(self, dataset: LabelledDataset, scores: Scores):
        super().__init__(dataset)
        self._scores = scores
        self._shape = np.max([value.shape for value in scores.values()], axis=0)

    def further(self, batch: Batch) -> dict[str, np.ndarray]:
        """Return the scores of the examples; zeros for what fills up."""
        size, *rows, length = batch["input_ids"].shape
        outputs, _, tokens, classes = self._shape
        found = np.zeros((size, outputs, *(rows or [1]), length if tokens > 1 else 1, classes), np.float32)
        for place, key in zip(found, content_keys(batch), strict=True):
            if key:
                value = self._scores[key]
                place[:, : value.shape[1], : value.shape[2]] = value
        return {TAUGHT: found}


def content_keys(batch: Batch) -> list[bytes]:
    """Return a digest of what a model reads of each example of a batch; b"" for one that only fills it up.

    Padding, and rows that are not there, are no part of it.
    """
    length = batch["input_ids"].shape[-1]
    ids, mask, segments = (
        np.ascontiguousarray(batch[name], "<i4").reshape(len(batch[name]), -1, length)
        for name in ("input_ids", "input_mask", "segment_ids")
    )
    found = []
    for lengths, own_ids, own_segments in zip(mask.sum(axis=-1, dtype="<i4"), ids, segments, strict=True):
        used = lengths[: np.flatnonzero(lengths).max(initial=-1) + 1]
        digest = hashlib.blake2b(used.tobytes(), digest_size=KEY_BYTES)
        for number, count in enumerate(used):
            digest.update(own_ids[number, :count].tobytes() + own_segments[number, :count].tobytes())
        found.append(digest.digest() if len(used) else b"")
    return found


def taught(
    dataset: LabelledDataset,
    batch_size: int,
    key: str,
    predict: Callable[[Iterable[Batch]], Iterator[Mapping[str, np.ndarray]]],
) -> tuple[Scores, int]:
    """Return the scores of every example of a data set, and how many a former run has left.

    Args:
        dataset: read once.
        batch_size: of the teacher's passes.
        key: of the teacher.
        predict: runs a `ScoringTask` of it; called only where a score is missing.
    """
    former = teacher_scores.read(key)
    scores: Scores = {}
    asked: list[list[tuple[int, bytes, int, int]]] = []

    def unknown() -> Iterator[Batch]:
        for batch in dataset.evaluation_batches(batch_size):
            places = []
            for place, name in enumerate(content_keys(batch)):
                if name in former:
                    scores[name] = former[name]
                elif name and name not in scores:
                    lengths = np.atleast_2d(batch["input_mask"][place]).sum(axis=-1)
                    places.append((place, name, int(np.flatnonzero(lengths).max()) + 1, int(lengths.max())))
            if places:
                asked.append(places)
                yield batch

    missing = unknown()
    if (first := next(missing, None)) is not None:

        def again() -> Iterator[Batch]:
            yield first
            yield from missing

        for found in predict(again()):
            for place, name, rows, length in asked.pop(0):
                value = found[_SCORES][place]
                scores[name] = value[:, :rows, : length if value.shape[2] > 1 else 1].copy()
        teacher_scores.write(key, scores, former)
    return scores, sum(name in former for name in scores)
