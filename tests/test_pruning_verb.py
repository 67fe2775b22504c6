"""run_classifier.py --pruning on both engines, level by level; what is stripped afterwards; and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from jax_verbs import call_on_jax
from test_distillation_verb import TEACHER, WORDS, write_teacher

import convert_checkpoint
import run_classifier
from commands.flags import parse
from conversion.readers import read_checkpoint

CONFIG = dataclasses.replace(TEACHER, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
STRUCTURED = {"pruning": "structured", "sparsity": 0.5}
MOVEMENT = {"pruning": "movement", "sparsity": 0.75, "score_learning_rate": 0.1}
CONTRAST = {"contrast_weight": 0.3, "supervised_contrast_weight": 1.0}


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    rng = np.random.default_rng(0)
    for split, examples in (("train", 12), ("dev", 4)):
        texts = [" ".join(rng.choice(list(WORDS), 5)) for _ in range(examples)]
        (tmp_path / f"{split}.tsv").write_text("".join(f"{text.count('a') % 2}\t{text}\n" for text in texts))
    return {
        "task_name": "chnsenticorp",
        "data_dir": tmp_path,
        "bert_config_file": tmp_path / "config.json",
        "vocab_file": tmp_path / "vocab.txt",
        "output_dir": tmp_path / "out",
        "init_checkpoint": write_teacher(tmp_path / "teacher", CONFIG),
        "max_seq_length": 8,
        "train_batch_size": 4,
        "num_train_steps": 4,
        "save_checkpoints_steps": 2,
        "log_steps": 1,
        "do_train": "true",
        "do_eval": "true",
    }


def run(arguments: dict[str, Any], **more: Any) -> None:
    given = {**arguments, **more}
    run_classifier.main(parse(run_classifier.Options, [f"--{name}={value}" for name, value in given.items()]))


def zeros(folder: Path) -> dict[str, list[int]]:
    """Return how many heads and units of the best weights are 0, by layer."""
    tensors = read_checkpoint(folder, prefer_best=True).tensors
    found: dict[str, list[int]] = {"attention": [], "feed_forward": []}
    for side, rows in (("attention", 2), ("feed_forward", 8)):
        for layer in range(2):
            kernel = np.asarray(tensors[f"backbone/encoder/{side}_{layer}/output/kernel"]).reshape(rows, -1)
            found[side].append(int((~kernel.any(axis=1)).sum()))
    return found


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("operation_by_operation")
def test_levels_begin_from_each_other_and_stay_near_to_all_before_them(arguments, tmp_path, capsys):
    more = {**STRUCTURED, **CONTRAST, "pruning_levels": 2, "teacher": tmp_path / "teacher"}
    run(arguments, **more)
    told = capsys.readouterr()
    assert "level 2 of 2, 50% of heads and units" in told.out
    assert "with what pretrained, fine_tuned, snapshots said of them" in told.err + told.out
    assert {name: sum(each) for name, each in zeros(tmp_path / "out/level_1").items()} == {
        "attention": 1,
        "feed_forward": 4,
    }
    assert {name: sum(each) for name, each in zeros(tmp_path / "out").items()} == {"attention": 2, "feed_forward": 8}
    for name in ("pretrained", "fine_tuned", "snapshots"):
        losses = [each[f"contrast_{name}_loss"] for each in records(tmp_path / "out") if "learning_rate" in each]
        assert losses
        assert all(np.isfinite(losses))
        assert min(losses) > 0
    stays_the_same_when_it_goes_on(arguments, tmp_path / "out", more)
    stripped_computes_the_same(arguments, tmp_path, capsys)


def stays_the_same_when_it_goes_on(arguments: dict[str, Any], folder: Path, more: dict[str, Any]) -> None:
    from training.checkpoints import latest_state

    whole = latest_state(folder)
    assert whole
    shutil.rmtree(folder / "checkpoints/step_00000004")
    run(arguments, **more)
    again = latest_state(folder)
    assert again
    for name, value in whole.tensors.items():
        np.testing.assert_array_equal(np.asarray(again.tensors[name]), np.asarray(value), err_msg=name)


def stripped_computes_the_same(arguments: dict[str, Any], folder: Path, capsys: Any) -> None:
    target = folder / "stripped"
    words = ["--strip", "--best", f"--input={folder / 'out'}", f"--output={target}", "--format=ours"]
    assert convert_checkpoint.main(parse(convert_checkpoint.Options, words)) == 0
    assert "stripped: " in capsys.readouterr().out
    found, whole = read_checkpoint(target), read_checkpoint(folder / "out", prefer_best=True)
    assert found.config
    sizes = [sum(value.size for value in each.tensors.values()) for each in (whole, found)]
    # A head of 4 has 4 * 8 weights in each of 4 matrices and 4 in each of 3 biases; a unit has 2 * 8 and 1.
    assert sizes[0] - sizes[1] == 2 * (4 * 32 + 3 * 4) + 8 * 17
    asked = {name: value for name, value in arguments.items() if name not in ("do_train", "init_checkpoint")}
    run(asked, do_predict="false")
    asked |= {"output_dir": folder / "again", "init_checkpoint": target}
    run({name: value for name, value in asked.items() if name != "bert_config_file"})
    lines = [(folder / name / "dev_predictions.jsonl").read_text().splitlines() for name in ("out", "again")]
    scores = [[list(json.loads(line)["probabilities"].values()) for line in each] for each in lines]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    with pytest.raises(UsageError, match="nothing to take out"):
        convert_checkpoint.main(parse(convert_checkpoint.Options, ["--strip", f"--input={target}", "--list"]))


def share_of_zeros(folder: Path) -> float:
    tensors = read_checkpoint(folder, prefer_best=True).tensors
    kernels = [np.asarray(v) for n, v in tensors.items() if "/encoder/" in n and n.endswith("kernel")]
    return sum(int((each == 0).sum()) for each in kernels) / sum(each.size for each in kernels)


@pytest.mark.slow
def test_single_weights_leave_and_a_stopped_run_goes_on_to_the_same(arguments, tmp_path):
    run(arguments, **MOVEMENT)
    assert share_of_zeros(tmp_path / "out") == 0.75
    stays_the_same_when_it_goes_on(arguments, tmp_path / "out", MOVEMENT)


@pytest.mark.slow
def test_both_on_jax(arguments, tmp_path):
    calls = [
        ("run_classifier", {**arguments, **more, "output_dir": tmp_path / name, "backend": "jax"})
        for name, more in (("structured", {**STRUCTURED, **CONTRAST}), ("movement", MOVEMENT))
    ]
    call_on_jax(tmp_path, calls)
    assert {name: sum(each) for name, each in zeros(tmp_path / "structured").items()} == {
        "attention": 2,
        "feed_forward": 8,
    }
    assert share_of_zeros(tmp_path / "movement") == 0.75


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"pruning": "magnitude", "ema_decay": 0.9}, "an average of weights"),
        ({"pruning": "movement", "pruning_warmup": 0.8, "pruning_cooldown": 0.8}, "more than the whole run"),
        ({**STRUCTURED, "pruning_levels": 2, "seeds": "1,2"}, "levels have one seed"),
        ({**STRUCTURED, "contrast_weight": 1, "init_checkpoint": ""}, "no model to stay near to"),
        ({**STRUCTURED, "freeze": "attention_0"}, "is frozen, and a layer that is pruned has to learn"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(arguments, more, message):
    with pytest.raises(UsageError, match=message):
        run(arguments, **more)
