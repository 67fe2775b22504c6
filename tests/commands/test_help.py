"""`--help`: essentials first, every flag of every verb in one group, and no traceback where its reader leaves."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import pytest
from absl.app import UsageError

from commands.flags import Group, flag, groups_of, help_text, run

ROOT = Path(__file__).resolve().parents[2]
VERBS = sorted(path.stem for path in ROOT.glob("*.py") if "flags import" in path.read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Has what others inherit."""

    _optimizer: ClassVar = Group.OPTIMIZER
    optimizer: str = flag("adamw", help="rule")


@dataclass(frozen=True, kw_only=True)
class Options(Shared):
    """Trains a toy."""

    _training: ClassVar = Group.TRAINING
    num_train_steps: int = flag(100, help="length of training", unit="steps", essential=True)
    optimizer: str = flag("lamb", help="another default; " + "and much to say about it " * 9, choices=("lamb", "adamw"))
    config_file: str = flag(help="the model", aliases=("bert_config_file",), group=Group.MODEL)
    _data: ClassVar = Group.DATA
    input_file: str = flag(help="shards")


def options_of(verb: str) -> type:
    return importlib.import_module(verb).Options


def test_groups_are_those_of_the_headings():
    assert groups_of(Options) == {
        Group.DATA: ["input_file"],
        Group.MODEL: ["config_file"],
        Group.TRAINING: ["num_train_steps"],
        Group.OPTIMIZER: ["optimizer"],
    }


def test_the_first_screen_begins_with_what_is_required_and_names_the_rest():
    lines = help_text(Options, "toy.py").splitlines()
    assert lines[:9] == [
        "toy.py: Trains a toy.",
        "",
        "required:",
        "  --input_file           shards",
        "  --config_file          the model",
        "",
        "what most runs need:",
        "  --num_train_steps=100  length of training [steps]",
        "",
    ]
    assert "  optimizer  how gradients become updates: optimizer" in lines
    assert max(map(len, lines)) < 120


@pytest.mark.parametrize(
    ("topic", "there", "absent"),
    [
        ("model", ["--config_file (required)", "also --bert_config_file"], ["num_train_steps", "input_file"]),
        ("optimizer", ["--optimizer (lamb)", "lamb|adamw", "another default"], ["num_train_steps"]),
        ("num_train_steps", ["training: ", "--num_train_steps (100)"], ["input_file"]),
        ("all", ["--config_file", "--optimizer", "--num_train_steps", "--input_file", "--config=FILE"], []),
    ],
)
def test_a_topic_is_a_group_a_flag_or_all(topic: str, there: list[str], absent: list[str]):
    text = help_text(Options, "toy.py", topic)
    assert all(part in text for part in there), text
    assert not any(f"--{part}" in text for part in absent), text


def test_an_unknown_topic_is_one_line():
    with pytest.raises(UsageError, match=r"--help=modle: the nearest is --help=model; groups are all, data, model, "):
        help_text(Options, "toy.py", "modle")


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_is_shown_in_one_group(verb: str):
    options, names = options_of(verb), {field.name for field in fields(options_of(verb))}
    groups = groups_of(options)
    assert Group.OTHER not in groups, f"a flag of {verb} has no heading"
    assert sorted(name for group in groups.values() for name in group) == sorted(names)
    shown = {group: re.findall(r"^  --(\w+)", help_text(options, verb, group.word), re.MULTILINE) for group in groups}
    assert {group: sorted(found) for group, found in shown.items()} == {group: sorted(x) for group, x in groups.items()}
    everything = re.findall(r"^  --(\w+)", help_text(options, verb, "all"), re.MULTILINE)
    assert sorted(everything) == sorted([*names, "config"])


@pytest.mark.parametrize("verb", VERBS)
def test_the_first_screen_is_a_screen(verb: str):
    text = help_text(options_of(verb), f"{verb}.py")
    assert len(text.splitlines()) <= 44
    required, _, rest = text.partition("what most runs need:" if "what most" in text else "all others")
    for field in fields(options_of(verb)):
        is_required = "--" + field.name in re.findall(r"^  (--\w+)", required, re.MULTILINE)
        assert is_required == (field.default.__class__.__name__ == "_MISSING_TYPE"), field.name
        assert is_required or re.search(rf"\b{field.name}\b", rest), field.name
    assert max(map(len, text.splitlines())) < 120


@pytest.mark.parametrize("argument", ["--help", "-h", "--helpshort", "--helpfull", "--help=all", "--help=training"])
def test_help_exits_0_without_the_verb(argument: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        run(lambda options: 1, Options, ["--input_file=x", argument])
    assert stop.value.code == 0
    assert "--num_train_steps" in capsys.readouterr().out


def test_a_reader_that_leaves_gets_no_traceback():
    script = "import run_pretraining as v; from commands.flags import run; run(v.main, v.Options, ['--help=all'])"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
