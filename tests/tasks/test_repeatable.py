"""The same seed gives the same weights and predictions, bit for bit, for every kind on the shipped samples."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from data.tokenizers import load_tokenizer
from modeling import Computation, Config
from optimization import Constant, create_optimizer
from tasks.datasets import find_row, find_split
from tasks.kinds import HeadOptions
from tasks.splits import Splits
from training.tensorflow_engine import TensorFlowEngine

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Config(
    family="bert",
    vocab_size=21128,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=64,
    initializer_range=0.2,
)


def predictions(name: str, folder: str, seed: int) -> list[dict[str, np.ndarray]]:
    row = find_row(name)
    splits = Splits(row, {split: find_split(row, ROOT / "data/samples" / folder, split) for split in ("train", "dev")})
    splits.encode(
        load_tokenizer(vocab_file=ROOT / "albert_config/vocab.txt"), max_seq_length=32, batch_size=8, seed=seed
    )
    task = splits.kind.task(splits.row, CONFIG, Computation(seed=seed), HeadOptions())
    engine = TensorFlowEngine(task, create_optimizer("adamw", Constant(0.01)), seed=seed)
    engine.train([splits.datasets["train"].batch(step) for step in range(2)])
    return list(itertools.islice(engine.predict(splits.datasets["dev"].evaluation_batches(8)), 3))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("lcqmc_pair", "pairs"),
        ("lcqmc_matching", "pairs"),
        ("cluener", "entities"),
        ("cmrc2018", "answers"),
        ("multiple_choice", "choices"),
    ],
)
@pytest.mark.usefixtures("operation_by_operation")
def test_the_same_seed_gives_the_same_predictions(name: str, folder: str):
    one, same, other = (predictions(name, folder, seed) for seed in (3, 3, 4))
    assert len(one) == len(same)
    for batch, again in zip(one, same, strict=True):
        assert batch.keys() == again.keys()
        for key, values in batch.items():
            np.testing.assert_array_equal(values, again[key])
    assert any((batch[key] != changed[key]).any() for batch, changed in zip(one, other, strict=True) for key in batch)
