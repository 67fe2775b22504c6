"""What the loop and its hooks tell, keep and write, with an engine that counts in plain Python: no graph is built."""

from __future__ import annotations

import io
import itertools
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_task import ToyDataset

from training import hooks, loop
from training.checkpoints import list_checkpoints, read_state
from training.health import DivergedError, SkipGuard
from training.hooks import Hook, Profiler, Terminal, print_preamble
from training.run import LoopProgress, Run, RunPlan
from training.signals import Signals, StoppedError


class CountingEngine:
    """The weight is the number of steps, the loss is 1 / step; a batch with NaN is skipped."""

    def __init__(self, seconds: float = 0.0):
        self.step, self.seed, self.loss_limit, self.seconds = 0, 5, float("inf"), seconds
        self.weight = np.zeros(1, np.float32)

    def train(self, batches: Sequence[Any]) -> list[dict[str, float]]:
        time.sleep(self.seconds * len(batches))
        results = []
        for batch in batches:
            bad = bool(np.isnan(batch["weights"]).any())
            self.step += 1
            self.weight = self.weight + (not bad)
            loss = float("nan") if bad else 1 / self.step
            results.append({"loss": loss, "learning_rate": 0.1, "gradient_norm": 1.0, "skipped": float(bad)})
        return results

    def state(self, *, whole: bool = True) -> dict[str, Any]:
        return {"model/weight": self.weight}

    def load_state(self, state: Any) -> None:
        self.weight = np.asarray(state["model/weight"])

    def evaluate(self, batches: Any) -> dict[str, float]:
        raise NotImplementedError

    def predict(self, batches: Any) -> Any:
        raise NotImplementedError


def counting() -> Any:
    return CountingEngine()


def train(folder: Path, dataset: Any = None, *, hooks: Sequence[Hook] = (), evaluate: Any = None, **plan: Any) -> Any:
    engine: Any = plan.pop("engine", None) or CountingEngine()
    settings = {"num_steps": 6, "save_every_steps": 3, "log_every_steps": 2, "config": {"width": 6}} | plan
    outcome = loop.train(
        engine, dataset or ToyDataset(), RunPlan(output_dir=folder, **settings), evaluate=evaluate, hooks=hooks
    )
    return engine, outcome


def newest(folder: Path) -> Any:
    return read_state(list_checkpoints(folder)[-1])


def test_the_time_of_training_is_that_of_the_steps_and_goes_on_after_a_restart(tmp_path: Path):
    begin = time.monotonic()

    def evaluate() -> dict[str, float]:
        time.sleep(0.05)
        return {"score": 1.0}

    train(tmp_path, engine=CountingEngine(0.004), num_steps=3, evaluate=evaluate, eval_every_steps=1)
    seconds = newest(tmp_path).progress["seconds"]
    assert 3 * 0.004 <= seconds <= time.monotonic() - begin - 3 * 0.05
    train(tmp_path, engine=CountingEngine(0.004))
    assert newest(tmp_path).progress["seconds"] >= seconds + 3 * 0.004


@pytest.mark.parametrize("first", [1, 4])
def test_the_replay_of_a_streak_is_its_first_batch(tmp_path: Path, first: int):
    dataset = ToyDataset(poison=(0, *range(first + 1, 20)))
    with pytest.raises(DivergedError, match=f"3 steps in a row were not finite .steps {first + 1} to {first + 3}."):
        train(tmp_path, dataset, num_steps=20, hooks=[SkipGuard(3)], steps_per_call=2)
    folder = tmp_path / "replay" / f"step_{first + 1:08d}"
    expected = dataset.batch(first + 1)
    with np.load(folder / "batch.npz") as kept:
        assert kept.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(kept[name], value)
    facts = json.loads((folder / "replay.json").read_text())
    assert (facts["step"], facts["batch"], facts["seed"]) == (first + 1, first + 1, 5)


