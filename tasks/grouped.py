"""Batches with several rows an example, [B, C, L], through a model that knows rows [B * C, L] alone."""

from __future__ import annotations

from collections.abc import Mapping

from ground.tensors import Tensor, ops

ROW_FEATURES = ("input_ids", "input_mask", "segment_ids")


def rows_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the features of every row, int32 [B * C, L]: what a model of texts and pairs is called with."""
    length = ops.shape(batch["input_ids"])[-1]
    return {name: ops.reshape(batch[name], (-1, length)) for name in ROW_FEATURES}


def real_rows(batch: Mapping[str, Tensor]) -> Tensor:
    """Return float32 [B, C]: 1 for a row of an example, 0 for one that only fills up."""
    return ops.cast(batch["input_mask"][:, :, 0], "float32")


def grouped_weights(batch: Mapping[str, Tensor]) -> Tensor:
    """Return float32 [B]: 1 for an example, 0 for one that only fills up the batch."""
    return real_rows(batch)[:, 0]
