import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy_run as toy_run_module
from absl.app import UsageError
from toy_run import SignallingDataset, toy_engine, toy_run
from toy_task import ToyDataset

from training.checkpoints import list_checkpoints, read_state
from training.health import DivergedError
from training.hooks import Hook, read_metrics

pytestmark = pytest.mark.slow


class Recorder(Hook):
    def __init__(self):
        self.losses, self.outcome = {}, ""

    def steps(self, run, batches, results):
        first = run.engine.step - len(results)
        self.losses.update({first + number: result["loss"] for number, result in enumerate(results)})

    def end(self, run, outcome):
        self.outcome = outcome


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return toy_run(tmp_path_factory.mktemp("uninterrupted"), hooks=[])[0].state()


def assert_same_bits(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_killed_and_started_again_equals_uninterrupted(tmp_path, uninterrupted):
    command = [sys.executable, str(Path(toy_run_module.__file__)), str(tmp_path), str(int(signal.SIGKILL)), "17"]
    killed = subprocess.run(command, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert read_state(list_checkpoints(tmp_path)[-1]).step == 12
    engine, outcome = toy_run(tmp_path)
    assert outcome.step == 24
    assert_same_bits(engine.state(), uninterrupted)
    steps = [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [4, 8, 12, 16, 20, 24]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits_with_its_own_code(tmp_path, capsys, uninterrupted, number, code):
    recorder, former = Recorder(), signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        toy_run(tmp_path, SignallingDataset(number, 10), hooks=[recorder])
    assert stop.value.code == code
    assert recorder.outcome == "interrupted"
    saved = read_state(list_checkpoints(tmp_path)[-1]).step
    # The batch of step 10 is made up to two steps ahead.
    assert 8 <= saved <= 11
    assert f"{number.name}: saved {tmp_path / 'checkpoints'}" in capsys.readouterr().err
    engine, _ = toy_run(tmp_path, hooks=[])
    assert_same_bits(engine.state(), uninterrupted)
    # Whatever it was: a shell's background job ignores SIGINT.
    assert signal.getsignal(number) == former


def test_a_signal_ends_an_evaluation_at_once_and_it_is_made_up_for(tmp_path):
    evaluated = []

    def evaluate():
        evaluated.append(engine.step)
        if len(evaluated) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the evaluation went on")
        return {"score": float(engine.step)}

    arguments = {"evaluate": evaluate, "eval_every_steps": 6, "hooks": [], "best_metric": "score"}
    engine = toy_engine()
    with pytest.raises(SystemExit):
        toy_run(tmp_path, engine=engine, **arguments)
    assert evaluated == [6, 12]
    engine = toy_engine()
    outcome = toy_run(tmp_path, engine=engine, **arguments)[1]
    assert evaluated == [6, 12, 12, 18, 24]
    assert outcome.evaluation == {"score": 24.0}


def test_steps_per_call_change_nothing(tmp_path, uninterrupted):
    assert_same_bits(toy_run(tmp_path, steps_per_call=5, hooks=[])[0].state(), uninterrupted)


def test_a_finished_run_is_not_trained_again(tmp_path):
    toy_run(tmp_path, num_steps=6, hooks=[])
    recorder = Recorder()
    engine, outcome = toy_run(tmp_path, num_steps=6, hooks=[recorder])
    assert outcome.step == engine.step == 6
    assert recorder.losses == {}
    longer = toy_run(tmp_path, num_steps=8, hooks=[recorder])[1]
    assert longer.step == 8
    assert sorted(recorder.losses) == [6, 7]


def test_best_weights_are_kept_and_checkpoints_rotate(tmp_path):
    scores, states = {4: 0.2, 8: 0.9, 12: float("nan"), 16: 0.5, 20: 0.9}, {}

    def evaluate():
        states[engine.step] = engine.state()
        return {"score": scores.get(engine.step, 0.0)}

    engine = toy_engine()
    _, outcome = toy_run(
        tmp_path,
        engine=engine,
        evaluate=evaluate,
        eval_every_steps=4,
        best_metric="score",
        keep_checkpoint_max=2,
        hooks=[],
    )
    assert (outcome.best, outcome.best_step, outcome.stopped_early) == (0.9, 8, False)
    assert [read_state(folder).step for folder in list_checkpoints(tmp_path)] == [18, 24]
    best = read_state(tmp_path / "best")
    assert best.step == 8
    assert all(name.startswith("model/") for name in best.tensors)
    np.testing.assert_array_equal(best.tensors["model/score/kernel"], states[8]["ema/score/kernel"])


def test_weights_before_a_step_are_never_the_best_and_stop_nothing(tmp_path):
    engine = toy_engine()
    outcome = toy_run(
        tmp_path,
        engine=engine,
        evaluate=lambda: {"loss": float(engine.step)},
        eval_every_steps=4,
        best_metric="loss",
        best_from_step=12,
        lower_is_better=True,
        early_stopping_evaluations=2,
        hooks=[],
    )[1]
    assert (outcome.best, outcome.best_step, outcome.step) == (12.0, 12, 20)


@pytest.mark.parametrize(("lower", "stop"), [(False, 12), (True, 24)])
def test_early_stopping_counts_evaluations_without_improvement_across_restarts(tmp_path, lower, stop):
    def run(**arguments):
        engine = toy_engine()
        return toy_run(
            tmp_path,
            engine=engine,
            evaluate=lambda: {"loss": 1.0 / engine.step},
            eval_every_steps=4,
            best_metric="loss",
            lower_is_better=lower,
            early_stopping_evaluations=2,
            hooks=[],
            **arguments,
        )[1]

    assert run(num_steps=8).step == 8
    outcome = run()
    assert outcome.step == stop
    assert outcome.stopped_early is not lower
    assert run().step == stop


def test_a_skipped_step_is_said_and_training_goes_on(tmp_path, capsys):
    _, outcome = toy_run(tmp_path, ToyDataset(poison=(3, 4)), num_steps=8)
    assert outcome.step == 8
    assert "step 3 was skipped: loss nan" in capsys.readouterr().err
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["skipped"] for record in records] == [1.0, 1.0]
    assert all(record["loss"] is not None for record in records)


def test_a_run_that_stays_non_finite_stops_with_what_is_needed_to_replay_it(tmp_path):
    dataset = ToyDataset(poison=tuple(range(7, 24)))
    with pytest.raises(DivergedError) as error:
        toy_run(tmp_path, dataset, options={"learning_rate": 0.05})
    folder = tmp_path / "replay" / "step_00000007"
    assert str(error.value) == (
        "5 steps in a row were not finite (steps 7 to 11); batch, seed, flags and weights are in "
        f"{folder}; lower the learning rate or lengthen the warmup"
    )
    facts = json.loads((folder / "replay.json").read_text())
    assert (facts["step"], facts["seed"], facts["options"]) == (7, 5, {"learning_rate": 0.05})
    replay = toy_engine()
    replay.load_state(read_state(folder).tensors)
    replay.step = facts["step"]
    with np.load(folder / "batch.npz") as batch:
        assert replay.train([dict(batch)])[0]["skipped"] == 1.0
    assert replay.train([ToyDataset().batch(7)])[0]["skipped"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"engine": "other seed"},
            "was trained with seed 5, this run has 6: use the same --seed, or another --output_dir",
        ),
        (
            {"config": {"width": 8}},
            "is of another model: width is 6, this run has 8; give the former --bert_config_file",
        ),
        ({"config": {"width": 6, "extra": 1}}, "is of another model: extra is None, this run has 1"),
        ({"early_stopping_evaluations": 1}, "early stopping needs an evaluation and the metric that decides"),
        (
            {"num_steps": 3, "evaluate": lambda: {"accuracy": 1.0, "loss": 0.1}, "best_metric": "acuracy"},
            "the evaluation has no metric 'acuracy' to choose the best weights by; the nearest is 'accuracy'",
        ),
    ],
)
def test_mistakes(tmp_path, arguments, message):
    toy_run(tmp_path, num_steps=2, hooks=[])
    if "engine" in arguments:
        arguments = {"engine": toy_engine(seed=6)}
    with pytest.raises(UsageError) as error:
        toy_run(tmp_path, **({"num_steps": 2, "hooks": []} | arguments))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_goes_on_from_a_checkpoint_whose_config_lacks_a_new_field(tmp_path, uninterrupted):
    def complete(config):
        return {"depth": 0} | config

    toy_run(tmp_path, num_steps=12, hooks=[])
    with pytest.raises(UsageError, match=r"of another model: depth is 0, this run has 1"):
        toy_run(tmp_path, config={"width": 6, "depth": 1}, complete_config=complete, hooks=[])
    engine, _ = toy_run(tmp_path, config={"width": 6, "depth": 0}, complete_config=complete, hooks=[])
    assert_same_bits(engine.state(), uninterrupted)
    assert read_state(list_checkpoints(tmp_path)[-1]).config == {"width": 6, "depth": 0}


