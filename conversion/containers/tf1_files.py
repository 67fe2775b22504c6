"""TensorFlow 1's name-based checkpoints: opened without reading numbers, written in parts that are merged on disk."""

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl.app import UsageError

from conversion.lazy import Array, LazyTensor, Tensors
from training.checkpoints import in_parts

_PART_BYTES = 1 << 29


def open_tf1(prefix: Path) -> dict[str, Array]:
    """Return the tensors of a TF 1 checkpoint; raise `UsageError` for a damaged index, on reading for damaged data."""
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(str(prefix))
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{prefix} is not a whole TF 1 checkpoint: {reason}") from None
    types = reader.get_variable_to_dtype_map()

    def reading(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            try:
                return np.asarray(reader.get_tensor(name))
            except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
                reason = str(error).partition("\n")[0]
                raise UsageError(f"cannot read {name} of {prefix}: {reason}; is {prefix}.data-* whole?") from None

        return read

    return {
        name: LazyTensor(tuple(shape), np.dtype(types[name].as_numpy_dtype), reading(name))
        for name, shape in sorted(reader.get_variable_to_shape_map().items())
    }


def save_tf1(prefix: Path, tensors: Tensors, *, part_bytes: int = _PART_BYTES) -> None:
    """Write a checkpoint of float32 tensors; no more than `part_bytes`, or one tensor, is in memory."""
    import tensorflow as tf

    parts = in_parts({name: tensors[name].nbytes for name in sorted(tensors)}, part_bytes)
    places = [Path(f"{prefix}.part{number}") for number in range(len(parts))] if len(parts) > 1 else [prefix]
    try:
        for place, names in zip(places, parts, strict=True):
            values = [tf.constant(np.asarray(tensors[name]), tf.float32) for name in names]
            tf.raw_ops.SaveV2(prefix=str(place), tensor_names=names, shape_and_slices=[""] * len(names), tensors=values)
        if len(parts) > 1:
            tf.raw_ops.MergeV2Checkpoints(
                checkpoint_prefixes=[str(place) for place in places], destination_prefix=str(prefix)
            )
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, error.message.splitlines()[0], str(prefix)) from None
