"""PyTorch's files: opened without running what they may carry, mapped rather than read, written by way of a spool.

A pickle may hold tensors and, beside them, objects of a few known classes, which are replaced by one that does nothing.
"""

from __future__ import annotations

import collections
import errno
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from conversion.lazy import Array, LazyTensor

if TYPE_CHECKING:
    import torch

# A view may show a number many times: a table of zeros, and not a hundred thousand times what is stored.
_SMALL_BYTES = 1 << 26
# Of a mapped file every page that was read counts as memory of the process until the file is opened again.
_MAPPED_BYTES = 1 << 28
_EXPECTED = "expected names and tensors, as torch.save(model.state_dict(), FILE) writes them"
_WRAPPERS = ("module", "model", "state_dict", "model_state_dict")
"""Keys under which DeepSpeed, PreSumm and fairseq, and trainers keep the tensors, beside their own state."""
_INERT = (
    "argparse.Namespace",
    "models.optimizers.Optimizer",
    "models.optimizers.MultipleOptimizer",
    "torch.optim.adam.Adam",
    "collections.defaultdict",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
)
"""Classes that published files hold beside their tensors: read as an object that does nothing."""


def open_torch(path: Path) -> dict[str, Array]:
    """Return the tensors of a PyTorch file, whose pickle may hold nothing that runs; raise `UsageError` for another.

    Files of PyTorch before 1.6 are no zip archives and are held in memory as a whole.
    """
    return _TorchFile(path).tensors()


class _TorchFile:
    """A state dict, mapped into memory and mapped anew after every 256 MiB that were read."""

    def __init__(self, path: Path) -> None:
        self._path, self._state, self._read_bytes = path, None, 0

    def tensors(self) -> dict[str, Array]:
        return {
            name: LazyTensor(tuple(value.shape), _numpy_type(value), self._reader(name))
            for name, value in self._named().items()
        }

    def _reader(self, name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            value = self._named()[name]
            self._read_bytes += value.nbytes
            # A copy, since the mapping may end before the array does.
            return (value.float() if value.is_floating_point() else value).detach().clone().numpy()

        return read

    def _named(self) -> dict[str, torch.Tensor]:
        if self._state is None or self._read_bytes > _MAPPED_BYTES:
            self._state, self._read_bytes = None, 0
            self._state = _checked(self._path, _unwrapped(self._path, _load(self._path)))
        return self._state


def _numpy_type(value: torch.Tensor) -> np.dtype[Any]:
    """Return the type in which the reader gives the numbers."""
    if value.is_floating_point():
        return np.dtype(np.float32)
    return np.dtype(str(value.dtype).removeprefix("torch."))


def _load(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UsageError(f"reading {path} needs PyTorch: pip install torch, or pass a .safetensors file") from None
    import pickle
    import warnings
    import zipfile

    # torch raises OSError for a damaged file too; opening it first keeps a missing permission from reading as damage.
    path.open("rb").close()
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_inert_classes()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # On damaged bytes PyTorch's unpickler raises whatever its parts do: struct.error, AssertionError, RecursionError.
    except Exception as error:
        reason = f"is not a PyTorch state dict: {str(error).partition(chr(10))[0][:200]}"
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
            # PyTorch's own message advises to load the file anyway, which would run its code.
            reason = "holds objects besides tensors, which could run code, or is damaged"
        raise UsageError(f"{path} {reason}; {_EXPECTED}") from None


def _inert_classes() -> list[Any]:
    """Return a class that does nothing for each name of `_INERT`, in the form that PyTorch's unpickler takes."""
    return [(type(name.rpartition(".")[2], (_Inert,), {}), name) for name in _INERT]


class _Inert(collections.UserDict[Any, Any]):
    """What stands for an object of a file: it takes any state and does nothing with it."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


def _unwrapped(path: Path, state: Any) -> Any:
    """Return the dictionary of tensors inside of a trainer's."""
    import torch

    while isinstance(state, dict) and not any(isinstance(value, torch.Tensor) for value in state.values()):
        inner = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, dict):
        raise UsageError(f"{path} holds a {type(state).__name__}; {_EXPECTED}")
    return state


def _checked(path: Path, state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """Return the dense tensors of a state dict; raise `UsageError` for other keys and for tensors of other kinds."""
    import torch

    tensors = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise UsageError(f"{path} has the key {str(name)[:40]}, which is no name; {_EXPECTED}")
        if not isinstance(value, torch.Tensor):
            continue
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            kind = f"{value.dtype} tensor of layout {value.layout}"
            raise UsageError(f"{path}: {name} is a {kind}; expected a dense one of real numbers")
        if value.nbytes > max(_SMALL_BYTES, value.untyped_storage().nbytes()):
            shape = " x ".join(map(str, value.shape))
            raise UsageError(f"{path}: {name} has the shape {shape}, of far more numbers than are stored; {_EXPECTED}")
        tensors[name] = value
    return tensors


def save_torch(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state dict, or a dictionary with one in it, to `path`; raise `UsageError` where PyTorch is absent.

    Tensors go through a file beside `path`, from which PyTorch reads them as it writes: it knows no other way to write
    a dictionary that does not fit into memory.
    """
    try:
        import torch
    except ImportError:
        raise UsageError(f"writing {path.name} needs PyTorch: pip install torch, or leave it out") from None
    spool = path.with_name(f".{path.name}.spool")
    try:
        with spool.open("wb") as stream:
            mapped = _spooled(state, spool, stream)
        try:
            torch.save(_as_torch(mapped), path)
        except RuntimeError as error:
            full = shutil.disk_usage(path.parent).free < spool.stat().st_size
            code = errno.ENOSPC if full else errno.EIO
            raise OSError(code, str(error).partition("\n")[0], str(path)) from None
    finally:
        spool.unlink(missing_ok=True)


def _spooled(state: Mapping[str, Any], spool: Path, stream: IO[bytes]) -> dict[str, Any]:
    """Write the tensors of a dictionary to `stream`; return the dictionary with arrays that are mapped from `spool`."""
    mapped: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            mapped[name] = _spooled(value, spool, stream)
        elif isinstance(value, Array):
            offset = stream.tell()
            stream.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
            stream.flush()
            # Copied on writing: PyTorch warns of tensors that cannot be written to.
            mapped[name] = (
                np.memmap(spool, value.dtype, "c", offset, value.shape) if value.size else np.empty(value.shape)
            )
        else:
            mapped[name] = value
    return mapped


def _as_torch(state: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    return {
        name: _as_torch(value)
        if isinstance(value, Mapping)
        else torch.from_numpy(value)
        if isinstance(value, np.ndarray)
        else value
        for name, value in state.items()
    }
