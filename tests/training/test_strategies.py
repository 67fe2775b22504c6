import json
import types

import pytest
import tensorflow as tf
from absl.app import UsageError

from training import strategies
from training.strategies import TensorFlowProcesses, choose_strategy


def test_one_device_needs_no_strategy(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert choose_strategy() is None
    alone = {"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}}
    for described in ({}, {"task": {}}, alone):
        monkeypatch.setenv("TF_CONFIG", json.dumps(described))
        assert choose_strategy() is None


WORKERS = {"worker": ["localhost:1", "localhost:2"]}


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ("{", "TF_CONFIG={: expected .*HOST:PORT"),
        ("[]", r"TF_CONFIG=\[\]: expected"),
        (json.dumps({"cluster": WORKERS}), "expected .*task"),
        (json.dumps({"cluster": WORKERS, "task": {"type": "worker", "index": 2}}), "the task is none of the cluster's"),
        (json.dumps({"cluster": WORKERS, "task": {"type": "chief", "index": 0}}), "expected .*task"),
        (
            json.dumps({"cluster": {**WORKERS, "ps": ["localhost:3"]}, "task": {"type": "worker", "index": 0}}),
            "TF_CONFIG names ps; expected the jobs worker and, perhaps, chief",
        ),
    ],
)
def test_what_tf_config_may_be(monkeypatch, described, message):
    monkeypatch.setenv("TF_CONFIG", described)
    with pytest.raises(UsageError, match=message):
        choose_strategy()


def test_a_tpu_needs_a_runtime():
    with pytest.raises(UsageError, match=r"has no TPU runtime: give --backend=jax, or install tensorflow-tpu"):
        choose_strategy(use_tpu=True)


def test_a_tpu_that_does_not_answer_is_named(monkeypatch):
    def fail(*arguments, **names):
        raise ValueError("Could not\nlookup")

    registered = types.SimpleNamespace(kernel=["one"])
    monkeypatch.setattr(strategies, "get_registered_kernels_for_op", lambda name: registered)
    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", fail)
    with pytest.raises(UsageError, match=r"--tpu_name=mine: no TPU answers \(Could not lookup\): give the name"):
        choose_strategy(use_tpu=True, tpu_name="mine")


def test_a_tpu_is_connected_and_initialised_before_it_is_used(monkeypatch):
    told = []

    def noting(name, result=None):
        return lambda *arguments, **names: told.append((name, *arguments, names)) or result

    registered = types.SimpleNamespace(kernel=["one"])
    monkeypatch.setattr(strategies, "get_registered_kernels_for_op", lambda name: registered)
    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", noting("resolve", "resolver"))
    monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", noting("connect"))
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", noting("initialise"))
    found = types.SimpleNamespace(num_replicas_in_sync=8)
    monkeypatch.setattr(tf.distribute, "TPUStrategy", noting("build", found))
    assert choose_strategy(use_tpu=True, tpu_name="mine", tpu_zone="z", gcp_project="p", num_tpu_cores=8) is found
    resolve = ("resolve", "mine", {"zone": "z", "project": "p"})
    assert told == [resolve, *((name, "resolver", {}) for name in ("connect", "initialise", "build"))]
    with pytest.raises(UsageError, match="--num_tpu_cores=4 but mine has 8"):
        choose_strategy(use_tpu=True, tpu_name="mine", num_tpu_cores=4)


def test_processes_are_numbered_from_the_chief():
    def process(cluster, job, index):
        spec = tf.train.ClusterSpec(cluster)
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(spec, task_type=job, task_id=index)
        strategy: tf.distribute.Strategy = types.SimpleNamespace(cluster_resolver=resolver)  # pyright: ignore
        processes = TensorFlowProcesses(strategy)
        return processes.index, processes.count

    assert [process(WORKERS, "worker", index) for index in (0, 1)] == [(0, 2), (1, 2)]
    led = {"chief": ["localhost:0"], **WORKERS}
    found = [process(led, job, index) for job, index in (("chief", 0), ("worker", 0), ("worker", 1))]
    assert found == [(0, 3), (1, 3), (2, 3)]
