"""The devices of a process: what is expensive to find is found once."""

from __future__ import annotations

import types
from typing import Any

import pytest

from commands.devices import Devices
from training import strategies


@pytest.mark.parametrize("found", [None, "a strategy"])
def test_a_process_has_one_strategy(monkeypatch: pytest.MonkeyPatch, found: Any):
    """Another strategy would have other devices of its own; on a TPU it would initialise the system anew."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(strategies, "choose_strategy", lambda **names: asked.append(names) or found)
    given = {"use_tpu": True, "tpu_zone": "z", "gcp_project": "p", "num_tpu_cores": 8}
    options = types.SimpleNamespace(**given, tpu_name=None, master="mine")
    devices: Any = types.SimpleNamespace(_options=options, _strategy=None, _has_strategy=False)
    assert [Devices._tensorflow_strategy(devices) for _ in range(3)] == [found] * 3
    assert asked == [given | {"tpu_name": "mine"}]
