"""The flags of the two verbs that convert checkpoints; PyTorch is not imported, so its files hold names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from observing.rows import ABSENT, DIFFERENT, Notes, Row, Verb, file_content

import conversion.parity
import conversion.writers
import convert_albert_tf_checkpoint_to_pytorch
import convert_checkpoint

PRINTED = {"printed": DIFFERENT}
BARE = {"input": "{world}/shared/model.safetensors"}


def without_torch(patch: pytest.MonkeyPatch, notes: Notes, machine: str) -> None:
    """Write a listing in the place of a PyTorch file, and do not ask transformers to compute what was written."""

    def save_torch(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
        path.write_text("".join(f"{name} {list(value.shape)}\n" for name, value in sorted(tensors.items())))

    patch.setattr(conversion.writers, "save_torch", save_torch)
    patch.setattr(conversion.parity, "largest_differences", lambda checkpoint, folder: {"hidden states": 0.0})


CONVERT = Verb(
    convert_checkpoint,
    {"input": "{world}/shared", "output": "out"},
    (
        Row("input", "{world}/pretrained", {"files": DIFFERENT, **PRINTED}),
        Row("output", "elsewhere", {"files": DIFFERENT, **PRINTED}),
        Row("output", "file.bin", {"files": DIFFERENT, "files/file.bin": DIFFERENT, **PRINTED}),
        Row("format", "tf1", {"files": DIFFERENT, "files/out/model.ckpt.index": DIFFERENT, **PRINTED}),
        Row("format", "ours", {"files": DIFFERENT, "files/out/state.json": DIFFERENT, **PRINTED}),
        Row(
            "config_file",
            "{world}/relu.json",
            {"files/out/config.json/hidden_act": "relu"},
            {**BARE, "config_file": "{world}/shared.json"},
        ),
        Row(
            "vocab_file",
            "{world}/reversed.txt",
            {"files/out/vocab.txt": DIFFERENT, "files/out/tokenizer.json": DIFFERENT},
        ),
        Row("model_type", "bert", {"files/out": DIFFERENT, "files/out/config.json/model_type": "bert", **PRINTED}),
        Row("pytorch_model_bin", "true", {"files/out/pytorch_model.bin": DIFFERENT}),
        Row(
            "do_lower_case",
            "false",
            {"files/out/tokenizer_config.json/do_lower_case": False, "files/out/tokenizer.json": DIFFERENT},
        ),
        Row(
            "labels",
            "no,yes",
            {"files/out/config.json": DIFFERENT, "files/out/config.json/id2label/1": "yes"},
            {"input": "{world}/classifier"},
        ),
        Row(
            "best",
            "true",
            {"files/out/model.safetensors": DIFFERENT, "printed": re.compile("run/best")},
            {"input": "{world}/run"},
        ),
        Row("list", "true", {"files": ABSENT, **PRINTED}),
    ),
    without_torch,
    file_content,
    prints=True,
)
CONVERT_ALBERT = Verb(
    convert_albert_tf_checkpoint_to_pytorch,
    {"tf_checkpoint_path": "{world}/tf1", "bert_config_file": "{world}/shared.json", "pytorch_dump_path": "out"},
    (
        Row("tf_checkpoint_path", "{world}/other_tf1", {"files/out/model.safetensors": DIFFERENT, **PRINTED}),
        Row("bert_config_file", "{world}/relu.json", {"files/out/config.json/hidden_act": "relu"}),
        Row("pytorch_dump_path", "elsewhere", {"files": DIFFERENT, **PRINTED}),
        Row("share_type", "ffn", {"error": re.compile("--share_type=ffn, but the layers .* share 'all'")}),
        Row(
            "vocab_file",
            "{world}/reversed.txt",
            {"files/out/vocab.txt": DIFFERENT, "files/out/tokenizer.json": DIFFERENT},
        ),
        Row("model_type", "bert", {"files/out": DIFFERENT, "files/out/config.json/model_type": "bert", **PRINTED}),
        Row(
            "do_lower_case",
            "false",
            {"files/out/tokenizer_config.json/do_lower_case": False, "files/out/tokenizer.json": DIFFERENT},
        ),
    ),
    without_torch,
    file_content,
    prints=True,
)
