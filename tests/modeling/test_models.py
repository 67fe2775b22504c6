import contextlib
import dataclasses
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import app
from modeling_cases import CONFIGS, PALM_CONFIGS, features, without_dropout
from on_jax import environment_on_jax
from uncompiled import uncompiled

from modeling import (
    ClassifierModel,
    Computation,
    LanguageModel,
    PretrainingModel,
    count_parameters,
    load_config,
    named_variables,
    seeded,
    variable_shapes,
)
from modeling.heads import EmbeddingHead

ROOT = Path(__file__).resolve().parent.parent.parent
KEY = np.array([7, 11], np.uint32)


def randomize(model: keras.Model, seed: int = 5) -> None:
    """Give biases, gammas and betas values that matter."""
    generator = np.random.default_rng(seed)
    for variable in named_variables(model).values():
        variable.assign(np.asarray(variable) + 0.1 * generator.standard_normal(variable.shape))


def model_of(name: str, **arguments) -> LanguageModel:
    model = PretrainingModel(CONFIGS[name], computation=Computation(**arguments))
    randomize(model)
    return model


def numpy_outputs(outputs) -> dict[str, np.ndarray]:
    return {name: np.asarray(keras.ops.convert_to_tensor(value), np.float32) for name, value in outputs.items()}


# name: parameters of the backbone, with both heads, and number of variables (specification of the published files)
PUBLISHED = {
    "albert_config_tiny": (4_175_152, 4_295_186, 31),
    "albert_config_base": (10_877_440, 11_492_234, 31),
    "albert_config_large": (17_009_664, 18_084_490, 31),
    "albert_config_xlarge": (58_577_920, 62_803_594, 31),
    "albert_config_xxlarge": (223_503_360, 240_322_186, 31),
    "albert_config_tiny_google": (4_080_520, 4_142_594, 32),
    "albert_config_demo": (1_583_744, 1_613_514, 32),
    "albert_config_small_google": (4_742_272, 4_813_706, 32),
    "albert_config_base_google_fast": (35_430_400, 35_551_754, 208),
    "albert_config_tiny_google_fast": (4_976_608, 5_041_802, 80),
    "albert_config_base_google_en": (11_683_584, 11_813_810, 32),
    "albert_config_large_google_en": (17_683_968, 17_847_474, 32),
    "albert_config_xlarge_google_en": (58_724_864, 59_021_490, 32),
    "albert_config_xxlarge_google_en": (222_595_584, 223_158_450, 32),
    "bert_config": (102_267_648, 102_882_442, 206),
    "bert_config_large_zh": (325_522_432, 326_597_258, 398),
    "bert_config_base_en": (109_482_240, 110_106_428, 206),
    "bert_config_large_en": (335_141_888, 336_226_108, 398),
    "structbert_base_en": (109_482_240, 110_107_197, 206),
    "structbert_large_en": (335_141_888, 336_227_133, 398),
    "structbert_base_zh": (102_267_648, 102_883_211, 206),
    "structbert_large_zh": (325_522_432, 326_598_283, 398),
    "structbert_lite_zh": (30_258_688, 30_545_035, 110),
    "structbert_tiny_zh": (11_419_320, 11_539_667, 78),
    "structroberta_large_en": (355_359_744, 356_464_732, 398),
    # With poolers and heads for pairs, which VECO's own counts leave out: test_veco.py has those.
    "veco_large": (660_701_184, 662_004_884, 638),
    "veco_small": (249_699_840, 250_543_508, 170),
    "veco_tiny": (6_459_904, 6_534_722, 118),
    "ernie_m_base": (278_042_880, 278_886_548, 205),
    "ernie_m_large": (559_889_408, 561_193_108, 397),
    "ernie_m_tiny": (5_404_928, 5_479_746, 77),
}


