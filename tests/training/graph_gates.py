"""What TensorFlow's graphs have to be for a TPU, traced without one: a program that prints JSON.

The TPU strategy is the real one on a made-up system: its computation is traced in full, never run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import numpy as np
import tensorflow as tf
from engine_cases import CONFIG, make_engine, pretraining_batches, pretraining_task
from toy_task import ToyDataset, ToyTask

from modeling import Computation, Config
from tasks.classification import ClassificationTask
from tasks.pretraining import PretrainingTask
from training.tensorflow_engine import TensorFlowEngine

CORES = 4


class MadeUpSystem(tf.distribute.cluster_resolver.TPUClusterResolver):
    """Tells of cores that are not there."""

    def __init__(self) -> None:
        """Asks nobody."""

    def get_tpu_system_metadata(self) -> Any:
        host = "/job:localhost/replica:0/task:0/device"
        devices = [tf.config.LogicalDevice(f"{host}:TPU:{core}", "TPU") for core in range(CORES)]
        return tf.tpu.experimental.TPUSystemMetadata(CORES, 1, CORES, None, devices)


def tpu_strategy() -> tf.distribute.Strategy:
    cpus = [tf.config.LogicalDeviceConfiguration()] * CORES
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], cpus)
    strategy = tf.distribute.TPUStrategy(MadeUpSystem())
    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    strategy.extended._tpu_devices = np.array([[name] for name in names], dtype=object)
    return strategy


def traced(strategy: tf.distribute.Strategy, **arguments: Any) -> tuple[TensorFlowEngine, Any]:
    """The graph of a train step of the model, or of several."""
    steps = arguments.get("steps_per_call", 1)
    engine = make_engine(pretraining_task(dropout=0.1), strategy=strategy, ema_decay=0.9, **arguments)
    assert isinstance(engine, TensorFlowEngine)
    (batch,) = pretraining_batches(0, 1)
    first = tf.constant(0, tf.int64)
    if steps == 1:
        return engine, engine._train_step.get_concrete_function(engine._spread(batch), first).graph
    stack = engine._spread({name: np.stack([x] * steps) for name, x in batch.items()}, axis=1)
    return engine, engine._train_step.get_concrete_function(stack, first, tf.constant(steps)).graph


def operations(graph: Any) -> Iterator[tuple[str, list[int]]]:
    """Type and data types of every operation of a graph and of the functions it calls."""
    definition = graph.as_graph_def()
    for node in [*definition.node, *(node for function in definition.library.function for node in function.node_def)]:
        yield node.op, [value.type for value in node.attr.values() if value.type]


def ancestors(operation: Any) -> set[str]:
    found, waiting = set(), [operation]
    while waiting:
        for tensor in waiting.pop().inputs:
            if tensor.op.name not in found:
                found.add(tensor.op.name)
                waiting.append(tensor.op)
    return found


def tpu() -> dict[str, Any]:
    strategy = tpu_strategy()
    engine, graph = traced(strategy, micro_batches=2)
    sums = [op.name for op in graph.get_operations() if op.type == "CrossReplicaSum"]
    # The norm by which gradients are clipped is the root that is asked whether it is finite.
    norms = [op.inputs[0].op for op in graph.get_operations() if op.type == "IsFinite"]
    (norm,) = [op for op in norms if op.type == "Sqrt"]
    upstream = ancestors(norm)
    scales = [op for op in graph.get_operations() if op.type == "CrossReplicaSum" and norm.name in ancestors(op)]
    _, several = traced(strategy, steps_per_call=3)
    found = [operations(graph), operations(several)]
    types = [[*each] for each in found]
    return {
        "trained": len(engine._trained),
        "normalizers": len(pretraining_task().loss_weights),
        "sums": len(sums),
        "before_clipping": sum(name in upstream for name in sums),
        "after_clipping": len(scales),
        "replicates": [sum(op == "TPUReplicateMetadata" for op, _ in each) for each in types],
        "sums_in_a_loop": sum(op == "CrossReplicaSum" for op, _ in types[1]),
        "types": sorted({op for each in types for op, _ in each}),
        "strings": sorted({op for each in types for op, kinds in each if tf.string.as_datatype_enum in kinds}),
    }


def batch_of(task: Any) -> dict[str, np.ndarray]:
    (batch,) = pretraining_batches(0, 1)
    if isinstance(task, ClassificationTask):
        return {"label_ids": batch["next_sentence_labels"][:, 0], **{k: batch[k] for k in list(batch)[:3]}}
    return {**batch, **{f"word_order_{k}": batch[f"masked_lm_{k}"] for k in ("positions", "ids", "weights")}}


def compiled() -> dict[str, str]:
    """The program of a whole train step of each model, and of several steps, for XLA, which takes no host operation."""
    tasks = {
        "albert": pretraining_task(dropout=0.1),
        "structbert": PretrainingTask(
            Config(family="bert", **CONFIG),
            "structbert",
            weights={"word_order": 1.0},
            computation=Computation(remat=True),
        ),
        "classifier": ClassificationTask(Config(family="albert", sharing="all", embedding_size=4, **CONFIG), 3),
    }
    programs = {}
    for name, task in tasks.items():
        engine = make_engine(task, micro_batches=2, ema_decay=0.9)
        assert isinstance(engine, TensorFlowEngine)
        step = tf.function(engine._replica_step, jit_compile=True, autograph=False)
        batch = {key: tf.constant(x) for key, x in batch_of(task).items()}
        lower = step.experimental_get_compiler_ir(batch, tf.constant(0, tf.int64))
        programs[name] = lower(stage="stablehlo")
    engine = make_engine(ToyTask(0.1), steps_per_call=3)
    assert isinstance(engine, TensorFlowEngine)
    steps = tf.function(engine._loop_of_replica, jit_compile=True, autograph=False)
    stack = {key: tf.constant(np.stack([x] * 3)) for key, x in ToyDataset().batch(0).items()}
    lower = steps.experimental_get_compiler_ir(stack, tf.constant(0, tf.int64), tf.constant(2))
    return programs | {"several steps": lower(stage="stablehlo")}


def found(case: str) -> Any:
    """Run a case in a process of its own."""
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2", "TPU_SKIP_MDS_QUERY": "1"}
    command = [sys.executable, "-W", "error", __file__, case]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
