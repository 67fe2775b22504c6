"""Runs with several seeds, restarts of those that learnt nothing, the learning rate by size, the best metric."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from absl.app import UsageError
from hypothesis import given
from hypothesis import strategies as st

import run_classifier
from commands.fine_tuning import Finished, KeptAnswers, best_metric
from commands.learning_rates import SIZES, default_learning_rate, encoder_weights
from commands.seeds import attempts, report_seeds, seeds_of
from modeling import Config, load_config
from tasks.datasets import find_row
from tasks.kinds import KINDS, find_kind

ROOT = Path(__file__).resolve().parents[2]


def options(**more: Any) -> run_classifier.Options:
    given: dict[str, Any] = {"task_name": "x", "data_dir": "x", "bert_config_file": "x", "output_dir": "x"}
    return run_classifier.Options(**given | more)


def session(lines: list[str], *, writes: bool = True) -> Any:
    return SimpleNamespace(say=lines.append, writes=writes)


@pytest.mark.parametrize(
    ("flags", "seeds"),
    [
        ({}, ()),
        ({"num_seeds": 3}, (1, 2, 3)),
        ({"seeds": (7, 5)}, (7, 5)),
        ({"restart_degenerate": 2}, (12345,)),
        ({"restart_degenerate": 2, "seed": 4}, (4,)),
        ({"restart_degenerate": 2, "num_seeds": 2}, (1, 2)),
    ],
)
def test_seeds_are_those_of_the_flags(flags: dict[str, Any], seeds: tuple[int, ...]):
    assert seeds_of(options(**flags)) == seeds


def test_a_restart_needs_a_next_seed():
    with pytest.raises(UsageError, match=r"--restart_degenerate=1 would come to seed 9223372036854775808: at most"):
        seeds_of(options(seed=2**63 - 1, restart_degenerate=1))


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 4))
def test_a_run_is_tried_again_until_something_is_learnt(outcomes: list[bool], restarts: int):
    lines: list[str] = []
    tried: list[int] = []

    def run(seed: int) -> Finished:
        tried.append(seed)
        return Finished({"dev": {"accuracy": seed / 100}}, "" if outcomes[len(tried) - 1] else "all answers are 0")

    found = attempts(session(lines), options(restart_degenerate=restarts), 3, itertools.count(10), run)
    bad = next((n for n, learnt in enumerate(outcomes) if learnt), len(outcomes))
    assert len(found) == min(bad, restarts) + 1
    assert [seed for seed, _ in found] == tried == [3, 10, 11, 12, 13][: len(found)]
    assert all(finished.degenerate for _, finished in found[:-1])
    assert len(lines) == sum(bool(finished.degenerate) for _, finished in found)
    assert all("all answers are 0" in line and "\n" not in line for line in lines)
    assert not found[-1][1].degenerate or "try a lower --learning_rate" in lines[-1]


def test_a_run_that_diverges_is_tried_again_and_its_error_is_not_lost():
    from training.health import DivergedError

    def run(seed: int) -> Finished:
        if seed < 3:
            raise DivergedError("the loss is nan")
        return Finished({})

    found = attempts(session([]), options(restart_degenerate=2), 1, itertools.count(2), run)
    assert [(seed, each.degenerate) for seed, each in found] == [
        (1, "it diverged: the loss is nan"),
        (2, "it diverged: the loss is nan"),
        (3, ""),
    ]
    with pytest.raises(DivergedError):
        attempts(session([]), options(restart_degenerate=1), 1, itertools.count(2), run)


def test_the_file_has_mean_deviation_every_run_and_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    kept = {
        1: Finished({"dev": {"accuracy": 0.5, "f1_x": 0.1}, "test": {"accuracy": 0.25}}),
        4: Finished({"dev": {"accuracy": 0.75}, "test": {"accuracy": 0.5}}, "every answer is 'a'"),
    }
    failed = {2: Finished({"dev": {"accuracy": 0.125}}, "every answer is 'b'"), 3: Finished({}, "it diverged: x")}
    report_seeds(session([]), options(output_dir=str(tmp_path)), kept, failed)
    found = json.loads((tmp_path / "eval_results.json").read_text())
    assert found.pop("degenerate") == {
        "2": {"why": "every answer is 'b'", "counts": False, "accuracy": 0.125},
        "3": {"why": "it diverged: x", "counts": False},
        "4": {"why": "every answer is 'a'", "counts": True, "accuracy": 0.75},
    }
    # Runs may find entities of different types: only what all have has a mean.
    assert list(found) == ["accuracy"]
    assert found["accuracy"]["runs"] == {"1": 0.5, "4": 0.75}
    assert found["accuracy"]["mean"] == pytest.approx(0.625)
    assert found["accuracy"]["deviation"] == pytest.approx(math.sqrt(2) / 8)
    assert json.loads((tmp_path / "test_results.json").read_text())["accuracy"]["runs"] == {"1": 0.25, "4": 0.5}
    printed = capsys.readouterr().out
    assert "x, dev, 2 seeds: 1, 4" in printed
    assert "0.5000 0.7500" in printed


@given(st.lists(st.sampled_from([0.1, 0.5, 0.9, math.nan]), min_size=1, max_size=9), st.booleans(), st.integers(0, 5))
def test_answers_are_kept_of_the_last_evaluation_and_of_the_one_that_the_loop_calls_best(
    values: list, lower: bool, first: int
):
    kept, best, best_step = KeptAnswers("accuracy", lower, first), None, 0
    for step, value in enumerate(values, 1):
        kept.keep(step, {"dev": [step]}, {"accuracy": value})
        # As in training/loop.py.
        better = best is None or (value < best if lower else value > best)
        if better and not math.isnan(value) and step >= first:
            best, best_step = value, step
        wanted = {step} | ({best_step} if best_step else set())
        assert {at: answers["dev"][0] for at, answers in kept.by_step.items()} == {at: at for at in wanted}


def shape(layers: int, width: int) -> Config:
    return Config(
        family="bert",
        vocab_size=9,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=1,
        intermediate_size=4 * width,
    )


def test_published_models_have_the_rate_of_their_size():
    rates = {path.stem: default_learning_rate(load_config(path))[0] for path in ROOT.glob("albert_config/*.json")}
    # The shape decides and not the name: VECO's small has six layers of a base model's width.
    assert rates.pop("veco_small") == 5e-5
    named = {"tiny": 1e-4, "small": 1e-4, "lite": None, "base": 5e-5, "xxlarge": 1e-5, "xlarge": 1e-5, "large": 2e-5}
    for name, rate in rates.items():
        size = next((word for word in named if word in name.split("_")), None)
        if size and named[size]:
            assert rate == named[size], name
    assert rates["bert_config"] == 5e-5
    assert len(set(rates.values())) == len(SIZES)


def test_a_larger_model_has_no_larger_rate_and_the_run_says_why():
    shapes = sorted((shape(*each) for each in itertools.product((1, 4, 12, 48), (8, 312, 1024))), key=encoder_weights)
    rates = [default_learning_rate(config)[0] for config in shapes]
    assert rates == sorted(rates, reverse=True)
    assert all(1e-5 <= rate <= 1e-4 for rate in rates)
    why = default_learning_rate(shape(12, 768))[1]
    assert why.startswith("5e-05, for a base model (12 layers of width 768): ")
    # Sharing cuts parameters, not depth.
    shared = dataclasses.replace(shape(12, 768), family="albert", sharing="all")
    assert default_learning_rate(shared)[0] == 5e-5


@pytest.mark.parametrize("task", ["chnsenticorp", "sts_b", "c3", "cluener", "cmrc2018"])
def test_the_metric_is_one_of_the_task_under_either_name(task: str):
    row = find_row(task)
    kind = find_kind(row.kind)
    assert best_metric(options(), row) == (row.metric, False)
    for name in ({*kind.metrics} - {"accuracy_assigned"}) | {*getattr(kind, "smaller_is_better", ())}:
        lower = name == "loss"
        assert best_metric(options(metric_for_best_model=name), row) == (name, lower)
        assert best_metric(options(metric_for_best_model=f"eval_{name}"), row) == (name, lower)
    with pytest.raises(UsageError, match=r"^--metric_for_best_model=bleu: expected one of .*, or leave it out$"):
        best_metric(options(metric_for_best_model="bleu"), row)


def test_a_metric_that_the_labels_do_not_give_is_refused():
    with pytest.raises(
        UsageError, match=r"--metric_for_best_model=f1: --task_name=ocnli has the metric f1, which is of"
    ):
        best_metric(options(metric_for_best_model="f1"), find_row("ocnli"))
    with pytest.raises(UsageError, match="which its labels do not give"):
        best_metric(options(metric_for_best_model="accuracy"), find_row("matching_pairs"))


def test_what_is_better_smaller_is_no_metric_of_a_row():
    for name in KINDS:
        kind = find_kind(name)
        assert not {*kind.metrics} & {*getattr(kind, "smaller_is_better", ())}
