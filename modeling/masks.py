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


def across_mask(side_ids_BL: Tensor, masked_BL: Tensor, reading: str = "strict") -> Tensor:
    """Keep for masked positions what is not masked of the other text, and themselves: [B, L] -> [B, 1, L, L].

    The two texts of a row, a [M] of the one and b [M'] of the other:
        side_ids [1 1 2 2], masked [0 1 0 1]
        strict   a 1000, [M] 0110, b 0010, [M'] 1001      (queries are rows, keys columns)
        cross    a 1110, [M] 0110, b 1011, [M'] 1001
    What is not masked reads with "strict" (ERNIE-M) what is not masked of its own text, so that nothing of a masked
    token's own text reaches it at any depth. With "cross" it reads its own text and what is not masked of the other,
    through which the own text reaches masked tokens from the second block on. Every position reads itself.

    Args:
        side_ids_BL: 1 and 2 number the texts, 0 is padding.
        masked_BL: boolean.
        reading: "strict" or "cross".
    """
    own_BLS = side_ids_BL[:, :, None] == side_ids_BL[:, None, :]
    queries_BL1, keys_B1S = masked_BL[:, :, None], masked_BL[:, None, :]
    shown_B1S = ops.logical_and(side_ids_BL[:, None, :] > 0, ops.logical_not(keys_B1S))
    of_masked = ops.logical_and(shown_B1S, ops.logical_not(own_BLS))
    if reading == "strict":
        of_others = ops.logical_and(shown_B1S, own_BLS)
    else:
        of_others = ops.logical_or(shown_B1S, ops.logical_and(own_BLS, keys_B1S))
    itself = ops.eye(side_ids_BL.shape[1], dtype="bool")
    return ops.logical_or(ops.where(queries_BL1, of_masked, of_others), itself)[:, None]


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
