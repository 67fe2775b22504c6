"""The ablation recipe: arms of equal compute, splits that do not leak, steps done once, and the whole in small."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.flags import parse
from examples import steps as running
from examples import structbert_ablation as recipe

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (1, 2, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Text and a task's files, from the shipped samples."""
    (tmp_path / "data/lcqmc").mkdir(parents=True)
    for split, count in (("train", 40), ("dev", 12)):
        lines = (ROOT / f"data/samples/pairs/{split}.txt").read_text(encoding="utf-8").splitlines()[:count]
        (tmp_path / f"data/lcqmc/{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def options_of(folder: Path, **flags: Any) -> recipe.Options:
    usual: dict[str, Any] = {
        "input_file": (str(ROOT / "data/samples/zh/nature.txt"), str(ROOT / "data/samples/zh/arts.txt")),
        "data_dir": str(folder / "data"),
        "output_dir": str(folder / "out"),
        "tasks": ("lcqmc",),
        "bert_config_file": str(ROOT / "examples/zh_news/albert_config.json"),
    }
    return recipe.Options(**usual | flags)


def plan(options: recipe.Options) -> dict[str, running.Step]:
    return {step.name: step for step in recipe.plan(options, dict.fromkeys(options.tasks, 1000))}


def flags_of(step: running.Step) -> dict[str, str]:
    return dict(argument.removeprefix("--").split("=", 1) for argument in step.command[1:])


def test_arms_differ_in_their_objective_and_in_nothing_else(folder: Path):
    steps = plan(options_of(folder))
    arms = [name for name in recipe.ARMS if name != "random"]
    for kind, own in (
        ("records {}", {"output_file", "objective", "trigram_rate"}),
        ("pretraining {}", {"input_file", "output_dir", "objective"}),
        ("scoring {}", {"output_dir", "init_checkpoint"}),
        ("fine-tuning {} lcqmc", {"output_dir", "init_checkpoint"}),
    ):
        flags = [flags_of(steps[kind.format(name)]) for name in arms]
        assert len({json.dumps({k: v for k, v in each.items() if k not in own}) for each in flags}) == 1
        for name in own & {"output_dir", "output_file", "init_checkpoint"}:
            assert len({each[name] for each in flags}) == len(arms)
    random_weights = flags_of(steps["fine-tuning random lcqmc"])
    assert "init_checkpoint" not in random_weights
    made = {name: flags_of(steps[f"records {name}"]) for name in arms}
    assert [name for name in arms if float(made[name]["trigram_rate"])] == ["word_order", "structbert"]
    assert [made[name]["objective"] for name in arms] == [
        "masked_lm",
        "masked_lm",
        "structbert",
        "structbert",
        "albert",
    ]


def test_every_command_is_one_that_its_verb_takes_and_that_can_be_pasted(folder: Path):
    for step in plan(options_of(folder)).values():
        verb = importlib.import_module(step.command[0].removesuffix(".py"))
        parsed = parse(verb.Options, step.command[1:])
        words = subprocess.run(
            ["bash", "-c", f'python3() {{ printf "%s\\n" "$@"; }}; {step.shown}'],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert words == step.command
        assert isinstance(parsed, verb.Options)


def test_all_arms_start_from_the_weights_that_are_given(folder: Path):
    for name, step in plan(options_of(folder, init_checkpoint="model", vocab_file="vocab.txt")).items():
        if step.kind == "pretraining":
            flags = flags_of(step)
            assert (flags["init_checkpoint"], flags["init_sentence_head"]) == ("model", "False"), name


def touch(path: Path, content: str = "{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def test_seeds_that_are_done_are_not_trained_again(folder: Path):
    options = options_of(folder, seeds=SEEDS)
    name = "fine-tuning albert lcqmc"
    before = plan(options)[name]
    assert flags_of(before)["seeds"] == "1,2,3"
    touch(before.products[1])
    again = plan(options)[name]
    assert flags_of(again)["seeds"] == "1,3"
    assert not again.done
    assert again.seconds < before.seconds
    for path in before.products:
        touch(path)
    assert plan(options)[name].done


def test_a_dry_run_lists_what_is_left_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]):
    options = options_of(folder, dry_run=True)
    assert recipe.main(options) == 0
    shown = capsys.readouterr().out
    commands = re.findall(r"^python3 .*", shown, re.MULTILINE)
    assert commands == [step.shown for step in plan(options).values()]
    assert re.search(r"^22 steps, 22 left, about \d+m\d\ds$", shown, re.MULTILINE)
    assert not (folder / "out").exists()
    touch(folder / "out/vocab.txt")
    recipe.main(options)
    assert "22 steps, 21 left" in capsys.readouterr().out


def test_a_step_that_fails_stops_the_run_and_the_next_run_begins_with_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    options, called = options_of(folder), []
    products = {step.shown: step.products for step in plan(options).values()}

    def execute(command: list[str]) -> int:
        shown = running.Step("", command, [], 0).shown
        called.append(command)
        if "albert" in shown and command[0] == "run_pretraining.py":
            return 7
        for path in products[shown]:
            touch(path)
        return 0

    monkeypatch.setattr(running, "execute", execute)
    assert recipe.main(options) == 7
    failed = called[-1]
    error = capsys.readouterr().err
    assert error == (
        "structbert_ablation: pretraining albert ended with exit status 7; the same command goes on from there\n"
    )
    called.clear()
    assert recipe.main(options) == 7
    assert called == [failed]


def test_a_verb_is_asked_to_save_when_the_run_is_told_to_stop(tmp_path: Path):
    verb = tmp_path / "verb.py"
    verb.write_text(
        "import pathlib, signal, sys, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: ((folder / 'saved').touch(), sys.exit(143)))\n"
        "(folder / 'ready').touch()\ntime.sleep(60)\n"
    )
    script = (
        "import signal; from examples import steps as running\n"
        f"signal.signal(signal.SIGTERM, running._terminated); running.execute([{str(verb)!r}])"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as process:
        deadline_seconds = time.monotonic() + 30
        while not (tmp_path / "ready").exists() and time.monotonic() < deadline_seconds:
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 143
    assert (tmp_path / "saved").exists()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("uvw"), st.sampled_from("01")), min_size=4),
    st.integers(1, 6),
    st.sampled_from([("train",), ("dev",), ("train", "dev")]),
)
def test_no_first_text_is_both_trained_on_and_scored(tmp_path_factory, rows, most, splits):
    folder = tmp_path_factory.mktemp("split")
    (folder / "data/lcqmc").mkdir(parents=True)
    lines = ["\t".join(row) for row in rows]
    parts = dict(zip(splits, (lines[: len(lines) // 2], lines[len(lines) // 2 :]), strict=False))
    if len(splits) == 1:
        parts = {splits[0]: lines}
    for split, part in parts.items():
        (folder / f"data/lcqmc/{split}.tsv").write_text("\n".join(part) + "\n", encoding="utf-8")
    options = options_of(folder, max_dev_examples=most)
    train, scored = recipe.split_task(options, "lcqmc")
    assert not {example.text_a for example in train} & {example.text_a for example in scored}
    assert len(scored) == min(most, len(rows) // 4 if len(splits) == 1 else len(parts["dev"]))
    as_rows = [(each.text_a, each.text_b, each.label) for each in [*train, *scored]]
    assert not set(as_rows) - set(rows)
    assert len(as_rows) <= len(rows)
    assert (train, scored) == recipe.split_task(options, "lcqmc")
    # What is written is what is read.
    recipe.write_task(options, "lcqmc", (train, scored))
    if train:
        from tasks.datasets import find_file, find_row, read_examples

        row = find_row("lcqmc")
        for kind, examples in (("train", train), ("dev", scored)):
            path = find_file(row, folder / "out/tasks/lcqmc", kind)
            assert read_examples(row, path, need_labels=True) == examples


def test_the_table_has_mean_and_deviation_and_gaps_where_nothing_is_done(folder: Path):
    options = options_of(folder, seeds=SEEDS, arms=("random", "structbert"))
    for seed, accuracy in zip(SEEDS, (0.5, 0.6, 0.7), strict=True):
        path = folder / f"out/fine_tuning/structbert/lcqmc/seed_{seed}/eval_results.json"
        touch(path, json.dumps({"accuracy": accuracy, "loss": 1.0}))
    held_out = {"word_order_accuracy": 0.61, "unchanged_order_accuracy": 0.34, "sentence_structure_accuracy": 0.4}
    touch(folder / "out/pretraining/structbert/eval_results.json", json.dumps(held_out))
    touch(
        folder / "out/scoring/structbert/eval_results.json",
        json.dumps({"masked_lm_accuracy": 0.45, "unigram_accuracy": 0.04}),
    )
    touch(folder / "out/seconds.json", json.dumps({"pretraining structbert": 83.4}))
    text = recipe.write_tables(options)
    assert text == (folder / "out/table.md").read_text(encoding="utf-8")
    *_, header, rule, random_weights, structbert = text.splitlines()
    assert header == "| arm | masked tokens right | shuffled words right | pairs right | lcqmc | pretraining |"
    assert len({line.count("|") for line in (header, rule, random_weights, structbert)}) == 1
    assert random_weights == "| random weights |  |  |  |  |  |"
    assert structbert == (
        "| + both: StructBERT | 0.450 (0.040) | 0.610 (0.340) | 0.400 (0.333) | 0.6000 ± 0.1000 | 1m23s |"
    )
    content = json.loads((folder / "out/table.json").read_text(encoding="utf-8"))
    assert content["structbert"]["tasks"]["lcqmc"]["accuracy"] == {"1": 0.5, "2": 0.6, "3": 0.7}
    assert content["random"]["tasks"] == {}


def test_the_estimate_follows_the_pace_of_what_is_done(folder: Path):
    steps = list(plan(options_of(folder)).values())
    first, second, *_ = [step for step in steps if step.kind == "pretraining"]
    pace = running.Pace(folder / "seconds.json", steps)
    assert pace.seconds_of([second]) == second.seconds
    pace.took(first, 3 * first.seconds)
    for reread in (pace, running.Pace(folder / "seconds.json", steps)):
        assert reread.seconds_of([first, second]) == pytest.approx(3 * (first.seconds + second.seconds))
        assert reread.seconds_of(steps[:1]) == steps[0].seconds


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"vocab_file": "gone.txt"}, "--vocab_file=gone.txt: no such file"),
        ({"seeds": ()}, "--seeds=: expected one or several, each once"),
        ({"arms": ("albert", "albert")}, "--arms=albert,albert: expected one or several, each once"),
        ({"tasks": ("lcqmd",)}, "unknown --task_name 'lcqmd'; did you mean 'lcqmc'?"),
        ({"tasks": ("ocnli",)}, "data/ocnli is not a folder"),
        (
            {"init_checkpoint": "model"},
            "--init_checkpoint=model without --vocab_file: give the vocabulary that it has",
        ),
        (
            {"num_train_steps": 50},
            "--num_warmup_steps=80 but --num_train_steps=50: give fewer steps of warmup, or more of training",
        ),
        (
            {"input_file": ("other.txt",)},
            "--input_file=.*nature.txt,.*, this run has other.txt: give the same, or another --output_dir",
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    folder: Path, flags: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
):
    usual = options_of(folder)
    touch(folder / "out/config.json", json.dumps(dataclasses.asdict(usual)))
    monkeypatch.setattr(running, "execute", lambda command: pytest.fail("ran"))
    with pytest.raises(UsageError, match=message):
        recipe.main(options_of(folder, **flags))


def test_more_seeds_arms_and_tasks_join_what_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch):
    touch(folder / "out/config.json", json.dumps(dataclasses.asdict(options_of(folder, seeds=(1,), arms=("albert",)))))
    recipe.check(options_of(folder, seeds=(1, 2), arms=("albert", "random")))


@pytest.mark.slow
@pytest.mark.usefixtures("operation_by_operation")
def test_the_recipe_in_small(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Every verb for real, within this process."""
    demo = json.loads((ROOT / "albert_config/albert_config_demo.json").read_text(encoding="utf-8"))
    tiny = {"hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    (folder / "tiny.json").write_text(json.dumps({**demo, **tiny}), encoding="utf-8")
    options = options_of(
        folder,
        arms=("random", "structbert"),
        seeds=(1, 2),
        bert_config_file=str(folder / "tiny.json"),
        vocab_size=1500,
        max_seq_length=32,
        dupe_factor=1,
        eval_fraction=0.3,
        num_train_steps=5,
        num_warmup_steps=1,
        pretraining_batch_size=8,
        train_batch_size=8,
        num_train_epochs=1.0,
    )
    called = []

    def execute(command: list[str]) -> int:
        called.append(command[0])
        verb = importlib.import_module(command[0].removesuffix(".py"))
        return verb.main(parse(verb.Options, command[1:])) or 0

    monkeypatch.setattr(running, "execute", execute)
    assert recipe.main(options) == 0
    assert [
        called.count(f"{verb}.py") for verb in ("create_pretraining_data", "run_pretraining", "run_classifier")
    ] == [
        2,
        2,
        2,
    ]
    table = (folder / "out/table.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.endswith(table)
    content = json.loads((folder / "out/table.json").read_text(encoding="utf-8"))
    assert list(content) == ["random", "structbert"]
    assert {"word_order_accuracy", "sentence_structure_accuracy"} <= set(content["structbert"]["held_out"])
    for scores in content.values():
        by_seed = scores["tasks"]["lcqmc"]["accuracy"]
        assert scores["tasks"]["lcqmc"]["mean"] == pytest.approx(sum(by_seed.values()) / 2)
    # All is done: the same command only shows the table again.
    called.clear()
    assert recipe.main(options) == 0
    assert called == []
    assert "0 left" in (shown := capsys.readouterr().out)
    assert shown.endswith(table)
