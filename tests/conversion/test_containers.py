"""Files with tensors: any dictionary comes back bit for bit, whole, in parts, or cut over processes."""

import argparse
import dataclasses
import json
import sys
import types
import weakref
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from absl.app import UsageError
from conversion_cases import CONFIGS, all_numbers, random_tensors
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from conversion.containers.ranks import merge, rank_file
from conversion.containers.safetensors_files import open_safetensors, save_safetensors
from conversion.containers.shards import open_index, save_in_parts
from conversion.containers.tf1_files import open_tf1, save_tf1
from conversion.containers.torch_files import open_torch, save_torch
from conversion.lazy import LazyTensor
from conversion.namings import NAMINGS
from conversion.readers import read_checkpoint
from conversion.rules import Translation
from conversion.writers import write_ours, write_plug, write_transformers

TYPES = (np.float32, np.float16, np.float64, np.int64, np.uint8, np.bool_, ml_dtypes.bfloat16)
SHAPES = numpy_st.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Draw an array of any type that files have, contiguous or not."""
    shape, dtype = draw(SHAPES), np.dtype(draw(st.sampled_from(TYPES)))
    numbers = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 2, shape).astype(dtype)
    return numbers.T if draw(st.booleans()) else numbers


STATES = st.dictionaries(st.text("ab./_", min_size=1, max_size=6), arrays(), max_size=5)


def assert_same(got: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].shape == value.shape
        assert np.asarray(got[name]).shape == value.shape
        np.testing.assert_array_equal(np.asarray(got[name]), value, err_msg=name)


@given(STATES)
def test_safetensors_are_those_of_the_library(tmp_path_factory: pytest.TempPathFactory, state: dict[str, np.ndarray]):
    path = tmp_path_factory.mktemp("s") / "x.safetensors"
    save_safetensors(path, state, {"format": "pt"})
    assert_same(safetensors.numpy.load_file(path), state)
    opened = open_safetensors(path)
    assert_same(opened, state)
    assert {name: value.dtype for name, value in opened.items()} == {name: value.dtype for name, value in state.items()}


FLOATS = st.dictionaries(
    st.text("ab", min_size=1, max_size=4), numpy_st.arrays(np.float32, SHAPES, elements=st.floats(-2, 2, width=32))
)


@given(FLOATS)
def test_torch_files_come_back_and_torch_reads_them(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, np.ndarray]
):
    path = tmp_path_factory.mktemp("t") / "x.bin"
    save_torch(path, state)
    assert [entry.name for entry in path.parent.iterdir()] == ["x.bin"]
    assert_same(torch.load(path, weights_only=True), state)
    assert_same(open_torch(path), state)


@given(FLOATS.filter(bool), st.integers(1, 200))
def test_parts_of_any_size_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, np.ndarray], part_bytes: int
):
    folder = tmp_path_factory.mktemp("p")
    for name, opened in (("model.safetensors", open_safetensors), ("pytorch_model.bin", open_torch)):
        save_in_parts(folder / name, state, part_bytes=part_bytes)
        index = folder / f"{name}.index.json"
        assert_same(open_index(index) if index.exists() else opened(folder / name), state)


def test_tf1_checkpoints_in_parts_are_one(tmp_path: Path):
    state = {f"scope/w{i}": np.full((3, 5), i, np.float32) for i in range(7)}
    save_tf1(tmp_path / "whole.ckpt", state)
    save_tf1(tmp_path / "parts.ckpt", state, part_bytes=100)
    assert not list(tmp_path.glob("*.part*"))
    assert len(list(tmp_path.glob("parts.ckpt.data-*"))) == len(state)
    for name in ("whole.ckpt", "parts.ckpt"):
        assert_same(open_tf1(tmp_path / name), state)


def _transformers_in_parts(folder: Path, pytorch_bin: bool) -> dict[str, np.ndarray]:
    tensors = random_tensors("bert")
    write_transformers(folder, CONFIGS["bert"], tensors, pytorch_bin=pytorch_bin, part_bytes=2000)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return tensors


@pytest.mark.parametrize("given_name", ["", "model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_sharded_folders_are_read_and_transformers_opens_them(given_name: str, tmp_path: Path):
    tensors = _transformers_in_parts(tmp_path / "out", pytorch_bin=True)
    checkpoint = read_checkpoint(tmp_path / "out" / given_name)
    assert_same(dict(checkpoint.tensors), tensors)
    assert checkpoint.config == CONFIGS["bert"]
    import transformers

    model: Any = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(
        model.bert.embeddings.word_embeddings.weight.detach(), tensors["backbone/embeddings/word_embeddings"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda places: places | {"x": "../secret.safetensors"},
            "names the file '../secret.safetensors'; expected a file",
        ),
        (lambda places: places | {"x": "gone.safetensors"}, "names gone.safetensors, which is missing"),
        (lambda places: dict(list(places.items())[1:]), r"differ in bert\..*; copy the checkpoint again"),
        (lambda places: places | {"x": next(iter(places.values()))}, "differ in x; copy the checkpoint again"),
        (lambda places: 3, "weight_map is 3: expected an object"),
    ],
)
def test_an_index_that_does_not_fit_is_one_line(change: Any, message: str, tmp_path: Path):
    _transformers_in_parts(tmp_path, pytorch_bin=False)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"weight_map": change(index["weight_map"])}))
    with pytest.raises(UsageError, match=message):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keys", [("module",), ("model",), ("state_dict",), ("state_dict", "model")])
def test_tensors_inside_of_a_trainers_state(keys: tuple[str, ...], legacy: bool, tmp_path: Path):
    state: Any = {name: torch.from_numpy(value) for name, value in _named("palm").items()}
    for key in reversed(keys):
        state = {key: state, "opt": argparse.Namespace(lr=1, names=["a"]), "step": 3, "optimizer": {"a": [1]}}
    torch.save(state, tmp_path / "palm_model.pt", _use_new_zipfile_serialization=not legacy)
    assert_same(dict(read_checkpoint(tmp_path).tensors), random_tensors("palm"))


def test_objects_of_published_trainers_are_read_as_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """PreSumm's optimizer stands in PALM's file; its class is none of ours, and its state is never looked at."""
    module = types.ModuleType("models.optimizers")

    class Optimizer:
        def __init__(self) -> None:
            self.optimizer = {"a": [1, 2]}

    Optimizer.__module__, Optimizer.__qualname__ = "models.optimizers", "Optimizer"
    module.Optimizer = Optimizer  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    monkeypatch.setitem(sys.modules, "models.optimizers", module)
    state = {
        "model": {name: torch.from_numpy(value) for name, value in _named("palm").items()},
        "optims": [Optimizer()],
    }
    torch.save(state, tmp_path / "palm_model.pt")
    monkeypatch.undo()
    assert_same(dict(read_checkpoint(tmp_path).tensors), random_tensors("palm"))


def _named(graph: str) -> dict[str, np.ndarray]:
    return all_numbers(Translation(next(n for n in NAMINGS if n.is_cut)).exported(random_tensors(graph))[0])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_plug_cut_and_merged_is_the_same(count: int, tmp_path: Path):
    tensors = random_tensors("palm", num_pair_labels=3)
    write_plug(tmp_path / "plug", CONFIGS["palm"], tensors, count=count)
    names = {path.name for path in (tmp_path / "plug").glob("*.pt")}
    assert names == {rank_file(rank) for rank in range(count)}
    checkpoint = read_checkpoint(tmp_path / "plug")
    assert checkpoint.config == CONFIGS["palm"]
    assert_same(dict(checkpoint.tensors), tensors)
    held = torch.load(tmp_path / "plug" / rank_file(0), weights_only=True)
    assert held["mp_world_size"] == count
    module = held["module"]
    # The first share of a joined projection is the first share of each of its parts.
    query = tensors["backbone/encoder/attention_0/query/kernel"].T
    share = len(query) // count
    joined = module["bert.encoder.layer.0.attention.self.query_key_value.weight"]
    np.testing.assert_array_equal(joined[:share], query[:share])
    words = module["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(module["cls.predictions.decoder_weight"], words)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1))
def test_merging_is_the_inverse_of_cutting(count: int, joined: int, width: int, axis: int):
    """By hand: cut each of the joined tensors, and give every process its shares, one after the other."""
    shape = [2, 2]
    shape[axis] = joined * count * width
    whole = np.arange(np.prod(shape)).reshape(shape)
    parts = [np.split(part, count, axis=axis) for part in np.split(whole, joined, axis=axis)]
    ranks = [np.concatenate([part[rank] for part in parts], axis=axis) for rank in range(count)]
    np.testing.assert_array_equal(merge(ranks, axis, joined), whole)


def test_processes_that_do_not_go_together_are_one_line(tmp_path: Path):
    write_plug(tmp_path / "plug", CONFIGS["palm"], random_tensors("palm"), count=4)
    post_ln = dataclasses.replace(CONFIGS["palm"], ln_type="postln", final_layer_norm=False)
    for graph, config, count, message in (
        ("palm", CONFIGS["palm"], 5, r"has the shape \[.*\], which 5 processes cannot share equally"),
        ("bert", CONFIGS["bert"], 2, "--format=plug cuts models of the family palm; this one is of the family bert"),
        ("palm", post_ln, 2, "cannot be written for PLUG's released code: it is post-LN"),
    ):
        with pytest.raises(UsageError, match=message):
            write_plug(tmp_path / "out", config, random_tensors(graph), count=count)
    changed = torch.load(tmp_path / "plug" / rank_file(2), weights_only=True)
    changed["module"]["bert.pooler.dense.bias"] += 1
    torch.save(changed, tmp_path / "plug" / rank_file(2))
    with pytest.raises(UsageError, match=r"bert.pooler.dense.bias of .* differs between processes 0 and 2"):
        all_numbers(read_checkpoint(tmp_path / "plug").tensors)
    del changed["module"]["bert.pooler.dense.bias"]
    torch.save(changed, tmp_path / "plug" / rank_file(2))
    with pytest.raises(UsageError, match=r"rank_02.* differ in bert.pooler.dense.bias; they are of different models"):
        read_checkpoint(tmp_path / "plug")
    (tmp_path / "plug" / rank_file(2)).unlink()
    with pytest.raises(UsageError, match=r"lacks mp_rank_02_model_states.pt; copy the files of all 4 processes"):
        read_checkpoint(tmp_path / "plug")


def test_reading_holds_one_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A conversion from our folder to ours reads each tensor by itself: no two are alive together."""
    write_ours(tmp_path / "a", CONFIGS["bert"], random_tensors("bert"))
    alive: set[str] = set()

    def watched(name: str, value: Any) -> LazyTensor:
        def read() -> np.ndarray:
            assert not alive, f"{alive} in memory when {name} is read"
            array = np.array(value)
            alive.add(name)
            weakref.finalize(array, alive.discard, name)
            return array

        return LazyTensor(value.shape, value.dtype, read)

    tensors = {name: watched(name, value) for name, value in read_checkpoint(tmp_path / "a").tensors.items()}
    write_ours(tmp_path / "b", CONFIGS["bert"], tensors)
    assert_same(dict(read_checkpoint(tmp_path / "b").tensors), random_tensors("bert"))
