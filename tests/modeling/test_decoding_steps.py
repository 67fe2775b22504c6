"""The decoder's steps: several positions at once, rows that see their own ancestors, and the last attention."""

from __future__ import annotations

import numpy as np
import pytest
from modeling_cases import CONFIGS, without_dropout

from modeling import Initialization, masks
from modeling.decoder import Decoder


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    layer = Decoder(without_dropout(CONFIGS["bert_preln_final"]), Initialization(0.3, seed=1), dtype="float32")
    layer.build(None)
    return layer


def states(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*shape, 16)).astype(np.float32)


@pytest.mark.parametrize("steps", [(2, 1, 1, 1), (3, 2)])
def test_steps_of_any_size_equal_the_whole_sequence(decoder: Decoder, steps: tuple[int, ...]):
    x, memory = states(2, 5), states(2, 3, seed=1)
    whole = np.asarray(decoder(x, memory_BSD=memory)[0])
    cache = decoder.start_cache(2, 6, memory)
    place = 0
    for length in steps:
        part, cache = decoder.step(x[:, place : place + length], cache, place)
        place += length
        np.testing.assert_allclose(part, whole[:, place - length : place], atol=1e-5)


def test_rows_that_see_their_ancestors_equal_rows_whose_caches_were_reordered(decoder: Decoder):
    generator = np.random.default_rng(3)
    batch, rows, length = 2, 3, 4
    memory = states(batch, 5, seed=1)
    mask = masks.padding_mask(np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]))
    x = states(batch, length, rows, seed=2)
    cache = decoder.start_cache(batch, length * rows, memory)
    ancestors = np.full((batch, rows, length), -1)
    # The vectors that led to each row, as a search that moves its caches would hold them.
    paths = np.zeros((batch, rows, 0, 16), np.float32)
    for step in range(length):
        ancestors[:, :, step] = np.arange(rows)
        visible = (ancestors[:, :, :, None] == np.arange(rows)).reshape(batch, 1, rows, length * rows)
        y, cache = decoder.step(x[:, step], cache, step * rows, mask, visible)
        paths = np.concatenate([paths, x[:, step][:, :, None]], axis=2)
        for row in range(rows):
            # A second position, which is not read, because Keras warns of a softmax over a single one.
            path = np.concatenate([paths[:, row], x[:, 0, :1]], axis=1)
            alone = np.asarray(decoder(path, memory_BSD=memory, memory_mask=mask)[0])[:, step]
            np.testing.assert_allclose(np.asarray(y)[:, row], alone, atol=1e-5)
        parents = generator.integers(0, rows, (batch, rows))
        ancestors = np.take_along_axis(ancestors, parents[:, :, None], axis=1)
        paths = np.take_along_axis(paths, parents[:, :, None, None], axis=1)


def test_the_attention_of_a_step_is_that_of_the_whole(decoder: Decoder):
    x, memory = states(2, 3), states(2, 4, seed=1)
    mask = masks.padding_mask(np.array([[1, 1, 1, 1], [1, 1, 0, 0]]))
    whole = decoder(x, memory_BSD=memory, memory_mask=mask, return_attention=True)
    cache = decoder.start_cache(2, 3, memory)
    y, _, attention = decoder.step(x, cache, 0, mask, return_attention=True)
    np.testing.assert_allclose(y, whole[0], atol=1e-5)
    np.testing.assert_allclose(attention, whole[2], atol=1e-6)
    assert (np.asarray(attention)[1, :, 2:] == 0).all()
