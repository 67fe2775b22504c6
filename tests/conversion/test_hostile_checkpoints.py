"""Checkpoints of other people, damaged or of another kind: one line, no traceback, no code run."""

import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import checkpoint_mutations
import numpy as np
import pytest
import torch
from absl.app import UsageError
from conversion_cases import CONFIGS, all_numbers, random_tensors, save_tf1

from conversion.containers.safetensors_files import save_safetensors
from conversion.loading import ANY_HEAD, check_fits
from conversion.namings import NAMINGS
from conversion.readers import read_checkpoint
from conversion.rules import Translation
from conversion.writers import write_tf1


def one_line(path: Path, config: Any = None) -> str:
    """Read and check as conversion does; return the message, empty where the checkpoint is taken."""
    try:
        checkpoint = read_checkpoint(path, config=config)
        check_fits(checkpoint, ANY_HEAD, ANY_HEAD)
        all_numbers(checkpoint.tensors)
    except UsageError as error:
        line = " ".join(str(error).split())
        assert "Traceback" not in line
        assert "weights_only" not in line
        return line
    return ""


class Payload:
    def __reduce__(self):
        return os.system, ("touch /tmp/payload-ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(2), "holds a Tensor; expected names and tensors"),
        ([torch.ones(2)], "holds a list; expected"),
        (None, "holds a NoneType; expected"),
        (7, "holds a int; expected"),
        ({1: torch.ones(2)}, "has the key 1, which is no name"),
        ({"bert.embeddings.word_embeddings.weight": torch.eye(3).to_sparse()}, "expected a dense one of real"),
        (
            {"x": torch.ones(2, 2, dtype=torch.complex64)},
            "expected a dense one of real",
        ),
        ({"bert.embeddings.word_embeddings.weight": torch.ones(2, 2, dtype=torch.int32)}, "no known layout"),
        ({"bert.embeddings.word_embeddings.weight": 3}, "no known layout"),
        ({}, "no known layout"),
        (OrderedDict(model=Payload()), "holds objects besides tensors, which could run code"),
        (Payload(), "holds objects besides tensors, which could run code"),
    ],
)
def test_a_torch_file_of_something_else(content: Any, message: str, tmp_path: Path):
    torch.save(content, tmp_path / "x.bin")
    assert message in one_line(tmp_path / "x.bin", CONFIGS["bert"])
    assert not Path("/tmp/payload-ran").exists()


@pytest.mark.parametrize("content", [b"", b"x", pickle.dumps({"a": 1}), b"PK\x03\x04" + bytes(50), bytes(1000)])
def test_bytes_that_are_no_torch_file(content: bytes, tmp_path: Path):
    for suffix in (".bin", ".safetensors", ".pt"):
        (tmp_path / f"x{suffix}").write_bytes(content)
        assert one_line(tmp_path / f"x{suffix}", CONFIGS["bert"])


# What a wrong tool leaves in the place of a tensor.
CHANGES = {
    "scalar": lambda value: np.float32(1).reshape(()),
    "vector": lambda value: value.reshape(-1),
    "cube": lambda value: value[None, None, None],
    "whole numbers": lambda value: value.astype(np.int32),
    "booleans": lambda value: value > 0,
    "empty": lambda value: value[:0],
    "longer": lambda value: np.concatenate([value, value]),
    "missing": lambda value: None,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("graph", "naming"), [("bert", "transformers_bert"), ("google", "transformers_albert"), ("zh_all", "albert_zh_tf1")]
)
def test_one_wrong_tensor_is_one_line(graph: str, naming: str, change: str, tmp_path: Path):
    translation = Translation(next(n for n in NAMINGS if n.name == naming))
    named, _ = translation.exported(random_tensors(graph))
    heads = re.compile("cls|predictions|pooler|seq_relationship|sop_classifier")
    for number, (name, value) in list(enumerate(all_numbers(named).items()))[len(change) % 7 :: 7]:
        wrong = CHANGES[change](value)
        if change == "vector" and value.ndim == 1:
            continue
        changed = {k: v for k, v in named.items() if k != name} | ({} if wrong is None else {name: wrong})
        path = tmp_path / f"{number}.safetensors"
        save_safetensors(path, changed)
        line = one_line(path, CONFIGS[graph])
        assert line or (change == "missing" and heads.search(name)), f"{name} {change} was taken"


def test_a_tf1_checkpoint_cut_short_at_any_place(tmp_path: Path):
    write_tf1(tmp_path, CONFIGS["zh_all"], random_tensors("zh_all"))
    for suffix in ("data-00000-of-00001", "index"):
        path = tmp_path / f"model.ckpt.{suffix}"
        whole = path.read_bytes()
        for share in (0, 0.1, 0.5, 0.9, 0.999):
            path.write_bytes(whole[: int(len(whole) * share)])
            assert one_line(tmp_path), (suffix, share)
        path.write_bytes(whole)
    assert one_line(tmp_path) == ""


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x80" * 50, b"\0" * 100, b'model_checkpoint_path: "\xff"'])
def test_a_binary_file_called_checkpoint(content: bytes, tmp_path: Path):
    write_tf1(tmp_path, CONFIGS["zh_all"], random_tensors("zh_all"))
    (tmp_path / "checkpoint").write_bytes(content)
    assert one_line(tmp_path) == ""
    save_tf1(tmp_path / "other", {"x": np.zeros(2, np.float32)})
    assert "several checkpoints" in one_line(tmp_path)


def test_no_change_of_a_file_does_anything_but_be_refused_or_read():
    """Ten thousand of these changes are tried by `python -m tests.conversion.checkpoint_mutations`."""
    outcomes = checkpoint_mutations.run(range(60), seed=0)
    assert outcomes.total() == 60
    assert not outcomes[checkpoint_mutations.WRONG]
