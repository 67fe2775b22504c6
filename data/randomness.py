"""Counter-based random numbers in NumPy: every draw is a pure function of its coordinates, and there is no state.

Integer mixers (SplitMix64 for keys, Wellons' lowbias32 for draws) take the place of generator objects, because a
generator per example would cost more than the example.
"""

from __future__ import annotations

import zlib
from typing import cast

import numpy as np

_GOLDEN_64 = np.uint64(0x9E3779B97F4A7C15)
_GOLDEN_32 = np.uint32(0x9E3779B9)
_FEISTEL_ROUNDS = 6
_CACHED_DRAWS = 1 << 16


def _mix64(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix32_in_place(x: np.ndarray, scratch: np.ndarray) -> None:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        np.right_shift(x, np.uint32(shift), out=scratch)
        np.bitwise_xor(x, scratch, out=x)
        np.multiply(x, np.uint32(factor), out=x)
    np.right_shift(x, np.uint32(16), out=scratch)
    np.bitwise_xor(x, scratch, out=x)


def stream_number(name: str) -> int:
    """Return a number for a named stream of draws, the same in every process."""
    return zlib.crc32(name.encode())


def keys(*coordinates: int | np.ndarray) -> np.ndarray:
    """Return a uint64 key per example from integer coordinates that broadcast, such as (seed, unit, row)."""
    key = np.zeros(1, np.uint64)
    for coordinate in coordinates:
        number = np.asarray(coordinate)
        # Python integers may exceed int64 (seeds are often hashes); two's complement for the rest.
        number = np.uint64(int(number) % 2**64) if number.ndim == 0 else number.astype(np.uint64)
        key = _mix64((key ^ _mix64(np.atleast_1d(number) + _GOLDEN_64)) + _GOLDEN_64)
    return key


def random_bits(keys_N: np.ndarray, count: int, stream: int) -> np.ndarray:
    """Return uint32 [N, count] of uniform bits: draw (n, i) depends on keys_N[n], i and `stream` alone."""
    key = keys(keys_N, stream)
    low, high = key.astype(np.uint32)[:, None], (key >> np.uint64(32)).astype(np.uint32)[:, None]
    steps = np.arange(count, dtype=np.uint32) * _GOLDEN_32
    bits_NC = np.empty((len(key), count), np.uint32)
    # Some rows at a time stay in the processor's cache through all passes, which makes this three times faster.
    size = max(1, _CACHED_DRAWS // max(count, 1))
    scratch = np.empty((size, count), np.uint32)
    for begin in range(0, len(key), size):
        rows = slice(begin, begin + size)
        bits = bits_NC[rows]
        np.add(low[rows], steps, out=bits)
        _mix32_in_place(bits, scratch[: len(bits)])
        bits ^= high[rows]
        _mix32_in_place(bits, scratch[: len(bits)])
    return bits_NC


def random_below(bits: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
    """Map uniform uint32 bits to int64 in [0, bound); the bias is below bound / 2**32."""
    return ((bits.astype(np.uint64) * np.asarray(bound).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def permuted(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Map int64 indices in [0, size) through a pseudorandom permutation of that range, in constant memory.

    A Feistel network on the next power of four, walked along its cycle until it is back inside the range (Black and
    Rogaway 2002).
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64(2**half_bits - 1)
    round_keys = keys(key, np.arange(_FEISTEL_ROUNDS))

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = x >> np.uint64(half_bits), x & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix64(right + cast("np.uint64", round_key)) & mask)
        return (left << np.uint64(half_bits)) | right

    result = encrypt(index.astype(np.uint64))
    outside = np.flatnonzero(result >= np.uint64(size))
    while len(outside):
        result[outside] = encrypt(result[outside])
        outside = outside[result[outside] >= np.uint64(size)]
    return result.astype(np.int64)
