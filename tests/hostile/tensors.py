"""Classes of wrong arrays: examples of records out of range, and tensors of checkpoints of other shapes and types."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import struct
import warnings
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.hostile.case import Case, Expectation, change
from tests.hostile.seeds import BASES

# -- records -----------------------------------------------------------------------------------------------------------


@cache
def _examples(path: Path) -> tuple[bytes, ...]:
    """Return the serialized examples of a shard."""
    content, found, begin = path.read_bytes(), [], 0
    while begin < len(content):
        (length,) = struct.unpack_from("<Q", content, begin)
        found.append(content[begin + 12 : begin + 12 + length])
        begin += length + 16
    return tuple(found)


_IDS = (-1, -(2**63), 1200, 5000, 2**31, 2**31 - 1, 2**63 - 1, 0)
_WRONG: dict[str, tuple[Any, ...]] = {
    "input_ids": _IDS,
    "input_mask": (-1, 2, 5, 2**31, 2**63 - 1),
    "segment_ids": (-1, 2, 7, 2**31, 2**63 - 1),
    "masked_lm_positions": (-1, 40, 100, 2**31, -(2**63)),
    "masked_lm_ids": _IDS,
    "masked_lm_weights": (float("nan"), float("inf"), -1.0, 1e38, 2.0),
    "next_sentence_labels": (-1, 2, 5, 2**31, 2**63 - 1),
}
_RIGHT = {"input_ids": (0,), "masked_lm_ids": (0,), "input_mask": (), "masked_lm_weights": (2.0, 1e38)}


def records(random: Random, seeds: Path) -> Case:
    """Examples whose checksums are right have values out of range, or lists of other lengths and types."""
    from data.tfrecord.frames import frame

    folder = random.choice(("bare", "bare", "records", "dynamic", "packed"))
    examples = list(_examples(seeds / f"in/{folder}/zh.tfrecord"))
    examples = examples[: random.choice((1, 3, len(examples)))]
    every = random.random() < 0.5
    chosen = range(len(examples)) if every else [random.randrange(min(3, len(examples)))]
    way, wrong = "", False
    state = random.getstate()
    for number in chosen:
        # The same change in all of them.
        random.setstate(state)
        way, wrong, examples[number] = _other_example(random, examples[number])
    calls = {
        "bare": ("pretrain_bare", "inspect_show_bare", "inspect_stats_bare", "inspect_verify_bare"),
        "records": ("pretrain", "inspect_verify_records", "inspect_stats_records"),
        "dynamic": ("pretrain_dynamic", "inspect_stats_dynamic"),
        "packed": ("inspect_show_packed",),
    }[folder]
    base = BASES[random.choice(calls)]
    # Show and stats may show nonsense as it is; to train on it is refused, where it is in every example.
    expect: Expectation = "refuse" if wrong and every and base.name == "pretrain_bare" else "either"
    if wrong and base.name == "inspect_verify_bare":
        expect = "refuse" if every else "either"
    name = f"in/{folder}/zh.tfrecord"
    text = f"{name}: {way} in {'every' if every else 'one'} of {len(examples)}"
    names = ("zh.tfrecord", "input_file", "records", "ids", "id", "positions")
    return change(base, "records", text, expect, names, files={name: b"".join(frame(each) for each in examples)})


def _other_example(random: Random, content: bytes) -> tuple[str, bool, bytes]:
    """Return what was changed of an example, whether that must not be learnt from, and the example."""
    import tensorflow as tf

    example = tf.train.Example.FromString(content)  # pyright: ignore[reportAttributeAccessIssue]
    features = example.features.feature
    name = random.choice(sorted(features))
    values = (
        features[name].float_list.value if features[name].HasField("float_list") else features[name].int64_list.value
    )
    way = random.choice(("value", "value", "value", "empty", "gone", "longer", "shorter", "floats", "bytes", "unknown"))
    wrong = name in _WRONG
    if way == "value":
        value = random.choice(_WRONG.get(name, _IDS))
        value = float(value) if features[name].HasField("float_list") else int(value)
        if len(values):
            values[random.randrange(len(values)) if random.random() < 0.5 else 0] = value
        # Three classes of pairs are StructBERT's.
        wrong = wrong and not (name == "next_sentence_labels" and value == 2)
        return f"{name} has {value}", wrong and bool(len(values)) and value not in _RIGHT.get(name, ()), _bytes(example)
    if way == "empty":
        del values[:]
        wrong = name in ("input_ids", "next_sentence_labels")
    elif way == "gone":
        del features[name]
    elif way == "longer":
        values.extend([1] * 50)
        wrong = False
    elif way == "shorter":
        del values[-1:]
        wrong = False
    elif way == "floats":
        features[name].float_list.value.extend([0.5, float("nan")])
    elif way == "bytes":
        features[name].bytes_list.value.append(b"x")
    else:
        features["no_such_feature"].int64_list.value.append(1)
        wrong = False
    return f"{name} {way}", wrong, _bytes(example)


def _bytes(example: Any) -> bytes:
    return example.SerializeToString(deterministic=True)


# -- checkpoints -------------------------------------------------------------------------------------------------------

_SAFETENSORS = {
    "in/shared/model.safetensors": ("convert_from_file", "convert_from_file"),
    "in/transformers/model.safetensors": ("convert_from_transformers", "list"),
}


@dataclasses.dataclass
class Change:
    """What became of the tensors; whether no model can be made of them."""

    text: str
    tensors: dict[str, np.ndarray]
    wrong: bool = True


def _other_tensors(random: Random, tensors: dict[str, np.ndarray]) -> Change:
    """Return tensors of which one or all are others."""
    name = random.choice(sorted(tensors))
    value = tensors[name]
    ways: dict[str, Any] = {
        "a scalar": np.float32(1),
        "empty": np.zeros((0,), np.float32),
        "flat": value.reshape(-1),
        "transposed": np.ascontiguousarray(value.T),
        "of one more axis": value[None],
        "a row shorter": value[:-1],
        "integers": value.astype(np.int32),
        "bytes": value.astype(np.uint8),
        "doubles": value.astype(np.float64),
        "halves": value.astype(np.float16),
        "truths": value > 0,
        "NaN": np.full_like(value, np.nan),
        "infinite": np.full_like(value, np.inf),
    }
    if random.random() < 0.3:
        other = dict(tensors)
        which = random.choice(("gone", "renamed", "another", "unknown", "only one", "none", "all with a prefix"))
        if which in ("gone", "renamed"):
            del other[name]
        if which == "renamed":
            other[f"{name}_"] = value
        if which == "unknown":
            other["no/such/tensor"] = value
        if which == "another":
            other[name] = tensors[random.choice(sorted(tensors))]
        if which == "only one":
            other = {name: value}
        if which == "none":
            other = {}
        if which == "all with a prefix":
            other = {f"module.{each}": tensor for each, tensor in tensors.items()}
        return Change(f"{name} {which}", other, which in ("only one", "none"))
    way = random.choice(list(ways))
    right = way in ("doubles", "halves") or (value.ndim <= 1 and way in ("flat", "transposed"))
    # The heads may be left out; tensors of one row are transposed to themselves.
    body = any(part in name for part in ("backbone", "albert"))
    same = ways[way].shape == value.shape and way == "transposed"
    # Weights that are not finite can be converted, and be found by whoever computes with them.
    right = right or same or way in ("NaN", "infinite")
    return Change(f"{name} is {way}", {**tensors, name: np.asarray(ways[way])}, not right and body)


def tensors(random: Random, seeds: Path) -> Case:
    """A safetensors file has tensors of other shapes and types, or others."""
    from safetensors.numpy import load_file, save

    name = random.choice(list(_SAFETENSORS))
    base = BASES[random.choice(_SAFETENSORS[name])]
    other = _other_tensors(random, load_file(seeds / name))
    content = save({each: np.ascontiguousarray(value) for each, value in other.tensors.items()}, {"format": "pt"})
    # A list shows what is there.
    expect: Expectation = "refuse" if other.wrong and base.name != "list" else "either"
    short = other.text.split()[0]
    names = ("model.safetensors", "tensor", "in/transformers", short, short.rsplit(".", 1)[0])
    return change(base, "tensors", f"{name}: {other.text}", expect, names, files={name: content})


def safetensors_header(random: Random, seeds: Path) -> Case:
    """The header of a safetensors file lies about what follows."""
    name = random.choice(list(_SAFETENSORS))
    base = BASES[random.choice(_SAFETENSORS[name])]
    content = (seeds / name).read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    tensor = random.choice([each for each in header if each != "__metadata__"])
    entry = header[tensor]
    ways: dict[str, dict[str, Any] | bytes] = {
        "offsets beyond": {**header, tensor: {**entry, "data_offsets": [0, 10**12]}},
        "offsets reversed": {**header, tensor: {**entry, "data_offsets": entry["data_offsets"][::-1]}},
        "negative offsets": {**header, tensor: {**entry, "data_offsets": [-4, 4]}},
        "a huge shape": {**header, tensor: {**entry, "shape": [10**6, 10**6]}},
        "a negative shape": {**header, tensor: {**entry, "shape": [-1, -1]}},
        "an unknown type": {**header, tensor: {**entry, "dtype": "F13"}},
        "a type of text": {**header, tensor: {**entry, "dtype": 3}},
        "an entry that is a list": {**header, tensor: []},
        "metadata of numbers": {**header, "__metadata__": {"a": 1}},
        "a list": b"[]",
        "nested": b"[" * 100_000,
        "no JSON": b"x" * 100,
        "empty": b"",
    }
    way = random.choice(list(ways))
    made = ways[way]
    text = made if isinstance(made, bytes) else json.dumps(made).encode()
    size = struct.pack("<Q", len(text))
    if random.random() < 0.2:
        way, size, text = random.choice(
            (
                ("a header of 2^60 bytes", struct.pack("<Q", 2**60), text),
                ("no header", b"", b""),
                ("a short one", size[:5], b""),
            )
        )
    names = ("model.safetensors", "in/transformers", "tensor")
    return change(
        base, "safetensors header", f"{name}: {tensor} {way}", "refuse", names, files={name: size + text + rest}
    )


class _Payload:
    """A pickle that would write a file if it were loaded as code."""

    def __reduce__(self):
        return (exec, ("open('ran', 'w').write('x')",))


def torch_file(random: Random, seeds: Path) -> Case:
    """A PyTorch file holds something else than tensors by name."""
    import torch

    base = BASES["convert_from_bin"]
    name = "in/torch/pytorch_model.bin"
    path = seeds / name
    right = torch.load(path, weights_only=True)
    tensor = random.choice(sorted(right))
    value = right[tensor]
    ways: dict[str, Any] = {
        "a tensor": value,
        "a list": [value],
        "None": None,
        "a number": 3,
        "a text": "x",
        "an empty dictionary": {},
        "integer keys": dict(enumerate(right.values())),
        "texts": dict.fromkeys(right, "x"),
        "lists": {each: list(range(3)) for each in right},
        "None inside": {**right, tensor: None},
        "a number inside": {**right, tensor: 3.0},
        "nested": {"model": right},
        "nested state": {"state_dict": right, "epoch": 3},
        "sparse": {**right, tensor: (value.reshape(value.shape[0], -1) if value.ndim else value[None]).to_sparse()},
        "complex": {**right, tensor: value.to(torch.complex64)},
        "integers": {**right, tensor: value.to(torch.int32)},
        "truths": {**right, tensor: value > 0},
        "bfloat16": {each: old.to(torch.bfloat16) for each, old in right.items()},
        "meta": {**right, tensor: torch.empty(value.shape, device="meta")},
        "a huge view": {**right, tensor: torch.zeros(1).expand(10**6, 10**6)},
        "parameters": {each: torch.nn.Parameter(old) for each, old in right.items()},
    }
    pickles: dict[str, bytes] = {
        "a pickle with code": pickle.dumps(_Payload()),
        "a pickle": pickle.dumps({"a": 1}),
        "a pickle of NumPy": pickle.dumps({tensor: np.ones(3)}),
        "an empty file": b"",
        "zeros": bytes(4000),
        "text": b"weights\n" * 50,
        "half a file": path.read_bytes()[: path.stat().st_size // 2],
        "a zip": b"PK\x05\x06" + bytes(18),
    }
    way = random.choice([*ways, *pickles])
    if way in pickles:
        content = pickles[way]
    else:
        stream = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(ways[way], stream)
        content = stream.getvalue()
    right_too = ("bfloat16", "parameters", "nested", "nested state", "sparse", "integers", "truths")
    expect: Expectation = "either" if way in (*right_too, "complex", "half a file") else "refuse"
    if "inside" in way or way in ("meta", "a huge view"):
        # Heads, and buffers, may be left out.
        expect = "refuse" if "albert" in tensor else "either"
    names = ("pytorch_model.bin", "in/torch", "tensor", tensor)
    return change(base, "torch file", f"{tensor}: {way}", expect, names, files={name: content})


def tf1(random: Random, seeds: Path) -> Case:
    """A file of a TF 1 checkpoint is missing, cut, empty, or points elsewhere."""
    base = BASES[random.choice(("convert_from_tf1", "convert_albert", "classify_from"))]
    index, shard, state = (
        f"in/tf1/{each}" for each in ("model.ckpt.index", "model.ckpt.data-00000-of-00001", "checkpoint")
    )
    data = (seeds / shard).read_bytes()
    head = (seeds / index).read_bytes()
    ways: dict[str, tuple[dict[str, bytes | None], Expectation]] = {
        "no data": ({shard: None}, "refuse"),
        "no index": ({index: None}, "refuse"),
        "data cut short": ({shard: data[: len(data) // 2]}, "refuse"),
        "data without its last byte": ({shard: data[:-1]}, "refuse"),
        "no data at all": ({shard: b""}, "refuse"),
        "an empty index": ({index: b""}, "refuse"),
        "an index of zeros": ({index: bytes(len(head))}, "refuse"),
        "half an index": ({index: head[: len(head) // 2]}, "refuse"),
        "random data": ({shard: random.randbytes(len(data))}, "refuse"),
        "checkpoint binary": ({state: random.randbytes(100)}, "either"),
        "checkpoint empty": ({state: b""}, "either"),
        "checkpoint elsewhere": ({state: b'model_checkpoint_path: "/nonexistent/model.ckpt"\n'}, "either"),
        "checkpoint of a number": ({state: b"model_checkpoint_path: 3\n"}, "either"),
        "checkpoint up": ({state: b'model_checkpoint_path: "../records/zh"\n'}, "either"),
        "two indices": ({"in/tf1/other.index": head}, "either"),
        "config gone": ({"in/tf1/albert_config.json": None}, "either"),
        "a loop": ({"in/tf1/albert_config.json": b'{"a": ' + b"[" * 100_000}, "either"),
    }
    way = random.choice(list(ways))
    files, expect = ways[way]
    names = ("model.ckpt", "in/tf1", "checkpoint", "albert_config", "config")
    return change(base, "tf1", way, expect, names, files=files)


def run_folder(random: Random, seeds: Path) -> Case:
    """A run folder has copies, foreign names, missing or damaged parts."""
    folder, bases = random.choice(
        (("in/tuned", ("predict", "classify_resumed", "convert_run")), ("in/pretraining", ("pretrain_resumed",)))
    )
    base = BASES[random.choice(bases)]
    step = f"{folder}/checkpoints/step_00000002"
    state = (seeds / step / "state.json").read_bytes()
    weights = (seeds / step / "model.safetensors").read_bytes()
    metrics = (seeds / folder / "metrics.jsonl").read_bytes()
    lines = metrics.splitlines(keepends=True)
    ways: dict[str, dict[str, bytes | None]] = {
        "a copy of a step": {f"{step}_copy/state.json": state, f"{step}_copy/model.safetensors": weights},
        "a step of a word": {f"{folder}/checkpoints/step_last/state.json": state},
        "a step without zeros": {f"{folder}/checkpoints/step_9/state.json": state},
        "an empty step": {f"{folder}/checkpoints/step_00000009/state.json": b""},
        "a step of only a state": {f"{folder}/checkpoints/step_00000009/state.json": state},
        "a step that is a file": {f"{folder}/checkpoints/step_00000009": b"x"},
        "a negative step": {f"{folder}/checkpoints/step_-0000001/state.json": state},
        "a step of 30 digits": {f"{folder}/checkpoints/step_{'9' * 30}/state.json": state},
        "no state": {f"{step}/state.json": None},
        "no weights": {f"{step}/model.safetensors": None},
        "no optimizer": {f"{step}/optimizer.safetensors": None},
        "half the weights": {f"{step}/model.safetensors": weights[: len(weights) // 2]},
        "no checkpoints": {f"{folder}/checkpoints": None},
        "checkpoints that are a file": {f"{folder}/checkpoints": b"x"},
        "best without weights": {f"{folder}/best/model.safetensors": None},
        "best without a state": {f"{folder}/best/state.json": None},
        "no run.json": {f"{folder}/run.json": None},
        "no config.json": {f"{folder}/config.json": None},
        "metrics empty": {f"{folder}/metrics.jsonl": b""},
        "metrics gone": {f"{folder}/metrics.jsonl": None},
        "metrics of lists": {f"{folder}/metrics.jsonl": b"[]\n" * 3},
        "metrics of numbers": {f"{folder}/metrics.jsonl": b"3\n" * 3},
        "metrics of objects": {f"{folder}/metrics.jsonl": b"{}\n" * 3},
        "metrics nested": {f"{folder}/metrics.jsonl": metrics + b"[" * 100_000 + b"\n"},
        "metrics cut short": {f"{folder}/metrics.jsonl": metrics[:-20]},
        "metrics broken inside": {f"{folder}/metrics.jsonl": lines[0][:-9] + b"\n" + b"".join(lines[1:])},
        "metrics of texts": {f"{folder}/metrics.jsonl": b'{"step": "x", "phase": 3, "loss": []}\n'},
        "metrics of NaN": {f"{folder}/metrics.jsonl": b'{"step": NaN, "phase": "training", "loss": NaN}\n' + metrics},
        "metrics binary": {f"{folder}/metrics.jsonl": random.randbytes(500)},
        "a vocabulary of another": {f"{folder}/vocab.txt": (seeds / "in/vocab.txt").read_bytes() + b"more\n"},
        "a temporary left": {f"{folder}/.config.json.1.tmp": b"x", f"{folder}/checkpoints/.step_00000003.tmp/x": b"x"},
    }
    way = random.choice(list(ways))
    names = (Path(folder).name, "step_0", "best", "metrics.jsonl", "vocab.txt", "run.json", "state.json", "output_dir")
    return change(base, "run folder", f"{folder}: {way}", "either", names, files=ways[way])
