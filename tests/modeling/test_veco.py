"""VECO: both streams and the decoder against NumPy in float64, who sees whom, published counts, and its errors."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import cast

import keras
import numpy as np
import numpy_reference
import pytest
import tensorflow as tf
from absl.app import UsageError
from modeling_cases import BERT, VECO, VECO_DECODER, two_sides, without_dropout
from on_jax import environment_on_jax

from generation.generator import Generator
from generation.language_model import Generative
from generation.model import Tokens
from generation.settings import Settings
from modeling import Computation, Config, LanguageModel, count_parameters, load_config, masks, named_variables
from modeling.accounting import Layout, flops_per_example, step_memory
from modeling.computation import Sizes
from modeling.heads import MaskedLMHead, NextTokenHead
from modeling.two_sides import TwoSides

ROOT = Path(__file__).resolve().parents[2]
KEY = np.array([7, 11], np.uint32)
STREAMS = ("sequence_output", "crossed_output", "other_sequence_output", "other_crossed_output")


def randomized(model: LanguageModel) -> LanguageModel:
    generator = np.random.default_rng(5)
    for variable in named_variables(model).values():
        variable.assign(np.asarray(variable) + 0.1 * generator.standard_normal(variable.shape))
    return model


def model_of(config: Config, computation: Computation = Computation(seed=3)) -> LanguageModel:  # noqa: B008
    return randomized(LanguageModel(config, [NextTokenHead] if config.num_decoder_layers else [], computation))


def weights_of(model: LanguageModel) -> dict[str, np.ndarray]:
    return {name: np.asarray(variable, np.float64) for name, variable in named_variables(model).items()}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return model_of(without_dropout(VECO))


@pytest.fixture(scope="module")
def decoder() -> LanguageModel:
    return model_of(without_dropout(VECO_DECODER))


def with_target(seed: int = 0, length: int = 7) -> dict[str, np.ndarray]:
    given = {name: value for name, value in two_sides(seed).items() if not name.startswith("other_")}
    return given | {"target_ids": np.random.default_rng(seed).integers(0, 37, (3, length + 1), dtype=np.int32)}


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_streams_are_those_of_numpy(scale: float):
    config = dataclasses.replace(without_dropout(VECO), embedding_scale=scale, num_hidden_layers=3)
    model, given = model_of(config), two_sides()
    outputs = model(given)
    expected = numpy_reference.veco_streams(config, weights_of(model), given)
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(outputs["hidden_states"][-1], outputs["sequence_output"])
    assert len(outputs["hidden_states"]) == 4


def test_scores_of_the_decoder_are_those_of_numpy(decoder: LanguageModel):
    given = with_target()
    outputs = decoder(given)
    expected = numpy_reference.veco_next_scores(decoder.config, weights_of(decoder), given)
    np.testing.assert_allclose(outputs["next_token_logits"], expected, atol=2e-5)
    names = {name for name in weights_of(decoder) if "embeddings/" in name}
    assert {name for name in names if name.endswith("word_embeddings")} == {"backbone/embeddings/word_embeddings"}
    assert {name for name in names if name.startswith("backbone/target_embeddings/")} == {
        f"backbone/target_embeddings/{part}" for part in ("position_embeddings", "layer_norm/gamma", "layer_norm/beta")
    }


def test_two_texts_side_by_side_are_four_passes(model: LanguageModel):
    given, body = two_sides(), cast(TwoSides, model.backbone)
    outputs = model(given)
    alone = {}
    for side in ("", "other_"):
        alone[side] = {name: given[side + name] for name in ("input_ids", "input_mask")}
        alone[side]["h"] = model(alone[side])["sequence_output"]
        np.testing.assert_allclose(outputs[f"{side}sequence_output"], alone[side]["h"], atol=3e-6)
    for side, other in (("", "other_"), ("other_", "")):
        crossed, _ = body.encoder(
            body.embeddings(alone[side]["input_ids"]),
            attention_mask=masks.padding_mask(alone[side]["input_mask"]),
            memory_BSD=alone[other]["h"],
            memory_mask=masks.padding_mask(alone[other]["input_mask"]),
        )
        np.testing.assert_allclose(outputs[f"{side}crossed_output"], crossed, atol=3e-6)


def test_h_never_sees_the_other_text_and_s_does(model: LanguageModel):
    given = two_sides()
    changed = given | {"other_input_ids": (given["other_input_ids"] + 1) % 37}
    before, after = model(given), model(changed)
    np.testing.assert_array_equal(before["sequence_output"], after["sequence_output"])
    assert np.abs(np.asarray(before["crossed_output"]) - np.asarray(after["crossed_output"])).max() > 1e-2


def test_the_gradient_of_h_by_the_other_text_is_exactly_zero(model: LanguageModel):
    given, noise = two_sides(), tf.zeros((3, 9, 16))
    cross = [v.value for name, v in named_variables(model).items() if "cross_attention" in name]
    found = {}
    for name in STREAMS:
        with tf.GradientTape() as tape:
            tape.watch(noise)
            total = tf.reduce_sum(model.backbone(given, word_noise_BLE=noise)[name] ** 3)
        found[name], *of_cross = tape.gradient(total, [noise, *cross])
        assert all(g is None for g in of_cross) == ("crossed" not in name)
    # The noise is on the words of the first text.
    assert not np.any(found["other_sequence_output"])
    for name in ("sequence_output", "crossed_output", "other_crossed_output"):
        assert np.abs(found[name]).max() > 1e-3, name


def test_what_is_masked_in_the_other_text_changes_nothing(model: LanguageModel):
    given = two_sides()
    padding = np.where(given["other_input_mask"] > 0, given["other_input_ids"], 9)
    outputs, changed = model(given), model(given | {"other_input_ids": padding})
    np.testing.assert_array_equal(outputs["crossed_output"], changed["crossed_output"])
    assert np.abs(np.asarray(outputs["other_crossed_output"] - changed["other_crossed_output"])).max() > 1e-3


@pytest.mark.parametrize("given", [two_sides(), {"input_ids": two_sides()["input_ids"]}], ids=["pair", "alone"])
def test_the_first_position_alone_is_the_same(model: LanguageModel, given: dict[str, np.ndarray]):
    whole, first = model(given), model.backbone(given, first_only=True)
    assert whole.keys() == first.keys()
    for name, value in first.items():
        last, expected = (value[-1], whole[name][-1]) if name == "hidden_states" else (value, whole[name])
        if not name.endswith("pooled_output"):
            assert last.shape[1] == 1, name
            expected = expected[:, :1]
        np.testing.assert_allclose(last, expected, atol=3e-6, err_msg=name)


def test_packed_pairs_equal_the_pairs_alone(model: LanguageModel):
    """Two pairs in one row: tokens of a pair read those of its other text only."""
    given = {name: value[:2, :4] for name, value in two_sides().items() if name.endswith("ids")}
    packed = {name: value.reshape(1, 8) for name, value in given.items()}
    numbers = np.array([[1] * 4 + [2] * 4], np.int32)
    outputs, alone = model(packed | {"sequence_ids": numbers, "other_sequence_ids": numbers}), model(given)
    for name in STREAMS:
        np.testing.assert_allclose(np.asarray(outputs[name]).reshape(2, 4, 16), alone[name], atol=3e-6, err_msg=name)


def test_half_precise_it_is_close():
    given = two_sides()
    half, exact = model_of(VECO, Computation("mixed_bfloat16", seed=3)), model_of(VECO)
    for name in STREAMS:
        assert keras.backend.standardize_dtype(half(given)[name].dtype) == "bfloat16"
        rounded = np.asarray(tf.cast(half(given)[name], tf.float32))
        np.testing.assert_allclose(rounded, exact(given)[name], atol=0.15, err_msg=name)


JAX = """
import jax, sys
import numpy as np
from modeling_cases import two_sides
from modeling import Computation, seeded
from test_veco import KEY, STREAMS, VECO, VECO_DECODER, model_of, with_target, without_dropout
model, decoder = model_of(without_dropout(VECO)), model_of(without_dropout(VECO_DECODER))
found = jax.jit(lambda given: dict(model(given)))(two_sides())
results = {name: np.asarray(found[name]) for name in STREAMS}
results["next_token_logits"] = np.asarray(jax.jit(lambda given: decoder(given)["next_token_logits"])(with_target()))
np.savez(sys.argv[1], **results)

