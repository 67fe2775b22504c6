"""Exports of ours open by model_type, once that is asked for, without code of the folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conversion.writers import write_transformers
from ground.tensors import named_variables
from modeling import PretrainingModel
from modeling.config import Config

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys

import serving

assert "transformers" not in sys.modules
from transformers import AutoModel
try:
    AutoModel.from_pretrained(sys.argv[1], trust_remote_code=False)
except ValueError:
    print("unknown")
print(*serving.register_transformers())
serving.register_transformers()
print(type(AutoModel.from_pretrained(sys.argv[1])).__module__)
"""


def test_an_export_opens_by_its_type_without_its_own_code(tmp_path: Path):
    config = Config(
        family="albert_zh",
        vocab_size=12,
        embedding_size=4,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
        ln_type="preln",
    )
    tensors = {name: np.asarray(value) for name, value in named_variables(PretrainingModel(config)).items()}
    write_transformers(tmp_path / "out", config, tensors, model_type="divan_encoder")
    for path in (tmp_path / "out").glob("*.py"):
        path.unlink()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "unknown",
        "divan_encoder divan_palm",
        "conversion.remote_code.modeling_divan_encoder",
    ], done.stderr
