"""The recipe of seven tasks: its plan, what its arms share, and its table."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError

import run_classifier
import run_pretraining
from commands.flags import parse
from examples import finetuning_tasks as recipe
from tasks.datasets import find_row
from tasks.kinds import find_kind
from tasks.splits import Splits


def options_of(folder: Path, **changes: Any) -> recipe.Options:
    given = {"input_file": "text.txt", "data_dir": "tasks", "output_dir": folder / "out", **changes}
    return parse(recipe.Options, [f"--{name}={value}" for name, value in given.items()])


def flags_of(step: Any) -> dict[str, str]:
    words = shlex.split(step.shown.removeprefix("python3 "))[1:]
    return dict(word.removeprefix("--").split("=", 1) for word in words)


def test_every_command_parses_and_every_metric_is_one_of_its_kind(tmp_path: Path):
    steps = recipe.plan(options_of(tmp_path))
    assert len(steps) == 1 + 2 * 2 + 14
    assert len(recipe.plan(options_of(tmp_path, num_adaptation_steps=0))) == 1 + 2 + 14
    for step in steps:
        verb = {"run_classifier.py": run_classifier, "run_pretraining.py": run_pretraining}.get(step.command[0])
        if verb is not None:
            parse(verb.Options, step.command[1:])
    for name, task in recipe.TASKS.items():
        assert task.metric in find_kind(find_row(name).kind).metrics


def test_arms_differ_in_their_weights_alone(tmp_path: Path):
    steps = {step.name: step for step in recipe.plan(options_of(tmp_path))}
    for name in recipe.TASKS:
        arms = {arm: flags_of(steps[f"fine-tuning {arm} {name}"]) for arm in recipe.ARMS}
        starts = {arm: flags.pop("init_checkpoint", None) for arm, flags in arms.items()}
        random, pretrained = arms.values()
        assert random.keys() == pretrained.keys()
        assert {key for key in random if random[key] != pretrained[key]} == {"output_dir"}
        if after := recipe.TASKS[name].after:
            outputs = {arm: flags_of(steps[f"fine-tuning {arm} {after}"])["output_dir"] for arm in recipe.ARMS}
            assert starts == {arm: f"{output}/seed_1" for arm, output in outputs.items()}
        else:
            assert starts == {"random": None, "pretrained": flags_of(steps["adaptation"])["output_dir"]}
    assert flags_of(steps["adaptation"])["init_checkpoint"] == flags_of(steps["pretraining"])["output_dir"]


def test_a_task_that_begins_with_another_comes_behind_it(tmp_path: Path):
    recipe.check_order(options_of(tmp_path, tasks="ocnli,xnli_zh"))
    for tasks in ("xnli_zh,ocnli", "xnli_zh"):
        options = options_of(tmp_path, tasks=tasks)
        with pytest.raises(UsageError, match="put ocnli before it"):
            recipe.check_order(options)
    for arm in recipe.ARMS:
        done = tmp_path / f"out/fine_tuning/{arm}/ocnli/seed_1/eval_results.json"
        done.parent.mkdir(parents=True)
        done.write_text("{}", encoding="utf-8")
    recipe.check_order(options_of(tmp_path, tasks="xnli_zh"))


def test_the_texts_of_tasks_have_every_training_example_and_none_that_is_held_out(tmp_path: Path):
    pairs = [(f"甲{n}问什么？是{n}吗。", f"乙{n}答") for n in range(20)]
    for name, header, row in (
        ("lcqmc", "", "{a}\t{b}\t1\n"),
        ("thucnews_title", "text\tlabel\n", "{a}\t3\n"),
    ):
        (tmp_path / "tasks" / name).mkdir(parents=True)
        text = header + "".join(row.format(a=a, b=b) for a, b in pairs)
        (tmp_path / f"tasks/{name}/train.tsv").write_text(text, encoding="utf-8")
    options = options_of(tmp_path, data_dir=tmp_path / "tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "TASKS", {name: recipe.TASKS[name] for name in ("lcqmc", "thucnews_title")})
        recipe.write_task_texts(options)
    for name, second in (("lcqmc", True), ("thucnews_title", False)):
        row, (path,) = find_row(name), [tmp_path / f"tasks/{name}/train.tsv"]
        kept = Splits(row, {"train": [path]}, dev_share=0.2).examples["train"]
        assert 10 < len(kept) < 20
        wanted = [
            "".join(f"{line}\n" for line in (*each.text_a.replace("？", "？\n").split("\n"), each.text_b) if line)
            for each in kept
        ]
        assert second == any("乙" in document for document in wanted)
        assert (tmp_path / f"out/texts/{name}.txt").read_text(encoding="utf-8") == "\n".join(wanted)


def test_the_table_has_what_is_done(tmp_path: Path):
    options = options_of(tmp_path, tasks="ocnli,cluener", seeds="1,2")
    for seed, score in ((1, 0.5), (2, 0.6)):
        path = tmp_path / f"out/fine_tuning/pretrained/ocnli/seed_{seed}/eval_results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"accuracy": score}))
    table = recipe.write_tables(options)
    assert "| ocnli | accuracy |  |  | 0.550 ± 0.071 |" in table
    assert "| cluener | macro_f1 |  |  |  |" in table
    assert json.loads((tmp_path / "out/table.json").read_text())["ocnli"]["pretrained"]["seeds"] == {"1": 0.5, "2": 0.6}


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert recipe.main(options_of(tmp_path, dry_run=True)) == 0
    assert "19 steps, 19 left" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
