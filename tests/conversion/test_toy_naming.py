"""A naming that is not shipped, with one tensor for query, key and value, is a row: no source file knows of it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from absl.app import UsageError
from conversion_cases import CONFIGS, random_tensors

from conversion import namings
from conversion.containers.safetensors_files import save_safetensors
from conversion.graphs import as_bert
from conversion.loading import check_fits
from conversion.namings.dialects import BERT_KEYS
from conversion.readers import read_checkpoint
from conversion.rules import Naming, Rule
from conversion.writers import write_transformers

_ATTENTION, _FEED_FORWARD = "backbone/encoder/attention_{k}", "backbone/encoder/feed_forward_{k}"
_QKV = tuple(f"{_ATTENTION}/{role}" for role in ("query", "key", "value"))


def _dense(ours: str, theirs: str) -> tuple[Rule, Rule]:
    return Rule((f"{ours}/kernel",), f"{theirs}.w", transposed=True), Rule((f"{ours}/bias",), f"{theirs}.b")


def _norm(ours: str, theirs: str) -> tuple[Rule, Rule]:
    return Rule((f"{ours}/gamma",), f"{theirs}.scale"), Rule((f"{ours}/beta",), f"{theirs}.shift")


TOY = Naming(
    name="toy",
    family="bert",
    container="transformers",
    detect=(r"^toy\.block_\d+\.qkv\.",),
    rules=(
        *(
            Rule((f"backbone/embeddings/{table}_embeddings",), f"toy.{table}_table")
            for table in ("word", "position", "token_type")
        ),
        *_norm("backbone/embeddings/layer_norm", "toy.norm"),
        # [D, D] three times -> [D, 3 D], kept as [3 D, D].
        Rule(tuple(f"{part}/kernel" for part in _QKV), "toy.block_{k}.qkv.w", transposed=True, joined_axis=1),
        Rule(tuple(f"{part}/bias" for part in _QKV), "toy.block_{k}.qkv.b", joined_axis=0),
        *_dense(f"{_ATTENTION}/output", "toy.block_{k}.mix"),
        *_norm(f"{_ATTENTION}/layer_norm", "toy.block_{k}.norm_a"),
        *_dense(f"{_FEED_FORWARD}/intermediate", "toy.block_{k}.up"),
        *_dense(f"{_FEED_FORWARD}/output", "toy.block_{k}.down"),
        *_norm(f"{_FEED_FORWARD}/layer_norm", "toy.block_{k}.norm_b"),
        *_dense("backbone/pooler", "toy.first"),
    ),
    canonical=lambda name: None if name.endswith(".counter") else name,
    backbone=("toy.",),
    ties={"out_table": "toy.word_table"},
    rewrite=as_bert,
    config_keys=BERT_KEYS,
    model_type="toy",
    class_prefix="Toy",
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namings, "NAMINGS", (*namings.NAMINGS, TOY))


def _backbone(graph: str) -> dict[str, np.ndarray]:
    return {name: value for name, value in random_tensors(graph).items() if name.startswith("backbone/")}


def test_a_joined_tensor_is_imported_in_its_parts(tmp_path: Path):
    """From values that this test joins itself, with a tie, a counter and a head without a rule beside them."""
    config, tensors = CONFIGS["bert"], _backbone("bert")
    named = {}
    for rule in TOY.rules:
        for k in range(config.num_hidden_layers):
            parts = [tensors[name.format(k=k)] for name in rule.ours]
            value = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
            named[rule.theirs.format(k=k)] = np.ascontiguousarray(value.T if rule.transposed else value)
    assert named["toy.block_3.qkv.w"].shape == (24, 8)
    further = {"out_table": named["toy.word_table"], "step.counter": np.ones(1, np.float32), "head.w": np.ones(1, "f4")}
    save_safetensors(tmp_path / "toy.safetensors", named | further)
    checkpoint = read_checkpoint(tmp_path, config=config)
    assert checkpoint.source_format == "toy"
    assert sorted([*checkpoint.skipped, *checkpoint.unplaced]) == sorted(further)
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(checkpoint.tensors[name], value, err_msg=name)
    check_fits(checkpoint, allow_unexpected=[r"head\..*"])


def test_written_and_read_back_it_is_the_same_model(tmp_path: Path):
    written = write_transformers(
        tmp_path / "out", CONFIGS["bert"], random_tensors("bert"), model_type="toy", allow_dropped=[".*"]
    )
    assert written.naming == "toy"
    assert {name.split("/")[0] for name in written.dropped} == {"masked_lm", "sentence_pair"}
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (values["model_type"], values["architectures"]) == ("toy", ["ToyModel"])
    back = read_checkpoint(tmp_path / "out" / "model.safetensors", config=CONFIGS["bert"]).tensors
    assert back.keys() == _backbone("bert").keys()
    for name, value in _backbone("bert").items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_a_tensor_that_has_no_equal_parts_is_one_line(tmp_path: Path):
    save_safetensors(tmp_path / "toy.safetensors", {"toy.block_0.qkv.b": np.zeros(25, np.float32)})
    with pytest.raises(
        UsageError, match=r"toy.block_0.qkv.b of .* has shape \[25\], which cannot be cut in equal parts"
    ):
        read_checkpoint(tmp_path, config=CONFIGS["bert"])


def test_a_part_that_is_missing_is_named(tmp_path: Path):
    tensors = _backbone("bert")
    del tensors["backbone/encoder/attention_2/key/kernel"]
    with pytest.raises(UsageError, match="toy has no place for backbone/encoder/attention_2/query/kernel"):
        write_transformers(tmp_path / "out", CONFIGS["bert"], tensors, model_type="toy")
    shared = dataclasses.replace(CONFIGS["bert"], ln_type="preln")
    with pytest.raises(UsageError, match="pre-LN"):
        write_transformers(tmp_path / "out", shared, _backbone("bert"), model_type="toy")
