import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import training_step
from benchmarks.training_step import Options, as_markdown, check, config_of, our_step, random_batches, torch_step
from modeling import Config

ROOT = Path(__file__).resolve().parents[2]
SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
CONFIGS = {
    "bert": Config(family="bert", **SHAPE),
    "albert": Config(family="albert", sharing="all", embedding_size=8, **SHAPE),
}


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("family", "precision"), [("bert", "float32"), ("albert", "bfloat16")])
def test_both_sides_do_the_same_work_and_learn(family: str, precision: str):
    config = dataclasses.replace(CONFIGS[family], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batches = random_batches(config, 16, 3, 4)[:1]
    options = Options(precision=(precision,), measure="tensorflow")
    ours = our_step(options, config, batches)
    theirs = torch_step(dataclasses.replace(options, measure="torch"), config, batches)
    assert ours.parameters == theirs.parameters
    # Weights of 0.02 know nothing yet.
    nothing_known = math.log(config.vocab_size) + math.log(2)
    for made in (ours, theirs):
        assert made.step(1) == pytest.approx(nothing_known, abs=0.05)
        assert made.step(30) < nothing_known - 0.02


@given(st.integers(8, 64), st.integers(1, 5), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_predicted_positions_are_different_words_of_the_example(length: int, size: int, share: int):
    predictions = max(1, (length - length // 8) * share // 100)
    for batch in random_batches(CONFIGS["bert"], length, size, predictions):
        positions = batch["masked_lm_positions"]
        assert (np.diff(positions, axis=1) > 0).all()
        assert np.take_along_axis(batch["input_mask"], positions, axis=1).all()
        assert batch["input_mask"][-1].sum() == length - length // 8


def test_models_by_name_and_path_and_their_dropout(tmp_path: Path):
    assert config_of(Options(models=("albert_base",))).hidden_dropout_prob == 0.1
    base = config_of(Options(models=("bert_large",), dropout=0.0))
    assert (base.hidden_dropout_prob, base.attention_probs_dropout_prob, base.num_hidden_layers) == (0.0, 0.0, 24)
    assert config_of(Options(models=("next_to_nothing",), lengths=(8,))).max_position_embeddings == 8
    path = tmp_path / "config.json"
    path.write_text(CONFIGS["albert"].to_json())
    assert config_of(Options(models=(str(path),))) == CONFIGS["albert"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(engines=("torch",)), "--engines=torch is unknown: expected some of tensorflow, jax"),
        (Options(peers=("mxnet",)), "--peers=mxnet is unknown: expected some of torch, torch_compile"),
        (Options(precision=("int8",)), "--precision=int8 is unknown: expected some of float32, bfloat16"),
        (Options(models=("gpt",)), "--models=gpt is neither a file nor one of albert_base, bert_base"),
        (Options(lengths=(1, 2, 3)), "--batch_sizes has 2 values, expected 3: one for each of --lengths"),
        (Options(objectives=("plug",)), "--objectives=plug is unknown: expected some of pair, masked_lm, veco"),
        (Options(objectives=("veco",)), 'cross_attention is True, which family "albert" has not'),
    ],
)
def test_what_does_not_fit_is_one_line(options: Options, message: str):
    with pytest.raises(UsageError, match=f"^{message}"):
        check(options, (4, 16))


def test_a_batch_is_of_whole_examples():
    options = Options(models=("veco_tiny",), objectives=("masked_lm", "veco"))
    check(options, (4, 16))
    with pytest.raises(UsageError, match=r"^--batch_sizes=5: an example of --objectives=veco has 2 texts"):
        check(options, (4, 5))


def test_what_is_not_installed_is_left_out_with_a_line(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("torch", "tensorflow") else found(name)
    )
    assert training_step.installed(["tensorflow", "jax", "torch"]) == ["jax"]
    lines = "tensorflow is left out: tensorflow not installed\ntorch is left out: torch not installed\n"
    assert capsys.readouterr().out == lines


def test_table_compares_the_best_of_each_side_and_says_what_failed():
    row = {"model": "m", "length": 8, "batch_size": 2, "precision": "float32", "peak_flops_per_second": 200.0}
    row |= {"objective": "pair"}
    measured = {
        "flops_per_step": 30,
        "first_loss": 4.0,
        "first_step_seconds": 1.0,
        "peak_bytes": 5e6,
        "versions": "v 1",
    }

    def of(contender: str, seconds: float) -> dict:
        tokens = {"tokens_per_second": 16 / seconds, "tokens_per_second_range": [1.0, 9.0]}
        return row | measured | tokens | {"contender": contender, "seconds_per_step": seconds}

    rows = [
        of("torch", 0.5),
        of("tensorflow", 0.25),
        of("jax", 1.0),
        row | {"contender": "torch_compile", "error": "E"},
    ]
    table = as_markdown({"machine": "M", "options": {"rounds": 5}, "rows": rows})
    assert "makes 2.00 times the tokens a second of the best of transformers'" in table
    assert "| tensorflow | float32 | 64 (1-9) | 250.00 | 60.0% | 5 | 1.0 | 4.00 |" in table
    assert "| torch_compile | float32 | failed: E |" in table


def test_a_work_is_compared_with_the_one_beside_it_by_arithmetic():
    veco, masked = (
        {"objective": objective, "contender": "jax", "precision": "float32"} for objective in ("veco", "masked_lm")
    )
    veco |= {"seconds_per_step": 0.44, "flops_per_step": 40}
    masked |= {"seconds_per_step": 0.2, "flops_per_step": 20}
    (line,) = training_step.beyond_arithmetic([veco, masked])
    assert "takes 2.20 times as long as one of masked_lm" in line
    assert line.endswith("and has 2.00 times its operations: 1.10 times what its arithmetic says, at most 1.15.")
    assert training_step.beyond_arithmetic([veco | {"seconds_per_step": 0.47}, masked])[0].endswith("more than 1.15.")
    other = masked | {"precision": "bfloat16"}
    for rows in ([veco], [masked], [veco, other], [veco, masked | {"error": "E"}]):
        assert not training_step.beyond_arithmetic(rows)


def test_works_of_one_stack_see_as_many_tokens_and_count_their_own_operations():
    given = Options(models=("veco_tiny",))
    works = {name: training_step.WORKS[name] for name in ("masked_lm", "veco")}
    configs = {name: config_of(dataclasses.replace(given, objectives=(name,))) for name in works}
    assert dataclasses.replace(configs["veco"], cross_attention=False) == configs["masked_lm"]
    tokens, operations = {}, {}
    for name, work in works.items():
        (batch, *_) = random_batches(configs[name], 16, 8 // work.texts, 2, work)
        sides = [batch[side] for side in ("input_ids", "other_input_ids") if side in batch]
        tokens[name] = sum(ids.size for ids in sides)
        assert all(weights.sum() == 2 * 8 // work.texts for key, weights in batch.items() if key.endswith("weights"))
        operations[name] = 8 // work.texts * training_step.operations_of(configs[name], 16, 2, work)
    assert tokens["veco"] == tokens["masked_lm"] == 8 * 16
    # Two passes in the place of one, and in the second a cross-attention: a third of a block's products, and more.
    assert 2.2 < operations["veco"] / operations["masked_lm"] < 2.5


@pytest.mark.slow
def test_runs_where_there_is_no_tensorflow(tmp_path: Path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('there is no TensorFlow')\n")
    (tmp_path / "config.json").write_text(CONFIGS["bert"].to_json())
    command = [
        *(sys.executable, "-m", "benchmarks.training_step", f"--models={tmp_path / 'config.json'}", "--lengths=16"),
        *("--batch_sizes=2", "--engines=jax", "--peers=", "--precision=bfloat16", "--rounds=2", "--seconds=0"),
        f"--results={tmp_path / 'result'}",
    ]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "KERAS_BACKEND": "jax", "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [row["contender"] for row in rows] == ["jax"]
    for row in rows:
        assert row["steps"] == 2, row
        assert row["tokens_per_second"] == pytest.approx(32 / row["seconds_per_step"])
        assert row["peak_bytes"] > 1e7
    assert (tmp_path / "result.md").read_text().strip() == done.stdout.strip()


def test_a_contender_that_dies_after_its_turns_is_a_row_too():
    row = {"contender": "jax", "precision": "float32", "tokens_per_second": 5.0, "error": "killed: most likely"}
    for objective, name in (("pair", "jax"), ("veco", "jax, veco")):
        line = training_step.line_of(row | {"objective": objective}, {})
        assert line.startswith(f"| {name} | float32 | failed: killed: most likely |")


def test_the_cause_of_a_failure_is_the_exception_and_not_the_hint_after_it():
    lines = ["Traceback (most recent call last):", "torch._inductor.exc.InductorError: none", "", "Set VERBOSE=1"]
    assert training_step.cause_of(lines) == lines[1]
    assert training_step.cause_of(["ended with 1"]) == "ended with 1"