def test_what_a_run_leaves(tmp_path, capsys):
    engine = toy_engine()
    toy_run(
        tmp_path,
        engine=engine,
        evaluate=lambda: engine.evaluate([ToyDataset(seed=1).batch(0)]),
        eval_every_steps=12,
        best_metric="label_accuracy",
        summary={"model": "toy", "parameters": "97"},
        unit="tokens",
        count_units=lambda batch: int(batch["ids"].size),
    )
    names = {"best", "checkpoints", "metrics.jsonl", "tensorboard", "report.html"}
    assert {path.name for path in tmp_path.iterdir()} == names
    err = capsys.readouterr().err
    for expected in (
        "model       toy",
        "step 12 held out: loss",
        "finished at step 24 of 24",
        "label_accuracy",
        "tokens/s",
        "report.html",
    ):
        assert expected in err
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(record["step"], record["phase"]) for record in records if record["phase"] == "eval"] == [
        (12, "eval"),
        (24, "eval"),
    ]
    assert records[-2]["tokens_per_second"] > 0
    assert list((tmp_path / "tensorboard").glob("events.*"))
    page = (tmp_path / "report.html").read_text()
    assert "finished at step 24 of 24" in page
    for name in ("label loss", "size loss", "label accuracy", "learning rate", "tokens per second"):
        assert f'aria-label="{name} by step"' in page


def test_an_error_in_the_data_reaches_the_caller_and_the_hooks(tmp_path):
    class Broken(ToyDataset):
        def batch(self, step):
            if step == 5:
                raise FileNotFoundError("shard")
            return super().batch(step)

    recorder = Recorder()
    with pytest.raises(FileNotFoundError, match="shard"):
        toy_run(tmp_path, Broken(), hooks=[recorder])
    assert recorder.outcome == "failed"
    assert sorted(recorder.losses) == [0, 1, 2, 3, 4]
