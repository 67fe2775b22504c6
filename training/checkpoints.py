"""Checkpoints: folders of safetensors with checksums, each complete or absent, the newest readable one wins.

    OUTPUT/checkpoints/step_00001000/{model,optimizer[,ema]}.safetensors  state.json
    OUTPUT/best/                     {model}.safetensors                  state.json

A group of tensors above 4 GiB is split into files of whole tensors: `model-00001-of-00003.safetensors` and so on. Where
a tensor is cut over processes, every process writes its own pieces, `model-process-00001-of-00004.safetensors`, and
reads only the pieces that its devices need. A folder is written under another name, synced and renamed, so that a crash
leaves the former one. `state.json` holds step, seed, the configuration of the model, the progress of the loop, and the
SHA-256 of every file. Tensors are named as the model names them; any number of devices, of either backend, reads them.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
from absl.app import UsageError
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from ground.documents import parse_json, read_json
from ground.files import naming
from training.processes import Processes

_FORMAT = 1
_GROUPS = ("model", "optimizer", "ema")
_PART_BYTES = 4 * 2**30


class _FileShape(TypedDict):
    bytes: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    sha256: str


class _PlaceShape(TypedDict):
    name: str
    shape: list[Annotated[int, Meta(ge=0, lt=2**48)]]
    starts: list[Annotated[int, Meta(ge=0, lt=2**48)]]


_NO_FILES = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


class _StateShape(TypedDict):
    step: Annotated[int, Meta(ge=0, lt=2**31)]
    seed: Annotated[int, Meta(ge=0)]
    config: dict[str, Any]
    progress: dict[str, Any]
    files: dict[Annotated[str, Meta(pattern=r"^[^/\\\x00]+$")], _FileShape]


@dataclasses.dataclass(frozen=True)
class RunState:
    """Everything that a checkpoint folder holds, in memory."""

    step: int
    seed: int
    config: Mapping[str, Any]
    progress: Mapping[str, Any]
    tensors: Mapping[str, Any]
    """By the names of `Engine.state`: arrays, also `Pieces` in `write_state` and `StoredTensor` from `read_state`."""


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The parts of a tensor of `shape` that one process writes: arrays by the index of their first element."""

    shape: tuple[int, ...]
    arrays: Mapping[tuple[int, ...], np.ndarray]


