"""The devices of TensorFlow as a `tf.distribute` strategy, and the agreement of its processes."""

from __future__ import annotations

import os
from typing import TypedDict

import numpy as np
import tensorflow as tf
from absl.app import UsageError
from tensorflow.python.framework.kernels import get_registered_kernels_for_op

from ground.documents import parse_json
from training.processes import Processes


class _Task(TypedDict, total=False):
    type: str
    index: int | str


class _TfConfig(TypedDict, total=False):
    cluster: dict[str, list[str]] | None
    task: _Task | None


def choose_strategy(
    *,
    use_tpu: bool = False,
    tpu_name: str | None = None,
    tpu_zone: str | None = None,
    gcp_project: str | None = None,
    num_tpu_cores: int | None = None,
) -> tf.distribute.Strategy | None:
    """Return the strategy for a TPU, for the workers of TF_CONFIG or for several GPUs; None for one device.

    Call it before TensorFlow computes anything, in every process of the run.

    Raises:
        UsageError: this TensorFlow has no TPU runtime, no TPU answers, or TF_CONFIG is not understood.
    """
    if use_tpu:
        return _tpu_strategy(tpu_name or "local", tpu_zone, gcp_project, num_tpu_cores)
    if _workers_of_tf_config() > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.MirroredStrategy() if len(tf.config.list_physical_devices("GPU")) > 1 else None


def _tpu_strategy(
    name: str, zone: str | None, project: str | None, num_tpu_cores: int | None
) -> tf.distribute.Strategy:
    if not get_registered_kernels_for_op("ConfigureDistributedTPU").kernel:
        raise UsageError(
            f"--use_tpu=True: TensorFlow {tf.__version__} has no TPU runtime: give --backend=jax, or install "
            "tensorflow-tpu 2.20.0 in its place"
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name, zone=zone, project=project)
        # In this order and before anything is computed, or the TPU system fails to initialise.
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise UsageError(
            f"--tpu_name={name}: no TPU answers ({' '.join(str(error).split())[:200]}): give the name or grpc address "
            "of a TPU that runs, or --backend=jax on the TPU VM itself"
        ) from None
    strategy = tf.distribute.TPUStrategy(resolver)
    if num_tpu_cores not in (None, strategy.num_replicas_in_sync):
        raise UsageError(
            f"--num_tpu_cores={num_tpu_cores} but {name} has {strategy.num_replicas_in_sync}: leave it out to use all"
        )
    return strategy


def _workers_of_tf_config() -> int:
    """Return how many processes TF_CONFIG names; 0 without it."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return 0
    example = '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'
    try:
        described = parse_json(text, _TfConfig, where="TF_CONFIG", what="JSON")
        cluster, task = described.get("cluster") or {}, described.get("task") or {}
        counts = {job: len(addresses) for job, addresses in cluster.items()}
        inside = not counts or 0 <= int(task["index"]) < counts[task["type"]]
    except (UsageError, ValueError, KeyError):
        raise UsageError(f"TF_CONFIG={text:.200}: expected {example}") from None
    if not inside:
        raise UsageError(f"TF_CONFIG={text}: the task is none of the cluster's; expected {example}")
    if further := set(counts) - {"chief", "worker"}:
        raise UsageError(f"TF_CONFIG names {', '.join(sorted(further))}; expected the jobs worker and, perhaps, chief")
    return sum(counts.values())


class TensorFlowProcesses(Processes):
    """The workers of a `MultiWorkerMirroredStrategy`; a chief, if there is one, is the first."""

    def __init__(self, strategy: tf.distribute.Strategy):
        resolver = strategy.cluster_resolver
        cluster = resolver.cluster_spec().as_dict()
        chiefs = len(cluster.get("chief", ()))
        self.index = resolver.task_id + (chiefs if resolver.task_type == "worker" else 0)
        self.count = chiefs + len(cluster.get("worker", ()))
        self._strategy = strategy
        self._gather = tf.function(self._gathered, autograph=False)

    def largest(self, number: int) -> int:
        return int(self._rows(np.array([number])).max())

    def texts(self, text: str) -> list[str]:
        rows = self._rows(self.as_bytes(text)).astype(np.uint8)
        return [self.as_text(row) for row in rows]

    def _rows(self, row: np.ndarray) -> np.ndarray:
        """Return the rows that the processes give, in their order."""
        of_replicas = self._gather(tf.constant(row[None], tf.float64)).numpy()
        return of_replicas[:: len(of_replicas) // self.count]

    def _gathered(self, row: tf.Tensor) -> tf.Tensor:
        gathered = self._strategy.run(self._gathered_on_replica, args=(row,))
        return self._strategy.experimental_local_results(gathered)[0]

    def _gathered_on_replica(self, row: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        assert context is not None
        # `identity` places the tensor on this replica's device; `all_gather` rejects an argument without one.
        return context.all_gather(tf.identity(row), axis=0)
