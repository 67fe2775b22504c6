"""Checkpoints: folders of safetensors with checksums, each complete or absent, the newest readable one wins.

    OUTPUT/checkpoints/step_00001000/{model,optimizer[,ema]}.safetensors  state.json
    OUTPUT/best/                     {model}.safetensors                  state.json

What is larger than 4 GiB comes in parts, `model-00001-of-00003.safetensors` and so on, of whole tensors each. A folder
is written under another name, synced and renamed, so that a crash leaves the former one. `state.json` holds step, seed,
the configuration of the model, what the loop remembers, and the SHA-256 of every file. Tensors are whole and named as
the model names them: nothing tells on how many devices, or by which backend, they were trained.
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
_PART_BYTES = 4 * 2**30


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
    return sorted((output_dir / "checkpoints").glob("step_*"), key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def write_checkpoint(folder: Path, checkpoint: Checkpoint, *, part_bytes: int = _PART_BYTES) -> None:
    """Write `folder`, replacing what stands there only when all is on disk; raises `OSError` that names the folder.

    A file holds `part_bytes` of tensors at most, unless one tensor alone is larger.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, replaced = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with naming(folder):
            temporary.mkdir()
            _write_files(temporary, checkpoint, part_bytes)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    temporary.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _write_files(folder: Path, checkpoint: Checkpoint, part_bytes: int) -> None:
    files = {}
    for group in _GROUPS:
        parts = _parts(checkpoint.state, f"{group}/", part_bytes)
        for number, names in enumerate(parts, 1):
            suffix = f"-{number:05d}-of-{len(parts):05d}" if len(parts) > 1 else ""
            path = folder / f"{group}{suffix}.safetensors"
            _write_tensors(path, {name: checkpoint.state[f"{group}/{name}"] for name in names})
            files[path.name] = {"sha256": _digest(path), "bytes": path.stat().st_size}
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


def _parts(state: Mapping[str, np.ndarray], prefix: str, part_bytes: int) -> list[list[str]]:
    """Return the names under `prefix`, without it, in parts of at most `part_bytes` where tensors allow it."""
    parts: list[list[str]] = []
    size = 0
    for name in (name for name in state if name.startswith(prefix)):
        size += state[name].nbytes
        if not parts or (size > part_bytes and parts[-1]):
            parts.append([])
            size = state[name].nbytes
        parts[-1].append(name.removeprefix(prefix))
    return parts


def _write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    try:
        save_file(contiguous, path, metadata={"format": "np"})
    except SafetensorError as error:
        full = "No space left" in str(error)
        code = errno.ENOSPC if full else errno.EIO
        raise OSError(code, os.strerror(code) if full else str(error)) from None
    # safetensors makes its files readable by their owner alone.
    path.chmod(0o666 & ~_umask())
    _sync(path)


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
            group = path.stem.partition("-")[0]
            state |= {f"{group}/{key}": value for key, value in load_file(path).items()}
        return Checkpoint(facts["step"], facts["seed"], facts["config"], facts["progress"], state)
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{error.filename} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CorruptCheckpointError(f"{folder} cannot be read ({error})") from None


def latest_checkpoint(output_dir: Path, *, up_to_step: int | None = None) -> Checkpoint | None:
    """Read the newest checkpoint (up to a step) that verifies, saying which were passed over; None if there are none.

    Raises `UsageError` if there are some and none can be read.
    """
    _finish_interrupted_writes(output_dir)
    folders = list_checkpoints(output_dir)
    if up_to_step is not None:
        folders = [folder for folder in folders if _step_of(folder) <= up_to_step]
    for folder in reversed(folders):
        try:
            return read_checkpoint(folder)
        except CorruptCheckpointError as error:
            print(
                f"warning: the checkpoint {folder.name} is damaged, the one before it is taken instead: {error}",
                file=sys.stderr,
                flush=True,
            )
    if folders:
        raise UsageError(
            f"none of the {len(folders)} checkpoints in {output_dir / 'checkpoints'} can be read: "
            "remove that folder to start over"
        )
    return None


def rotate(output_dir: Path, keep: int, *, spared_step: int | None = None) -> None:
    """Remove all but the newest `keep` checkpoints and that of `spared_step`; 0 keeps all."""
    for folder in list_checkpoints(output_dir)[: -keep or None] if keep else []:
        if _step_of(folder) == spared_step:
            continue
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
