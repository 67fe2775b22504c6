"""The benchmark of distillation: the ratios that it tells, and that all four turns run with tiny models."""

from __future__ import annotations

import pytest

from benchmarks.distillation import CACHED, LIVE, STUDENT, TEACHER, Options, as_markdown, ratios, take_turns, turns_of
from modeling import Config

TINY = Config(
    family="bert",
    vocab_size=1000,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=8,
)


def test_ratios_are_those_of_medians():
    seconds = {STUDENT: [1.0, 9.0, 2.0], LIVE: [6.0], CACHED: [2.1], TEACHER: [3.0]}
    assert ratios(seconds) == {LIVE: pytest.approx(1.2), CACHED: pytest.approx(1.05)}
    shown = as_markdown(
        {"options": vars(Options()), "machine": "2 cores", "seconds_per_step": seconds, "ratios": ratios(seconds)}
    )
    assert "| student | 2,000.0 (1,000.0 to 9,000.0) |" in shown
    assert "1.200, at most 1.1 is wanted" in shown
    assert "1.050, at most 1.02" in shown


@pytest.mark.slow
@pytest.mark.usefixtures("operation_by_operation")
def test_every_turn_runs():
    seconds = take_turns(turns_of(Options(batch_size=2, max_seq_length=8, steps=1), TINY, TINY), rounds=1)
    assert {name: len(found) for name, found in seconds.items()} == dict.fromkeys((STUDENT, LIVE, CACHED, TEACHER), 1)
