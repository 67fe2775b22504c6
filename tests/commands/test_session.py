"""A session: the course of a run; its checks are one line, and it goes on from the checkpoints of older versions."""

from __future__ import annotations

import dataclasses
import json
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError

import run_pretraining
from commands import session as of_session
from commands.records import AllRecords, Records
from commands.session import OwnRows, Session, as_json, check_cuts, complete_config
from commands.weights import restore
from data.mixture import mark_of
from data.objectives import OBJECTIVES
from modeling import Config
from training import checkpoints, processes
from training.checkpoints import RunState, write_state

SHAPE: dict[str, Any] = {
    "family": "bert",
    "vocab_size": 15,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


def test_a_config_field_that_is_new_fills_its_default_into_older_configs():
    full = as_json(Config(**SHAPE))
    assert complete_config(full) == full
    for field in dataclasses.fields(Config):
        if field.default is not dataclasses.MISSING:
            older = {name: value for name, value in full.items() if name != field.name}
            # An embedding is as wide as the model unless the config says otherwise.
            assert complete_config(older) == full, field.name


def test_an_unknown_key_of_a_config_is_not_ignored():
    with pytest.raises(UsageError, match="hiden_size"):
        complete_config({**SHAPE, "hiden_size": 3})


class Numbers:
    num_examples = 8

    def batch(self, step: int) -> dict[str, np.ndarray]:
        return {"x": np.arange(4) + 4 * step}


def test_processes_share_every_batch():
    parts = [OwnRows(Numbers(), index, 2).batch(3)["x"] for index in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), Numbers().batch(3)["x"])


@pytest.mark.parametrize("writes", [True, False])
def test_of_several_processes_the_first_talks_and_stdout_stays(writes: bool, capsys: pytest.CaptureFixture[str]):
    import sys

    before = sys.stdout
    session = Session(
        types.SimpleNamespace(output_dir="/nowhere"),  # pyright: ignore[reportArgumentType]
        types.SimpleNamespace(processes=types.SimpleNamespace(writes=writes)),  # pyright: ignore[reportArgumentType]
    )
    session.say("one", "two")
    if not writes:
        session.finish("scores", {"loss": 1.0}, "title")
    assert capsys.readouterr().out == ("one\ntwo\n" if writes else "")
    assert sys.stdout is before


def test_a_cut_through_a_head_is_one_line():
    check_cuts(Config(**SHAPE), "config.json", 2)
    with pytest.raises(UsageError, match=r"--model_parallel=3 does not divide the 2 attention heads of config\.json"):
        check_cuts(Config(**SHAPE), "config.json", 3)


def test_finish_writes_scores_as_json_and_as_lines(tmp_path, capsys: pytest.CaptureFixture[str]):
    session = Session(
        types.SimpleNamespace(output_dir=str(tmp_path)),  # pyright: ignore[reportArgumentType]
        types.SimpleNamespace(processes=types.SimpleNamespace(writes=True)),  # pyright: ignore[reportArgumentType]
    )
    session.finish("eval_results", {"loss": 0.5, "accuracy": 0.25}, "the title", global_step=7)
    assert json.loads((tmp_path / "eval_results.json").read_text()) == {"global_step": 7, "loss": 0.5, "accuracy": 0.25}
    assert (tmp_path / "eval_results.txt").read_text() == "accuracy = 0.25\nglobal_step = 7\nloss = 0.5\n"
    assert "the title" in capsys.readouterr().out


def test_a_checkpoint_of_other_tensors_is_refused_before_its_numbers_are_read(tmp_path: Path):
    def check(state: Any) -> None:
        raise UsageError(f"{sorted(state)} does not fit")

    session = Session(types.SimpleNamespace(), None)  # pyright: ignore[reportArgumentType]
    session.engine = types.SimpleNamespace(check_state=check)  # pyright: ignore[reportAttributeAccessIssue]
    folder = tmp_path / "step_00000001"
    write_state(folder, RunState(1, 2, {}, {}, {"model/a": np.zeros(3, np.float32), "optimizer/b": np.zeros(2)}))
    with pytest.raises(UsageError, match=r"step_00000001: \['model/a', 'optimizer/b'\] does not fit"):
        session.check_state([folder])
    # A damaged one is passed over when the run goes on.
    later = tmp_path / "step_00000002"
    later.mkdir()
    with pytest.raises(UsageError, match=r"step_00000001: .* does not fit"):
        session.check_state([folder, later])
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(UsageError, match=r"none of the 2 checkpoints in .* can be read: remove that folder"):
        session.check_state([folder, later])
    session.check_state([])