@pytest.mark.parametrize("writes", [True, False])
def test_hooks_that_may_end_a_run_or_cut_its_calls_run_in_every_process(tmp_path: Path, writes: bool):
    plan = RunPlan(num_steps=1, output_dir=tmp_path, config={}, profile_steps=(1, 2))
    chosen = [type(hook) for hook in loop._hooks(plan, None, SimpleNamespace(writes=writes))]  # pyright: ignore
    assert {SkipGuard, Profiler} <= set(chosen)
    assert (Terminal in chosen) is (hooks.MetricsFile in chosen) is writes


def test_where_a_run_would_go_on_is_known_without_it_and_so_are_its_mistakes(tmp_path: Path):
    plan = RunPlan(num_steps=6, output_dir=tmp_path, config={"width": 6})
    assert loop.step_to_continue_from(plan, 5) == 0
    train(tmp_path, num_steps=3)
    assert loop.step_to_continue_from(plan, 5) == 3
    with pytest.raises(UsageError, match="was trained with seed 5, this run has 6"):
        loop.step_to_continue_from(plan, 6)
    other = RunPlan(num_steps=6, output_dir=tmp_path, config={"width": 7})
    with pytest.raises(UsageError, match="is of another model: width is 6, this run has 7"):
        loop.step_to_continue_from(other, 5)


def test_what_an_evaluation_of_a_finished_run_found_is_saved(tmp_path: Path):
    train(tmp_path)
    assert newest(tmp_path).progress["evaluation"] == {}
    evaluated = []

    def evaluate() -> dict[str, float]:
        evaluated.append(1)
        return {"score": 0.5}

    for _ in range(2):
        outcome = train(tmp_path, evaluate=evaluate, best_metric="score")[1]
        assert (outcome.evaluation, outcome.best_step) == ({"score": 0.5}, 6)
        assert newest(tmp_path).progress["evaluation"] == {"score": 0.5}
    assert len(evaluated) == 1


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_every_due_moment_is_met_exactly(num_steps, save, evaluate, log, per_call):
    """However many steps a call has: checkpoints, evaluations and records come at their multiples and at the end."""
    seen: dict[str, list[int]] = {"save": [], "evaluate": [], "log": []}

    class Noting(Hook):
        def recorded(self, run: Run, record: Any) -> None:
            seen["log"].append(run.engine.step)

        def evaluated(self, run: Run, metrics: Any, is_best: bool) -> None:
            seen["evaluate"].append(run.engine.step)

    def write(folder: Path, state: Any, **names: Any) -> None:
        seen["save"].append(state.step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_state", write)
        patch.setattr(loop, "latest_state", lambda *arguments, **names: None)
        patch.setattr(loop, "rotate", lambda *arguments, **names: None)
        train(
            Path("/nowhere"),
            num_steps=num_steps,
            save_every_steps=save,
            eval_every_steps=evaluate,
            log_every_steps=log,
            steps_per_call=per_call,
            prefetch_batches=0,
            hooks=[Noting()],
            evaluate=lambda: {"score": 0.0},
        )
    for name, every in (("save", save), ("evaluate", evaluate), ("log", log)):
        due = [step for step in range(1, num_steps + 1) if step == num_steps or (every and step % every == 0)]
        assert seen[name] == due, name


def test_a_signal_that_came_before_ends_what_waits_at_once():
    with Signals() as signals:
        with signals.raised():
            pass
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        begun = False
        with pytest.raises(StoppedError), signals.raised():
            begun = True
        assert not begun
        # Outside, a signal is only remembered.
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("step", [0, 1200])
def test_the_preamble_has_a_line_for_every_fact(step: int):
    stream = io.StringIO()
    print_preamble({"model": "bert", "parameters": "110M"}, step, stream)
    lines = ["model       bert", "parameters  110M", *["continuing from step 1,200"] * bool(step)]
    assert stream.getvalue().splitlines() == lines


@pytest.mark.parametrize(
    ("first", "last", "start", "moments"),
    [(2, 4, 0, [2, 4]), (0, 1, 0, [0, 1]), (2, 9, 0, [2, 6]), (1, 4, 3, [3, 4]), (1, 3, 3, [])],
)
def test_a_profile_begins_and_ends_at_its_steps(tmp_path, monkeypatch, capsys, first, last, start, moments):
    engine, seen, said = CountingEngine(), [], []
    engine.step = start

    class Saying(Hook):
        def start(self, run: Run) -> None:
            run.say = said.append

    switches = (lambda folder: seen.append((engine.step, folder)), lambda: seen.append((engine.step,)))
    monkeypatch.setattr(hooks, "_profiler", lambda: switches)
    train(tmp_path, engine=engine, hooks=[Saying()], profile_steps=(first, last), steps_per_call=5)
    assert [moment[0] for moment in seen] == moments
    assert [len(moment) for moment in seen] == [2, 1][: len(moments)]
    folder = tmp_path / "tensorboard"
    assert all(moment[1] == str(folder) for moment in seen[:1])
    assert said == [f"profile of steps {first} to {last}: tensorboard --logdir={folder}"] * (len(moments) // 2)


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from([4, 8])), min_size=1, max_size=9))
def test_throughput_leaves_out_the_first_call_of_every_shape(calls):
    run = Run(counting(), RunPlan(num_steps=9, output_dir=Path(), config={}), LoopProgress())
    measured = loop._Loop(run, None, None, None, None, [], None)  # pyright: ignore
    seen, units, seconds = set(), 0, 0
    for number, (duration, rows) in enumerate(calls, 1):
        measured._measure([{"ids": np.zeros((rows, 2))}], float(duration))
        if rows in seen:
            units, seconds = units + rows, seconds + duration
        seen.add(rows)
        assert run.units_per_second == (units / seconds if seconds else 0.0)
        assert run.progress.seconds == sum(duration for duration, _ in itertools.islice(calls, number))


