"""The landing recipe: its plan, what its students share, its table and its clock."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError

import augment_examples
import run_classifier
from commands.flags import parse
from examples import landing as recipe


def options_of(folder: Path, **changes: Any) -> recipe.Options:
    given = {
        "teacher_model": folder,
        "student_model": folder,
        "task_name": "chnsenticorp",
        "data_dir": "reviews",
        "output_dir": folder / "out",
        **changes,
    }
    return parse(recipe.Options, [f"--{name}={value}" for name, value in given.items()])


def flags_of(step: Any) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in step.command[1:])


def test_every_command_parses_and_students_have_as_many_updates(tmp_path: Path):
    steps = {step.name: step for step in recipe.plan(options_of(tmp_path))}
    assert list(steps) == ["teacher", "rows", *(f"student {name}" for name in recipe.STUDENTS)]
    parse(augment_examples.Options, steps["rows"].command[1:])
    for name, step in steps.items():
        if name != "rows":
            parse(run_classifier.Options, step.command[1:])
    students = {name: flags_of(steps[f"student {name}"]) for name in recipe.STUDENTS}
    assert {each["num_train_steps"] for each in students.values()} == {"3000"}
    rows = str(tmp_path / "out/rows")
    assert {name: each["data_dir"] for name, each in students.items()} == {
        "alone": "reviews",
        "more_rows": rows,
        "taught": "reviews",
        "both": rows,
    }
    assert [name for name, each in students.items() if "teacher" in each] == ["taught", "both"]
    plain = students["alone"]
    for each in students.values():
        assert {key for key in plain if plain[key] != each[key]} <= {"data_dir", "output_dir"}


def test_the_table_has_what_is_done(tmp_path: Path):
    options = options_of(tmp_path, seeds="1,2")
    for place, score in (("teacher", 0.9), ("alone/seed_1", 0.5), ("alone/seed_2", 0.6), ("both/seed_1", 0.8)):
        path = tmp_path / "out" / place / "eval_results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"accuracy": score}))
    sizes = {"teacher": {"parameters": 1000, "milliseconds": 9.0}, "student": {"parameters": 10, "milliseconds": 1}}
    (tmp_path / "out/latency.json").write_text(json.dumps(sizes))
    table = recipe.write_tables(options)
    assert "| teacher | 1,000 | 9.0 | 1,000 | 0.900 |" in table
    assert "| small model alone | 10 | 1.0 | 3,000 | 0.550 ± 0.071 |" in table
    assert "| + both | 10 | 1.0 | 3,000 | 0.800 |" in table
    assert json.loads((tmp_path / "out/table.json").read_text())["alone"]["runs"] == {"1": 0.5, "2": 0.6}


def test_models_take_turns_and_the_first_round_does_not_count():
    asked: list[str] = []

    def slow_once(text: str) -> None:
        asked.append(text)
        time.sleep(0.05 if len(asked) <= 2 else 0)

    found = recipe.milliseconds({"teacher": slow_once, "student": asked.append}, ["a", "b"])
    assert asked == ["a", "b"] * 22
    assert 0 <= found["teacher"] < 50
    assert 0 <= found["student"] < 50


def test_a_dry_run_writes_nothing_and_a_missing_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert recipe.main(options_of(tmp_path, dry_run=True)) == 0
    assert "6 steps, 6 left" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match=r"^--student_model=.*nowhere is no folder; give that of a pretrained model$"):
        recipe.main(options_of(tmp_path, student_model=tmp_path / "nowhere"))
