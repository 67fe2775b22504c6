"""Run the cases with the code of any checkout and reduce their output to numbers and checksums.

    python -m tests.identity.measure CHECKOUT jax '[["pretraining: albert"], {"seed": 4}]'

computes loss cases, with other flags if any are given, and prints their results as JSON. The only interfaces of a
checkout that this file uses are its verbs, the models of `modeling`, the reader of records, and the files of a run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from .cases import (
    BATCH_SIZE,
    BEFORE,
    CHINESE,
    ENGLISH,
    LOSSES,
    NUM_STEPS,
    RECORDS,
    ROOT,
    SEED,
    SENTENCEPIECE,
    SHARDS,
    TOKENIZERS,
    VOCABULARY,
    WITH_INSIDES,
    Flags,
)

Losses = dict[str, Any]
Hashes = dict[str, str]
# Values of a line of metrics.jsonl that differ from run to run, or are no result.
_TIMES = ("time", "step", "phase", "flops_per_second", "flop_utilization", "tokens_per_second", "examples_per_second")


def use_code(checkout: Path) -> None:
    """Import verbs and folders from `checkout` from now on; raises `RuntimeError` if others were imported before."""
    sys.path.insert(0, str(checkout))
    imported = Path(str(importlib.import_module("run_pretraining").__file__)).parent
    if imported != checkout:
        raise RuntimeError(f"run_pretraining was imported from {imported}, not from {checkout}")


def call(verb: str, flags: Flags) -> None:
    """Run a verb in this process; raises `RuntimeError` if it fails."""
    module: Any = importlib.import_module(verb)
    try:
        module.run(module.main, module.Options, [f"--{name}={value}" for name, value in flags.items()])
    except SystemExit as stopped:
        if stopped.code:
            raise RuntimeError(f"{verb} ended with {stopped.code}: {flags}") from None


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- tokenizers and shards ---------------------------------------------------------------------------------------------


def train_tokenizer(name: str, folder: Path) -> Path:
    """Learn the tokenizer of a row of `TOKENIZERS`; returns its file."""
    path = folder / f"{name}.tokenizer"
    call("train_tokenizer", {"input_file": f"{CHINESE},{ENGLISH}", "output_file": path, **TOKENIZERS[name]})
    return path


def shards(folder: Path, flags: Flags) -> Hashes:
    """Write shards into an empty folder; returns the checksum of each file of records."""
    call("create_pretraining_data", {"output_file": folder / "x.tfrecord", **flags})
    return {path.name: digest(path.read_bytes()) for path in sorted(folder.glob("*.tfrecord"))}


def wordpiece_shards(name: str, folder: Path) -> Hashes:
    """Write the shards of a row of `SHARDS`."""
    flags = {"vocab_file": VOCABULARY, **SHARDS[name]}
    if flags["vocab_file"] == WITH_INSIDES:
        tokens = VOCABULARY.read_text(encoding="utf-8").split()
        # A vocabulary has every token once; those that were there twice keep their places.
        inside = [f"##{token}" for token in tokens if len(token) == 1]
        known, number = set(tokens), 50_000
        for place, token in enumerate(inside):
            if token in known:
                inside[place] = f"[unused{number + place}]"
        flags["vocab_file"] = folder / "vocab.txt"
        flags["vocab_file"].write_text("\n".join([*tokens, *inside]) + "\n", encoding="utf-8")
    return shards(folder, flags)


def sentencepiece_shards(name: str, folder: Path, model: Path) -> Hashes:
    """Write the shards of a row of `SENTENCEPIECE` with its model."""
    return shards(folder, {"spm_model_file": model, **SENTENCEPIECE[name][1]})


# -- names of variables ------------------------------------------------------------------------------------------------


def variables(config_file: Path) -> dict[str, list[str]]:
    """Return the sorted names and shapes of both models of a configuration, a line each; allocates nothing."""
    import modeling

    config = modeling.load_config(config_file)
    models: dict[str, Callable[[], Any]] = {
        "PretrainingModel": lambda: modeling.PretrainingModel(config),
        "ClassifierModel": lambda: modeling.ClassifierModel(config, 2),
    }
    return {
        name: sorted(f"{variable} {list(shape)}" for variable, shape in modeling.variable_shapes(build).items())
        for name, build in models.items()
    }


def lines_digest(lines: Iterable[str]) -> str:
    return digest("\n".join(lines).encode())


# -- batches -----------------------------------------------------------------------------------------------------------


def open_records(pattern: str | Path) -> Any:
    """Open records with the reader; no other line of these tests names it."""
    try:
        from data.reading import PretrainingDataset
    except ModuleNotFoundError:
        # The checkout of commit 0e19f41 and before.
        from data.input_pipeline import PretrainingDataset  # pyright: ignore[reportMissingImports]

    return PretrainingDataset([str(pattern)], BATCH_SIZE, seed=SEED)


def records_pattern(name: str, folder: Path = BEFORE / "records") -> Path:
    """Return the pattern of the training records of a row of `RECORDS`."""
    return folder / (f"{name}-*.tfrecord" if "num_shards" in RECORDS[name] else f"{name}.tfrecord")


def batches(pattern: str | Path) -> dict[str, Hashes]:
    """Read the first three training batches and all evaluation batches; returns a checksum for each feature."""
    dataset = open_records(pattern)
    read = {
        "training": [dataset.batch(step) for step in range(NUM_STEPS)],
        "evaluation": list(dataset.evaluation_batches(BATCH_SIZE)),
    }
    return {phase: _by_feature(found) for phase, found in read.items()}


def _by_feature(found: Sequence[Mapping[str, np.ndarray]]) -> Hashes:
    joined = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
    return {name: array_digest(value) for name, value in sorted(joined.items())}


def array_digest(value: np.ndarray) -> str:
    """Return a checksum of type, shape and content."""
    return digest(f"{value.dtype.str} {value.shape} ".encode() + np.ascontiguousarray(value).tobytes())


# -- losses ------------------------------------------------------------------------------------------------------------


def read_curves(run: Path, phase: str, first_step: int = 1) -> dict[str, list[float]]:
    """Return every value of `metrics.jsonl` that is no time, by name, from `first_step` on."""
    curves: dict[str, list[float]] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["phase"] == phase and record["step"] >= first_step:
            for name in record.keys() - set(_TIMES):
                curves.setdefault(name, []).append(record[name])
    return dict(sorted(curves.items()))


def losses(name: str, folder: Path, backend: str, **changes: object) -> Losses:
    """Take the steps of a row of `LOSSES`, with `changes` of its flags, in an empty folder.

    Returns what metrics.jsonl says of training and evaluation, and a checksum of the last checkpoint (weights,
    optimizer, averages) and of each file of results.
    """
    case, run = LOSSES[name], folder / "run"
    call(case.verb, {**case.flags, "backend": backend, "output_dir": run, **changes})
    state = hashlib.sha256()
    for path in sorted((run / f"checkpoints/step_{NUM_STEPS:08d}").glob("*.safetensors")):
        for key, value in sorted(load_file(path).items()):
            state.update(f"{path.name} {key} {array_digest(value)}\n".encode())
    names = ("eval_results.json", "test_results.json", "dev_predictions.tsv", "test_predictions.tsv")
    written = [run / name for name in names if (run / name).exists()]
    return {
        "training": read_curves(run, "train"),
        "evaluation": read_curves(run, "eval"),
        "state": state.hexdigest(),
        "results": {path.name: digest(path.read_bytes()) for path in written},
    }


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Loss cases that another process computes."""

    process: subprocess.Popen[bytes]
    folder: Path

    def results(self) -> dict[str, Losses]:
        """Wait for the results, by case; raises `RuntimeError` with what the process wrote if it failed."""
        code = self.process.wait()
        if code:
            raise RuntimeError((self.folder / "errors").read_text(encoding="utf-8", errors="replace"))
        return json.loads((self.folder / "output").read_text(encoding="utf-8").splitlines()[-1])


def start(
    code: Path,
    backend: str,
    names: Sequence[str],
    folder: Path,
    *,
    devices: int = 1,
    changes: Mapping[str, object] | None = None,
) -> Measurement:
    """Begin to compute loss cases in a process of its own, which writes into an empty folder."""
    # LLVM's optimizations take most of XLA's time on programs this small. TensorFlow compiles little with XLA.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1", "TMPDIR": str(folder)}
    environment |= {"XLA_FLAGS": flags} if backend == "jax" else {}
    environment.pop("KERAS_BACKEND", None)
    command = [sys.executable, "-m", "tests.identity.measure", str(code), backend, json.dumps([names, changes or {}])]
    with (folder / "output").open("wb") as output, (folder / "errors").open("wb") as errors:
        return Measurement(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=errors), folder)


def main(checkout: str, backend: str, asked: str) -> None:
    use_code(Path(checkout))
    names, changes = json.loads(asked)
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = losses(name, Path(folder), backend, **changes)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
