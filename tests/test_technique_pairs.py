"""Every fine-tuning technique with every other: two steps, in which each still does what it promises, on both engines.

Steps are taken operation by operation, uncompiled; test_fine_tuning.py has all techniques in one compiled run. On JAX,
where every step is compiled, `tests/test_on_jax.py` runs all of them together.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from typing import Any

import keras
import numpy as np
import pytest

import run_classifier
from commands import techniques
from data.labelled import ClassificationDataset, EncodedExamples
from modeling import Computation, Config
from optimization import Constant, TaskDrivenChild, create_optimizer
from tasks.classification import ClassificationTask
from tasks.layer_rates import learning_rate_multipliers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("operation_by_operation")]

CONFIG = Config(
    family="bert",
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=16,
    initializer_range=0.2,
)
FRACTION = 0.3
TECHNIQUES: dict[str, dict[str, Any]] = {
    "adversarial": {"adversarial_weight": 1.0, "adversarial_sigma": 0.05},
    "r_drop": {"r_drop_weight": 2.0},
    "child_F": {"child_tuning": "F", "child_tuning_fraction": FRACTION},
    "child_D": {"child_tuning": "D", "child_tuning_fraction": FRACTION, "child_tuning_fisher": "released"},
    "layer_decay": {"layer_decay": 0.5},
    "freeze": {"freeze": ("pooler/bias",)},
    "freeze_layers": {"freeze_layers": 1},
    "gradual_unfreezing": {"gradual_unfreezing": 1.0},
    "ema": {"ema_decay": 0.75},
    "accumulation": {"gradient_accumulation_steps": 2},
}
PAIRS = [pair for pair in itertools.combinations(TECHNIQUES, 2) if pair != ("child_F", "child_D")]
# Embeddings and two layers join, so that the upper layer does in the second of three steps.
NUM_STEPS = 3
BLOCKS = "/encoder/"


@dataclasses.dataclass(frozen=True)
class Run:
    """Weights before, between and after two steps, what the steps told, and the state."""

    weights: list[dict[str, np.ndarray]]
    records: list[dict[str, float]]
    state: dict[str, np.ndarray]
    loss_weights: dict[str, float]


ON_JAX = keras.config.backend() == "jax"


def engine_class() -> Any:
    if ON_JAX:
        from training.jax_engine import JaxEngine

        return JaxEngine
    from training.tensorflow_engine import TensorFlowEngine

    return TensorFlowEngine


@functools.cache
def data() -> ClassificationDataset:
    draw = np.random.default_rng(0)
    ids = draw.integers(5, 20, (8, 8), dtype=np.int32)
    splits, labels = np.arange(9, dtype=np.int64) * 8, draw.integers(0, 2, 8, dtype=np.int32)
    return ClassificationDataset(EncodedExamples(ids.ravel(), 0 * ids.ravel(), splits, labels), 4, 16)


@functools.cache
def run(*chosen: str, dropout: float = 0.1) -> Run:
    flags = {name: value for technique in chosen for name, value in TECHNIQUES[technique].items()}
    options = run_classifier.Options(task_name="", data_dir="", bert_config_file="", output_dir="", seed=3, **flags)
    techniques.check_techniques(options)
    config = dataclasses.replace(CONFIG, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    task = ClassificationTask(
        config,
        2,
        classifier_dropout=dropout,
        computation=Computation(seed=3),
        regularizers=techniques.regularizers(options),
    )
    behaviour, child = techniques.optimizer_behaviour(options, config, NUM_STEPS)
    engine = engine_class()(
        task,
        create_optimizer("adamw", Constant(0.01), weight_decay=0.0, **behaviour),
        seed=3,
        micro_batches=options.gradient_accumulation_steps,
        ema_decay=options.ema_decay or None,
    )
    if isinstance(child, TaskDrivenChild):
        techniques.choose_child(options, config, task, engine.model, child, data())

    def weights() -> dict[str, np.ndarray]:
        state = engine.state().items()
        return {name.removeprefix("model/"): value for name, value in state if name.startswith("model/")}

    seen, records = [weights()], []
    for step in range(2):
        records += engine.train([data().batch(step)])
        seen.append(weights())
    return Run(seen, records, engine.state(), dict(task.loss_weights))


def kernels(found: Run, step: int, *, joined_only: bool) -> dict[str, np.ndarray]:
    """Which entries of the kernels a step changed; those of which it changed none are left out if asked."""
    before, after = found.weights[step], found.weights[step + 1]
    moved = {name: before[name] != after[name] for name in before if name.endswith("kernel")}
    return {name: changed for name, changed in moved.items() if changed.any() or not joined_only}


def check_further_loss(name: str, found: Run, dropout: float) -> None:
    for record in found.records:
        assert record[f"{name}_loss"] > 0 or (name == "r_drop" and not dropout)


def check_child_free(found: Run) -> None:
    moved = np.concatenate([changed.ravel() for changed in kernels(found, 0, joined_only=True).values()])
    assert abs(moved.mean() - FRACTION) < 5 * np.sqrt(FRACTION * (1 - FRACTION) / moved.size)
    again = np.concatenate([changed.ravel() for changed in kernels(found, 1, joined_only=True).values()])
    # Of what another child moved before, the moments go on.
    assert again.mean() > moved.mean()


def check_child_driven(found: Run, frozen: str) -> None:
    names = [name for name in found.weights[0] if BLOCKS in name and not re.search(frozen, name)]
    first, last = found.weights[0], found.weights[2]
    moved = np.concatenate([(first[name] != last[name]).ravel() for name in names])
    assert 0 < moved.sum() <= round(FRACTION * moved.size)
    assert (first["classifier/kernel"] != last["classifier/kernel"]).mean() > 0


def check_layer_decay(found: Run, without: Run) -> None:
    """The first step of each variable is that of the run without, times the factor of its layer."""
    factors = [(expression, factor) for expression, factor, _ in learning_rate_multipliers(CONFIG, 0.5, 0.0, NUM_STEPS)]
    for name, before in found.weights[0].items():
        factor = next((factor for expression, factor in factors if re.search(expression, name)), 1.0)
        step, usual = before - found.weights[1][name], without.weights[0][name] - without.weights[1][name]
        np.testing.assert_allclose(step, factor * usual, rtol=1e-3, atol=1e-7, err_msg=name)


def check_frozen(found: Run, expression: str) -> None:
    names = [name for name in found.weights[0] if re.search(expression, name)]
    assert names
    for name in names:
        np.testing.assert_array_equal(found.weights[0][name], found.weights[2][name], err_msg=name)
        assert not any(key.startswith("optimizer/") and key.endswith(name) for key in found.state)
        assert f"ema/{name}" not in found.state


def check_unfreezing(found: Run) -> None:
    first, second, third = found.weights
    for name in first:
        if BLOCKS in name or "/embeddings/" in name:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        if "_0/" in name or "/embeddings/" in name:
            np.testing.assert_array_equal(first[name], third[name], err_msg=name)
    assert (second["classifier/kernel"] != first["classifier/kernel"]).any()
    assert any((third[name] != first[name]).any() for name in first if "_1/" in name)


def check_average(found: Run) -> None:
    averages = {name.removeprefix("ema/"): value for name, value in found.state.items() if name.startswith("ema/")}
    assert averages
    for name, average in averages.items():
        first, second, third = (weights[name] for weights in found.weights)
        wanted = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
        np.testing.assert_allclose(average, wanted, rtol=1e-5, atol=1e-7, err_msg=name)


FROZEN = {"freeze": "pooler/bias", "freeze_layers": r"/embeddings/|_0/"}


def check_promises(techniques: tuple[str, ...], found: Run, dropout: float) -> None:
    """What each technique promises; what layer decay and accumulation do shows only beside runs without them."""
    for record in found.records:
        assert record["skipped"] == 0
        total = sum(weight * record[f"{name}_loss"] for name, weight in found.loss_weights.items())
        assert record["loss"] == pytest.approx(total, rel=1e-4)
    assert all(np.isfinite(value).all() for value in found.state.values())
    for technique in techniques:
        others = tuple(other for other in techniques if other != technique)
        match technique:
            case "adversarial" | "r_drop":
                check_further_loss(technique, found, dropout)
            case "child_F":
                check_child_free(found)
            case "child_D":
                check_child_driven(found, "|".join(["^$", *(FROZEN[other] for other in others if other in FROZEN)]))
            case "layer_decay":
                check_layer_decay(found, run(*others, dropout=dropout))
            case "freeze" | "freeze_layers":
                check_frozen(found, FROZEN[technique])
            case "gradual_unfreezing":
                check_unfreezing(found)
            case "ema":
                check_average(found)
            # JAX compiles for each run; tests/test_backends.py has micro-batches on both backends.
            case "accumulation" if not ON_JAX:
                alone = run(*others, dropout=dropout)
                assert found.records[0]["classification_loss"] == pytest.approx(
                    alone.records[0]["classification_loss"], rel=1e-4
                )


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_both_do_what_they_promise(pair: tuple[str, str]):
    # Micro-batches have dropout masks of their own; without any they equal the whole batch.
    dropout = 0.0 if "accumulation" in pair else 0.1
    check_promises(pair, run(*pair, dropout=dropout), dropout)


@pytest.mark.parametrize("left_out", ["child_F", "child_D"])
def test_all_do_what_they_promise_at_once(left_out: str):
    techniques = tuple(technique for technique in TECHNIQUES if technique != left_out)
    check_promises(techniques, run(*techniques, dropout=0.0), 0.0)
