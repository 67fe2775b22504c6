"""Random keys as tensors: uint32[2], derived from numbers by MurmurHash3's finaliser, equal on every Keras backend."""

import numpy as np

from ground.tensors import Tensor, ops


def finalised(x: Tensor) -> Tensor:
    """Return MurmurHash3's 32-bit finaliser of every element of the uint32 tensor `x`."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, words(shift))) * words(factor)
    return ops.bitwise_xor(x, ops.bitwise_right_shift(x, words(16)))


def words(first: int, *others: int) -> Tensor:
    """Return the numbers as a uint32 tensor, a single one as a scalar."""
    return ops.convert_to_tensor(np.array([first, *others] if others else first, "uint32"))


def fold_in(key: Tensor, value: int | Tensor) -> Tensor:
    """Derive an independent key from `key`, uint32[2], and an integer.

    Two rounds of the finaliser; the words of the key are exchanged in between, so that each depends on both.
    """
    key = ops.cast(key, "uint32")
    mixed = key + ops.cast(value, "uint32") * words(0x9E3779B9, 0x85EBCA77)
    return finalised(ops.flip(finalised(mixed), axis=0) + key)


def seed_words(seed: int) -> np.ndarray:
    """Return the two halves of a seed of 64 bits, the lower one first: int64[2], which every device can hold."""
    return np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], "int64")


def derive_key(seed: int | Tensor, stream: int, step: Tensor, micro_batch: Tensor = 0, replica: Tensor = 0) -> Tensor:
    """Return the uint32[2] key of one micro-batch on one replica; no two sets of arguments give related keys.

    Each argument in turn is mixed into the key. The seed is a number of 64 bits, or a tensor of its `seed_words`, so
    that one compiled program serves every seed; the other numbers have 32 bits.
    """
    key = words(0x6A09E667, 0xBB67AE85)
    low, high = seed_words(seed).tolist() if isinstance(seed, int) else (seed[0], seed[1])
    for word in (low, high, stream, step, micro_batch, replica):
        word = words(word) if isinstance(word, int) else ops.cast(word, "uint32")
        key = finalised(key + word * words(0x9E3779B9, 0x7FEB352D))
        # Each half depends on both.
        key = finalised(key + ops.flip(key) * words(0x846CA68B, 0xC2B2AE3D))
    return key
