"""ERNIE-M's losses: two computations of one result, who is read by whom, and sentences that the model writes itself."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.app import UsageError
from on_jax import environment_on_jax

from data.forms import FORMS
from data.schema import padding
from data.spoken import OTHER_LANGUAGE, OWN_LANGUAGE
from modeling import LanguageModel, named_variables
from modeling.computation import Sizes
from modeling.config import Config
from modeling.heads import QueriesHead
from modeling.randomness import seeded
from tasks.across import Across, Pseudo, original_ids, pseudo_length
from tasks.pretraining import PretrainingTask

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Config(
    family="ernie_m",
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=16,
    hidden_act="gelu_erf",
    max_position_embeddings=32,
    position_offset=2,
    type_vocab_size=0,
    layer_norm_eps=1e-5,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.5,
)
KEY = np.array([1, 2], np.uint32)
B, L, P, MASK = 3, 7, 2, 4
PSEUDO = Pseudo(mask_id=MASK, special_ids=(0, 1, 2, 3, 4))


def make_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Return two texts of 5 to 7 tokens with one or two masked tokens each."""
    random = np.random.default_rng(seed)
    batch = {}
    for prefix in ("", "other_"):
        mask = (np.arange(L) < random.integers(5, L + 1, B)[:, None]).astype(np.int32)
        ids = random.integers(5, 30, (B, L), np.int32) * mask
        positions = np.sort(random.permuted(np.tile([1, 2, 3], (B, 1)), axis=1)[:, :P]).astype(np.int32)
        weights = random.integers(0, 2, (B, P)).astype(np.float32)
        weights[:, 0] = 1
        row, slot = np.nonzero(weights)
        labels = np.zeros((B, P), np.int32)
        labels[row, slot] = ids[row, positions[row, slot]]
        ids[row, positions[row, slot]] = MASK
        batch |= {
            f"{prefix}input_ids": ids,
            f"{prefix}input_mask": mask,
            f"{prefix}masked_lm_positions": positions * weights.astype(np.int32),
            f"{prefix}masked_lm_ids": labels,
            f"{prefix}masked_lm_weights": weights,
        }
    return batch


_SIDES = ("", "other_")
# The shape of the model in modeling/test_queries.py.
_OTHER = dataclasses.replace(
    CONFIG, vocab_size=37, hidden_size=16, embedding_size=16, intermediate_size=24, num_hidden_layers=2
)
LANGUAGES = ("de", "en", "zh")
NUMBERS = {OWN_LANGUAGE: np.array([0, 1, 2], np.int32), OTHER_LANGUAGE: np.array([1, 0, 1], np.int32)}
CASES: dict[str, dict[str, Any]] = {
    "split": {"objective": "camlm"},
    "written": {"objective": "btmlm", "pseudo": PSEUDO},
    "said": {"objective": "camlm", "across": Across(languages=LANGUAGES)},
    "said densely": {"objective": "camlm", "across": Across(languages=LANGUAGES, computation="dense")},
    "asked": {"objective": "btmlm", "pseudo": dataclasses.replace(PSEUDO, languages=LANGUAGES)},
}


def found_in(case: dict[str, Any], compiled: Any = lambda function: function) -> dict[str, list[float]]:
    """Return sum and weight of every loss and metric of a case; vectors of languages are not zero."""
    task = PretrainingTask(CONFIG, **case)
    model, batch = task.build_model(), (alone() if case["objective"] == "btmlm" else make_batch()) | NUMBERS
    for number, language in enumerate(LANGUAGES):
        if (vector := named_variables(model).get(f"languages/{language}")) is not None:
            vector.assign(np.sin(np.arange(CONFIG.hidden_size, dtype=np.float32) + number))
    losses, metrics = compiled(lambda batch: task.terms(model, batch, seed=KEY, training=True))(batch)
    return {name: [float(x) for x in pair] for name, pair in (losses | metrics).items()}


def alone(seed: int = 0) -> dict[str, np.ndarray]:
    batch = {name: value for name, value in make_batch(seed).items() if not name.startswith("other_")}
    return batch | {"segment_ids": np.zeros((B, L), np.int32)}


def mean(task: PretrainingTask, model: Any, batch: dict[str, Any], name: str = "camlm") -> Any:
    total, weight = task.terms(model, batch, seed=KEY, training=True)[0][name]
    return total / weight


def gradients_of(
    task: PretrainingTask, model: Any, batch: dict[str, Any], name: str = "camlm"
) -> dict[str, np.ndarray]:
    variables = named_variables(model)
    with tf.GradientTape() as tape:
        loss = mean(task, model, batch, name)
    found = tape.gradient(loss, [variable.value for variable in variables.values()])
    return {n: np.asarray(tf.convert_to_tensor(g)) for n, g in zip(variables, found, strict=True) if g is not None}


