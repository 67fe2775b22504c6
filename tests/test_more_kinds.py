"""Regression, several labels, multiple choice and matching through run_classifier.py: train, eval, predict, open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax_verbs import call_on_jax
from kind_files import flags_of, write_world

import run_classifier
from commands.flags import parse

pytestmark = pytest.mark.slow

# One task a kind, with what its results have.
TASKS = {
    "sts_b": {"pearson", "spearman", "correlation", "loss"},
    "tags": {"micro_f1", "macro_f1", "sample_f1", "subset_accuracy", "loss"},
    "chid": {"accuracy", "accuracy_assigned", "loss"},
    "tatoeba": {"retrieval_accuracy", "mrr"},
}
LOSSES = {"sts_b": "squared_error", "tags": "labels", "chid": "choice", "tatoeba": "in_batch"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    write_world(folder)
    return folder


def run(flags: dict[str, object]) -> Path:
    run_classifier.main(parse(run_classifier.Options, [f"--{name}={value}" for name, value in flags.items()]))
    return Path(str(flags["output_dir"]))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def scores_of(folder: Path, split: str = "eval") -> dict[str, float]:
    return json.loads((folder / f"{split}_results.json").read_text())


@pytest.mark.parametrize("task", TASKS)
def test_a_kind_trains_scores_predicts_and_opens(world: Path, task: str):
    from conversion.beside import kind_of_run
    from conversion.readers import read_checkpoint
    from serving.run_folder import open_run

    folder = run(flags_of(world, task, f"tensorflow_{task}"))
    scores = scores_of(folder)
    assert TASKS[task] <= scores.keys()
    assert np.isfinite(list(scores.values())).all()
    records = lines_of(folder / "metrics.jsonl")
    assert any(f"{LOSSES[task]}_loss" in record for record in records)
    predictions = lines_of(folder / "test_predictions.jsonl")
    assert [line["index"] for line in predictions] == list(range(len(predictions)))
    # Another batch size gives the same answers, from the run's own weights.
    again = flags_of(world, task, f"tensorflow_{task}") | {"do_train": False, "do_eval": False, "predict_batch_size": 3}
    run(again)
    for one, two in zip(predictions, lines_of(folder / "test_predictions.jsonl"), strict=True):
        assert one.keys() == two.keys()
        for name in ("score", "cosine", "probabilities"):
            assert one.get(name) == pytest.approx(two.get(name), abs=3e-4), name
    opened = open_run(folder)
    assert opened.content.row is not None
    assert kind_of_run(read_checkpoint(folder)) == opened.content.kind == opened.content.row.kind
    assert opened.content.row.name == task
    if task == "tatoeba":
        vectors = np.load(folder / "test_embeddings.npy")
        assert vectors.shape == (3, 2, 8)
        np.testing.assert_allclose((vectors**2).sum(axis=-1), 1, rtol=1e-5)
        cosines = vectors.prod(axis=1).sum(axis=-1)
        np.testing.assert_allclose(cosines, [each["cosine"] for each in predictions], atol=1e-3)


def test_several_rows_an_example_on_jax_with_micro_batches(world: Path):
    more = {"backend": "jax", "gradient_accumulation_steps": 2}
    grouped = ("chid", "tatoeba")  # features [B, C, L], which no other task has
    calls = [("run_classifier", {**flags_of(world, task, f"jax_{task}"), **more}) for task in grouped]
    call_on_jax(world, calls)
    for task in grouped:
        scores = scores_of(world / f"jax_{task}")
        assert TASKS[task] <= scores.keys()
        assert np.isfinite(list(scores.values())).all()
        assert lines_of(world / f"jax_{task}/test_predictions.jsonl")
