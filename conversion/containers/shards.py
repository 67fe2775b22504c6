"""A checkpoint in several files with an index, as transformers writes it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from absl.app import UsageError

from conversion.containers.paddle_files import open_paddle
from conversion.containers.safetensors_files import open_safetensors, save_safetensors
from conversion.containers.torch_files import open_torch, save_torch
from conversion.lazy import Array, Tensors
from ground.documents import read_json
from ground.files import check_plain
from ground.words import few_names
from training.checkpoints import in_parts, part_name


class _IndexShape(TypedDict):
    weight_map: dict[str, str]


def open_file(path: Path) -> dict[str, Array]:
    """Return the tensors of a file, by its suffix; any unknown one is PyTorch's."""
    return {".safetensors": open_safetensors, ".pdparams": open_paddle}.get(path.suffix, open_torch)(path)


def open_index(index: Path) -> dict[str, Array]:
    """Return the tensors of all files that an index of transformers names.

    Raises `UsageError` for a file that is missing or lies elsewhere, and for a tensor that is not where the index says.
    """
    places = read_json(index, _IndexShape, what="an index of shards", fix="copy the checkpoint again")["weight_map"]
    tensors: dict[str, Array] = {}
    for file_name in sorted(set(places.values())):
        path = index.parent / file_name
        if path.parent != index.parent or file_name in ("", ".", "..") or re.search(r"[\\\x00]", file_name):
            raise UsageError(f"{index} names the file {file_name!r}; expected a file in the same folder")
        if not path.exists():
            raise UsageError(f"{index} names {file_name}, which is missing; copy all of the checkpoint's files")
        held = open_file(check_plain(path))
        named = {name for name, place in places.items() if place == file_name}
        if held.keys() != named:
            raise UsageError(
                f"{index} and {file_name} differ in {few_names(sorted(held.keys() ^ named))}; copy the checkpoint again"
            )
        tensors |= held
    return tensors


def save_in_parts(path: Path, tensors: Tensors, *, part_bytes: int, metadata: Mapping[str, str] | None = None) -> None:
    """Write a `.safetensors` or a `.bin`; where it were larger than `part_bytes`, several and an index of them."""
    parts = in_parts({name: value.nbytes for name, value in tensors.items()}, part_bytes)
    places: dict[str, str] = {}
    for number, names in enumerate(parts, 1):
        part = path.with_name(part_name(path.name, number, len(parts)))
        held = {name: tensors[name] for name in names}
        if path.suffix == ".safetensors":
            save_safetensors(part, held, dict(metadata or {}))
        else:
            save_torch(part, held)
        places |= dict.fromkeys(names, part.name)
    if len(parts) > 1:
        size = sum(value.nbytes for value in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        path.with_name(f"{path.name}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
