"""Flags of PaddleNLP's and transformers' scripts that have no place of their own here: taken, and said in one line.

    --fp16 --device=gpu --remove_unused_columns False

A flag becomes others, or means nothing here; what would mean something else than asked for is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from absl.app import UsageError

from commands.flags import Foreign

_TRUE, _FALSE = ("true", "t", "1", "yes"), ("false", "f", "0", "no")


def _is_true(name: str, value: str) -> bool:
    if value.lower() not in (*_TRUE, *_FALSE):
        raise UsageError(f"--{name}={value}: expected true or false")
    return value.lower() in _TRUE


def _precision(name: str, precision: str) -> Callable[[str], Sequence[str]]:
    return lambda value: [f"--precision={precision}"] if _is_true(name, value) else []


def _device(value: str) -> Sequence[str]:
    """Leave accelerators out for "cpu", before anything looks for them."""
    kind = value.partition(":")[0]
    if kind not in ("cpu", "gpu"):
        raise UsageError(
            f"--device={value}: expected gpu or cpu; a TPU is --use_tpu, and there is no backend here for others"
        )
    if kind == "cpu":
        os.environ.update({"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"})
    return []


def _only(name: str, *known: str) -> Callable[[str], Sequence[str]]:
    """Return what refuses any other value than the ones that say what is done anyway."""

    def check(value: str) -> Sequence[str]:
        if value.lower() not in known:
            raise UsageError(f"--{name}={value}: expected {' or '.join(known)}, or leave it out")
        return []

    return check


FOREIGN: Mapping[str, Foreign] = {
    "fp16": Foreign("true is --precision=float16", _precision("fp16", "float16")),
    "bf16": Foreign("true is --precision=bfloat16", _precision("bf16", "bfloat16")),
    "fp16_opt_level": Foreign("with --precision=float16 weights stay float32, as at O1", _only("fp16_opt_level", "o1")),
    "scale_loss": Foreign("with --precision=float16 the scale of the loss begins at 32768 and finds itself"),
    "device": Foreign("the GPU is used where there is one, unless this is cpu", _device),
    "use_test_data": Foreign("is said by --test_data_path alone", _only("use_test_data", "true")),
    "save_total_limit": Foreign("is --keep_checkpoint_max", lambda value: [f"--keep_checkpoint_max={value}"]),
    "remove_unused_columns": Foreign("means nothing here, only the columns of the task's row are read"),
    "disable_tqdm": Foreign("means nothing here, --log_steps says how often a line is written"),
    "dataloader_num_workers": Foreign("means nothing here, batches are made ahead of the step"),
    "evaluation_strategy": Foreign("is always by steps, see --eval_steps", _only("evaluation_strategy", "steps")),
    "save_strategy": Foreign("is always by steps, see --save_checkpoints_steps", _only("save_strategy", "steps")),
    "logging_strategy": Foreign("is always by steps, see --log_steps", _only("logging_strategy", "steps")),
    "lr_scheduler_type": Foreign("is always linear after the warmup", _only("lr_scheduler_type", "linear")),
    "greater_is_better": Foreign("means nothing here, the metric tells it"),
}
