"""The recipe of few labels: its plan, what its methods share, and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError

import run_classifier
from commands.flags import parse
from examples import few_labels as recipe
from tasks.datasets import find_row


def options_of(folder: Path, **changes: Any) -> recipe.Options:
    given = {"model": folder, "data_dir": "fewclue", "output_dir": folder / "out", **changes}
    return parse(recipe.Options, [f"--{name}={value}" for name, value in given.items()])


def flags_of(step: Any) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in step.command[1:])


def test_every_command_parses_and_every_row_can_be_asked(tmp_path: Path):
    steps = recipe.plan(options_of(tmp_path, tasks=",".join(recipe.TASKS), splits="0,all"))
    assert len(steps) == 5 * 2 * 5
    for step in steps:
        parse(run_classifier.Options, step.command[1:])
        row = find_row(flags_of(step)["task_name"])
        assert row.pattern
        assert len(row.verbalizer) == len(row.labels) == recipe.TASKS[row.name.split("_")[1]]


def test_methods_differ_in_the_method_alone(tmp_path: Path):
    steps = {step.name: flags_of(step) for step in recipe.plan(options_of(tmp_path))}
    plain = steps["fine_tuning tnews all"]
    for method in ("pet", "p_tuning", "cp_tuning"):
        asked = steps[f"{method} tnews all"]
        assert asked.keys() - plain.keys() == {"method"}
        assert {key for key in plain if plain[key] != asked[key]} == {"output_dir"}
    assert steps["untrained tnews all"]["do_train"] == "False"


def test_the_table_has_what_is_done(tmp_path: Path):
    options = options_of(tmp_path, tasks="csl,tnews", methods="untrained,pet", seeds="1,2")
    for place, score in (("untrained/csl_all", 0.5), ("pet/csl_all/seed_1", 0.5), ("pet/csl_all/seed_2", 0.6)):
        path = tmp_path / "out" / place / "eval_results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"accuracy": score}))
    table = recipe.write_tables(options)
    assert "| csl | 0.500 | 0.500 | 0.550 ± 0.071 |" in table
    assert "| tnews | 0.067 |  |  |" in table
    assert json.loads((tmp_path / "out/table.json").read_text())["csl"]["pet"]["runs"] == {"all/1": 0.5, "all/2": 0.6}


def test_a_dry_run_writes_nothing_and_a_missing_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert recipe.main(options_of(tmp_path, dry_run=True)) == 0
    assert "20 steps, 20 left" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match=r"^--model=.*nowhere is no folder; give that of a pretrained model$"):
        recipe.main(options_of(tmp_path, model=tmp_path / "nowhere"))
