import contextlib
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from modeling_cases import CONFIGS, without_dropout

from modeling import Initialization, cross_entropy, fold_in, masks, seeded
from modeling.accounting import declared_model
from modeling.decoder import Decoder
from modeling.encoder import Encoder
from modeling.layers import FeedForward, GroupedDense, LayerNorm, activation
from modeling.losses import label_is_best, negative_log_likelihood
from modeling.randomness import dropout, next_key
from modeling.sharing import shared_bricks

INITIALIZATION = Initialization(0.3, seed=1)


def decoder(name: str = "bert_preln_final", **arguments) -> Decoder:
    config = without_dropout(CONFIGS[name])
    layer = Decoder(config, INITIALIZATION, dtype="float32", **arguments)
    layer.build(None)
    return layer


def states(length: int, seed: int = 0, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, length, 16)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "bert_preln_final", "albert_zh_share_attention"])
@pytest.mark.parametrize("with_memory", [False, True])
def test_no_gradient_reaches_the_future(name: str, with_memory: bool):
    layer = decoder(name)
    x = tf.constant(states(5))
    memory = tf.constant(states(3, seed=1)) if with_memory else None
    for position in range(5):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(layer(x, memory_BSD=memory)[0][:, position] ** 3)
        gradient = np.asarray(tape.gradient(y, x))
        assert (gradient[:, position + 1 :] == 0.0).all()
        assert (np.abs(gradient[:, : position + 1]).max(axis=(0, 2)) > 0.0).all()


def test_a_decoder_that_is_not_causal_sees_everything_and_is_an_encoder_without_memory():
    layer = decoder(causal=False)
    x, memory = states(5), states(3, seed=1)
    alone = np.asarray(layer(x)[0])
    changed = x.copy()
    changed[:, 4] *= -1.0
    assert np.abs(np.asarray(layer(changed)[0]) - alone)[:, 0].max() > 1e-4
    assert np.abs(np.asarray(layer(x, memory_BSD=memory)[0]) - alone).max() > 1e-3


@pytest.mark.parametrize("name", ["bert", "bert_preln_final", "albert"])
@pytest.mark.parametrize("steps", [(1, 1, 1, 1, 1), (3, 1, 1)])
def test_cached_steps_equal_the_whole_sequence(name: str, steps: tuple[int, ...]):
    layer = decoder(name)
    x, memory = states(5), states(3, seed=1)
    memory_mask = masks.padding_mask(np.array([[1, 1, 1], [1, 0, 0]]))
    whole = np.asarray(layer(x, memory_BSD=memory, memory_mask=memory_mask)[0])
    cache = layer.start_cache(2, 7, memory)
    position, parts = 0, []
    for length in steps:
        part, cache = layer.step(x[:, position : position + length], cache, position, memory_mask)
        parts.append(np.asarray(part))
        position += length
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)


def test_cached_step_compiles_once_for_all_positions():
    layer = decoder()
    traces = []

    @tf.function
    def step(x, cache, position):
        traces.append(position)
        return layer.step(x, cache, position)

    x = states(4)
    cache = layer.start_cache(2, 4)
    parts = []
    for position in range(4):
        part, cache = step(x[:, position : position + 1], cache, tf.constant(position))
        parts.append(np.asarray(part))
    assert len(traces) == 1
    np.testing.assert_allclose(np.concatenate(parts, axis=1), np.asarray(layer(x)[0]), atol=1e-5)


