"""run_pretraining.py with several objectives: killed and resumed, scored, continued with other shares.

`tests/tasks/test_mixing.py` has the steps of both backends.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from test_verbs import ROOT, VOCABULARY, call

import run_pretraining
from commands.flags import parse
from data.mixture import Mixture
from modeling import Config
from serving.run_folder import open_run
from tasks.mixing import MixedTask
from tasks.run_file import RunFile
from training.checkpoints import checkpoint_folder, read_state
from training.hooks import read_metrics

pytestmark = pytest.mark.slow

SHARES = {"masked_lm": 0.75, "tlm": 0.25}
PARALLEL = f"{ROOT}/data/samples/parallel/train.en:{ROOT}/data/samples/parallel/train.zh"
TEXTS = {
    "masked_lm": f"en={ROOT}/data/samples/en/*.txt,zh={ROOT}/data/samples/zh/[ah]*.txt",
    "tlm": f"en-zh={PARALLEL}",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    config = Config(
        family="veco",
        vocab_size=len(VOCABULARY.read_text(encoding="utf-8").splitlines()),
        embedding_size=8,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        type_vocab_size=1,
    )
    (folder / "config.json").write_text(config.to_json())
    for objective, text in TEXTS.items():
        assert not call(
            "create_pretraining_data",
            input_file=text,
            output_file=folder / objective / "x.tfrecord",
            vocab_file=VOCABULARY,
            objective=objective,
            masking="dynamic",
            max_seq_length=32,
            max_predictions_per_seq=5,
            dupe_factor=1,
            eval_fraction=0.2,
            num_workers=1,
        )
    return folder


def flags_of(world: Path, output: str, **flags: Any) -> dict[str, object]:
    given = {
        "input_file": f"{world}/masked_lm/*.tfrecord,{world}/tlm/*.tfrecord",
        "objective": "masked_lm:3,tlm:1",
        "bert_config_file": world / "config.json",
        "output_dir": world / output,
        "do_train": True,
        "do_eval": True,
        "train_batch_size": 8,
        "max_eval_steps": 2,
        "num_train_steps": 6,
        "num_warmup_steps": 1,
        "save_checkpoints_steps": 3,
        "schedule": "constant",
        "learning_rate": 0.01,
        "optimizer": "adamw",
        "log_steps": 1,
        "seed": 3,
    }
    return {**given, **flags}


@pytest.fixture(scope="module")
def runs(world: Path) -> Path:
    """A whole run, and one that goes on from what a kill behind step 3 leaves."""
    assert not call("run_pretraining", **flags_of(world, "whole"))
    shutil.copytree(world / "whole", world / "parts")
    for name in (checkpoint_folder(world / "parts", 6), world / "parts/best"):
        shutil.rmtree(name)
    assert not call("run_pretraining", **flags_of(world, "parts", do_eval=False))
    return world


def state(folder: Path, step: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in read_state(checkpoint_folder(folder, step)).tensors.items()}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(folder / "metrics.jsonl") if record["phase"] == "train"]


def check_names(folder: Path) -> None:
    """Every step has the loss of its objective alone; an evaluation has all, by language too."""
    order = Mixture({name: (None, share) for name, share in SHARES.items()}, seed=3)  # pyright: ignore
    for step, record in enumerate(steps_of(folder)):
        assert {name for name in record if name.endswith("_loss")} == {f"{order.at(step)[0]}_loss"}
    scores = json.loads((folder / "eval_results.json").read_text())
    assert set(scores) == {
        "global_step",
        "loss",
        "masked_lm_loss",
        "masked_lm_accuracy",
        "masked_lm_loss_en",
        "masked_lm_loss_zh",
        "masked_lm_unigram_accuracy",
        "tlm_loss",
        "tlm_accuracy",
        "tlm_unigram_accuracy",
    }
    assert scores["loss"] == pytest.approx(sum(share * scores[f"{name}_loss"] for name, share in SHARES.items()))
    mean = (scores["masked_lm_loss_en"] + scores["masked_lm_loss_zh"]) / 2
    assert scores["masked_lm_loss"] == pytest.approx(mean)


def test_a_run_that_was_killed_ends_as_a_whole_one_bit_for_bit(runs: Path):
    assert_same(state(runs / "whole", 6), state(runs / "parts", 6))
    for one, other in zip(steps_of(runs / "whole"), steps_of(runs / "parts"), strict=True):
        assert {name: x for name, x in one.items() if "second" not in name and name != "time"} == {
            name: x for name, x in other.items() if "second" not in name and name != "time"
        }


def test_losses_and_scores_have_the_names_of_their_objectives(runs: Path):
    check_names(runs / "whole")


def test_the_run_folder_tells_objectives_and_shares_and_opens(runs: Path):
    content = json.loads((runs / "whole/run.json").read_text())
    assert content["objective"] == "masked_lm,tlm"
    assert {name: each["share"] for name, each in content["objectives"].items()} == SHARES
    assert json.loads((runs / "whole/config.json").read_text())["objective"] == "masked_lm:3,tlm:1"
    run = open_run(runs / "whole")
    assert isinstance(run.task, MixedTask)
    assert run.task.metrics == ("masked_lm_accuracy", "tlm_accuracy")
    (runs / "whole/run.json").write_text(json.dumps({**content, "objective": "masked_lm,tml"}))
    with pytest.raises(
        UsageError, match=r"objective is 'masked_lm,tml' but objectives are masked_lm, tlm, expected the"
    ):
        RunFile.read(runs / "whole")
    (runs / "whole/run.json").write_text(json.dumps(content))


def dry(flags: dict[str, object]) -> None:
    given = {**flags, "dry_run": True, "num_train_steps": 9}
    run_pretraining.main(parse(run_pretraining.Options, [f"--{name}={value}" for name, value in given.items()]))


def test_other_shares_are_named_and_other_objectives_refused(runs: Path, capsys: pytest.CaptureFixture[str]):
    dry(flags_of(runs, "parts", objective="tlm:1,masked_lm:1"))
    assert "share of masked_lm 0.75 -> 0.5, share of tlm 0.25 -> 0.5" in capsys.readouterr().out
    # However they are typed, equal shares are the same run.
    dry(flags_of(runs, "parts", objective="tlm:0.25,masked_lm:0.75"))
    assert "share of" not in capsys.readouterr().out
    with pytest.raises(
        UsageError, match=r"--objective: .* was trained with task masked_lm,tlm, this run has masked_lm:"
    ):
        dry(flags_of(runs, "parts", objective="masked_lm", input_file=f"{runs}/masked_lm/*.tfrecord"))
    swapped = f"masked_lm={runs}/tlm/*.tfrecord,tlm={runs}/tlm/*.tfrecord"
    with pytest.raises(UsageError, match=r"--input_file: .* was trained with training data"):
        dry(flags_of(runs, "parts", input_file=swapped))


def test_a_plan_names_every_objective(world: Path, capsys: pytest.CaptureFixture[str]):
    dry(flags_of(world, "planned"))
    shown = capsys.readouterr().out
    for line in ("objectives ", "data of masked_lm ", "languages of masked_lm ", "step of tlm ", "plan ", "time "):
        assert f"\n{line}" in shown
    assert not (world / "planned").exists()
    with pytest.raises(UsageError, match=r"all losses of masked_lm \(masked_lm\) weigh 0; give one a weight above 0"):
        dry(flags_of(world, "planned", masked_lm_loss_weight=0))
