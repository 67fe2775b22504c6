import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import health
from training.health import DivergedError, SkipGuard
from training.loss_scaling import LossScaling


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=24), st.integers(1, 4), st.integers(-1, 5))
def test_the_scale_is_what_the_history_of_steps_says(history, growth_steps, exponent):
    scaling = LossScaling(2.0**exponent, growth_steps, smallest=0.25, largest=16.0)
    state, power, streak = dict(scaling.init()), exponent, 0
    assert state["scale"] == 2.0**exponent
    for finite in history:
        state = scaling.update(state, np.array(finite))
        if not finite:
            power, streak = max(power - 1, -2), 0
        else:
            streak += 1
            if streak == growth_steps:
                # A start above the limit comes down to it as soon as it would grow.
                power, streak = min(power + 1, 4), 0
        assert np.log2(np.asarray(state["scale"])) == power
        assert np.asarray(state["finite_steps"]) == streak


def test_a_scale_on_its_way_down_is_no_divergence(monkeypatch):
    monkeypatch.setattr(health, "save_replay", lambda *arguments, **names: "replay")
    said: list[str] = []
    engine = types.SimpleNamespace(step=20, loss_limit=np.inf)
    plan = types.SimpleNamespace(kind_of=lambda batch: "")
    run: health.Run = types.SimpleNamespace(engine=engine, plan=plan, limits={}, say=said.append)  # pyright: ignore[reportAssignmentType]

    def steps(scale, loss=3.0):
        return [{"skipped": 1.0, "loss": loss, "gradient_norm": np.inf, "loss_scale": scale}] * 5

    guard = SkipGuard(5)
    for scale in (2.0**15, 2.0):
        guard.steps(run, [{}] * 5, steps(scale))
    assert said[0] == "step 15 was skipped: gradients do not fit a loss scale of 32768"
    for scale, loss in ((1.0, 3.0), (2.0**15, np.nan)):
        with pytest.raises(DivergedError, match="5 steps in a row were not finite"):
            SkipGuard(5).steps(run, [{}] * 5, steps(scale, loss))