def test_masked_memory_changes_nothing():
    layer = decoder()
    x, memory = states(4), states(3, seed=1)
    memory_mask = masks.padding_mask(np.array([[1, 1, 0], [1, 1, 0]]))
    expected = layer(x, memory_BSD=memory[:, :2])[0]
    np.testing.assert_allclose(layer(x, memory_BSD=memory, memory_mask=memory_mask)[0], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
def test_decoder_rematerialisation_and_scan_keep_the_gradient_of_the_memory(scan: bool):
    x, memory = tf.constant(states(4)), tf.constant(states(3, seed=1))
    gradients = []
    for remat in (False, True):
        layer = Decoder(CONFIGS["bert"], INITIALIZATION, remat=remat, scan=remat and scan, dtype="float32")
        layer.build(None)
        with tf.GradientTape() as tape, seeded(tf.constant([1, 2], tf.uint32)):
            tape.watch((x, memory))
            y = tf.reduce_sum(layer(x, memory_BSD=memory, training=True)[0] ** 3)
        gradients.append(tape.gradient(y, (x, memory)))
    for kept, recomputed in zip(*gradients, strict=True):
        assert np.abs(kept).max() > 0.1
        np.testing.assert_allclose(kept, recomputed, atol=1e-4)


def test_fused_attention_gets_a_mask_of_a_row_for_every_query(monkeypatch: pytest.MonkeyPatch):
    # cuDNN refuses [B, 1, 1, S]: seen on an H100, where attention then took the slow way and twice the memory.
    seen = []

    def spy(query: object, key: object, value: object, *, mask: tf.Tensor, scale: float) -> object:
        seen.append(tuple(mask.shape))
        return keras.ops.nn.dot_product_attention(query, key, value, mask=mask, scale=scale)

    layer = decoder(causal=False, cross_attention=False)
    mask = masks.padding_mask(np.array([[1, 1, 1, 0], [1, 1, 0, 0]]))
    expected = np.asarray(layer(states(4), attention_mask=mask)[0])
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    monkeypatch.setattr(keras.ops, "dot_product_attention", spy)
    found = np.asarray(layer(states(4), attention_mask=mask)[0])
    assert seen == [(2, 1, 4, 4)] * len(seen)
    assert seen
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_row_with_no_key_left_is_finite():
    layer = decoder(causal=False, cross_attention=False)
    nothing = masks.padding_mask(np.zeros((2, 4)))
    assert np.isfinite(np.asarray(layer(states(4), attention_mask=nothing)[0])).all()


def test_grouped_feed_forward_is_a_permuted_block_diagonal_one():
    config = without_dropout(CONFIGS["google_fast"])
    layer = GroupedDense(12, 8, 4, INITIALIZATION, dtype="float32", name="grouped")
    layer.build(None)
    layer.bias.assign(np.arange(8.0))
    dense = np.zeros((12, 8), np.float32)
    kernel = np.asarray(layer.kernel)
    for feature in range(12):
        group = feature % 4
        dense[feature, 2 * group : 2 * group + 2] = kernel[feature // 4, :, group]
    x = np.random.default_rng(0).standard_normal((2, 3, 12)).astype(np.float32)
    np.testing.assert_allclose(layer(x), x @ dense + np.arange(8.0), atol=1e-5)
    assert isinstance(FeedForward(config, INITIALIZATION, dtype="float32", name="f").intermediate, GroupedDense)


def test_layer_norm_is_float32_inside_a_bfloat16_model():
    layer = LayerNorm(64, 1e-12, dtype="mixed_bfloat16")
    layer.build(None)
    x = np.random.default_rng(0).standard_normal((4, 64)) + 30.0
    x = np.asarray(keras.ops.cast(keras.ops.cast(x, "bfloat16"), "float32"))
    expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    y = layer(keras.ops.cast(x, "bfloat16"))
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    np.testing.assert_allclose(np.asarray(keras.ops.cast(y, "float32")), expected, atol=0.02)


@settings(deadline=None, max_examples=30)
@given(st.floats(-20, 20, width=32))
def test_activations(x: float):
    expected = {
        "gelu": 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "gelu_erf": 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
        "relu": max(x, 0.0),
        "swish": x / (1 + math.exp(-x)),
        "tanh": math.tanh(x),
        "linear": x,
    }
    value = keras.ops.convert_to_tensor([x], "float32")
    for name, answer in expected.items():
        assert float(activation(name, value)[0]) == pytest.approx(answer, abs=1e-5, rel=1e-5)


def test_gelu_has_the_right_slope():
    x = tf.constant(np.linspace(-6, 6, 101), tf.float32)
    for name, approximate in (("gelu", True), ("gelu_erf", False)):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            ours, theirs = activation(name, x), tf.nn.gelu(x, approximate)
        slopes = [np.asarray(tape.gradient(y, x)) for y in (ours, theirs)]
        np.testing.assert_allclose(slopes[0], slopes[1], atol=1e-5)


def key(*words: int):
    return keras.ops.convert_to_tensor(np.array(words, np.uint32))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**31 - 1))
def test_fold_in_equals_plain_integers(first: int, second: int, value: int):
    def mix(x: int) -> int:
        x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
        x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
        return x ^ x >> 16

    words = [mix((word + value * c) % 2**32) for word, c in ((first, 0x9E3779B9), (second, 0x85EBCA77))]
    expected = [mix((words[1] + first) % 2**32), mix((words[0] + second) % 2**32)]
    assert np.asarray(fold_in(key(first, second), value)).tolist() == expected


def test_keys_of_nested_scopes_never_meet():
    seen = []
    with seeded(key(0, 0)):
        for _ in range(20):
            outer = next_key()
            seen.append(tuple(np.asarray(outer).tolist()))
            with seeded(outer):
                seen.extend(tuple(np.asarray(next_key()).tolist()) for _ in range(20))
    assert len(set(seen)) == len(seen) == 420