def loss(weights, model):
    with seeded(KEY):
        state = [variable.value for variable in model.non_trainable_variables]
        outputs, _ = model.stateless_call(weights, state, two_sides(), training=True)
    return sum((outputs[name] ** 4).sum() for name in STREAMS)

gradients = []
for choice in ({}, {"remat": True, "scan": True}):
    model = model_of(VECO, Computation(seed=3, **choice))
    weights = [variable.value for variable in model.trainable_variables]
    gradients.append(jax.jit(jax.grad(lambda weights: loss(weights, model)))(weights))
for kept, other in zip(*gradients, strict=True):
    np.testing.assert_allclose(kept, other, atol=1e-5 * max(1.0, float(abs(kept).max())))
"""


@pytest.mark.slow
def test_jax_equals_tensorflow_and_rematerialisation_and_scan_change_nothing(
    tmp_path: Path, model: LanguageModel, decoder: LanguageModel
):
    path = tmp_path / "jax.npz"
    environment = environment_on_jax(ROOT, ROOT / "tests", Path(__file__).parent)
    command = [sys.executable, "-c", JAX, str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    answers, outputs = np.load(path), {**decoder(with_target()), **model(two_sides())}
    for name in (*STREAMS, "next_token_logits"):
        np.testing.assert_allclose(outputs[name], answers[name], atol=3e-5, err_msg=name)


@pytest.mark.slow
def test_written_text_is_what_the_scores_say(decoder: LanguageModel):
    """Without a cache every next token of a greedy text is the best one; the text begins with its end token."""
    source = {name: value for name, value in with_target().items() if name != "target_ids"}
    model = Generative(decoder, Tokens(start=36, end=36, padding=1))
    for row, (text,) in enumerate(Generator(model, Settings(max_new_tokens=8, min_new_tokens=1))(source)):
        tokens = [36, *text.tokens, *([36] if text.ended else [])]
        # One more, which is not read, because Keras warns of a softmax over a single position.
        target = np.array([[*tokens, 1]], np.int32)
        scores = decoder({name: value[row : row + 1] for name, value in source.items()} | {"target_ids": target})
        best = np.array(scores["next_token_logits"])[0, :-1]
        best[0, 36] = -np.inf
        assert best.argmax(-1).tolist() == tokens[1:]


WORDS, BLOCK, CROSS = 256_002_048, 12_596_224, 4_200_448
# Of the words, 514 positions, the LayerNorm and the row of types, without the pooler, which the counts leave out.
LARGE_ENCODER = WORDS + 526_336 + 2_048 + 1_024 + 24 * BLOCK
HEAD = 1_301_650
PUBLISHED = {
    "plugged out": ("large", {"cross_attention": False}, [], LARGE_ENCODER),
    "plugged in": ("large", {}, [], LARGE_ENCODER + 24 * CROSS),
    "learning": ("large", {}, [MaskedLMHead], 660_953_234),
    "generating": (
        "large",
        {"cross_attention": False, "num_decoder_layers": 6, "type_vocab_size": 0},
        [NextTokenHead],
        660_148_224,
    ),
    "small, plugged out": ("small", {"cross_attention": False}, [], 234_925_824),
    "small, plugged in": ("small", {}, [], 234_925_824 + 14_183_424),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str):
    size, changes, heads, expected = PUBLISHED[name]
    config = dataclasses.replace(load_config(ROOT / f"albert_config/veco_{size}.json"), **changes)
    pooler = config.hidden_size * (config.hidden_size + 1)
    assert count_parameters(lambda: LanguageModel(config, heads)) - pooler == expected
    assert config.least_parameters <= expected
    assert (LARGE_ENCODER, LARGE_ENCODER + 24 * CROSS, LARGE_ENCODER + 24 * CROSS + HEAD) == (
        558_840_832,
        659_651_584,
        660_953_234,
    )


def test_operations_are_two_passes_of_each_stream(model: LanguageModel):
    width, inner, layers = 16, 24, 2

    def h(length: int) -> int:
        return layers * 2 * (length * (4 * width**2 + 2 * width * inner) + 2 * length**2 * width)

    def cross(length: int, memory: int) -> int:
        return layers * 2 * (2 * width**2 * (length + memory) + 2 * length * memory * width)

    body, pooler = model.backbone, 2 * width**2
    assert body.operations(Sizes(9)) == h(9) + pooler
    assert body.operations(Sizes(9, other=7)) == 2 * (h(9) + h(7) + pooler) + cross(9, 7) + cross(7, 9)
    # Blocks of H and S of both texts, with two bricks in one of H and three in one of S.
    assert len(body.states(Sizes(9, other=7))) == 4 * layers
    assert body.computed_positions(Sizes(9, other=7)) == layers * (2 + 3) * (9 + 7)
    assert body.computed_positions(Sizes(9)) == layers * 2 * 9
    assert flops_per_example(VECO, 9, 0, other=7) == 3 * body.operations(Sizes(9, other=7))
    layout = Layout(batch_size=8, length=9, predictions=4)
    one, two = (step_memory(VECO, dataclasses.replace(layout, other=other)) for other in (0, 9))
    assert two.activations > 3 * one.activations


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            BERT,
            {"cross_attention": True},
            'cross_attention is True, which family "bert" has not; leave it out or use veco',
        ),
        (
            BERT,
            {"embedding_scale": 4.0},
            'embedding_scale is 4.0, which family "bert" has not; leave it out or use veco',
        ),
        (
            VECO,
            {"num_decoder_layers": 1},
            "cross_attention is True with num_decoder_layers 1: .* set cross_attention to",
        ),
        (VECO, {"type_vocab_size": 2}, "type_vocab_size is 2; VECO has one token type, or none: 1 or 0"),
        (VECO, {"embedding_scale": 0.0}, "embedding_scale is 0.0; expected"),
        (VECO, {"embedding_size": 8}, "embedding_size 8 differs from hidden_size 16"),
    ],
)
def test_what_is_none_of_its_graphs_is_one_line(config: Config, changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(config, **changes)


def test_sofas_json_is_read_as_plugged_out(tmp_path: Path):
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names += ("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size")
    values = {name: getattr(VECO, name) for name in (*names, "initializer_range", "layer_norm_eps")}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values | {"model_type": "veco", "hidden_act": "gelu", "pad_token_id": 1}))
    assert load_config(path) == dataclasses.replace(VECO, cross_attention=False)
