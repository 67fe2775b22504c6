"""The benchmark of stripping: its table, and that all three programs answer alike with a tiny model."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.pruning import FULL, PRUNED, STRIPPED, Options, Program, as_markdown, numbers, pruned, random_weights
from conversion.stripping import strip
from modeling import Config

TINY = Config(
    family="bert",
    vocab_size=50,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=8,
)


def test_the_table_has_ratios_of_medians():
    shown = as_markdown(
        {
            "options": vars(Options()),
            "machine": "2 cores",
            "parameters": {FULL: 1000, PRUNED: 1000, STRIPPED: 600},
            "seconds_per_pass": {FULL: [1.0, 9.0, 2.0], PRUNED: [2.0], STRIPPED: [1.0]},
            "difference": 2e-7,
        }
    )
    assert "| full | 1,000 | 2,000.0 (1,000.0 to 9,000.0) | 1.00 |" in shown
    assert "| stripped | 600 | 1,000.0 (1,000.0 to 1,000.0) | 0.50 |" in shown
    assert "differ by 2.0e-07" in shown


@pytest.mark.slow
def test_pruned_and_stripped_answer_alike():
    options = Options(batch_size=2, max_seq_length=8, passes=1)
    zeros = pruned(TINY, random_weights(TINY), 0.5)
    small, left = strip(TINY, zeros)
    assert (small.heads_by_brick, small.intermediate_size) == ((1, 1), 4)
    weights = {name: numbers(value) for name, value in left.items()}
    whole, stripped = (Program(config, own, options).answer() for config, own in ((TINY, zeros), (small, weights)))
    np.testing.assert_allclose(stripped, whole, atol=1e-6)
