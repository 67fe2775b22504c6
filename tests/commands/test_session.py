"""A session: the course of a run; its checks are one line, and it goes on from the checkpoints of older versions."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError

from commands.session import OwnRows, Session, as_json, check_cuts, complete_config
from modeling import Config
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
