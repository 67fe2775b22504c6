"""The recipe of PALM: arms that differ in one thing, splits that do not leak, the floor, and the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError

from examples import palm_generation as recipe
from examples.steps import Step

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data/dureader_qg").mkdir(parents=True)
    for split in ("train", "dev"):
        text = (ROOT / f"data/samples/questions/{split}.tsv").read_text(encoding="utf-8")
        (tmp_path / f"data/dureader_qg/{split}.tsv").write_text(text, encoding="utf-8")
    return tmp_path


def options_of(folder: Path, **flags: Any) -> recipe.Options:
    usual: dict[str, Any] = {
        "input_file": (str(ROOT / "data/samples/zh/nature.txt"),),
        "data_dir": str(folder / "data"),
        "output_dir": str(folder / "out"),
        "tasks": ("dureader_qg",),
        "bert_config_file": str(ROOT / "examples/palm_zh/config.json"),
    }
    return recipe.Options(**usual | flags)


def flags_of(step: Step) -> dict[str, str]:
    return dict(argument.removeprefix("--").split("=", 1) for argument in step.command[1:])


def test_arms_differ_in_their_weights_and_their_copying_and_in_nothing_else(folder: Path):
    options = options_of(folder)
    splits = {task: recipe.split_task(options, task) for task in options.tasks}
    steps = {step.name: flags_of(step) for step in recipe.plan(options, splits)}
    arms = {name: steps[f"fine-tuning {name} dureader_qg"] for name in recipe.ARMS}
    own = {"output_dir", "init_checkpoint", "bert_config_file"}
    assert len({json.dumps({k: v for k, v in each.items() if k not in own}) for each in arms.values()}) == 1
    assert [name for name, flags in arms.items() if "init_checkpoint" in flags] == ["palm", "palm_copy"]
    assert "additive" in arms["random_copy"]["bert_config_file"]
    assert arms["palm"]["bert_config_file"] == arms["random"]["bert_config_file"]
    assert {name for name in steps if name.startswith("pretraining")} == {"pretraining none", "pretraining additive"}


def test_what_is_scored_is_not_trained_on_and_the_floor_copies(folder: Path):
    (folder / "data/dureader_qg/dev.tsv").unlink()
    train, scored = recipe.split_task(options_of(folder, max_dev_examples=30), "dureader_qg")
    assert len(scored) == 30
    assert not {e.text_b for e in train} & {e.text_b for e in scored}
    floor = recipe.floor((train, scored), "characters")
    assert floor["copy_rate"] == 1.0
    assert 0 < floor["rouge_l"] < 0.5


def test_the_table_has_means_over_the_seeds_that_are_done(folder: Path):
    options = options_of(folder)
    splits = {task: recipe.split_task(options, task) for task in options.tasks}
    for seed, value in ((1, 0.25), (2, 0.35)):
        path = folder / f"out/fine_tuning/palm/dureader_qg/seed_{seed}/eval_results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(dict.fromkeys(recipe.SCORES, value) | {"loss": 1.0}))
    (folder / "out").mkdir(exist_ok=True)
    lines = recipe.write_tables(options, splits).splitlines()
    assert lines[0].startswith("| dureader_qg | rouge_l | ")
    assert lines[3].startswith("| pretrained | 0.300 ± 0.071 | 0.300 ± 0.071 |")
    assert not any("random weights" in line for line in lines)
    content = json.loads((folder / "out/table.json").read_text())
    assert content["dureader_qg"]["pretrained"]["seeds"]["2"]["rouge_l"] == 0.35


def test_a_dry_run_lists_all_steps_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert recipe.main(options_of(folder, dry_run=True)) == 0
    shown = capsys.readouterr().out
    assert "8 steps, 8 left" in shown
    assert "dureader_qg: 215 training examples, 20 scored" in shown
    assert not (folder / "out").exists()
    with pytest.raises(UsageError, match=r"--bert_config_file=gone\.json: no such file"):
        recipe.main(options_of(folder, bert_config_file="gone.json"))
