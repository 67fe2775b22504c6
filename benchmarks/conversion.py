"""Measures the memory and the time in which a checkpoint that does not fit into memory is converted.

python3 -m benchmarks.conversion --directory=/disk writes its results to benchmarks/results. It makes a sharded BERT
checkpoint of random weights, whose largest tensor is a tenth of it, and converts it in processes of their own, each
watched by the kernel's high-water mark of resident memory. Beside them a process does what converters do that read all
files before they write: `safetensors.numpy.load_file` of every shard, a transposition, `save_file`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from commands.flags import flag, run
from ground.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
_GIGA = 10**9
_WORDS_SHARE, _HIDDEN, _FEED_FORWARD = 0.1, 2048, 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the memory and the time of converting a large sharded checkpoint."""

    directory: str = flag(help="folder on a disk with room for three times --gigabytes")
    gigabytes: float = flag(10.0, help="size of the checkpoint", unit="gigabytes", minimum=0.01)
    shard_gigabytes: float = flag(1.0, help="size of each of its files", unit="gigabytes", minimum=0.001)
    whole: bool = flag(True, help="also convert as converters do that hold the whole checkpoint")
    output_dir: str = flag("benchmarks/results", help="folder for conversion.json and .md")
    worker: str | None = flag(None, help="read and write the whole of this folder in this process")


def main(options: Options) -> None:
    """Make the checkpoint, convert it in every way, write the results."""
    if options.worker is not None:
        convert_whole(Path(options.worker), Path(options.directory))
        return
    folder = Path(options.directory) / "conversion_benchmark"
    source, found = folder / "transformers", []
    shutil.rmtree(folder, ignore_errors=True)
    facts = make(source, options)
    print(json.dumps(facts), flush=True)
    convert = lambda name, given, *flags: [  # noqa: E731
        sys.executable, "convert_checkpoint.py", f"--input={given}", f"--output={folder / name}", *flags,
    ]  # fmt: skip
    ways = {
        "transformers to ours": convert("ours", source, "--format=ours"),
        "ours to transformers": convert("back", folder / "ours", "--format=transformers"),
    }
    try:
        for name, command in ways.items():
            found.append({"way": name, **measure(command)})
            print(json.dumps(found[-1]), flush=True)
        same = same_tensors(source, folder / "back")
        shutil.rmtree(folder / "ours")
        if options.whole:
            arguments = ["-m", "benchmarks.conversion", f"--directory={folder / 'whole'}", f"--worker={source}"]
            found.append({"way": "transformers to safetensors, all in memory", **measure([sys.executable, *arguments])})
            print(json.dumps(found[-1]), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = {"checkpoint": facts, "same_after_both_ways": same, "ways": found}
    path = ROOT / options.output_dir / "conversion.json"
    write_atomically(path, json.dumps(result, indent=2) + "\n")
    write_atomically(path.with_suffix(".md"), page(result))


def make(folder: Path, options: Options) -> dict[str, Any]:
    """Write a sharded checkpoint of transformers' BERT with random weights; return its size and that of its words."""
    from conversion.containers.shards import save_in_parts
    from conversion.lazy import LazyTensor

    layer_bytes = 4 * (4 * _HIDDEN**2 + 2 * _HIDDEN * _FEED_FORWARD)
    total_bytes = options.gigabytes * _GIGA
    words = int(_WORDS_SHARE * total_bytes / (4 * _HIDDEN))
    layers = max(1, round((1 - _WORDS_SHARE) * total_bytes / layer_bytes))
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": words, "hidden_size": _HIDDEN,
        "num_hidden_layers": layers, "num_attention_heads": 16, "intermediate_size": _FEED_FORWARD,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
    }  # fmt: skip

    def drawn(number: int, shape: tuple[int, ...]) -> LazyTensor:
        read: Callable[[], np.ndarray] = lambda: np.random.default_rng(number).random(shape, np.float32)  # noqa: E731
        return LazyTensor(shape, np.dtype(np.float32), read)

    tensors = {name: drawn(number, shape) for number, (name, shape) in enumerate(_shapes(words, layers).items())}
    folder.mkdir(parents=True)
    write_atomically(folder / "config.json", json.dumps(config, indent=2))
    save_in_parts(folder / "model.safetensors", tensors, part_bytes=int(options.shard_gigabytes * _GIGA))
    return {
        "gigabytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")) / _GIGA,
        "files": len(list(folder.glob("*.safetensors"))),
        "largest_tensor_gigabytes": 4 * words * _HIDDEN / _GIGA,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def _shapes(words: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of transformers' `BertModel`."""
    width, inner = _HIDDEN, _FEED_FORWARD
    tables = {"word_embeddings": words, "position_embeddings": 512, "token_type_embeddings": 2}
    shapes: dict[str, tuple[int, ...]] = {f"embeddings.{name}.weight": (n, width) for name, n in tables.items()}
    dense = {"pooler.dense": (width, width)}
    norms = ["embeddings.LayerNorm"]
    for k in range(layers):
        layer = f"encoder.layer.{k}"
        dense |= {f"{layer}.attention.self.{role}": (width, width) for role in ("query", "key", "value")}
        dense |= {f"{layer}.attention.output.dense": (width, width), f"{layer}.intermediate.dense": (inner, width)}
        dense[f"{layer}.output.dense"] = (width, inner)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name, shape in dense.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


def measure(command: list[str]) -> dict[str, float]:
    """Run a command; return its seconds and the most memory that it held."""
    begin = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": time.monotonic() - begin, "peak_gigabytes": usage.ru_maxrss * unit / _GIGA}


def convert_whole(source: Path, target: Path) -> None:
    """Read every file, transpose every matrix, write one file: what a converter does that knows no parts."""
    from safetensors.numpy import load_file, save_file

    tensors: dict[str, np.ndarray] = {}
    for path in sorted(source.glob("*.safetensors")):
        tensors |= load_file(path)
    kept = {
        name: np.ascontiguousarray(value.T) if value.ndim > 1 and "embeddings" not in name else value
        for name, value in tensors.items()
    }
    target.mkdir(parents=True)
    save_file(kept, target / "model.safetensors")


def same_tensors(first: Path, second: Path) -> bool:
    """Return whether two folders of transformers hold the same numbers."""
    from conversion.containers.shards import open_file, open_index

    sides = []
    for folder in (first, second):
        index = folder / "model.safetensors.index.json"
        held = open_index(index) if index.exists() else open_file(folder / "model.safetensors")
        sides.append({name.removeprefix("bert."): value for name, value in held.items()})
    here, there = sides
    return here.keys() == there.keys() and all(
        np.array_equal(np.asarray(here[name]), np.asarray(there[name])) for name in here
    )


def page(result: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    facts = result["checkpoint"]
    lines = [
        "# Conversion: memory and time",
        "",
        f"{facts['machine']}. A checkpoint of {facts['gigabytes']:.1f} GB in {facts['files']} files, whose largest "
        f"tensor has {facts['largest_tensor_gigabytes']:.2f} GB, all float32. Seconds include start, checksums and "
        "reading back.",
        "",
        "| conversion | peak memory, GB | seconds |",
        "|---|---|---|",
        *(f"| {way['way']} | {way['peak_gigabytes']:.2f} | {way['seconds']:,.0f} |" for way in result["ways"]),
        "",
        f"After both conversions every number is {'the same' if result['same_after_both_ways'] else 'NOT the same'}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, Options)
