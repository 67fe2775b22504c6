"""Checkpoints: folders of safetensors with checksums, each complete or absent, the newest readable one wins.

    OUTPUT/checkpoints/step_00001000/{model,optimizer[,ema]}.safetensors  state.json
    OUTPUT/best/                     {model}.safetensors                  state.json

A folder is written under another name, synced and renamed, so that a crash leaves the former one. `state.json` holds
step, seed, the configuration of the model, what the loop remembers, and the SHA-256 of every file.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl.app import UsageError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from training.files import naming

_FORMAT = 1
_GROUPS = ("model", "optimizer", "ema")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One checkpoint in memory; `state` is named as `Engine.state` names it."""

    step: int
    seed: int
    config: Mapping[str, Any]
    progress: Mapping[str, Any]
    state: Mapping[str, np.ndarray]


class CorruptCheckpointError(Exception):
    """A checkpoint folder is incomplete or not what was written."""


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Return where the checkpoint of `step` stands."""
    return output_dir / "checkpoints" / f"step_{step:08d}"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the checkpoint folders, oldest first."""
    return sorted((output_dir / "checkpoints").glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder`, replacing what stands there only when all is on disk; raises `OSError` that names the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, replaced = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with naming(folder):
            temporary.mkdir()
            _write_files(temporary, checkpoint)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    temporary.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    files = {}
    for group in _GROUPS:
        prefix = f"{group}/"
        tensors = {
            name.removeprefix(prefix): np.ascontiguousarray(value)
            for name, value in checkpoint.state.items()
            if name.startswith(prefix)
        }
        if not tensors:
            continue
        path = folder / f"{group}.safetensors"
        try:
            save_file(tensors, path, metadata={"format": "np"})
        except SafetensorError as error:
            full = "No space left" in str(error)
            code = errno.ENOSPC if full else errno.EIO
            raise OSError(code, os.strerror(code) if full else str(error)) from None
        # safetensors makes its files readable by their owner alone.
        path.chmod(0o666 & ~_umask())
        files[path.name] = {"sha256": _digest(path), "bytes": path.stat().st_size}
        _sync(path)
    facts = {
        "format": _FORMAT,
        "step": checkpoint.step,
        "seed": checkpoint.seed,
        "config": checkpoint.config,
        "progress": checkpoint.progress,
        "files": files,
    }
    path = folder / "state.json"
    path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _sync(path)
    _sync(folder)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a folder; raises `CorruptCheckpointError` unless it is byte for byte what was written."""
    try:
        facts = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        state = {}
        for name, expected in facts["files"].items():
            path = folder / name
            if path.stat().st_size != expected["bytes"]:
                raise CorruptCheckpointError(f"{path} has {path.stat().st_size} bytes, expected {expected['bytes']}")
            if _digest(path) != expected["sha256"]:
                raise CorruptCheckpointError(f"{path} does not match its checksum")
            state |= {f"{path.stem}/{key}": value for key, value in load_file(path).items()}
        return Checkpoint(facts["step"], facts["seed"], facts["config"], facts["progress"], state)
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{error.filename} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CorruptCheckpointError(f"{folder} cannot be read ({error})") from None


def latest_checkpoint(output_dir: Path) -> Checkpoint | None:
    """Read the newest checkpoint that verifies, saying on stderr which were passed over; None if there are none.

    Raises `UsageError` if there are some and none can be read.
    """
    _finish_interrupted_writes(output_dir)
    folders = list_checkpoints(output_dir)
    for folder in reversed(folders):
        try:
            return read_checkpoint(folder)
        except CorruptCheckpointError as error:
            print(f"warning: passing over {folder.name}: {error}", file=sys.stderr, flush=True)
    if folders:
        raise UsageError(
            f"none of the {len(folders)} checkpoints in {output_dir / 'checkpoints'} can be read: "
            "remove that folder to start over"
        )
    return None


def rotate(output_dir: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; 0 keeps all."""
    for folder in list_checkpoints(output_dir)[: -keep or None] if keep else []:
        # Renamed first: what is half removed must not look like a checkpoint.
        doomed = folder.with_name(f".{folder.name}.old")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def best_of(checkpoint: Checkpoint) -> Checkpoint:
    """Return what `OUTPUT/best` keeps: the weights that were evaluated (the averaged ones, if any), no optimizer."""
    weights = {name: value for name, value in checkpoint.state.items() if name.startswith("model/")}
    averaged = {
        f"model/{name.removeprefix('ema/')}": value
        for name, value in checkpoint.state.items()
        if name.startswith("ema/")
    }
    return dataclasses.replace(checkpoint, state=weights | averaged)


def _finish_interrupted_writes(output_dir: Path) -> None:
    """Undo what a crash left: unfinished folders go; one that was set aside without its successor comes back."""
    for parent in (output_dir / "checkpoints", output_dir):
        for left in [*parent.glob(".step_*.old"), *parent.glob(".best.old")]:
            target = left.with_name(left.name.removeprefix(".").removesuffix(".old"))
            successor = left.with_name(left.name.removesuffix(".old") + ".new")
            if successor.exists() and not target.exists():
                left.rename(target)
            else:
                shutil.rmtree(left)
        for left in [*parent.glob(".step_*.new"), *parent.glob(".best.new")]:
            shutil.rmtree(left)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