@pytest.fixture(scope="module")
def model() -> Any:
    return PretrainingTask(CONFIG, "camlm").build_model()


# -- from a translation alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["continued", "restarted"])
def test_split_and_dense_are_one_result_with_its_gradients(model: Any, positions: str):
    batch, found = make_batch(), {}
    for computation in ("split", "dense"):
        task = PretrainingTask(CONFIG, "camlm", across=Across(computation=computation, positions=positions))
        found[computation] = float(mean(task, model, batch)), gradients_of(task, model, batch)
        predicted = task.predictions(model, batch)
        found[computation] += ({name: np.asarray(value) for name, value in predicted.items()},)
    (loss, gradients, predicted), (other, others, also) = found["split"], found["dense"]
    assert abs(loss - other) < 1e-6
    assert gradients.keys() == others.keys()
    assert "backbone/encoder/attention_2/key/kernel" in gradients
    size = np.sqrt(sum(np.square(value).sum() for value in gradients.values()))
    for name, value in gradients.items():
        np.testing.assert_allclose(value, others[name], atol=1e-6 * size, err_msg=name)
    for side in ("", "other_"):
        real = batch[f"{side}masked_lm_weights"] > 0
        np.testing.assert_array_equal(predicted[f"{side}masked_lm_ids"][real], also[f"{side}masked_lm_ids"][real])


def test_positions_and_readings_are_choices_that_change_the_loss(model: Any):
    batch = make_batch()
    choices: list[dict[str, Any]] = [
        {},
        {"positions": "restarted"},
        {"computation": "dense", "mask": "cross"},
    ]
    losses = [
        float(mean(PretrainingTask(CONFIG, "camlm", across=Across(**choice)), model, batch)) for choice in choices
    ]
    assert len({round(loss, 5) for loss in losses}) == 3
    with pytest.raises(UsageError, match="computed in one row of both texts alone; give --camlm_computation=dense"):
        PretrainingTask(CONFIG, "camlm", across=Across(mask="cross"))


