"""The verbs on JAX beside TensorFlow: same losses, checkpoints that either continues, every technique, many devices."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax_verbs import call_on_jax
from test_verbs import ROOT, VOCABULARY, call

from modeling import load_config
from training.checkpoints import checkpoint_folder, read_state
from training.hooks import read_metrics

pytestmark = pytest.mark.slow

# Softmax does not see the bias of the keys: its gradient is nothing but rounding, which Adam then scales up.
UNCERTAIN = "key/bias"
EVERYTHING = {
    "adversarial_weight": 1,
    "adversarial_sigma": 1e-3,
    "r_drop_weight": 2,
    "child_tuning": "D",
    "child_tuning_fraction": 0.3,
    "layer_decay": 0.8,
    "freeze_layers": 1,
    "gradual_unfreezing": 0.9,
    "ema_decay": 0.5,
    "gradient_accumulation_steps": 2,
}


@dataclasses.dataclass(frozen=True)
class Runs:
    """Where the runs of both backends stand."""

    folder: Path
    pretraining: dict[str, object]
    errors: str


def tiny(folder: Path, name: str, **shape: Any) -> Path:
    demo = load_config(ROOT / "albert_config/albert_config_demo.json")
    small = {"hidden_size": 8, "embedding_size": 4, "num_attention_heads": 2, "intermediate_size": 16}
    config = dataclasses.replace(demo, **small, num_hidden_layers=2, max_position_embeddings=32, **shape)
    (folder / name).write_text(config.to_json())
    return folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("backends")
    assert not call(
        "create_pretraining_data",
        input_file=ROOT / "data/samples/zh/nature.txt",
        output_file=folder / "records/zh.tfrecord",
        vocab_file=VOCABULARY,
        max_seq_length=32,
        max_predictions_per_seq=5,
        dupe_factor=1,
        eval_fraction=0.3,
        num_workers=1,
    )
    # Without dropout, whose masks each backend draws by itself.
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    pretraining: dict[str, object] = {
        "input_file": folder / "records/*.tfrecord",
        "bert_config_file": tiny(folder, "still.json", **still),
        "do_train": True,
        "do_eval": True,
        "train_batch_size": 8,
        "num_train_steps": 8,
        "num_warmup_steps": 1,
        "save_checkpoints_steps": 4,
        "log_steps": 1,
        "max_eval_steps": 2,
        "learning_rate": 0.01,
        "ema_decay": 0.5,
        "gradient_accumulation_steps": 2,
        "seed": 3,
    }
    assert not call("run_pretraining", **pretraining, output_dir=folder / "tensorflow")
    interrupted(folder / "tensorflow", folder / "begun_on_tensorflow", step=4)
    words = "".join(chr(0x4E00 + i) for i in range(10))
    generator = np.random.default_rng(0)
    (folder / "pairs").mkdir()
    for split, examples in (("train", 12), ("dev", 4), ("test", 3)):
        texts = ["".join(generator.choice(list(words), 5)) for _ in range(examples)]
        rows = [f"{text.count(words[0]) % 2}\t{text}\n" for text in texts]
        (folder / f"pairs/{split}.tsv").write_text("".join(rows), encoding="utf-8")
    classifier: dict[str, object] = {
        "task_name": "chnsenticorp",
        "data_dir": folder / "pairs",
        "bert_config_file": tiny(folder, "separate.json", sharing="none"),
        "vocab_file": VOCABULARY,
        "max_seq_length": 8,
        "do_train": True,
        "do_eval": True,
        "do_predict": True,
        "train_batch_size": 4,
        "num_train_steps": 4,
        "save_checkpoints_steps": 2,
        "backend": "jax",
        **EVERYTHING,
    }
    on_jax = {**pretraining, "backend": "jax"}
    errors = call_on_jax(
        folder,
        [
            ("run_pretraining", {**on_jax, "output_dir": folder / "jax"}),
            ("run_pretraining", {**on_jax, "output_dir": folder / "begun_on_tensorflow"}),
            ("run_classifier", {**classifier, "output_dir": folder / "classifier"}),
            # As it stood when it had saved step 2.
            ("copy", {"source": folder / "classifier", "target": folder / "resumed", "but": "step_00000004"}),
            ("run_classifier", {**classifier, "output_dir": folder / "resumed"}),
            ("copy", {"source": folder / "jax/eval_results.json", "target": folder / "jax_scores.json"}),
            ("run_pretraining", {**on_jax, "do_train": False, "do_eval": True, "output_dir": folder / "jax"}),
        ],
    )
    return Runs(folder, pretraining, errors)


def interrupted(run: Path, copy: Path, step: int) -> None:
    """Copy a run as it stood when it had saved `step`."""
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").iterdir():
        if path.name != checkpoint_folder(copy, step).name:
            shutil.rmtree(path)


def state_of(run: Path, step: int) -> dict[str, np.ndarray]:
    return dict(read_state(checkpoint_folder(run, step)).tensors)


def assert_close(one: Path, two: Path, step: int) -> None:
    left, right = state_of(one, step), state_of(two, step)
    assert left.keys() == right.keys()
    for name in left:
        if UNCERTAIN not in name:
            np.testing.assert_allclose(left[name], right[name], rtol=1e-5, atol=1e-6, err_msg=name)


def losses(run: Path) -> np.ndarray:
    return np.array([record["loss"] for record in read_metrics(run / "metrics.jsonl")])


def test_losses_and_weights_are_those_of_tensorflow(runs: Runs):
    assert len(losses(runs.folder / "jax")) == 8 + 2
    np.testing.assert_allclose(losses(runs.folder / "jax"), losses(runs.folder / "tensorflow"), rtol=1e-6)
    assert_close(runs.folder / "jax", runs.folder / "tensorflow", 8)
    assert {path.name for path in (runs.folder / "jax").iterdir()} == {
        path.name for path in (runs.folder / "tensorflow").iterdir()
    }
    assert list((runs.folder / "jax/tensorboard").iterdir())
    assert "<path" in (runs.folder / "jax/report.html").read_text()


def test_the_preamble_says_what_computes_and_where(runs: Runs):
    assert "1 x CPU (" in runs.errors
    assert "), jax, float32" in runs.errors
    assert "tensorflow, float32" in (runs.folder / "tensorflow/report.html").read_text()


def test_jax_continues_what_tensorflow_began(runs: Runs):
    assert_close(runs.folder / "begun_on_tensorflow", runs.folder / "tensorflow", 8)


def test_tensorflow_continues_what_jax_began(runs: Runs):
    interrupted(runs.folder / "jax", runs.folder / "begun_on_jax", step=4)
    assert not call("run_pretraining", **runs.pretraining, output_dir=runs.folder / "begun_on_jax")
    assert_close(runs.folder / "begun_on_jax", runs.folder / "tensorflow", 8)


def test_every_technique_together_resumes_bit_for_bit_and_predicts(runs: Runs):
    whole, resumed = state_of(runs.folder / "classifier", 4), state_of(runs.folder / "resumed", 4)
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)
    records = read_metrics(runs.folder / "classifier/metrics.jsonl")
    assert any({"classification_loss", "r_drop_loss", "adversarial_loss"} <= set(record) for record in records)
    tables = [(runs.folder / f"{run}/test_predictions.tsv").read_text() for run in ("classifier", "resumed")]
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 1 + 3


def test_evaluation_alone_finds_the_trained_weights(runs: Runs):
    before = json.loads((runs.folder / "jax_scores.json").read_text())
    after = json.loads((runs.folder / "jax/eval_results.json").read_text())
    assert after == pytest.approx(before, rel=1e-6)
    shutil.copytree(runs.folder / "tensorflow", runs.folder / "again")
    assert not call("run_pretraining", **{**runs.pretraining, "do_train": False, "output_dir": runs.folder / "again"})
    assert json.loads((runs.folder / "again/eval_results.json").read_text()) == pytest.approx(before, rel=1e-6)


def test_many_devices_by_flags(runs: Runs):
    flags = {**runs.pretraining, "backend": "jax", "gradient_accumulation_steps": 1}
    cut = {"model_parallel": 2, "fsdp": True, "output_dir": runs.folder / "cut"}
    errors = call_on_jax(runs.folder, [("run_pretraining", {**flags, **cut})], devices=8)
    assert "8 x CPU (" in errors
    assert "weights over 2, FSDP), jax" in errors
    np.testing.assert_allclose(losses(runs.folder / "cut"), losses(runs.folder / "tensorflow"), rtol=1e-6)


MISTAKES = [
    (
        {"train_batch_size": 12},
        8,
        r"--train_batch_size=12 cannot be cut into 2 equal micro-batches on each of 8 devices",
    ),
    ({"model_parallel": 3}, 8, r"--model_parallel=3 does not divide the 2 attention heads of"),
    ({"model_parallel": 2}, 1, r"--model_parallel=2 does not divide the 1 devices"),
    ({"use_tpu": True}, 1, r"--use_tpu=True: .*(no TPU runtime|no TPU is attached)"),
]


def test_what_the_devices_cannot_do_is_one_line_and_writes_nothing(runs: Runs, tmp_path: Path):
    flags = {**runs.pretraining, "backend": "jax", "output_dir": tmp_path / "out"}
    for devices in (1, 8):
        expected = [(wrong, message) for wrong, given, message in MISTAKES if given == devices]
        calls = [("run_pretraining", {**flags, **wrong}) for wrong, _ in expected]
        errors = call_on_jax(tmp_path, calls, devices=devices, code=2).splitlines()
        told = [line for line in errors if line.startswith("jax_verbs.py: ")]
        assert len(told) == len(expected)
        for line, (_, message) in zip(told, expected, strict=True):
            assert re.search(message, line)
    assert not (tmp_path / "out").exists()
