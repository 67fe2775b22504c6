"""The flags of the two verbs that convert checkpoints; PyTorch is not imported, so its files hold names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from observing.rows import ABSENT, DIFFERENT, Notes, Row, Verb, file_content

import conversion.containers.shards
import conversion.proof
import conversion.writers
import convert_albert_tf_checkpoint_to_pytorch
import convert_checkpoint

PRINTED = {"printed": DIFFERENT}
PIECES = {"vocab_file": "{world}/pieces.txt", "spm_model_file": "{world}/pieces.model"}
BARE = {"input": "{world}/shared/model.safetensors"}


def without_torch(patch: pytest.MonkeyPatch, notes: Notes, machine: str) -> None:
    """Write a listing in the place of a PyTorch file; neither read it back nor ask transformers to compute with it."""

    def save_torch(path: Path, state: Mapping[str, Any]) -> None:
        tensors = state.get("module", state)
        path.write_text("".join(f"{name} {list(value.shape)}\n" for name, value in sorted(tensors.items())))

    for module in (conversion.writers, conversion.containers.shards):
        patch.setattr(module, "save_torch", save_torch)
    patch.setattr(conversion.proof, "read_back", lambda written: {"tensors read back": 0.0})
    patch.setattr(conversion.proof, "compare_outputs", lambda checkpoint, written: ({"hidden states": 0.0}, "none"))


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
            {"files/out/config.json/hidden_act": "relu", **PRINTED},
            {**BARE, "config_file": "{world}/shared.json"},
        ),
        Row(
            "vocab_file",
            "{world}/reversed.txt",
            {"files/out/vocab.txt": DIFFERENT, "files/out/tokenizer.json": DIFFERENT},
        ),
        Row(
            "spm_model_file",
            "{world}/pieces.model",
            {
                "files/out/sentencepiece.bpe.model": DIFFERENT,
                "files/out/tokenizer_config.json": DIFFERENT,
                "files/out/tokenizer.json": ABSENT,
            },
            {"vocab_file": "{world}/pieces.txt"},
        ),
        Row("segmentation", "hf", {"files/out/tokenizer_config.json/segmentation": "hf"}, PIECES),
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
        Row(
            "strip",
            "true",
            {
                "files/out/model.safetensors": DIFFERENT,
                "files/out/state.json": DIFFERENT,
                "files/out/state.json/config/units_by_brick": (16, 3),
                "printed": re.compile("stripped: [0-9,]+ parameters become [0-9,]+"),
            },
            {"input": "{world}/pruned", "format": "ours"},
        ),
        Row("list", "true", {"files": ABSENT, **PRINTED}),
        Row("check_only", "true", {"files": ABSENT, **PRINTED}),
        Row(
            "num_shards",
            "2",
            {"files": DIFFERENT, "files/out/mp_rank_01_model_states.pt": DIFFERENT},
            {"input": "{world}/palm", "format": "plug", "num_shards": "1"},
        ),
        Row(
            "allow_missing",
            "backbone/pooler/.*",
            {"error": ABSENT, "exit code": 0, "files": DIFFERENT, **PRINTED},
            {"input": "{world}/lacking", "format": "ours"},
        ),
        Row(
            "allow_unexpected",
            "sentence_pair/.*",
            {"error": ABSENT, "exit code": 0, "files": DIFFERENT, **PRINTED},
            {"input": "{world}/three_classes"},
        ),
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
        Row("bert_config_file", "{world}/relu.json", {"files/out/config.json/hidden_act": "relu", **PRINTED}),
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