def scores(model: Any, batch: dict[str, np.ndarray], computation: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of the masked tokens of the first text and of the second, [B, P, V]."""
    (loss,) = PretrainingTask(CONFIG, "camlm", across=Across(computation=computation)).losses
    logits = np.asarray(model(dict(loss.prepare(model, batch, None)))["masked_lm_logits"])
    return (logits[:, :P], logits[:, P:]) if computation == "dense" else (logits[1::2], logits[::2])


@pytest.mark.parametrize("computation", ["split", "dense"])
def test_only_what_is_not_masked_of_the_other_text_is_read(model: Any, computation: str):
    batch = make_batch()
    before = scores(model, batch, computation)
    masked = [[*batch[f"{side}masked_lm_positions"][0][batch[f"{side}masked_lm_weights"][0] > 0]] for side in _SIDES]
    for number, side in enumerate(_SIDES):
        length = batch[f"{side}input_mask"][0].sum()
        for place in range(length):
            ids = batch[f"{side}input_ids"].copy()
            ids[0, place] = ids[0, place] % 29 + 1
            after = scores(model, batch | {f"{side}input_ids": ids}, computation)
            real = [batch[f"{each}masked_lm_weights"][0] > 0 for each in _SIDES]
            own, other = number, 1 - number
            if place in masked[number]:
                # What a masked token shows is read by itself; nobody else sees it.
                np.testing.assert_array_equal(after[other][0][real[other]], before[other][0][real[other]])
                continue
            np.testing.assert_array_equal(after[own][0][real[own]], before[own][0][real[own]])
            assert (np.abs(after[other][0] - before[other][0])[real[other]].max(axis=-1) > 1e-4).all()


def test_the_mean_is_over_the_masked_tokens_of_both_and_padding_weighs_nothing(model: Any):
    task, batch = PretrainingTask(CONFIG, "camlm", weights={"masked_lm": 2.0}), make_batch()
    assert task.loss_weights == {"camlm": 2.0}
    total = sum(batch[f"{side}masked_lm_weights"].sum() for side in _SIDES)
    losses, metrics = task.terms(model, batch, seed=KEY, training=True)
    assert float(task.normalizers(batch)["camlm"]) == float(losses["camlm"][1]) == total
    assert tuple(metrics) == task.metrics == ("camlm_accuracy",)
    nothing = padding(FORMS["halves"].schema, {"tokens": L, "predictions": P}, 2)
    filled = {name: np.concatenate([value, nothing[name]]) for name, value in batch.items()}
    padded, _ = task.terms(model, filled, seed=KEY, training=True)
    np.testing.assert_allclose(padded["camlm"], losses["camlm"], rtol=1e-5)


def test_two_texts_have_positions_one_behind_the_other(model: Any):
    config = dataclasses.replace(CONFIG, max_position_embeddings=15)
    assert config.max_sequence_length == 13 < 2 * L
    small = PretrainingTask(config, "camlm").build_model()
    with pytest.raises(UsageError, match="sequences of 14 tokens, but this model has 13 positions"):
        mean(PretrainingTask(config, "camlm"), small, make_batch())
    restarted = PretrainingTask(config, "camlm", across=Across(positions="restarted"))
    assert np.isfinite(float(mean(restarted, small, make_batch())))


def test_there_are_no_variables_but_those_of_masked_tokens(model: Any):
    assert named_variables(model).keys() == named_variables(PretrainingTask(CONFIG, "masked_lm").build_model()).keys()


# -- beside a sentence that the model wrote ----------------------------------------------------------------------------


def test_a_text_is_rebuilt_from_its_labels():
    batch, before = alone(), make_batch()
    expected = before["input_ids"].copy()
    row, slot = np.nonzero(before["masked_lm_weights"])
    expected[row, before["masked_lm_positions"][row, slot]] = before["masked_lm_ids"][row, slot]
    np.testing.assert_array_equal(original_ids(batch), expected)
    assert not np.array_equal(expected, before["input_ids"])


def prepared(model: Any, batch: dict[str, np.ndarray], pseudo: Pseudo = PSEUDO) -> dict[str, np.ndarray]:
    (loss,) = PretrainingTask(CONFIG, "btmlm", pseudo=pseudo).losses
    return {name: np.asarray(value) for name, value in loss.prepare(model, batch, None).items()}


def test_what_is_written_is_what_camlm_would_say_of_placeholders(model: Any):
    """Each row by itself, through the dense mask with all of the second text masked."""
    from modeling import masks

    batch = alone()
    found, originals = prepared(model, batch), np.asarray(original_ids(batch))
    for row in range(B):
        n = int(batch["input_mask"][row].sum())
        ids = np.concatenate([originals[row, :n], np.full(n, MASK)])[None].astype(np.int32)
        sides = np.array([[1] * n + [2] * n], np.int32)
        outputs = model({"input_ids": ids, "attention_mask": masks.across_mask(sides, sides == 2)})
        written = np.asarray(outputs["masked_lm_logits"])[0, n:].argmax(-1)
        np.testing.assert_array_equal(found["pseudo_ids"][row], [*written, *[0] * (L - n)])
        np.testing.assert_array_equal(found["input_ids"][row], [*batch["input_ids"][row], *found["pseudo_ids"][row]])
        np.testing.assert_array_equal(found["input_mask"][row], np.tile(np.arange(L) < n, 2))
        np.testing.assert_array_equal(found["places"][row, L : L + n], np.arange(n, 2 * n))


def test_the_length_rule_is_clipped_to_the_room(model: Any):
    batch = alone()
    lengths = batch["input_mask"].sum(axis=1)
    for ratio, expected in ((0.5, np.rint(0.5 * lengths)), (2.0, 2 * lengths)):
        found = prepared(model, batch, dataclasses.replace(PSEUDO, length_ratio=ratio))
        np.testing.assert_array_equal(found["pseudo_mask"].sum(axis=1), expected)
    assert (pseudo_length(7, 1.0, 30), pseudo_length(7, 9.0, 30), pseudo_length(7, 0.01, 30)) == (7, 23, 1)
    with pytest.raises(UsageError, match="have 30 tokens and the model 30 positions: beside them no pseudo sentence"):
        pseudo_length(30, 1.0, 30)


def test_no_gradient_goes_through_what_was_written(model: Any):
    """The gradient is that of a row whose second half was always there."""
    task, batch = PretrainingTask(CONFIG, "btmlm", pseudo=PSEUDO), alone()
    row = {name: value for name, value in prepared(model, batch).items() if not name.startswith("pseudo_")}
    plain = PretrainingTask(CONFIG, "btmlm")
    (loss,) = plain.losses
    loss.prepare = lambda model, batch, seed: batch  # type: ignore[method-assign]
    ours, expected = gradients_of(task, model, batch, "btmlm"), gradients_of(plain, model, row, "btmlm")
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)
    assert float(mean(task, model, batch, "btmlm")) == pytest.approx(float(mean(plain, model, row, "btmlm")))


def test_a_drawn_sentence_follows_the_seed_and_dropout_is_off(model: Any):
    config = dataclasses.replace(CONFIG, hidden_dropout_prob=0.5)
    dropping = PretrainingTask(config, "btmlm").build_model()
    for name, variable in named_variables(dropping).items():
        variable.assign(named_variables(model)[name])
    batch = alone()
    np.testing.assert_array_equal(prepared(dropping, batch)["pseudo_ids"], prepared(model, batch)["pseudo_ids"])

    def repetition(seed: list[int], pick: str) -> float:
        task = PretrainingTask(CONFIG, "btmlm", pseudo=dataclasses.replace(PSEUDO, pick=pick))
        losses, _ = task.terms(model, batch, seed=np.array(seed, np.uint32), training=True)
        return float(losses["btmlm"][0])

    assert repetition([1, 2], "argmax") == repetition([3, 4], "argmax")
    assert repetition([1, 2], "sample") == repetition([1, 2], "sample") != repetition([3, 4], "sample")


@pytest.mark.parametrize("slots", [1, 3, 6])
def test_few_scores_at_a_time_write_the_same_sentence(model: Any, monkeypatch: pytest.MonkeyPatch, slots: int):
    batch = alone()
    before = prepared(model, batch)["pseudo_ids"]
    monkeypatch.setattr("tasks.across.MOST_SCORES", B * 30 * slots + 1)
    np.testing.assert_array_equal(prepared(model, batch)["pseudo_ids"], before)
    # The gradient is that of before, and a drawn sentence has noise of its own for each part.
    test_no_gradient_goes_through_what_was_written(model)
    found = _drawn_from_equal_scores(model, batch)
    parts = [found[:, begin : begin + slots] for begin in range(0, L - slots, slots)]
    assert len(parts) == 1 or not np.array_equal(parts[0], parts[1])


def _drawn_from_equal_scores(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    (loss,) = PretrainingTask(CONFIG, "btmlm", pseudo=dataclasses.replace(PSEUDO, pick="sample")).losses
    states = np.zeros((B, L, CONFIG.hidden_size), np.float32)
    with seeded(KEY):
        return np.asarray(loss._picked(model, states))  # pyright: ignore[reportAttributeAccessIssue]


def test_repetition_and_emptiness_are_shares_of_what_was_written():
    (loss,) = PretrainingTask(CONFIG, "btmlm", pseudo=PSEUDO).losses
    written = np.array([[7, 7, 7, 3, 0], [9, 8, 0, 0, 0]], np.int32)
    batch = {
        "pseudo_ids": written,
        "pseudo_mask": np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], np.int32),
        "masked_lm_ids": np.zeros((2, 1), np.int32),
        "masked_lm_weights": np.ones((2, 1), np.float32),
    }
    _, metrics = loss.terms({"masked_lm_logits": keras.ops.zeros((2, 1, 30))}, batch)
    shares = {name: (float(total), float(count)) for name, (total, count) in metrics.items()}
    assert shares["pseudo_repetition"] == (2, 4)
    assert shares["pseudo_emptiness"] == (1, 6)


JAX = """
import json, sys
import jax, numpy as np
from modeling_cases import without_dropout
from test_accounting import COUNT_PRODUCTS
from test_across import CASES, KEY, found_in
from test_queries import ERNIE, beside, randomized
import tasks.across
from modeling import Computation, seeded

exec(COUNT_PRODUCTS.split("found = {}")[0])
model, given = randomized(without_dropout(ERNIE)), beside()

def loss(weights, model):
    with seeded(KEY):
        state = [variable.value for variable in model.non_trainable_variables]
        outputs, _ = model.stateless_call(weights, state, given, training=True)
    return (outputs["masked_lm_logits"] ** 2).sum()

weights = [variable.value for variable in model.trainable_variables]
counted = [products(jax.make_jaxpr(lambda w: f(w, model))(weights).jaxpr) for f in (loss, jax.grad(loss))]
gradients = []
for choice in ({}, {"remat": True, "scan": True}):
    other = randomized(ERNIE, Computation(seed=3, **choice))
    values = [variable.value for variable in other.trainable_variables]
    gradients.append(jax.jit(jax.grad(lambda values: loss(values, other)))(values))
for kept, other in zip(*gradients, strict=True):
    np.testing.assert_allclose(kept, other, atol=1e-5 * max(1.0, float(abs(kept).max())))
terms = {name: found_in(case, jax.jit) for name, case in CASES.items()}
tasks.across.MOST_SCORES = 200
terms["in parts"] = found_in(CASES["written"], jax.jit)
print(json.dumps({"counted": counted, "terms": terms}))
"""


@pytest.mark.slow
def test_jax_computes_the_same_and_every_product_that_it_traces_is_counted():
    folders = (ROOT, ROOT / "tests", ROOT / "tests/modeling", Path(__file__).parent)
    command, environment = [sys.executable, "-c", JAX], environment_on_jax(*folders)
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    answer = json.loads(result.stdout)
    for name, case in (CASES | {"in parts": CASES["written"]}).items():
        for term, pair in found_in(case).items():
            np.testing.assert_allclose(answer["terms"][name][term], pair, rtol=2e-5, err_msg=f"{name} {term}")
    model = LanguageModel(_OTHER, [QueriesHead])
    operations = 2 * model.operations(Sizes(6, scored=3, queries=3))
    assert answer["counted"] == [operations, 3 * operations]
