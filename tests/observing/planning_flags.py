"""The flags of plan_training.py: the tables that it prints, and the step that it would have compiled."""

from __future__ import annotations

import concurrent.futures
import math
import os
import types
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from observing.rows import DIFFERENT, Notes, Row, Verb, file_content, stand_in

import ground.tables
import modeling
import plan_training
from training import planning

MACHINE = "NVIDIA H100"
TABLE = {"table": DIFFERENT}
COMPILES = {"compile": "true"}
SLICE = {"device": "", "topology": "v4:2x2x1"}


class Here:
    """An executor that calls in this process."""

    def __init__(self, *arguments: object, **further: object):
        pass

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done


def without_compiler(patch: pytest.MonkeyPatch, notes: Notes, machine: str) -> None:
    """Note tables as rows, and what would be compiled; JAX is not imported."""
    for name in ("KERAS_BACKEND", "JAX_PLATFORMS"):
        patch.setenv(name, os.environ.get(name, ""))

    def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        notes.add("table", {row[0]: row[1] for row in rows})

    def compile_step(step: Any, batch: Mapping[str, Any], capacity_bytes: float) -> planning.Compiled:
        notes.add("compiled", {**step, "batch": batch, "capacity": capacity_bytes})
        return planning.Compiled(2.0**30, {"weights": 2.0**29})

    def step(task: Any, optimizer: Any, model: Any, placement: Any, **arguments: Any) -> Mapping[str, Any]:
        optimizer = {"rule": optimizer.rule, "weight_decay": optimizer.weight_decay}
        return {"task": task, "optimizer": optimizer, "placement": placement, **arguments}

    def placement(devices: Sequence[Any], **arguments: Any) -> Mapping[str, Any]:
        return {"devices": len(devices), **arguments}

    device = types.SimpleNamespace(platform="gpu", device_kind=MACHINE)
    stand_in(patch, "jax", devices=lambda: [device] * 8, ShapeDtypeStruct=lambda shape, dtype: f"{dtype} {list(shape)}")
    stand_in(patch, "training.jax_step", JaxStep=step)
    stand_in(patch, "training.placement", create_placement=placement)
    patch.setattr(ground.tables, "print_table", print_table)
    patch.setattr(concurrent.futures, "ProcessPoolExecutor", Here)
    patch.setattr(planning, "prepare_environment", lambda: None)
    patch.setattr(planning, "limit_memory", lambda: None)
    patch.setattr(
        planning, "topology_devices", lambda topology: [device] * math.prod(planning.parse_topology(topology)[1])
    )
    patch.setattr(planning, "compile_step", compile_step)
    patch.setattr(modeling, "declared", lambda build: None)


VERB = Verb(
    plan_training,
    {"bert_config_file": "{world}/config.json", "device": "h100", "max_seq_length": "64", "train_batch_size": "8"},
    (
        Row("bert_config_file", "{world}/wide.json", TABLE),
        Row("topology", "v4:2x2x2", {"table": DIFFERENT, "compiled/placement/devices": 8}, SLICE),
        Row("device", "l4", TABLE),
        Row("num_devices", "2", TABLE),
        Row("compile", "true", {"compiled": DIFFERENT, "table/peak by XLA's own analysis": DIFFERENT}),
        Row("find_batch", "true", TABLE),
        Row("objective", "bert", {"compiled/task": DIFFERENT}, COMPILES),
        Row("max_seq_length", "32", TABLE),
        Row("max_predictions_per_seq", "3", TABLE),
        Row("max_word_order_per_seq", "3", {"table": DIFFERENT, "compiled": DIFFERENT}, COMPILES),
        Row(
            "max_target_length",
            "9",
            {
                "table": DIFFERENT,
                "compiled/batch/target_ids": "int32 [8, 10]",
                "compiled/batch/target_mask": "int32 [8, 10]",
            },
            {**COMPILES, "objective": "palm", "bert_config_file": "{world}/decodes.json"},
        ),
        Row("train_batch_size", "16", TABLE),
        Row("gradient_accumulation_steps", "2", {"table": DIFFERENT, "compiled/micro_batches": 2}, COMPILES),
        Row("optimizer", "adamw", {"compiled/optimizer": DIFFERENT, "compiled/optimizer/rule/is": "AdamW"}, COMPILES),
        Row("ema_decay", "0.9", {"table": DIFFERENT, "compiled/ema_decay": 0.9}, COMPILES),
        Row("precision", "float32", {"table": DIFFERENT, "compiled/task/computation/dtype": "float32"}, COMPILES),
        Row("remat", "true", {"table": DIFFERENT, "compiled/task/computation/remat": True}, COMPILES),
        Row("scan_layers", "true", {"table": DIFFERENT, "compiled/task/computation/scan": True}, COMPILES),
        Row(
            "model_parallel",
            "2",
            {"table": DIFFERENT, "compiled/placement/model_parallel": 2},
            {**COMPILES, "num_devices": "2"},
        ),
        Row("fsdp", "true", {"table": DIFFERENT, "compiled/placement/fsdp": True}, {**COMPILES, "num_devices": "2"}),
    ),
    without_compiler,
    file_content,
)
