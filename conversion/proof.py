"""The proof of a conversion: what was written is read back bit for bit, and two programs give the same outputs.

The other program is transformers: on the folder that was read, where that is one of its own, else on what was written,
else on a passing copy in its format.
"""

import contextlib
import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl.app import UsageError

from conversion.readers import Checkpoint, read_checkpoint, same_numbers
from conversion.writers import Written, write_transformers
from ground.memory import total_memory

_MODELS_IN_MEMORY = 3  # ours, theirs, and one while it is being loaded
_GIBI = 2**30


def read_back(written: Written) -> dict[str, float]:
    """Return the largest difference of all tensors from what was meant to be written; infinite for a lost one.

    Equal tensors, which all should be, are never in memory together.
    """
    again = read_checkpoint(written.directory, config=written.config).tensors
    largest = 0.0 if again.keys() == written.tensors.keys() else float("inf")
    for name, value in written.tensors.items():
        if name not in again or again[name].shape != value.shape:
            return {"tensors read back": float("inf")}
        if not same_numbers(again[name], value):
            gap = np.abs(np.asarray(again[name]) - np.asarray(value))
            largest = max(largest, float(np.max(gap, initial=0.0)))
    return {"tensors read back": largest}


def compare_outputs(checkpoint: Checkpoint, written: Written | None) -> tuple[dict[str, float], str]:
    """Return the largest difference per output on random input, and what was compared, or why nothing was.

    Args:
        checkpoint: what was read; our model computes with it.
        written: what was made of it; None where nothing was.
    """
    reason = _obstacle(checkpoint)
    if reason:
        return {}, f"outputs not compared: {reason}"
    from conversion.parity import largest_differences

    if checkpoint.source_format.startswith("transformers") and _is_whole_folder(checkpoint):
        # A folder with transformers' names may have a config.json that only another code knows, as StructBERT's.
        with contextlib.suppress(OSError, ValueError, KeyError):
            return largest_differences(checkpoint, checkpoint.folder), "transformers on the folder that was read"
    if written is not None and written.naming.startswith("transformers"):
        return largest_differences(checkpoint, written.directory), "transformers on the folder that was written"
    assert checkpoint.config is not None
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "copy"
        try:
            write_transformers(copy, checkpoint.config, checkpoint.tensors)
        except UsageError as error:
            return {}, f"outputs not compared: {error}"
        return largest_differences(checkpoint, copy), "transformers on a copy in its format"


def _is_whole_folder(checkpoint: Checkpoint) -> bool:
    """Return whether transformers can open the folder that was read, rather than one file in it."""
    names = ("model.safetensors", "pytorch_model.bin")
    files = {*names, *(f"{name}.index.json" for name in names)}
    return checkpoint.path.name in files and (checkpoint.folder / "config.json").is_file()


def _obstacle(checkpoint: Checkpoint) -> str:
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return "that needs torch and transformers (pip install torch transformers)"
    size, memory = sum(value.nbytes for value in checkpoint.tensors.values()), total_memory()
    if memory and _MODELS_IN_MEMORY * size > memory:
        return (
            f"two models of {size / _GIBI:.1f} GiB and one on its way need {_MODELS_IN_MEMORY * size / _GIBI:.1f} GiB, "
            f"and this machine has {memory / _GIBI:.1f}"
        )
    return ""


def all_equal(differences: Mapping[str, float], tolerance: float) -> bool:
    """Return whether every difference is at most the tolerance; one that is no number is not."""
    return all(value <= tolerance for value in differences.values())
