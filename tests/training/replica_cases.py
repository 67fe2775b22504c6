"""What the replicas of a strategy are made to do, in a process of their own: one process may have one strategy.

`replica_cases.py OUTPUT.npz CASES REPLICAS`, on logical CPUs; with TF_CONFIG the replicas are processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[level]) for level in range(3)]

import numpy as np
import tensorflow as tf
from engine_cases import Outcome, distilled, make_engine, outcome, pretraining_batches, pretraining_task
from toy_run import SignallingDataset, toy_run
from toy_task import ToyDataset, ToyTask, ops

from ground.keys import derive_key
from modeling.randomness import dropout, seeded
from optimization import OPTIMIZERS
from training.engine import TRAINING_STREAM
from training.loss_scaling import LossScaling
from training.processes import use
from training.strategies import TensorFlowProcesses, choose_strategy
from training.tensorflow_engine import TensorFlowEngine

Strategy = tf.distribute.Strategy | None
RATE = 0.3


class WatchedTask(ToyTask):
    """Tells which masks were drawn; a row whose `factors` is 0 has a finite loss without a finite gradient."""

    def __init__(self, dropout: float = 0.0):
        super().__init__(dropout)
        self.metrics = ("label_accuracy", "mask_code")

    def terms(self, model, batch, *, seed, training):
        losses, metrics = super().terms(model, batch, seed=seed, training=training)
        total, weight = losses["label"]
        kernel = ops.mean(ops.square(model.score.kernel))
        losses["label"] = total + ops.sum(ops.sqrt(batch["factors"] * kernel)), weight
        return losses, {**metrics, "mask_code": (mask_code(seed, batch["ids"].shape), ops.ones(()))}


def mask_code(key: Any, shape: tuple[int, ...]) -> Any:
    """A number that tells masks apart."""
    with seeded(key):
        mask = dropout(ops.ones(shape), RATE, True)
    return ops.sum(mask * ops.reshape(2.0 ** ops.arange(int(np.prod(shape)), dtype="float32"), shape))


def watched_batches(first: int, last: int, poison: tuple[int, ...] = ()) -> list[dict[str, np.ndarray]]:
    batches = []
    for step in range(first, last):
        factors = np.ones(8, "float32")
        if step in poison:
            # The last row: that of the last replica.
            factors[-1] = 0.0
        batches.append({**ToyDataset().batch(step), "factors": factors})
    return batches


def watched_engine(strategy: Strategy, name: str = "lamb", rate: float = 0.0, **arguments: Any) -> TensorFlowEngine:
    engine = make_engine(WatchedTask(rate), name, ema_decay=0.9, strategy=strategy, **arguments)
    assert isinstance(engine, TensorFlowEngine)
    return engine


def in_step(engine: TensorFlowEngine, strategy: Strategy) -> bool:
    """Whether all replicas of this process have the same bits."""
    of_replicas = strategy.experimental_local_results if strategy else lambda value: (value,)
    return all(
        np.array_equal(copy.numpy(), value.numpy())
        for value in engine._state({}).values()
        for copy in of_replicas(value)
    )


def every_optimizer(strategy: Strategy, names: Iterable[str] = OPTIMIZERS) -> Outcome:
    return _runs(strategy, {name: {"name": name} for name in names})


def one_optimizer(strategy: Strategy) -> Outcome:
    """One with trust ratios, for numbers of replicas at which the others have nothing of their own."""
    return every_optimizer(strategy, ("lamb",))


def micro_batches(strategy: Strategy) -> Outcome:
    runs = {
        "cut": {"micro_batches": 2},
        "called": {"micro_batches": 2, "steps_per_call": 3},
    }
    return _runs(strategy, runs)


def _runs(strategy: Strategy, runs: dict[str, dict[str, Any]]) -> Outcome:
    found: Outcome = {}
    for label, arguments in runs.items():
        engine = watched_engine(strategy, **arguments)
        results = engine.train(watched_batches(0, 4))
        assert in_step(engine, strategy), label
        found |= {f"{label}/{key}": x for key, x in outcome(engine, results).items() if "mask_code" not in key}
    return found


def evaluation(strategy: Strategy) -> Outcome:
    """With averaged weights, on batches that replicas can and cannot share, and predictions."""
    engine = watched_engine(strategy)
    engine.train(watched_batches(0, 2))
    before = engine.state()
    whole = watched_batches(20, 22)
    part = {name: value[:5] for name, value in whole[0].items()}
    results = [engine.evaluate(whole), engine.evaluate([*whole, part])]
    predicted = [row["label"] for row in engine.predict([whole[0], part])]
    after = engine.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    found = {f"{number}/{key}": np.array(x) for number, row in enumerate(results) for key, x in row.items()}
    return {key: x for key, x in found.items() if "mask_code" not in key} | {"predicted": np.concatenate(predicted)}


def pretraining(strategy: Strategy) -> Outcome:
    engine = make_engine(pretraining_task(), "lamb_paper", strategy=strategy)
    return outcome(engine, engine.train(pretraining_batches(0, 3)))


def companion(strategy: Strategy) -> Outcome:
    """A teacher, of which every replica has a copy."""
    return distilled(strategy)


def poisoned(strategy: Strategy) -> Outcome:
    """A gradient that is not finite on the last replica alone, with loss scaling."""
    scaling = LossScaling(initial=2.0**10, growth_steps=2)
    engine = watched_engine(strategy, loss_scaling=scaling)
    results = engine.train(watched_batches(0, 2))
    before = engine.state()
    results += engine.train(watched_batches(2, 3, poison=(2,)))
    after = engine.state()
    results += engine.train(watched_batches(3, 8, poison=(5,)))
    assert in_step(engine, strategy)
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    scales = {name: np.array([step[name] for step in results]) for name in ("loss_scale", "skipped", "loss")}
    return {"changed": np.array(changed), **scales, **engine.state()}


def unscaled(strategy: Strategy) -> Outcome:
    """Scaling by powers of two alters no bit of a step that is finite."""
    found = {}
    for label, scaling in (("without", None), ("with", LossScaling(initial=2.0**6, growth_steps=1))):
        engine = watched_engine(strategy, loss_scaling=scaling)
        engine.train(watched_batches(0, 3))
        found |= {f"{label}/{key}": x for key, x in engine.state().items() if "loss_scale" not in key}
    return found


def masks(strategy: Strategy) -> Outcome:
    """The masks that were drawn, and those that the replicas' keys stand for."""
    replicas = strategy.num_replicas_in_sync if strategy else 1
    steps = watched_engine(strategy, micro_batches=2).train(watched_batches(0, 3))
    parts = [
        [float(mask_code(derive_key(7, TRAINING_STREAM, step, part, replica), (8 // 2 // replicas, 4)))
         for part in range(2) for replica in range(replicas)]
        for step in range(3)
    ]  # fmt: skip
    return {"drawn": np.array([step["mask_code"] for step in steps]), "expected": np.array(parts)}


def resumed(strategy: Strategy) -> Outcome:
    """With dropout and loss scaling: a whole run, and one that was resumed at step 3."""
    arguments: dict[str, Any] = {"rate": RATE, "micro_batches": 2, "loss_scaling": LossScaling(growth_steps=2)}
    whole, again = (watched_engine(strategy, **arguments) for _ in range(2))
    whole.train(watched_batches(0, 3))
    again.load_state(whole.state())
    again.step = 3
    whole.train(watched_batches(3, 6))
    again.train(watched_batches(3, 6))
    states = {"whole": whole.state(), "again": again.state()}
    return {f"{run}/{key}": x for run, state in states.items() for key, x in state.items()}


def preempted(strategy: Strategy) -> Outcome:
    """A run on processes, and one of which the last gets a SIGTERM and which then goes on; with dropout."""
    assert strategy is not None
    processes = TensorFlowProcesses(strategy)
    use(processes)
    folder = Path(processes.texts(tempfile.mkdtemp())[0])
    last = processes.index == processes.count - 1
    whole, signalled = ToyDataset(), SignallingDataset(signal.SIGTERM if last else 0, 4)
    found: Outcome = {"texts": np.array(processes.texts(f"Läufer {processes.index}"))}
    for run, dataset in (("whole", whole), ("stopped", signalled), ("again", whole)):
        engine = make_engine(ToyTask(RATE), "lamb", micro_batches=2, ema_decay=0.8, strategy=strategy)
        output = folder / ("whole" if run == "whole" else "other")
        try:
            toy_run(output, dataset, engine=engine, num_steps=8, save_every_steps=0, hooks=[])
        except SystemExit as stop:
            found["code"] = np.array(stop.code)
        found |= {f"{run}/step": np.array(engine.step)} | {f"{run}/{name}": x for name, x in engine.state().items()}
    return found


def all_of(cases: str, strategy: Strategy) -> Outcome:
    return {f"{case}/{key}": x for case in cases.split(",") for key, x in globals()[case](strategy).items()}


def start(path: Path, cases: str, *, replicas: int = 1, workers: list[str] | None = None, index: int = 0) -> Any:
    """Start a process that writes what the cases find."""
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"}
    if workers:
        task = {"type": "worker", "index": index}
        environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
    command = [sys.executable, "-W", "error", __file__, str(path), cases, str(replicas)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: Any, path: Path) -> Outcome:
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return dict(np.load(path))


@contextlib.contextmanager
def ending(processes: Iterable[Any]) -> Iterator[None]:
    """Leaves no process behind when one of them failed."""
    try:
        yield
    finally:
        for process in processes:
            with process:
                process.kill()


def free_addresses(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


def main(path: str, cases: str, replicas: str) -> None:
    cpus = [tf.config.LogicalDeviceConfiguration()] * int(replicas)
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], cpus)
    strategy = choose_strategy()
    if strategy is None:
        strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(int(replicas))])
    found: dict[str, Any] = all_of(cases, strategy)
    np.savez(path, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
