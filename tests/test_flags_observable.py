"""Every flag of every verb changes what its row of a table says, and nothing else; the tables hold every flag."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from observing import (
    augmentation_flags,
    classifier_flags,
    conversion_flags,
    data_flags,
    generation_flags,
    planning_flags,
    pretraining_flags,
    serving_flags,
)
from observing.rows import Row, agrees, differences, is_at
from observing.world import make_world

from commands.fine_tuning import FineTuningOptions

VERBS = {
    verb.module.__name__: verb
    for verb in (
        data_flags.CREATE,
        data_flags.INSPECT,
        data_flags.TRAIN,
        augmentation_flags.VERB,
        pretraining_flags.VERB,
        classifier_flags.VERB,
        generation_flags.VERB,
        planning_flags.VERB,
        conversion_flags.CONVERT,
        conversion_flags.CONVERT_ALBERT,
        serving_flags.PREDICT,
        serving_flags.EXPORT,
        serving_flags.SERVE,
    )
}
ROWS = [pytest.param(name, row, id=f"{name}-{row}") for name, verb in VERBS.items() for row in verb.rows]
Observe = Callable[[str, Mapping[str, str], str], dict[str, Any]]


@pytest.fixture(scope="module")
def observe(tmp_path_factory: pytest.TempPathFactory) -> Observe:
    """Return what there is to observe of a verb with further flags on a machine; the same run is made once."""
    world = tmp_path_factory.mktemp("world")
    make_world(world)

    @cache
    def once(name: str, flags: frozenset[tuple[str, str]], machine: str) -> dict[str, Any]:
        return VERBS[name].observe(dict(flags), machine, world, tmp_path_factory.mktemp("run"))

    return lambda name, flags, machine: once(name, frozenset(flags.items()), machine)


def test_the_tables_hold_every_flag_of_the_frozen_list_and_no_other():
    frozen = json.loads(Path(__file__).with_name("frozen_flags.json").read_text())
    # What run_generation.py inherits from the class of every fine-tuning verb is told by run_classifier.py's table.
    inherited = {field.name for field in dataclasses.fields(FineTuningOptions)}
    frozen["run_generation"] = sorted(set(frozen["run_generation"]) - inherited)
    assert {name: sorted({row.flag for row in verb.rows}) for name, verb in VERBS.items()} == frozen


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_flag_changes_what_its_row_says_and_nothing_else(name: str, row: Row, observe: Observe):
    without = observe(name, row.given, row.machine)
    with_flag = observe(name, {**row.given, row.flag: row.value}, row.machine)
    changed = differences(without, with_flag)
    assert "error" in row.changes or "error" not in {**without, **with_flag}, with_flag
    assert bool(row.changes) != bool(row.reason), "a row says what changes, or why nothing does"
    for place, expected in row.changes.items():
        found = {at: value for at, value in changed.items() if is_at(at, place)}
        assert found, f"--{row.flag} changes nothing of {place}; it changes {list(changed)}"
        assert all(agrees(value, expected) for value in found.values()), f"expected {expected}: {found}"
    if "error" not in row.changes:
        assert {at: value for at, value in changed.items() if not any(is_at(at, place) for place in row.changes)} == {}
