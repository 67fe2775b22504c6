"""Laws of numbers: every one that a flag or a config may give has finite bounds, and its default lies within them."""

import dataclasses
import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError

from commands.flags import _flags_of, parse
from generation.settings import Chunks, Settings
from ground.bounds import BOUNDS
from modeling import Config, load_config

ROOT = Path(__file__).resolve().parent.parent.parent
VERBS = sorted(json.loads((ROOT / "tests/frozen_flags.json").read_text()))


def numbers(verb: str) -> dict[str, Any]:
    return {n: f for n, f in _flags_of(importlib.import_module(verb).Options).items() if f.kind in (int, float)}


@pytest.mark.parametrize("verb", VERBS)
def test_every_number_of_a_verb_is_bounded_and_its_default_allowed(verb: str):
    for name, spec in numbers(verb).items():
        assert name in BOUNDS, f"--{name} of {verb} has no row in ground/bounds.py"
        if spec.default is not dataclasses.MISSING:
            spec.checked(spec.default)
        for value in ("nan", "inf", "-inf", "1e400", "-1e30", "9" * 5000, str(10**30), "1e30"):
            with pytest.raises(UsageError, match=f"^--{name}=") as error:
                spec.parsed(value)
            assert len(str(error.value)) < 400
        for value in (math.inf, math.nan, 10**400, -(10**400), True, "1", None, [2.5], {}):
            if not (value is None and spec.optional):
                with pytest.raises(UsageError, match=f"^--{name}="):
                    spec.checked([value] if spec.many else value)


def test_bounds_are_finite_and_have_a_reason():
    for name, bounds in BOUNDS.items():
        assert math.isfinite(bounds.least), name
        assert math.isfinite(bounds.most), name
        assert bounds.least < bounds.most, name
        assert bounds.reason, name


def test_every_row_is_of_a_flag_or_of_a_field():
    used = {name for verb in VERBS for name in numbers(verb)} | {field.name for field in dataclasses.fields(Config)}
    used |= {field.name for kind in (Settings, Chunks) for field in dataclasses.fields(kind)}
    assert set(BOUNDS) <= used


CONFIG: dict[str, Any] = {
    "family": "bert",
    "vocab_size": 9,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


@pytest.mark.parametrize("field", [f for f in dataclasses.fields(Config) if f.type in ("int", "float")])
def test_every_number_of_a_config_is_bounded(field: dataclasses.Field):
    bounds = BOUNDS[field.name]
    wrong: list[Any] = [-1, -0.5, math.nan, math.inf, 2**70, 10**400, 1e300, bounds.most * 2 + 1, "1", None, [], True]
    for value in wrong:
        values: dict[str, Any] = CONFIG | {field.name: value}
        with pytest.raises(UsageError, match=field.name):
            Config(**values)


def test_published_configs_are_allowed():
    paths = sorted((ROOT / "albert_config").glob("*.json"))
    assert paths
    for path in paths:
        load_config(path)


@pytest.mark.parametrize(
    ("verb", "flag", "message"),
    [
        ("run_pretraining", "learning_rate=inf", "at most 10, since a longer step"),
        ("run_pretraining", "adam_epsilon=inf", "at most 1, since"),
        ("run_pretraining", "adam_beta1=1", "below 1, since"),
        ("run_pretraining", "ema_decay=1", "below 1, since"),
        ("run_pretraining", "num_train_steps=2147483648", "at most 2,147,483,647, since steps are counted in 32 bits"),
        ("run_classifier", "num_train_epochs=inf", "at most 100,000"),
        ("run_classifier", "seeds=1,2,1", "1 is named twice"),
        ("create_pretraining_data", "max_predictions_per_seq=1000000000", "at most 65,536"),
        ("create_pretraining_data", "num_workers=100000", "at most 1,024"),
        ("create_pretraining_data", "num_shards=200000", "at most 99,999, since file names have five digits"),
        ("create_pretraining_data", "ngram=1000000", "at most 1,000"),
        ("train_tokenizer", "vocab_size=100000000", "at most 2,000,000"),
    ],
)
def test_numbers_that_mean_nothing_are_refused_with_the_reason(verb: str, flag: str, message: str):
    with pytest.raises(UsageError, match=f"^--{flag.partition('=')[0]}=.*{message}") as error:
        parse(importlib.import_module(verb).Options, [f"--{flag}"])
    assert "\n" not in str(error.value)
