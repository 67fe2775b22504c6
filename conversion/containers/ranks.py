"""PLUG's release: a file of weights for each process of Megatron's model parallelism, merged and cut by the rules.

A rule says along which axis its tensor is cut (`Rule.cut_axis`). Where a tensor joins several, as a fused query, key
and value, each of them is cut, and a process holds its share of each. Differs from SOFA's `ModelPreparationWrapper`,
which takes the encoder's fused projections from the first process alone: here both directions are exact.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl.app import UsageError

from conversion.containers.shards import open_file
from conversion.lazy import Array, LazyTensor, Tensors, derived
from conversion.rules import Rule
from ground.files import check_plain
from ground.words import few_names

_FILE = re.compile(r"mp_rank_(\d+)_model_states\.(pt|safetensors)")


def rank_file(rank: int, suffix: str = "pt") -> str:
    """Return the name that DeepSpeed gives to the file of a process."""
    return f"mp_rank_{rank:02d}_model_states.{suffix}"


def open_ranks(folder: Path) -> list[dict[str, Array]]:
    """Return the tensors of every process, in order; raise `UsageError` where one is missing or has other names."""
    paths: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = _FILE.fullmatch(path.name)
        if match is not None:
            if int(match[1]) in paths:
                raise UsageError(f"{folder} has two files of process {int(match[1])}; keep one")
            paths[int(match[1])] = path
    missing = sorted(set(range(max(paths) + 1)) - paths.keys())
    if missing:
        raise UsageError(f"{folder} lacks {rank_file(missing[0])}; copy the files of all {max(paths) + 1} processes")
    ranks = [open_file(check_plain(paths[rank])) for rank in sorted(paths)]
    for rank, tensors in enumerate(ranks):
        differing = tensors.keys() ^ ranks[0].keys()
        if differing:
            raise UsageError(
                f"{paths[rank]} and {paths[0]} differ in {few_names(sorted(differing))}; they are of different models"
            )
    return ranks


def merged(ranks: Sequence[Tensors], cuts: Mapping[str, tuple[int | None, int]], where: Path) -> dict[str, Array]:
    """Return whole tensors under the names that the processes' have.

    Args:
        ranks: the tensors of every process.
        cuts: name -> (axis along which it is cut, number of tensors that it joins); another name is whole everywhere.
        where: the folder, for messages.

    Raises `UsageError` for shapes that do not go together; on reading, for tensors that are not the same everywhere and
    should be.
    """
    return {name: _merged([rank[name] for rank in ranks], *cuts.get(name, (None, 1)), name, where) for name in ranks[0]}


def _merged(parts: Sequence[Array], axis: int | None, joined: int, name: str, where: Path) -> LazyTensor:
    shape = parts[0].shape
    if any(part.shape != shape for part in parts):
        raise UsageError(f"{name} of {where} has shapes {sorted({part.shape for part in parts})}; expected one shape")
    if axis is None:
        return LazyTensor(shape, parts[0].dtype, lambda: _only(parts, name, where))
    if len(shape) <= axis or shape[axis] % joined:
        raise UsageError(f"{name} of {where} has the shape {list(shape)}, which cannot be cut in {joined} equal parts")
    whole = (*shape[:axis], shape[axis] * len(parts), *shape[axis + 1 :])
    return derived(whole, lambda *arrays: merge(arrays, axis, joined), *parts)


def merge(parts: Sequence[np.ndarray], axis: int, joined: int) -> np.ndarray:
    """Return the whole of the `parts` of processes, each of which holds its share of `joined` tensors.

    Two processes with [q1 k1 v1] and [q2 k2 v2] give [q1 q2 k1 k2 v1 v2].
    """
    shares = [np.split(part, joined, axis=axis) for part in parts]
    return np.concatenate([share[i] for i in range(joined) for share in shares], axis=axis)


def cut(value: Array, rule: Rule, count: int, rank: int, name: str) -> Array:
    """Return the share of process `rank` of `count`; raise `UsageError` where the tensor has no equal shares."""
    axis, joined = rule.cut_axis, len(rule.ours)
    if axis is None:
        return value
    size = value.shape[axis]
    if size % (joined * count):
        raise UsageError(f"{name} has the shape {list(value.shape)}, which {count} processes cannot share equally")
    shape = (*value.shape[:axis], size // count, *value.shape[axis + 1 :])

    def share(array: np.ndarray) -> np.ndarray:
        parts = [np.split(part, count, axis=axis)[rank] for part in np.split(array, joined, axis=axis)]
        return np.ascontiguousarray(np.concatenate(parts, axis=axis))

    return derived(shape, share, value)


def _only(parts: Sequence[Array], name: str, where: Path) -> np.ndarray:
    value = np.asarray(parts[0])
    for rank, part in enumerate(parts[1:], 1):
        if not np.array_equal(value, np.asarray(part), equal_nan=True):
            raise UsageError(f"{name} of {where} differs between processes 0 and {rank}: they are of different models")
    return value