class StoredTensor:
    """A tensor on disk: `stored[slices]` and `np.asarray(stored)` read the files that hold it, and no more of them."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]):
        self.shape, self.dtype = shape, dtype
        self._pieces: list[tuple[tuple[int, ...], Path, str]] = []

    def add(self, starts: tuple[int, ...], path: Path, key: str) -> None:
        """Register that `key` in `path` holds the part of this tensor that begins at index `starts`."""
        self._pieces.append((starts, path, key))

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        cuts = [cut.indices(n)[:2] for cut, n in zip(index, self.shape, strict=True)]
        size, filled, whole = [end - begin for begin, end in cuts], 0, None
        for starts, path, key in self._pieces:
            with safe_open(path, framework="np") as file:
                piece = file.get_slice(key)
                if not size:
                    return file.get_tensor(key)
                here = [(start, start + n) for start, n in zip(starts, piece.get_shape(), strict=True)]
                if not math.prod(self.shape):
                    return np.empty(size, file.get_tensor(key).dtype)
                shared = [(max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(cuts, here, strict=True)]
                if any(first >= last for first, last in shared):
                    continue
                part = piece[_within(here, shared)]
                if part.shape == tuple(size):
                    return part
                whole = np.empty(size, part.dtype) if whole is None else whole
                whole[_within(cuts, shared)] = part
                filled += part.size
        if whole is None or filled != math.prod(size):
            raise ValueError("pieces of a tensor are missing")
        return whole

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[tuple(slice(0, n) for n in self.shape)], dtype)


def _type(file: Any, key: str) -> np.dtype[Any]:
    """Return the type of a tensor in an open file, from one of its numbers."""
    cut = file.get_slice(key)
    shape = cut.get_shape()
    return (cut[tuple(slice(0, 1) for _ in shape)] if math.prod(shape) > 1 else file.get_tensor(key)).dtype


def _within(outer: list[tuple[int, int]], inner: list[tuple[int, int]]) -> tuple[slice, ...]:
    return tuple(slice(first - begin, last - begin) for (begin, _), (first, last) in zip(outer, inner, strict=True))


class CorruptCheckpointError(Exception):
    """A checkpoint folder is incomplete, or differs from the bytes that were written."""


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Return the folder of the checkpoint of `step`."""
    return output_dir / "checkpoints" / f"step_{step:08d}"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the checkpoint folders, oldest first; others, such as a copy under another name, are not touched."""
    folders = (output_dir / "checkpoints").glob("step_*")
    return sorted((folder for folder in folders if _is_checkpoint(folder)), key=_step_of)


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder has the very name that `checkpoint_folder` gives."""
    digits = folder.name.removeprefix("step_")
    return digits.isascii() and digits.isdigit() and folder.name == f"step_{int(digits):08d}" and folder.is_dir()


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def write_state(
    folder: Path, saved: RunState, *, part_bytes: int = _PART_BYTES, processes: Processes | None = None
) -> None:
    """Write `folder`; a former folder of that name is replaced only when the new one is complete on disk.

    All `processes` call it together: the first writes the whole tensors, every process its own pieces. A file holds at
    most `part_bytes` of whole tensors, unless one tensor alone is larger. Raises `OSError` that names the folder.
    """
    processes = processes or Processes()
    temporary, replaced = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")

    def begin() -> None:
        if processes.writes:
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()

    def fill() -> None:
        files = _write_whole(temporary, saved.tensors, part_bytes) if processes.writes else {}
        files |= _write_cut(temporary, saved.tensors, processes)
        if processes.count > 1:
            (temporary / _listing(processes.index)).write_text(json.dumps(files), encoding="utf-8")
        else:
            written.update(files)

    def describe() -> None:
        if processes.writes:
            for path in [temporary / _listing(index) for index in range(processes.count) if processes.count > 1]:
                written.update(read_json(path, dict[str, _FileShape], what="a listing of files"))
                path.unlink()
            _write_facts(temporary, saved, written)

    def replace() -> None:
        if processes.writes:
            if folder.exists():
                shutil.rmtree(replaced, ignore_errors=True)
                folder.rename(replaced)
            temporary.rename(folder)
            _sync(folder.parent)
            shutil.rmtree(replaced, ignore_errors=True)

    written: dict[str, dict[str, Any]] = {}
    try:
        with naming(folder):
            for stage in (begin, fill, describe):
                processes.together(stage)
    except BaseException:
        if processes.writes:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    # A crash between the two renames leaves both folders; `_finish_interrupted_writes` then restores the former one.
    processes.together(replace)


def _listing(index: int) -> str:
    return f"files-{index + 1:05d}.json"


def _write_whole(folder: Path, state: Mapping[str, Any], part_bytes: int) -> dict[str, dict[str, Any]]:
    """Write the whole tensors; return checksum and size of every file by its name."""
    whole, files = {name: value for name, value in state.items() if not isinstance(value, Pieces)}, {}
    for group in _GROUPS:
        sizes = {
            name.removeprefix(f"{group}/"): value.nbytes
            for name, value in whole.items()
            if name.startswith(f"{group}/")
        }
        parts = in_parts(sizes, part_bytes)
        for number, names in enumerate(parts, 1):
            path = folder / part_name(f"{group}.safetensors", number, len(parts))
            files[path.name] = _write_tensors(path, {name: whole[f"{group}/{name}"] for name in names})
    return files


