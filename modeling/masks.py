"""Masks of attention, as boolean tensors that broadcast to [B, N, L, S]; True keeps."""

import numpy as np

from ground.tensors import Tensor, ops


def padding_mask(input_mask_BS: Tensor) -> Tensor:
    """Keep the keys whose `input_mask` is not zero: [B, S] -> [B, 1, 1, S]."""
    return ops.cast(input_mask_BS, "bool")[:, None, None, :]


def sequence_mask(sequence_ids_BL: Tensor, memory_ids_BS: Tensor | None = None) -> Tensor:
    """Keep the keys of each query's own sequence, by number: [B, L] -> [B, 1, L, S]; padding, 0, sees padding only.

    The keys are those of the row itself unless the numbers of others are given.
    """
    keys_BS = sequence_ids_BL if memory_ids_BS is None else memory_ids_BS
    return sequence_ids_BL[:, None, :, None] == keys_BS[:, None, None, :]


def causal_mask(length: int, memory_length: int, position: int | Tensor = 0) -> Tensor:
    """Keep the keys at or before each query: [1, 1, L, S]; the first query is at `position` of the keys."""
    query_L1 = ops.arange(length, dtype="int32")[:, None] + position
    key_1S = ops.arange(memory_length, dtype="int32")[None, :]
    return (key_1S <= query_L1)[None, None]


def additive(mask: Tensor) -> Tensor:
    """Return a boolean mask as float32 to be added to scores: 0 where kept, else finite and below every real score.

    Half of the lowest float32: a row with no key left becomes uniform instead of NaN.
    """
    return ops.where(mask, 0.0, float(np.finfo(np.float32).min) / 2)
