"""`--dry_run`: what a run would show first, with a plan; nothing is written, and mistakes are told as by the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from observing import classifier_flags, pretraining_flags
from observing.world import make_world

import run_classifier
import run_pretraining
import training.loop
from commands.estimate import Work, estimate
from commands.flags import run
from commands.options import TrainingOptions
from commands.session import check_writable
from modeling import Config
from training.checkpoints import RunState, checkpoint_folder, write_state
from training.planning import Chip
from training.run import RunPlan

pytestmark = pytest.mark.slow

VERBS: dict[str, tuple[Any, Mapping[str, str]]] = {
    "pretraining": (run_pretraining, {**pretraining_flags.BASE, "num_train_steps": "2", "num_warmup_steps": "1"}),
    "classifier": (run_classifier, {**classifier_flags.BASE, "num_train_epochs": "1", "save_checkpoints_steps": "2"}),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


def call(verb: str, world: Path, **flags: object) -> int:
    module, base = VERBS[verb]
    given = {**base, **{name: str(value) for name, value in flags.items()}}
    with pytest.raises(SystemExit) as stopped:
        run(module.main, module.Options, [f"--{name}={text}".format(world=world) for name, text in given.items()])
    return int(stopped.value.code or 0)


def everything_below(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def facts(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+) {2,}(.*)$", text, re.MULTILINE))


def saved_at_once(preambles: list[dict[str, str]]) -> Any:
    """Return what takes the place of the loop: it notes the preamble and leaves a checkpoint of step 2."""

    def train(engine: Any, dataset: Any, plan: RunPlan, *, evaluate: Any) -> Any:
        preambles.append(dict(plan.summary))
        saved = RunState(2, engine.seed, plan.config, {}, engine.state(whole=False))
        write_state(checkpoint_folder(plan.output_dir, 2), saved)
        raise SystemExit(0)

    return train


@pytest.mark.parametrize("verb", VERBS)
def test_it_shows_the_preamble_of_the_run_and_writes_nothing(
    verb: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    real: list[dict[str, str]] = []
    monkeypatch.setattr(training.loop, "train", saved_at_once(real))
    before = everything_below(world)
    assert call(verb, world, dry_run=True) == 0
    dry = capsys.readouterr().out
    assert everything_below(tmp_path) == {}
    assert everything_below(world) == before
    assert not real
    assert dry.endswith("--dry_run: nothing was written; the same command without it starts the run\n")

    assert call(verb, world) == 0
    capsys.readouterr()
    shown = facts(dry)
    plan = {name: shown.pop(name) for name in ("plan", "time")}
    assert [shown] == real
    assert {"model", "memory", "device", "weights", "data", "step", "output"} <= set(shown)
    assert re.match(r"about [\d.]+ GiB a device at the peak of a step, of [\d.,]+ GiB$", plan["plan"])
    assert re.match(r"[\d.,]+ to [\d.,]+ ms a step, .* to .* for 2 steps, from the roofline$", plan["time"])

    # Where there are checkpoints it says where the run would go on, and leaves also what a crash has left.
    (tmp_path / "out/checkpoints/.step_00000009.new").mkdir()
    there = everything_below(tmp_path)
    assert call(verb, world, dry_run=True) == 0
    assert "continuing from step 2\n" in capsys.readouterr().out
    assert call(verb, world, dry_run=True, do_train=False) == 0
    assert "step  " not in capsys.readouterr().out
    assert call(verb, world, dry_run=True, seed=8) == 2
    assert "was trained with seed 12345, this run has 8" in capsys.readouterr().err
    assert everything_below(tmp_path) == there


@pytest.mark.parametrize(
    ("verb", "flags", "message"),
    [
        ("pretraining", {"input_file": "absent*.tfrecord"}, "absent"),
        ("pretraining", {"train_batch_size": 7, "gradient_accumulation_steps": 2}, "cannot be cut into 2 equal micro"),
        ("pretraining", {"init_checkpoint": "{world}/absent"}, "absent"),
        ("pretraining", {"do_train": False}, "no weights"),
        ("pretraining", {"output_dir": "{world}/vocab.txt/out"}, "vocab.txt is a file; give another folder"),
        ("classifier", {"task_name": "lcqmc_pairs"}, "lcqmc_pair"),
        ("classifier", {"data_dir": "{world}/records"}, "train"),
        (
            "classifier",
            {"init_checkpoint": "{world}/classifier", "bert_config_file": "{world}/wide.json"},
            "does not fit",
        ),
    ],
)
def test_mistakes_are_told_as_by_the_run(
    verb: str,
    flags: dict[str, object],
    message: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert call(verb, world, dry_run=True, **flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert everything_below(tmp_path) == {}


def test_of_several_seeds_the_first_stands_for_all(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert call("classifier", world, dry_run=True, seeds="1,2") == 0
    assert capsys.readouterr().out.count("nothing was written") == 1
    assert everything_below(tmp_path) == {}


def test_a_folder_that_can_be_made_may_be_written(tmp_path: Path):
    check_writable(tmp_path / "a/b/c")
    assert everything_below(tmp_path) == {}


CONFIG = Config(
    family="bert", vocab_size=100, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
)


def test_the_plan_says_what_does_not_fit_and_what_is_not_known():
    options, work = TrainingOptions(output_dir="out"), Work(4, 16, 2, 1000)
    small, roomy = (Chip(1e12, 1e12, memory, 1e9, 1e9, "") for memory in (1e3, 1e12))
    assert "DOES NOT FIT; plan_training.py" in estimate(CONFIG, options, [work], small, "L4", 1)["plan"]
    fitting = estimate(CONFIG, options, [work], roomy, "L4", 1)
    assert "FIT" not in fitting["plan"]
    assert "for 1,000 steps" in fitting["time"]
    assert "rates of GTX are not known" in estimate(CONFIG, options, [work], None, "GTX", 1)["time"]