def _write_cut(folder: Path, state: Mapping[str, Any], processes: Processes) -> dict[str, dict[str, Any]]:
    """Write the `Pieces` of this process; return checksum and size of every file by its name."""
    files = {}
    for group in _GROUPS:
        cut = {
            name.removeprefix(f"{group}/"): value
            for name, value in state.items()
            if name.startswith(f"{group}/") and isinstance(value, Pieces)
        }
        arrays, places = {}, {}
        for name, value in cut.items():
            for starts, array in value.arrays.items():
                key = f"{name}[{','.join(map(str, starts))}]"
                arrays[key], places[key] = array, {"name": name, "shape": value.shape, "starts": starts}
        if arrays:
            path = folder / f"{group}-process-{processes.index + 1:05d}-of-{processes.count:05d}.safetensors"
            files[path.name] = _write_tensors(path, arrays, places)
    return files


def _write_facts(folder: Path, saved: RunState, files: Mapping[str, Any]) -> None:
    facts = {
        "format": _FORMAT,
        "step": saved.step,
        "seed": saved.seed,
        "config": saved.config,
        "progress": saved.progress,
        "files": files,
    }
    path = folder / "state.json"
    path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _sync(path)
    _sync(folder)


def part_name(name: str, number: int, count: int) -> str:
    """Return the name of a part: `model-00001-of-00003.safetensors`; `name` itself where it is the only one."""
    stem, _, suffix = name.partition(".")
    return f"{stem}-{number:05d}-of-{count:05d}.{suffix}" if count > 1 else name


def in_parts(sizes: Mapping[str, int], part_bytes: int) -> list[list[str]]:
    """Return the names of tensors of given bytes, in order, in parts of at most `part_bytes` where tensors allow it."""
    parts: list[list[str]] = []
    size = 0
    for name, bytes_here in sizes.items():
        size += bytes_here
        if not parts or (size > part_bytes and parts[-1]):
            parts.append([])
            size = bytes_here
        parts[-1].append(name)
    return parts


