"""A run goes on in a folder of its own alone: the rule of every flag, and the facts that a run is made of."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from absl.app import UsageError

import run_classifier
import run_pretraining
from commands import resuming
from commands.flags import write_config
from commands.records import AllRecords
from ground.documents import as_json
from ground.outputs import check_outputs
from modeling.config import Config
from tasks.datasets import find_row
from tasks.run_file import RunFile, TokenizerFile
from training.checkpoints import RunState, write_state
from training.run import LoopProgress

VERBS = {"run_pretraining": run_pretraining, "run_classifier": run_classifier}
SHAPE: dict[str, Any] = dict(  # noqa: C408
    family="bert", vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
)


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_has_a_rule(verb: str):
    flags = {field.name for field in dataclasses.fields(VERBS[verb].Options)}
    assert resuming.RULES[verb].keys() == flags
    frozen = json.loads((Path(__file__).parents[1] / "frozen_flags.json").read_text())
    assert resuming.RULES[verb].keys() == set(frozen[verb])


def test_a_flag_has_one_rule_in_all_verbs():
    for one, other in itertools.combinations(resuming.RULES.values(), 2):
        assert {name: one[name] for name in one.keys() & other.keys()} == {
            name: other[name] for name in one.keys() & other.keys()
        }


def run_of(task: str = "lcqmc_pair", **more: Any) -> RunFile:
    row = find_row(task)
    tokenizer = TokenizerFile(fingerprint="0" * 64)
    content: dict[str, Any] = {
        "kind": row.kind,
        "config": Config(**SHAPE),
        "computation": {},
        "tokenizer": tokenizer,
        "row": row,
    }
    return RunFile(**content | more)


def options(folder: Path, **more: Any) -> run_classifier.Options:
    given: dict[str, Any] = {"task_name": "x", "data_dir": "x", "bert_config_file": "x", "output_dir": str(folder)}
    return run_classifier.Options(**given | more)


def begun(folder: Path, **content: Any) -> Path:
    write_config(options(folder, init_checkpoint="weights", learning_rate=5e-5), folder / "config.json")
    run_of(**content).write(folder)
    return folder


def compare(folder: Path, run: RunFile, *, goes_on: bool = True, **flags: Any) -> list[str]:
    given = options(folder, **{"init_checkpoint": "weights", "learning_rate": 5e-5} | flags)
    return resuming.compare(folder, given, run, trains=True, goes_on=goes_on)


OTHER_RUNS = [
    (run_of("afqmc"), r"--task_name: .* was trained with task lcqmc_pair, this run has afqmc"),
    (
        run_of(config=Config(**{**SHAPE, "hidden_size": 8})),
        r"--bert_config_file: .*hidden_size 4, this run has 8",
    ),
    (
        run_of(tokenizer=TokenizerFile(fingerprint="1" * 64)),
        r"--spm_model_file, --segmentation or --do_lower_case: .*a tokenizer 000000000000, this run has 1",
    ),
    (run_of(row=dataclasses.replace(find_row("lcqmc_pair"), labels=("1", "0"))), r"labels 0,1, this run has 1,0"),
    (run_of(row=dataclasses.replace(find_row("lcqmc_pair"), pooling="cls")), r"pooling mean, this run has cls"),
    (run_of(row=None, objective="albert"), r"--task_name: .*task lcqmc_pair, this run has albert"),
]


@pytest.mark.parametrize(("run", "message"), OTHER_RUNS)
@pytest.mark.parametrize("goes_on", [True, False])
def test_another_run_is_refused_begun_or_finished(tmp_path: Path, run: RunFile, message: str, goes_on: bool):
    before = {path: path.read_bytes() for path in begun(tmp_path).iterdir()}
    with pytest.raises(UsageError, match=message + ".*or another --output_dir"):
        compare(tmp_path, run, goes_on=goes_on)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_same_run_goes_on_without_a_word(tmp_path: Path):
    begun(tmp_path)
    same: list[dict[str, Any]] = [
        {},
        {"log_steps": 3},
        {"init_checkpoint": None},
        {"keep_checkpoint_max": 9, "fsdp": True},
    ]
    for flags in same:
        assert compare(tmp_path, run_of(), **flags) == []


def test_what_changes_results_is_named_or_refused(tmp_path: Path):
    begun(tmp_path)
    changes = compare(tmp_path, run_of(), learning_rate=1e-4, num_train_epochs=5.0)
    assert changes == ["learning_rate 5e-05 -> 0.0001", "num_train_epochs 3.0 -> 5.0"]
    fixed: dict[str, Any] = {"seed": 4, "optimizer": "lamb", "ema_decay": 0.5, "freeze": ("pooler",)}
    for name, value in fixed.items():
        with pytest.raises(UsageError, match=f"--{name}: .* was trained with {name} "):
            compare(tmp_path, run_of(), **{name: value})
    with pytest.raises(UsageError, match="leave --init_checkpoint out"):
        compare(tmp_path, run_of(), init_checkpoint="others")
    # Nothing is learnt yet, so there is nothing that a flag could contradict.
    assert compare(tmp_path, run_of(), goes_on=False, seed=4) == []


def test_other_data_is_refused_and_other_development_data_named(tmp_path: Path):
    begun(tmp_path, data={"training data": "a", "development data": "b"})
    with pytest.raises(UsageError, match=r"--data_dir: .*training data a, this run has c"):
        compare(tmp_path, run_of(data={"training data": "c"}))
    assert compare(tmp_path, run_of(data={"training data": "a", "development data": "c"})) == [
        "development data b -> c"
    ]


def test_steps_may_be_more_but_not_fewer_than_there_are(tmp_path: Path):
    resuming.check_steps(tmp_path, 100, 100)
    with pytest.raises(UsageError, match="is at step 200, this run would end at step 100"):
        resuming.check_steps(tmp_path, 200, 100)


@pytest.mark.parametrize("content", ["[]", "3", "{", "[" * 10**5, '"x"'])
def test_flags_of_another_shape_are_one_line(tmp_path: Path, content: str):
    begun(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config\.json: (\$ is|not the flags of a run).*restore it, or delete it"):
        compare(tmp_path, run_of())


@pytest.mark.parametrize("name", ["config.json", "vocab.txt", "best", "eval_results.json", "dev_predictions.tsv"])
def test_a_folder_that_no_run_wrote_keeps_its_files(tmp_path: Path, name: str):
    (tmp_path / "notes.md").write_text("no matter")
    check_outputs({}, resuming.targets(tmp_path))
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=rf"--output_dir: .*{name} exists and is not known .*holds no run.json"):
        check_outputs({}, resuming.targets(tmp_path))
    begun(tmp_path)
    (tmp_path / "vocab.txt").touch()
    check_outputs({"--vocab_file": [tmp_path / "vocab.txt"]}, resuming.targets(tmp_path))
    (tmp_path / "dev_predictions.tsv").write_text("")
    with pytest.raises(UsageError, match="which --data_dir reads"):
        check_outputs({"--data_dir": [tmp_path / "dev_predictions.tsv"]}, resuming.targets(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, "step_00000001 was trained with seed 7, this run has 12345"),
        ({"progress": {"recent_losses": 3}}, r"state.json: .*\$.recent_losses is 3: expected a list; remove it"),
        ({"progress": {"unknown": 3}}, "state.json: .*unknown key 'unknown'"),
        ({"config": {"hidden_size": "wide"}}, "state.json: config: "),
    ],
)
def test_a_checkpoint_by_which_no_run_goes_on_is_refused_before_anything_is_written(tmp_path: Path, change, message):
    config = as_json(dataclasses.asdict(Config(**SHAPE)))
    state = RunState(1, 12345, config, dataclasses.asdict(LoopProgress()), {})
    folder = tmp_path / "step_00000001"
    write_state(folder, state)
    resuming.check_records(tmp_path, [folder], config, 12345)
    facts = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(facts | change))
    with pytest.raises(UsageError, match=message):
        resuming.check_records(tmp_path, [folder], config, 12345)


def test_what_tells_data_apart_stays_as_checkpoints_hold_it(tmp_path: Path):
    """A run that an earlier version began goes on: digests have the form that its folder holds."""
    (tmp_path / "a").write_bytes(b"one")
    sha256 = hashlib.sha256(b"one").hexdigest()[:12]
    files = {"train": (tmp_path / "a",), "test": (tmp_path / "absent",)}
    assert resuming.data_of_files(files) == {"training data": sha256}
    assert resuming.data_of_files(files | {"dev": (tmp_path / "a",)}) == {
        "training data": sha256,
        "development data": sha256,
    }
    part = SimpleNamespace(origins=lambda: ["one", "two"], num_examples=7)
    digest = hashlib.sha256(b"one\ntwo").hexdigest()[:12]
    expected = {"training data": digest, "training examples": 7}

    def records(**parts: Any) -> AllRecords:
        return AllRecords(parts, dict.fromkeys(parts, 1 / len(parts)))

    assert resuming.data_of_records(records(albert=SimpleNamespace(training=part, held_out=None))) == expected
    expected |= {"held-out data": digest, "held-out examples": 7}
    both = SimpleNamespace(training=part, held_out=part)
    assert resuming.data_of_records(records(albert=both)) == expected
    # Of several objectives it counts which learns from what.
    other = SimpleNamespace(training=SimpleNamespace(origins=lambda: ["three"], num_examples=2), held_out=part)
    one, swapped = (resuming.data_of_records(records(tlm=a, veco=b)) for a, b in ((both, other), (other, both)))
    assert one["training examples"] == 9
    assert one["training data"] != swapped["training data"]
    assert one["held-out data"] == swapped["held-out data"]