def test_every_shipped_config_is_counted():
    shipped = {path.stem for path in (ROOT / "albert_config").glob("*.json")}
    # tests/modeling/test_palm.py counts those with a decoder.
    assert {name for name in shipped if not name.startswith(("palm", "plug"))} == {*PUBLISHED, "albert_config_demo"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_equal_the_published_counts(name: str):
    config = load_config(ROOT / "albert_config" / f"{name}.json")
    pair_labels = 3 if name.startswith("struct") else 2
    shapes = variable_shapes(lambda: PretrainingModel(config, pair_labels))
    backbone = sum(int(np.prod(shape)) for key, shape in shapes.items() if key.startswith("backbone/"))
    assert (backbone, count_parameters(lambda: PretrainingModel(config, pair_labels)), len(shapes)) == PUBLISHED[name]


@pytest.mark.parametrize(("name", "count"), [("base", 10_547_968), ("xxlarge", 221_459_968)])
def test_parameters_of_googles_chinese_sizes(name: str, count: int):
    config = load_config(ROOT / "albert_config" / f"albert_config_{name}_google_en.json")
    config = dataclasses.replace(config, vocab_size=21128)
    shapes = variable_shapes(lambda: PretrainingModel(config))
    assert sum(int(np.prod(shape)) for key, shape in shapes.items() if key.startswith("backbone/")) == count


def block(k_attention: int, k_feed_forward: int) -> list[str]:
    return [
        *(
            f"backbone/encoder/attention_{k_attention}/{part}/{kind}"
            for part in ("query", "key", "value", "output")
            for kind in ("kernel", "bias")
        ),
        *(f"backbone/encoder/attention_{k_attention}/layer_norm/{kind}" for kind in ("gamma", "beta")),
        *(
            f"backbone/encoder/feed_forward_{k_feed_forward}/{part}/{kind}"
            for part in ("intermediate", "output")
            for kind in ("kernel", "bias")
        ),
        *(f"backbone/encoder/feed_forward_{k_feed_forward}/layer_norm/{kind}" for kind in ("gamma", "beta")),
    ]


COMMON = [
    *(f"backbone/embeddings/{table}_embeddings" for table in ("word", "position", "token_type")),
    "backbone/embeddings/layer_norm/gamma",
    "backbone/embeddings/layer_norm/beta",
    "backbone/pooler/kernel",
    "backbone/pooler/bias",
    "masked_lm/transform/kernel",
    "masked_lm/transform/bias",
    "masked_lm/layer_norm/gamma",
    "masked_lm/layer_norm/beta",
    "masked_lm/output_bias",
    "sentence_pair/kernel",
    "sentence_pair/bias",
]
PROJECTION = "backbone/embeddings/projection/kernel"
PROJECTION_BIAS = "backbone/embeddings/projection/bias"
NAMES = {
    "bert": [*block(0, 0), *block(1, 1), *block(2, 2)],
    "bert_preln_final": [
        *block(0, 0),
        *block(1, 1),
        *block(2, 2),
        "backbone/encoder/layer_norm/gamma",
        "backbone/encoder/layer_norm/beta",
    ],
    "albert": [PROJECTION, PROJECTION_BIAS, *block(0, 0)],
    "albert_groups": [PROJECTION, PROJECTION_BIAS, *block(0, 0), *block(1, 1), *block(2, 2), *block(3, 3)],
    "albert_zh": [PROJECTION, *block(0, 0)],
    "albert_zh_preln": [PROJECTION, *block(0, 0)],
    "albert_zh_equal_widths": [PROJECTION, *block(0, 0)],
    "albert_zh_share_attention": [PROJECTION, *block(0, 0), *block(0, 1), *block(0, 2)],
    "google_fast": [PROJECTION, PROJECTION_BIAS, *block(0, 0), *block(1, 1), *block(2, 2)],
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_variables_are_the_documented_ones(name: str):
    names = list(variable_shapes(lambda: PretrainingModel(CONFIGS[name])))
    assert len(names) == len(set(names))
    assert set(names) == {*COMMON, *NAMES[name]}


def test_groups_that_no_layer_falls_into_leave_a_gap():
    config = load_config(ROOT / "albert_config" / "albert_config_tiny_google_fast.json")
    names = variable_shapes(lambda: PretrainingModel(config))
    assert {name.split("/")[2] for name in names if "/attention_" in name} == {f"attention_{k}" for k in (0, 3, 6, 9)}


def test_classifier_of_albert_zh_preln_normalises_the_pooled_vector():
    def heads(name: str) -> dict[str, tuple[int, ...]]:
        shapes = variable_shapes(lambda: ClassifierModel(CONFIGS[name], num_labels=3))
        return {key: shape for key, shape in shapes.items() if not key.startswith("backbone/")}

    classifier = {"classifier/kernel": (16, 3), "classifier/bias": (3,)}
    assert heads("albert_zh") == classifier
    assert heads("albert_zh_preln") == classifier | {
        "pooled_layer_norm/gamma": (16,),
        "pooled_layer_norm/beta": (16,),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_changes_nothing_real(name: str):
    model = model_of(name)
    batch = features(batch=2)
    batch["input_mask"][:] = 1
    batch["input_mask"][:, 6:] = 0
    short = {key: value[:, :6] for key, value in batch.items()}
    padded = numpy_outputs(drop_states(model(batch)))
    unpadded = numpy_outputs(drop_states(model(short)))
    padded["sequence_output"] = padded["sequence_output"][:, :6]
    for key in unpadded:
        np.testing.assert_allclose(padded[key], unpadded[key], atol=2e-5, err_msg=key)


def drop_states(outputs: dict) -> dict:
    return {key: value for key, value in outputs.items() if key != "hidden_states"}


@pytest.mark.parametrize("name", CONFIGS)
def test_permuting_the_batch_permutes_the_outputs(name: str):
    model = model_of(name)
    batch = features()
    order = [2, 0, 1]
    outputs = numpy_outputs(drop_states(model(batch)))
    permuted = numpy_outputs(drop_states(model({key: value[order] for key, value in batch.items()})))
    for key in outputs:
        np.testing.assert_allclose(permuted[key], outputs[key][order], atol=2e-5, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "albert", "google_fast"])
def test_compiled_equals_eager(name: str):
    model = model_of(name)
    batch = features()
    compiled = numpy_outputs(drop_states(tf.function(model)(batch, training=False)))
    for key, value in numpy_outputs(drop_states(model(batch))).items():
        np.testing.assert_allclose(compiled[key], value, atol=2e-5, err_msg=key)


def test_default_features_are_all_real_and_of_type_0():
    model = model_of("albert_zh")
    ids = features()["input_ids"]
    full = {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}
    a, b = (numpy_outputs(drop_states(model(batch))) for batch in ({"input_ids": ids}, full))
    for key in a:
        np.testing.assert_allclose(a[key], b[key], atol=1e-5, err_msg=key)
    assert a["masked_lm_logits"].shape == (3, 9, 37)


def test_predicted_positions_are_those_asked_for():
    model = model_of("albert")
    batch = features()
    positions = batch["masked_lm_positions"]
    everywhere = numpy_outputs(drop_states(model({k: v for k, v in batch.items() if k != "masked_lm_positions"})))
    np.testing.assert_allclose(
        numpy_outputs(drop_states(model(batch)))["masked_lm_logits"],
        np.take_along_axis(everywhere["masked_lm_logits"], positions[:, :, None], axis=1),
        atol=1e-5,
    )


def test_rows_that_pad_the_vocabulary_have_no_probability():
    model = model_of("albert")
    logits = np.asarray(model(features())["masked_lm_logits"])
    assert logits.shape[-1] == 40
    assert np.isfinite(logits).all()
    probabilities = np.asarray(keras.ops.softmax(logits))
    assert (probabilities[..., 37:] == 0).all()
    np.testing.assert_allclose(probabilities[..., :37].sum(-1), 1.0, rtol=1e-5)


def test_hidden_states_run_from_the_embedding_to_the_output():
    model = model_of("albert_groups")
    outputs = model(features())
    assert len(outputs["hidden_states"]) == 1 + 4 * 2
    np.testing.assert_array_equal(outputs["hidden_states"][-1], outputs["sequence_output"])


@pytest.mark.parametrize(
    ("name", "scan"),
    [*((name, False) for name in [*CONFIGS, "palm"]), ("albert", True), ("bert_preln_final", True)],
)
def test_scores_of_the_first_position_alone_are_those_of_the_whole_model(name: str, scan: bool):
    config = without_dropout({**CONFIGS, **PALM_CONFIGS}[name])
    model = ClassifierModel(config, 3, 0.0, Computation(scan=scan, remat=scan))
    randomize(model)
    batch, whole = features(), model(features())
    alone = model(batch, scores_only=True)
    assert set(alone) == {"logits"}
    np.testing.assert_allclose(alone["logits"], whole["logits"], atol=2e-6)
    assert model.backbone(batch, first_only=True)["sequence_output"].shape == (3, 1, 16)
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function
    def gradients_of(scores_only: bool):
        with tf.GradientTape() as tape, seeded(tf.constant(KEY)):
            loss = tf.reduce_sum(tf.square(model(batch, training=True, scores_only=scores_only)["logits"]))
        gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.convert_to_tensor(gradient) for gradient in gradients]

    # Tracing takes longer than the gradients, but loops over layers are there to be traced.
    with contextlib.nullcontext() if scan else uncompiled():
        for one, other in zip(gradients_of(False), gradients_of(True), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_head_that_reads_other_positions_gets_them():
    heads = [partial(EmbeddingHead, pooling="mean", layer=-1, dropout=0.0)]
    model = LanguageModel(CONFIGS["bert"], heads)
    np.testing.assert_array_equal(model(features(), scores_only=True)["embedding"], model(features())["embedding"])


@pytest.mark.parametrize("name", ["bert", "albert_zh"])
def test_word_noise_enters_at_the_word_vectors(name: str):
    """Replacing a token equals adding the difference of the two word vectors."""
    model = model_of(name)
    batch = features()
    table = np.asarray(model.backbone.embeddings.word_embeddings)
    other = {**batch, "input_ids": (batch["input_ids"] + 1) % 37}
    noise = table[other["input_ids"]] - table[batch["input_ids"]]
    np.testing.assert_allclose(
        model.backbone(batch, word_noise_BLE=noise)["sequence_output"],
        model.backbone(other)["sequence_output"],
        atol=2e-5,
    )


def test_position_offset_skips_rows():
    config = CONFIGS["bert_erf_offset_no_types"]
    model = model_of("bert_erf_offset_no_types")
    before = np.asarray(model(features())["sequence_output"])
    table = model.backbone.embeddings.position_embeddings
    values = np.asarray(table).copy()
    values[: config.position_offset] += 100.0
    table.assign(values)
    np.testing.assert_array_equal(before, np.asarray(model(features())["sequence_output"]))


def test_too_long_a_sequence_is_refused():
    with pytest.raises(app.UsageError, match="sequences of 13 tokens, but this model has 12 positions"):
        model_of("bert")(features(length=13))


def gradients(model: LanguageModel, batch: dict) -> tuple[float, dict[str, np.ndarray]]:
    @tf.function
    def step():
        with tf.GradientTape() as tape, seeded(tf.constant(KEY)):
            outputs = model(batch, training=True)
            loss = tf.reduce_sum(tf.square(outputs["sequence_output"])) + tf.reduce_sum(
                outputs["masked_lm_logits"][..., :37] ** 2
            )
        return loss, tape.gradient(loss, [v.value for v in named_variables(model).values()])

    loss, values = step()
    return float(loss), {
        name: np.asarray(tf.convert_to_tensor(value))
        for name, value in zip(named_variables(model), values, strict=True)
        if value is not None
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scan", "remat"),
    [
        ("bert", False, True),
        ("albert", False, True),
        ("bert", True, True),
        ("albert", True, True),
        ("albert_zh_share_attention", True, False),
        ("albert_groups", True, True),
    ],
)
def test_rematerialisation_and_scan_change_no_gradient_under_dropout(name: str, scan: bool, remat: bool):
    kept = gradients(model_of(name), features())
    recomputed = gradients(model_of(name, remat=remat, scan=scan), features())
    assert kept[0] == pytest.approx(recomputed[0], rel=1e-6)
    assert kept[1].keys() == recomputed[1].keys()
    for key in kept[1]:
        # The gradient of a key's bias is 0 up to rounding: softmax ignores a shift.
        atol = 1e-5 * max(1.0, np.abs(kept[1][key]).max())
        np.testing.assert_allclose(kept[1][key], recomputed[1][key], atol=atol, err_msg=key)


def test_dropout_is_a_function_of_the_key():
    model = model_of("bert")

    def run(key: np.ndarray) -> np.ndarray:
        with seeded(keras.ops.convert_to_tensor(key)):
            return np.asarray(model(features(), training=True)["sequence_output"])

    np.testing.assert_array_equal(run(KEY), run(KEY))
    assert np.abs(run(KEY) - run(KEY[::-1])).max() > 0.1
    assert np.abs(run(KEY) - np.asarray(model(features())["sequence_output"])).max() > 0.1


def test_outside_of_a_scope_every_call_draws_anew():
    model = ClassifierModel(CONFIGS["albert"], num_labels=2)
    first, second = (np.asarray(model(features(), training=True)["logits"]) for _ in range(2))
    assert np.abs(first - second).max() > 0.0


def test_initial_values_depend_on_seed_and_name_alone():
    bert, deeper = (
        named_variables(PretrainingModel(dataclasses.replace(CONFIGS["bert"], num_hidden_layers=layers)))
        for layers in (1, 2)
    )
    for name, variable in bert.items():
        np.testing.assert_array_equal(variable, deeper[name], err_msg=name)
    kernels = [np.asarray(v) for n, v in deeper.items() if n.endswith(("/query/kernel", "/key/kernel"))]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels) == 4
    other = named_variables(PretrainingModel(CONFIGS["bert"], computation=Computation(seed=1)))
    assert np.abs(np.asarray(other["backbone/pooler/kernel"]) - np.asarray(bert["backbone/pooler/kernel"])).max() > 0.1


def test_initial_values_are_berts():
    config = dataclasses.replace(CONFIGS["bert"], vocab_size=2000, initializer_range=0.02)
    model = PretrainingModel(config)
    values = {name: np.asarray(variable) for name, variable in named_variables(model).items()}
    table = values["backbone/embeddings/word_embeddings"]
    assert np.abs(table).max() <= 0.04
    # A normal cut at two deviations keeps 0.8796 of its deviation.
    assert table.std() == pytest.approx(0.02 * 0.8796, rel=0.02)
    for name, value in values.items():
        if name.endswith(("bias", "beta")):
            assert not value.any(), name
        elif name.endswith("gamma"):
            assert (value == 1).all(), name


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_loaded_by_name_is_the_same_model(name: str):
    model, other = model_of(name), PretrainingModel(CONFIGS[name], computation=Computation(seed=3))
    state = {key: np.asarray(variable) for key, variable in named_variables(model).items()}
    for key, variable in named_variables(other).items():
        variable.assign(state[key])
    for key, value in numpy_outputs(drop_states(model(features()))).items():
        np.testing.assert_array_equal(value, np.asarray(other(features())[key]), err_msg=key)


@pytest.mark.parametrize("name", ["bert", "albert", "albert_zh_preln", "google_fast"])
def test_bfloat16_is_close_and_keeps_float32_where_it_counts(name: str):
    exact, rounded = model_of(name), PretrainingModel(CONFIGS[name], computation=Computation("mixed_bfloat16"))
    randomize(rounded)
    outputs = rounded(features())
    assert {variable.dtype for variable in named_variables(rounded).values()} == {"float32"}
    assert keras.backend.standardize_dtype(outputs["sequence_output"].dtype) == "bfloat16"
    for key in ("masked_lm_logits", "sentence_pair_logits"):
        assert keras.backend.standardize_dtype(outputs[key].dtype) == "float32"
        expected = np.asarray(exact(features())[key])[..., :37]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(np.asarray(outputs[key])[..., :37], expected, atol=0.05 * scale, err_msg=key)


JAX_FORWARD = """
import jax, sys
import numpy as np
from modeling_cases import CONFIGS, features
from modeling import PretrainingModel
results = {}
for name in sys.argv[2:]:
    model = PretrainingModel(CONFIGS[name])
    outputs = jax.jit(lambda batch: dict(model(batch)))(features())
    for key in ("masked_lm_logits", "sentence_pair_logits", "sequence_output"):
        results[f"{name}/{key}"] = np.asarray(outputs[key])
np.savez(sys.argv[1], **results)
"""
JAX_TRAINING = """
import jax, keras
import numpy as np
from modeling_cases import CONFIGS, features
from modeling import ClassifierModel, Computation, PretrainingModel, seeded

def loss(weights, model):
    with seeded(np.array([7, 11], np.uint32)):
        state = [variable.value for variable in model.non_trainable_variables]
        outputs, _ = model.stateless_call(weights, state, features(), training=True)
    return (outputs["sequence_output"] ** 2).sum()

for dtype, tolerance in (("float32", 1e-5), ("mixed_bfloat16", 2e-2)):
    gradients = []
    both = {"scan": True, "remat": True}
    for choice in ({}, {"remat": True}, {"scan": True}, both) if dtype == "float32" else ({}, both):
        model = PretrainingModel(CONFIGS["albert_zh_share_attention"], computation=Computation(dtype, **choice))
        weights = [variable.value for variable in model.trainable_variables]
        gradients.append(jax.jit(jax.grad(lambda w: loss(w, model)))(weights))
        for kept, other in zip(gradients[0], gradients[-1]):
            np.testing.assert_allclose(kept, other, atol=tolerance * max(1.0, float(abs(kept).max())))

model = ClassifierModel(CONFIGS["albert_zh"], num_labels=2)
inputs = {key: keras.Input((9,), dtype="int32", name=key) for key in ("input_ids", "input_mask")}
plain = keras.Model(inputs, model(inputs)["logits"])
plain.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
batch = {key: features()[key] for key in inputs}
losses = plain.fit(batch, np.array([0, 1, 0]), epochs=12, verbose=0).history["loss"]
assert losses[-1] < losses[0], losses
"""


def run_on_jax(script: str, *arguments: str) -> None:
    environment = environment_on_jax(ROOT, Path(__file__).parent)
    command = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_jax_equals_tensorflow_and_trains_with_rematerialisation_and_by_plain_fit(tmp_path: Path):
    """The same seed gives the same model and outputs on both backends."""
    path = tmp_path / "jax.npz"
    names = ("bert_erf_offset_no_types", "albert_groups", "albert_zh_preln", "google_fast")
    run_on_jax(JAX_FORWARD + JAX_TRAINING, str(path), *names)
    answers = np.load(path)
    for name in names:
        outputs = PretrainingModel(CONFIGS[name])(features())
        for key in ("masked_lm_logits", "sentence_pair_logits", "sequence_output"):
            np.testing.assert_allclose(outputs[key], answers[f"{name}/{key}"], atol=3e-5, err_msg=f"{name} {key}")


def test_config_is_importable_without_keras():
    script = "import sys; from modeling import load_config; print('keras' in sys.modules, 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_float32_config_survives_json(tmp_path: Path):
    path = tmp_path / "config.json"
    for config in CONFIGS.values():
        path.write_text(config.to_json())
        assert load_config(path) == config
        assert set(json.loads(config.to_json())) == {field.name for field in dataclasses.fields(config)}


def test_dropout_free_config_ignores_training():
    model = PretrainingModel(without_dropout(CONFIGS["bert"]))
    np.testing.assert_array_equal(
        model(features(), training=True)["sequence_output"], model(features())["sequence_output"]
    )


@pytest.mark.slow
def test_one_trace_serves_any_batch_and_length():
    model = model_of("albert_zh")
    names = ("input_ids", "input_mask", "segment_ids")
    signature = {name: tf.TensorSpec((None, None), tf.int32) for name in names}
    serve = tf.function(lambda batch: model(batch)["masked_lm_logits"], input_signature=[signature])
    for batch_size, length in ((1, 12), (3, 7)):
        batch = {name: features(batch=batch_size, length=length)[name] for name in names}
        np.testing.assert_allclose(serve(batch), model(batch)["masked_lm_logits"], atol=2e-5)
    assert serve.experimental_get_tracing_count() == 1
