"""Both graphs of PALM and PLUG against NumPy in float64, published counts, and the laws of a decoder that copies."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import keras
import numpy as np
import numpy_reference
import pytest
import tensorflow as tf
from absl.app import UsageError
from modeling_cases import CONFIGS, PALM_CONFIGS, features, without_dropout

from modeling import Computation, Config, LanguageModel, count_parameters, load_config, named_variables, seeded
from modeling.computation import Sizes
from modeling.copying import over_vocabulary
from modeling.heads import ClassifierHead, MaskedLMHead, NextTokenHead, PairHead

SHAPES = Path(__file__).resolve().parents[2] / "albert_config"
KEY = np.array([1, 2], np.uint32)
TARGETS = 7


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    found = features(seed)
    del found["masked_lm_positions"]
    targets = np.random.default_rng(seed + 1).integers(0, 37, (3, TARGETS + 1), dtype=np.int32)
    return found | {"target_ids": targets}


def model_of(config: Config, computation: Computation = Computation(seed=3)) -> LanguageModel:  # noqa: B008
    heads = [MaskedLMHead, partial(PairHead, num_labels=3), NextTokenHead]
    model = LanguageModel(config, heads, computation)
    generator = np.random.default_rng(5)
    for variable in model.variables:
        if variable.dtype == "float32":
            variable.assign(np.asarray(variable) + 0.1 * generator.standard_normal(variable.shape))
    return model


@pytest.mark.parametrize("name", PALM_CONFIGS)
def test_outputs_are_those_of_numpy(name: str):
    config = without_dropout(PALM_CONFIGS[name])
    model, given = model_of(config), batch()
    weights = {name: np.asarray(value, np.float64) for name, value in named_variables(model).items()}
    outputs = model(given)
    memory, pooled = numpy_reference.body(config, weights, given)
    real = given["input_mask"][:, :, None] > 0
    np.testing.assert_allclose(np.where(real, outputs["sequence_output"], 0), np.where(real, memory, 0), atol=2e-5)
    np.testing.assert_allclose(outputs["pooled_output"], pooled, atol=2e-5)
    expected = numpy_reference.palm_probabilities(config, weights, given, memory)
    found = np.exp(np.asarray(keras.ops.log_softmax(outputs["next_token_logits"])))
    np.testing.assert_allclose(found[..., :37], expected, atol=1e-5)
    if config.copy != "none":
        # Already normalised: what a beam search adds up.
        np.testing.assert_allclose(np.exp(outputs["next_token_logits"]).sum(-1), 1.0, atol=1e-5)


@pytest.mark.parametrize("name", ["palm", "palm_padded_copy", "palm_en_additive"])
def test_no_target_sees_what_follows_and_padding_of_the_source_changes_nothing(name: str):
    model, given = model_of(without_dropout(PALM_CONFIGS[name])), batch()
    scores = np.asarray(model(given)["next_token_logits"])
    later = given | {"target_ids": given["target_ids"].copy()}
    later["target_ids"][:, 4:] = (later["target_ids"][:, 4:] + 1) % 37
    changed = np.asarray(model(later)["next_token_logits"])
    np.testing.assert_array_equal(changed[:, :4], scores[:, :4])
    assert np.abs(changed[:, 4:] - scores[:, 4:]).max() > 1e-3
    padding = given | {"input_ids": np.where(given["input_mask"] > 0, given["input_ids"], 9)}
    # Ids below padding are other words, which copying must not see either.
    np.testing.assert_allclose(model(padding)["next_token_logits"], scores, atol=1e-5)
    source = given | {"input_ids": (given["input_ids"] + 1) % 37}
    assert np.abs(np.asarray(model(source)["next_token_logits"]) - scores).max() > 1e-3


@pytest.mark.parametrize("name", ["palm_padded_copy", "palm_en_additive"])
def test_every_variable_of_the_target_gets_a_gradient(name: str):
    model, given = model_of(PALM_CONFIGS[name]), batch()
    variables = named_variables(model)
    with tf.GradientTape() as tape, seeded(tf.constant(KEY)):
        total = tf.reduce_sum(model(given, training=True)["next_token_logits"] ** 2)
    gradients = tape.gradient(total, [variable.value for variable in variables.values()])
    without = {name for name, gradient in zip(variables, gradients, strict=True) if gradient is None}
    assert {name.split("/")[0] for name in without} <= {"masked_lm", "sentence_pair", "backbone"}
    assert {name for name in without if name.startswith("backbone/")} == {
        "backbone/pooler/kernel",
        "backbone/pooler/bias",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["palm_padded_copy", "palm_additive"])
def test_rematerialisation_and_scan_change_no_number(name: str):
    given, found = batch(), []
    for computation in (
        Computation(seed=3),
        Computation(seed=3, remat=True),
        Computation(seed=3, remat=True, scan=True),
    ):
        model = model_of(PALM_CONFIGS[name], computation)
        variables = {name: variable.value for name, variable in named_variables(model).items()}

        @tf.function
        def step(model: LanguageModel, variables: dict) -> tuple:
            with tf.GradientTape() as tape, seeded(tf.constant(KEY)):
                total = tf.reduce_sum(tf.nn.log_softmax(model(given, training=True)["next_token_logits"])[:, :, 3])
            return total, tape.gradient(total, variables)

        total, gradients = step(model, variables)
        found.append((float(total), {name: np.asarray(g) for name, g in gradients.items() if g is not None}))
    for total, gradients in found[1:]:
        assert total == pytest.approx(found[0][0], rel=1e-5)
        assert gradients.keys() == found[0][1].keys()
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, found[0][1][name], atol=2e-4, err_msg=name)


def test_a_word_twice_in_the_source_is_copied_with_both_its_weights():
    attention = np.array([[[0.5, 0.3, 0.2]], [[0.1, 0.9, 0.0]]], np.float32)
    found = np.asarray(over_vocabulary(attention, np.array([[7, 9, 7], [0, 9, 9]]), 10))
    expected = np.zeros((2, 1, 10), np.float32)
    expected[0, 0, [7, 9]], expected[1, 0, [0, 9]] = (0.7, 0.3), (0.1, 0.9)
    np.testing.assert_allclose(found, expected, atol=1e-7)


PUBLISHED = {
    # AliceMind's card says 217M; PLUG's 27B are the files of 8 ranks, with what they repeat.
    "palm_base_zh": (217_777_155, True),
    "plug": (26_100_601_859, True),
    # Stage one of PLUG, without the decoder's blocks and final LayerNorm.
    "plug_encoder": (26_100_601_859 - 6 * 1_073_897_472 - 2 * 8192, True),
    "palm_base_en": (257_835_609, False),
    "palm_large_en": (482_485_337, False),
    # The paper's sizes of a graph that was released in one size, and one of ours.
    "palm_large_zh": (429_341_699, True),
    "palm_tiny_zh": (13_068_939, True),
}


def test_every_shipped_config_with_a_decoder_is_counted():
    assert {path.stem for path in SHAPES.glob("p*.json")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str):
    expected, with_encoder_heads = PUBLISHED[name]
    config = load_config(SHAPES / f"{name}.json")
    heads = [MaskedLMHead, partial(PairHead, num_labels=3)] if with_encoder_heads else []
    heads += [NextTokenHead] if config.num_decoder_layers else []
    assert count_parameters(lambda: LanguageModel(config, heads)) == expected
    assert config.least_parameters <= expected


def test_operations_are_those_of_encoder_decoder_and_scores():
    config = PALM_CONFIGS["palm"]
    model = model_of(config)
    sizes = Sizes(9, scored=4, target=7)
    width, inner, layers = 16, 24, 2
    encoder = layers * 2 * (9 * (4 * width**2 + 2 * width * inner) + 2 * 81 * width)
    own, across = 4 * 7 * width**2 + 2 * 49 * width, (2 * 7 + 2 * 9) * width**2 + 2 * 63 * width
    decoder = layers * 2 * (own + across + 7 * 2 * width * inner)
    heads = 2 * (4 * width**2 + 4 * width * 37) + 2 * 3 * width + 2 * 7 * width * 37
    pooler = 2 * width**2
    assert model.operations(sizes) == encoder + decoder + heads + pooler
    without = model.backbone.operations(Sizes(9, scored=4))
    assert without == encoder + pooler


def test_a_decoder_where_there_is_none_is_one_line():
    palm = PALM_CONFIGS["palm"]
    with pytest.raises(
        UsageError, match='num_decoder_layers is 2, but family "bert" has no decoder; use palm, palm_en'
    ):
        dataclasses.replace(CONFIGS["bert"], num_decoder_layers=2)
    with pytest.raises(UsageError, match="copy is 'additive' without a decoder; give num_decoder_layers"):
        dataclasses.replace(palm, num_decoder_layers=0, copy="additive")
    with pytest.raises(UsageError, match="hidden_size 16 is not a multiple of decoder_attention_heads 3"):
        dataclasses.replace(palm, decoder_attention_heads=3)
    with pytest.raises(UsageError, match="copy is 'pointer'; expected one of none, additive"):
        dataclasses.replace(palm, copy="pointer")
    with pytest.raises(UsageError, match="embedding is as wide as the model"):
        dataclasses.replace(palm, embedding_size=8)
    with pytest.raises(UsageError, match=r"the objective generates text, but the config \(family \"palm\""):
        LanguageModel(dataclasses.replace(palm, num_decoder_layers=0), [NextTokenHead])


def test_an_encoder_alone_classifies_on_the_first_state():
    config = dataclasses.replace(without_dropout(PALM_CONFIGS["palm"]), num_decoder_layers=0)
    model = LanguageModel(config, [partial(ClassifierHead, num_labels=2, dropout=0.0)])
    given = batch()
    del given["target_ids"]
    outputs = model(given)
    np.testing.assert_array_equal(outputs["pooled_output"], np.asarray(outputs["sequence_output"])[:, 0])
    assert not any("decoder" in name for name in named_variables(model))


def test_the_published_json_forms_are_read(tmp_path: Path):
    chinese = {"model_type": "palm", "dec_hidden_layers": 3, "pre_ln": True, "layernorm_epsilon": 1e-5}
    values = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 30,
        "type_vocab_size": 1,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values | chinese | {"LR_weight_rank": 8}))
    config = load_config(path)
    assert (config.family, config.num_decoder_layers, config.ln_type, config.final_layer_norm) == (
        "palm",
        3,
        "preln",
        True,
    )
    assert (config.hidden_act, config.layer_norm_eps, config.type_vocab_size) == ("gelu_erf", 1e-5, 1)
    english = {"dec_layers": 3, "dec_heads": 4, "dec_ff_size": 20, "p_gen": True, "encoder": "roberta"}
    path.write_text(json.dumps({"encoder_config": values, "palm": english}))
    config = load_config(path)
    assert (config.family, config.num_decoder_layers, config.copy) == ("palm_en", 3, "legacy_attention")
    assert (config.decoder_attention_heads, config.decoder_intermediate_size, config.position_offset) == (4, 20, 2)
    path.write_text(json.dumps({"encoder_config": values, "palm": english | {"encoder": "gpt"}}))
    with pytest.raises(UsageError, match=r"palm\.encoder is 'gpt'; expected one of roberta, bert, zh_bert"):
        load_config(path)
