"""The plan of a run before it begins: what is estimated is the work of one device in one step."""

from __future__ import annotations

from typing import Any

import pytest

from commands.estimate import Work, estimate
from commands.options import TrainingOptions
from modeling import Config
from modeling.accounting import flops_per_example
from training import planning

CONFIG = Config(
    family="bert",
    vocab_size=99,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=64,
)


@pytest.mark.parametrize("count", [1, 4])
def test_the_work_of_a_step_is_divided_among_the_devices(monkeypatch: pytest.MonkeyPatch, count: int):
    seen: list[Any] = []
    whole = planning.roofline_of_step

    def noting(*values: Any) -> Any:
        seen.append(values)
        return whole(*values)

    monkeypatch.setattr(planning, "roofline_of_step", noting)
    chip = planning.CHIPS["h100"]
    options = TrainingOptions(output_dir="x", gradient_accumulation_steps=2, precision="bfloat16")
    lines = estimate(CONFIG, options, [Work(64, 32, 5, 1000)], chip, "H100", count)
    (values,) = seen
    assert values[:3] == (chip, "bfloat16", 64 * flops_per_example(CONFIG, 32, 5) / count)
    assert values[5] == 2
    assert ("all-reduce" in values[6]) is (count > 1)
    assert "DOES NOT FIT" not in lines["plan"]
    assert "for 1,000 steps" in lines["time"]
    unknown = estimate(CONFIG, options, [Work(64, 32, 5, 1000)], None, "X", count)
    assert unknown["plan"] == lines["plan"].partition(", of ")[0]