def _write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], places: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write a file with `places` in its header; return its checksum and size."""
    contiguous = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    try:
        save_file(contiguous, path, metadata={"format": "np"} | ({"places": json.dumps(places)} if places else {}))
    except SafetensorError as error:
        full = "No space left" in str(error)
        code = errno.ENOSPC if full else errno.EIO
        raise OSError(code, os.strerror(code) if full else str(error)) from None
    # safetensors creates files that only their owner may read; colleagues could not resume the run.
    path.chmod(0o666 & ~_umask())
    _sync(path)
    return {"sha256": _digest(path), "bytes": path.stat().st_size}


def read_state(
    folder: Path, *, groups: Collection[str] = _GROUPS, stored: bool = False, share: tuple[int, int] = (0, 1)
) -> RunState:
    """Read and verify a folder; raises `CorruptCheckpointError` unless every byte is as `write_state` wrote it.

    Args:
        folder: as `write_state` made it.
        groups: the groups of tensors to read.
        stored: leave the tensors on disk and return `StoredTensor`s.
        share: (index, count): verify only the files whose number is `index` modulo `count`; other processes verify the
            others. (-1, 1) verifies none.
    """
    try:
        facts = read_json(folder / "state.json", _StateShape, what="a state.json", nonfinite=True)
        state: dict[str, Any] = {}
        for number, (name, expected) in enumerate(facts["files"].items()):
            path, group = folder / name, name.partition(".")[0].partition("-")[0]
            if group not in groups:
                continue
            if path.stat().st_size != expected["bytes"]:
                raise CorruptCheckpointError(f"{path} has {path.stat().st_size} bytes, expected {expected['bytes']}")
            if number % share[1] == share[0] and _digest(path) != expected["sha256"]:
                raise CorruptCheckpointError(f"{path} does not match its checksum")
            with safe_open(path, framework="np") as file:
                written = (file.metadata() or {}).get("places", "{}")
                places = parse_json(written, dict[str, _PlaceShape], where=str(path), what="a list of pieces")
                if stored and not places:
                    shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
                    places = {
                        key: {"name": key, "shape": shape, "starts": [0] * len(shape)} for key, shape in shapes.items()
                    }
                types = {key: _type(file, key) for key in places}
            if not places:
                state |= {f"{group}/{key}": value for key, value in load_file(path).items()}
            for key, place in places.items():
                tensor = state.setdefault(f"{group}/{place['name']}", StoredTensor(tuple(place["shape"]), types[key]))
                tensor.add(tuple(place["starts"]), path, key)
        if not stored:
            state = {name: np.asarray(value) for name, value in state.items()}
        return RunState(facts["step"], facts["seed"], facts["config"], facts["progress"], state)
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{error.filename} is missing") from None
    except OSError as error:
        if error.errno not in _NO_FILES:
            raise  # such as a right that is missing: nothing is known of the checkpoint
        raise CorruptCheckpointError(f"{error.filename}: {error.strerror}") from None
    except UsageError as error:
        raise CorruptCheckpointError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CorruptCheckpointError(f"{folder} cannot be read ({error})") from None


def latest_state(
    output_dir: Path, *, up_to_step: int | None = None, processes: Processes | None = None, only_reads: bool = False
) -> RunState | None:
    """Read the newest checkpoint (up to a step) that verifies and warn of damaged newer ones; None if there are none.

    All `processes` call it together and get the same checkpoint. Each verifies a share of its files; several processes
    get `StoredTensor`s, of which each reads only its part. Raises `UsageError` if no checkpoint can be read.
    """
    processes = processes or Processes()
    if processes.writes and not only_reads:
        _finish_interrupted_writes(output_dir)
    processes.largest(0)
    folders = list_checkpoints(output_dir)
    if up_to_step is not None:
        folders = [folder for folder in folders if _step_of(folder) <= up_to_step]
    for folder in reversed(folders):
        found, damage = None, ""
        try:
            found = read_state(folder, stored=processes.count > 1, share=(processes.index, processes.count))
        except CorruptCheckpointError as error:
            damage = str(error)
        damages = [text for text in processes.texts(damage) if text]
        if not damages:
            return found
        if processes.writes:
            print(
                f"warning: the checkpoint {folder.name} is damaged, the one before it is taken instead: {damages[0]}",
                file=sys.stderr,
                flush=True,
            )
    if folders:
        raise none_is_whole(folders)
    return None


def none_is_whole(folders: Sequence[Path]) -> UsageError:
    """Return the error for checkpoints that are all damaged."""
    return UsageError(
        f"none of the {len(folders)} checkpoints in {folders[0].parent} can be read: remove that folder to start over"
    )


def rotate(output_dir: Path, keep: int, *, spared_step: int | None = None) -> None:
    """Remove all but the newest `keep` checkpoints and that of `spared_step`; 0 keeps all."""
    for folder in list_checkpoints(output_dir)[: -keep or None] if keep else []:
        if _step_of(folder) == spared_step:
            continue
        # Renamed first: a half-removed folder under its own name would be read as a damaged checkpoint.
        doomed = folder.with_name(f".{folder.name}.old")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def best_of(saved: RunState) -> RunState:
    """Return the state for `OUTPUT/best`: the evaluated weights (the averaged ones, if any) without the optimizer."""
    weights = {name: value for name, value in saved.tensors.items() if name.startswith("model/")}
    averaged = {
        f"model/{name.removeprefix('ema/')}": value for name, value in saved.tensors.items() if name.startswith("ema/")
    }
    return dataclasses.replace(saved, tensors=weights | averaged)


def _finish_interrupted_writes(output_dir: Path) -> None:
    """Remove the unfinished folders of a crash; restore a folder that was set aside without a successor in place."""
    for parent in (output_dir / "checkpoints", output_dir):
        ours = r"\.step_\d{8,}\.(new|old)" if parent.name == "checkpoints" else r"\.best\.(new|old)"
        unfinished = [left for left in parent.glob(".*") if re.fullmatch(ours, left.name) and left.is_dir()]
        for left in (left for left in unfinished if left.suffix == ".old"):
            target = left.with_name(left.name.removeprefix(".").removesuffix(".old"))
            if left.with_suffix(".new") in unfinished and not target.exists():
                left.rename(target)
            else:
                shutil.rmtree(left)
        for left in (left for left in unfinished if left.suffix == ".new"):
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