@pytest.mark.parametrize("lower", [False, True])
@given(scores=st.lists(st.sampled_from([0.0, 0.5, 0.7, 0.9, float("nan")]), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_the_best_weights_are_the_first_of_the_best_score(lower, scores):
    kept, told, engine = [], [], CountingEngine()

    class Noting(Hook):
        def evaluated(self, run: Run, metrics: Any, is_best: bool) -> None:
            told.append(is_best)

    def write(folder: Path, state: Any, **names: Any) -> None:
        kept.extend([state.step] * (folder.name == "best"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_state", write)
        patch.setattr(loop, "latest_state", lambda *arguments, **names: None)
        patch.setattr(loop, "rotate", lambda *arguments, **names: None)
        outcome = train(
            Path("/nowhere"),
            engine=engine,
            num_steps=len(scores),
            eval_every_steps=1,
            best_metric="score",
            lower_is_better=lower,
            hooks=[Noting()],
            prefetch_batches=0,
            evaluate=lambda: {"score": scores[engine.step - 1]},
        )[1]
    numbers = [score for score in scores if score == score]
    best = (min(numbers) if lower else max(numbers)) if numbers else None
    assert outcome.best == best
    assert outcome.best_step == (scores.index(best) + 1 if best is not None else 0)
    assert kept == [step for step, is_best in enumerate(told, 1) if is_best]
    assert kept[-1:] == [outcome.best_step][: len(numbers)]


@given(st.floats(0, 1e6), st.sampled_from([0.0, 3e9]), st.sampled_from([0.0, 2e15]))
def test_speed_has_what_is_known(units, flops, peak):
    plan = RunPlan(
        num_steps=1,
        output_dir=Path(),
        config={},
        unit="tokens",
        flops_per_unit=flops,
        peak_flops_per_second=peak,
    )
    run = Run(counting(), plan, units_per_second=units)
    expected = {"tokens_per_second": units} | ({"flops_per_second": units * flops} if flops else {})
    expected |= {"flop_utilization": units * flops / peak} if flops and peak else {}
    assert run.speed() == (expected if units else {})
    assert list(run.speed_texts()) == [*["tokens/s"] * bool(units), *["FLOP/s"] * bool(units and flops)]