def test_positions_that_are_scored_count_for_the_memory_of_every_use(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(of_session, "check_batch", lambda *values: seen.append(values))
    monkeypatch.setattr(of_session, "found_devices", lambda: ("CPU", 1))
    flags = {"do_train": True, "do_eval": True, "do_predict": False, "gradient_accumulation_steps": 4}
    options = types.SimpleNamespace(train_batch_size=64, eval_batch_size=8, **flags)
    session: Any = types.SimpleNamespace(config=Config(**SHAPE), options=options, config_path="x")
    fits: dict[str, Any] = {"vocab_size": 15, "vocabulary": "v", "max_seq_length": 512}
    Session.check_fit(session, **fits)
    Session.check_fit(session, **fits, scored=7)
    Session.check_fit(session, **fits, tokens=1024, scored=9)
    rows = [("train_batch_size", 64, 512, 4), ("eval_batch_size", 8, 512, 1)]
    assert seen == [
        (session.config, flag, size, tokens or length, scored, parts, 1)
        for tokens, scored in ((0, 0), (0, 7), (1024, 9))
        for flag, size, length, parts in rows
    ]
    wrong: dict[str, Any]
    for wrong in ({"vocab_size": 16}, {"max_seq_length": 513}):
        with pytest.raises(UsageError, match=r"^v has 16 entries but x has|^max_seq_length=513 but x has positions"):
            Session.check_fit(session, **{**fits, **wrong})  # pyright: ignore


class ReachedError(Exception):
    """The check that a test waits for."""


# Objective -> tokens that a layer computes of an example, of texts of 128.
TOKENS = {"albert": 128, "veco": 256, "camlm": 256, "btmlm": 256}


@pytest.mark.parametrize("objective", TOKENS)
def test_masked_and_shuffled_positions_are_scored_and_all_texts_computed(
    monkeypatch: pytest.MonkeyPatch, objective: str
):
    def check_fit(**values: Any) -> None:
        raise ReachedError(values)

    training = types.SimpleNamespace(
        max_seq_length=128, max_predictions_per_seq=20, max_word_order_per_seq=7, max_target_length=0, positions=256
    )
    training.max_other_length = 128 if objective in ("veco", "camlm") else 0
    facts = {"vocab_size": 15, "file": "v"}
    records: Any = types.SimpleNamespace(
        training=training, held_out=None, objective=objective, tokenizer_facts=lambda *of: facts
    )
    records.scored = Records.scored.fget(records)  # pyright: ignore[reportOptionalCall]
    session = types.SimpleNamespace(
        together=lambda function: AllRecords({objective: records}, {objective: 1.0}),
        start=lambda: Config(**SHAPE),
        check_fit=check_fit,
    )
    monkeypatch.setattr(Session, "check", lambda *values: session)
    options = run_pretraining.Options(
        do_train=True,
        input_file=("x",),
        output_dir="x",
        bert_config_file="x",
        objective=objective,
        allow_any_start=objective == "btmlm",
    )
    with pytest.raises(ReachedError) as reached:
        run_pretraining.main(options)
    scored = 7 + 20 * {"veco": 4, "camlm": 2}.get(objective, 1)
    lengths = {"max_seq_length": 128, "max_target_length": 0, "tokens": TOKENS[objective]}
    assert reached.value.args == ({"vocab_size": 15, "vocabulary": "v", **lengths, "scored": scored},)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_head_of_pairs_may_be_left_over_only_where_none_is_scored(objective: str):
    seen: dict[str, Any] = {}

    def restore(checkpoint: str, **names: Any) -> int:
        seen.update(names, checkpoint=checkpoint)
        return 9

    session: Any = types.SimpleNamespace(engine=types.SimpleNamespace(step=0), restore=restore)
    given = {"input_file": ("x",), "output_dir": "x", "bert_config_file": "x", "init_checkpoint": "c"}
    run_pretraining.load_weights(session, run_pretraining.Options(do_eval=True, objective=objective, **given))
    assert session.engine.step == 9
    assert seen["checkpoint"] == "c"
    unused = any(re.fullmatch(pattern, "sentence_pair/kernel") for pattern in seen["allow_unexpected"])
    assert unused is not bool(OBJECTIVES[objective].labels)
    assert not any(re.fullmatch(pattern, "masked_lm/output_bias") for pattern in seen["allow_unexpected"])


@pytest.mark.parametrize("only_reads", [False, True])
def test_processes_look_for_the_newest_checkpoint_together(monkeypatch: pytest.MonkeyPatch, tmp_path, only_reads: bool):
    seen: list[Any] = []
    monkeypatch.setattr(checkpoints, "latest_state", lambda *given, **names: seen.append((given, names)))
    monkeypatch.setattr(processes, "current", lambda: "all of them")
    with pytest.raises(UsageError, match="holds no checkpoint; train with --do_train, or give --init_checkpoint"):
        restore(None, None, output_dir=str(tmp_path), only_reads=only_reads)  # pyright: ignore
    assert seen == [((tmp_path,), {"processes": "all of them", "only_reads": only_reads})]


@pytest.mark.parametrize(("best", "expected"), [(True, ("best", 3)), (False, ("checkpoints/step_00000007", 7))])
def test_a_finished_run_is_scored_with_the_same_weights_from_another_folder(
    best: bool, expected: tuple[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for name, step in (("best", 3), ("checkpoints/step_00000007", 7)):
        write_state(tmp_path / "run" / name, RunState(step, 1, {}, {}, {"model/x": np.ones(1)}))
    seen: list[str] = []
    monkeypatch.setattr("commands.weights.initialize", lambda model, config, path, **names: seen.append(path))
    engine: Any = types.SimpleNamespace(model=None, state=dict)
    folder, (name, step) = tmp_path / "run", expected
    for given in ([str(folder)], [str(tmp_path / "other"), str(folder)]):
        assert restore(engine, None, *given, best=best) == step  # pyright: ignore[reportArgumentType]
    assert seen == [str(folder / name)] * 2


def test_several_languages_are_scored_apart_and_on_average():
    def evaluate(batches: Any) -> dict[str, float]:
        (found,) = batches
        return {"loss": found, "masked_lm_loss": 2 * found, "masked_lm_accuracy": found / 10}

    def of(value: float) -> Any:
        return types.SimpleNamespace(evaluation_batches=lambda size: iter([value]))

    session: Any = types.SimpleNamespace(engine=types.SimpleNamespace(evaluate=evaluate))
    options = run_pretraining.Options(input_file=("x",), output_dir="x", bert_config_file="x")
    part: Any = types.SimpleNamespace(held_out_languages={"": of(3.0)}, spoken=lambda language, dataset: dataset)
    records = AllRecords({"albert": part}, {"albert": 1.0})
    assert run_pretraining.evaluate(session, options, records) == evaluate([3.0])
    part.held_out_languages = {"en": of(3.0), "en-zh": of(5.0)}
    assert run_pretraining.evaluate(session, options, records) == {
        **evaluate([4.0]),
        "loss_en": 3.0,
        "masked_lm_loss_en": 6.0,
        "loss_en-zh": 5.0,
        "masked_lm_loss_en-zh": 10.0,
    }


def test_several_objectives_are_scored_apart_and_on_average():
    def evaluate(batches: Any) -> dict[str, float]:
        (batch,) = batches
        objective = mark_of(batch)
        found = float(batch["x"][0])
        names = ("veco_masked_lm_loss", "veco_crossed_loss") if objective == "veco" else (f"{objective}_loss",)
        return {"loss": found, **dict.fromkeys(names, found / 2), f"{objective}_accuracy": 0.5}

    def of(**values: float) -> Any:
        def dataset(value: float) -> Any:
            return types.SimpleNamespace(evaluation_batches=lambda size: iter([{"x": np.array([value])}]))

        languages = {name: dataset(value) for name, value in values.items()}
        return types.SimpleNamespace(held_out_languages=languages, spoken=lambda language, dataset: dataset)

    session: Any = types.SimpleNamespace(engine=types.SimpleNamespace(evaluate=evaluate))
    options = run_pretraining.Options(input_file=("x",), output_dir="x", bert_config_file="x")
    records = AllRecords({"tlm": of(en_zh=4.0), "veco": of(en=6.0, zh=10.0)}, {"tlm": 0.75, "veco": 0.25})
    assert run_pretraining.evaluate(session, options, records) == {
        "loss": 0.75 * 4 + 0.25 * 8,
        "tlm_loss": 2.0,
        "tlm_accuracy": 0.5,
        "veco_loss": 8.0,
        "veco_loss_en": 6.0,
        "veco_loss_zh": 10.0,
        "veco_masked_lm_loss": 4.0,
        "veco_masked_lm_loss_en": 3.0,
        "veco_masked_lm_loss_zh": 5.0,
        "veco_crossed_loss": 4.0,
        "veco_crossed_loss_en": 3.0,
        "veco_crossed_loss_zh": 5.0,
        "veco_accuracy": 0.5,
    }
