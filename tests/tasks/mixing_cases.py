"""What both engines do with several objectives: in this process, or `mixing_cases.py OUTPUT.npz` on KERAS_BACKEND.

masked_lm and tlm have batches of one shape, and so nothing but the mark tells their programs apart.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[level]) for level in range(3)]

import keras
import numpy as np

from data.mixture import marked
from modeling.config import Config
from optimization import Constant, create_optimizer
from tasks.mixing import MixedTask
from tasks.pretraining import PretrainingTask

CONFIG = Config(
    family="veco",
    vocab_size=30,
    embedding_size=8,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=16,
    type_vocab_size=1,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    cross_attention=True,
    initializer_range=0.5,
)
OBJECTIVES = ("masked_lm", "tlm", "veco")
FACTORS = {"tlm": 2.0}
SEQUENCE = ("masked_lm", "tlm", "tlm", "masked_lm", "tlm")
ALIKE = ("masked_lm", "tlm")


def task(**weights: float) -> MixedTask:
    return MixedTask({name: PretrainingTask(CONFIG, name, weights=weights) for name in OBJECTIVES}, FACTORS)


def batch_of(objective: str, seed: int, rows: int = 4) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    batch = {}
    for prefix in ("", "other_") if objective == "veco" else ("",):
        batch[f"{prefix}input_ids"] = random.integers(5, 30, (rows, 7), np.int32)
        batch[f"{prefix}input_mask"] = (np.arange(7) < random.integers(4, 8, (rows, 1))).astype(np.int32)
        batch[f"{prefix}masked_lm_positions"] = np.tile(np.asarray([1, 2, 3], np.int32), (rows, 1))
        batch[f"{prefix}masked_lm_ids"] = random.integers(5, 30, (rows, 3), np.int32)
        batch[f"{prefix}masked_lm_weights"] = (random.random((rows, 3)) < 0.7).astype(np.float32)
    return batch


def engine(of: Any, **arguments: Any) -> Any:
    optimizer = create_optimizer("adamw", Constant(0.01))
    if keras.config.backend() == "jax":
        from training.jax_engine import JaxEngine

        return JaxEngine(of, optimizer, seed=7, **arguments)
    from training.tensorflow_engine import TensorFlowEngine

    return TensorFlowEngine(of, optimizer, seed=7, **arguments)


def in_turn(**arguments: Any) -> dict[str, np.ndarray]:
    """Steps of two objectives whose batches are alike, in turn, and an evaluation of each."""
    trained = engine(task(), **arguments)
    results = trained.train([marked(batch_of(name, n), name) for n, name in enumerate(SEQUENCE)])
    results += [trained.evaluate([marked(batch_of(name, 90), name)]) for name in ALIKE]
    found = {f"{n}/{name}": np.asarray(x) for n, result in enumerate(results) for name, x in result.items()}
    return found | trained.state()


def first_step(name: str, of: Any, batch: dict[str, np.ndarray], **arguments: Any) -> dict[str, np.ndarray]:
    """One step from the initial weights, which depend on their names alone."""
    trained = engine(of, **arguments)
    (result,) = trained.train([batch])
    return {f"{name}/{key}": np.asarray(x) for key, x in (result | trained.state()).items()}


def alone_and_mixed(name: str, **arguments: Any) -> dict[str, np.ndarray]:
    """A step of an objective by itself, and beside others."""
    batch = batch_of(name, 3)
    found = first_step("alone", PretrainingTask(CONFIG, name), batch, **arguments)
    return found | first_step("mixed", task(), marked(batch, name), **arguments)


def over_devices() -> dict[str, Any]:
    """Calls of two steps, on JAX on two devices."""
    if keras.config.backend() != "jax":
        return {"steps_per_call": 2}
    import jax

    from training.placement import create_placement

    return {"steps_per_call": 2, "placement": create_placement(jax.devices()[:2])}


def cases() -> dict[str, np.ndarray]:
    """Everything, for a comparison of backends."""
    found = {f"turns/{key}": x for key, x in in_turn(**over_devices()).items()}
    for name in OBJECTIVES:
        found |= {f"first/{name}/{key}": x for key, x in alone_and_mixed(name).items()}
    return found | {f"initial/{key}": x for key, x in engine(task()).state().items()}


if __name__ == "__main__":
    np.savez(sys.argv[1], allow_pickle=False, **cases())