def test_dropout_keeps_the_mean_and_the_share():
    x = keras.ops.ones((200, 500))
    with seeded(key(3, 4)):
        first, second = np.asarray(dropout(x, 0.1, True)), np.asarray(dropout(x, 0.1, True))
    assert set(np.unique(first)) == {0.0, np.float32(1 / 0.9)}
    # 100,000 draws: four deviations are 0.004.
    assert (first == 0).mean() == pytest.approx(0.1, abs=0.004)
    assert ((first == 0) & (second == 0)).mean() == pytest.approx(0.01, abs=0.002)


@pytest.mark.parametrize("scope", [contextlib.nullcontext(), seeded(None)])
def test_a_draw_without_a_key_is_an_error(scope: contextlib.AbstractContextManager):
    with scope, pytest.raises(RuntimeError, match="outside of `with seeded"):
        next_key()


def test_cross_entropy_by_hand():
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]], np.float32))
    labels, weights = np.array([[0, 1]]), np.array([[1.0, 0.5]])
    total, weight = cross_entropy(logits, labels, weights)
    assert float(total) == pytest.approx(-math.log(0.5) - 0.5 * math.log(0.1), rel=1e-5)
    assert float(weight) == 1.5
    total, weight = cross_entropy(logits, labels)
    assert (float(total), float(weight)) == (pytest.approx(-math.log(0.5) - math.log(0.1), rel=1e-5), 2.0)
    total, _ = cross_entropy(logits[:, :1], labels[:, :1], label_smoothing=0.3)
    assert float(total) == pytest.approx(-0.8 * math.log(0.5) - 0.2 * math.log(0.25), rel=1e-5)


def test_cross_entropy_of_a_distribution_and_of_its_single_class_agree():
    logits = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    labels = np.array([0, 3, 4, 1])
    hard, soft = cross_entropy(logits, labels), cross_entropy(logits, np.eye(5, dtype=np.float32)[labels])
    np.testing.assert_allclose(hard, soft, rtol=1e-6)


def test_smoothing_ignores_rows_that_pad_the_vocabulary():
    logits = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    padded = np.concatenate([logits, np.full((4, 3), np.finfo(np.float32).min / 2, np.float32)], axis=-1)
    labels = np.array([0, 3, 4, 1])
    np.testing.assert_allclose(
        cross_entropy(padded, labels, label_smoothing=0.2),
        cross_entropy(logits, labels, label_smoothing=0.2),
        rtol=1e-6,
    )


def test_micro_batches_add_up():
    generator = np.random.default_rng(0)
    logits, labels = generator.standard_normal((6, 5)).astype(np.float32), generator.integers(0, 5, 6)
    weights = generator.random(6).astype(np.float32)
    whole = cross_entropy(logits, labels, weights)
    parts = [cross_entropy(logits[s], labels[s], weights[s]) for s in (slice(0, 2), slice(2, 6))]
    np.testing.assert_allclose(np.sum([[float(x) for x in part] for part in parts], axis=0), whole, rtol=1e-6)


def test_loss_of_bfloat16_logits_is_float32():
    total, weight = cross_entropy(keras.ops.ones((2, 3), "bfloat16"), np.array([0, 1]))
    assert {keras.backend.standardize_dtype(x.dtype) for x in (total, weight)} == {"float32"}


@pytest.mark.parametrize("shape", [(1,), (3,), (3, 1), (1, 3), (1, 1), (2, 3)])
def test_losses_and_hits_of_any_shape_equal_numpy(shape: tuple[int, ...]):
    generator = np.random.default_rng(len(shape))
    logits = generator.standard_normal((*shape, 5)).astype(np.float32)
    labels = generator.integers(0, 5, shape)
    chosen = np.take_along_axis(logits.astype(np.float64), labels[..., None], axis=-1)[..., 0]
    expected = np.log(np.exp(logits.astype(np.float64)).sum(axis=-1)) - chosen
    found = np.asarray(negative_log_likelihood(logits, labels))
    assert found.shape == shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(label_is_best(logits, labels), (logits.argmax(axis=-1) == labels).astype(np.float32))


@pytest.mark.parametrize("name", CONFIGS)
def test_own_weights_of_blocks_are_those_that_no_other_block_uses(name: str):
    config = CONFIGS[name]
    encoder = declared_model(config, 0).stacks[0]
    assert isinstance(encoder, Encoder)
    bricks = shared_bricks(config)
    own = {
        f"{kind}_{number}"
        for place, kind in enumerate(("attention", "feed_forward"))
        for number in {brick[place] for brick in bricks}
        if [brick[place] for brick in bricks].count(number) == 1
    }
    found = {id(variable) for variable in encoder.own_weights}
    weights = {brick.name: brick.weights for brick in (*encoder.attentions, *encoder.feed_forwards)}
    assert own <= weights.keys()
    assert found == {id(variable) for brick in own for variable in weights[brick]}
    assert len(encoder.own_weights) == len(found)
    if config.sharing == "all":
        assert not own
