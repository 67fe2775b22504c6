"""What the JAX engine is made to do on several devices and in several processes, each in processes of their own.

As a program: `jax_cases.py OUTPUT.npz CASE,... [ARGUMENT ...]`. Every case gets the arguments; the keys of what a case
found begin with its name.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[level]) for level in range(3)]

import keras
import numpy as np
from on_jax import environment_on_jax

from ground.tensors import ops

Outcome = dict[str, np.ndarray]

MESHES: dict[str, dict[str, Any]] = {
    "one": {"devices": 1},
    "data 8": {"devices": 8},
    "data 2, model 4": {"devices": 8, "model_parallel": 4},
    "fsdp 4, model 2": {"devices": 8, "model_parallel": 2, "fsdp": True},
}


class Perceptron(keras.Model):
    """Two products with a table before them: the smallest thing that has every kind of cut."""

    def __init__(self) -> None:
        super().__init__(name="perceptron")
        self.built = True
        for number, (name, shape) in enumerate(
            (("table", (16, 8)), ("up", (8, 32)), ("bias", (32,)), ("down", (32, 8)))
        ):
            setattr(self, name, self.add_weight(shape=shape, name=name, initializer=self._normal(number)))

    @staticmethod
    def _normal(number: int) -> Any:
        return lambda shape, dtype=None: ops.convert_to_tensor(
            np.random.default_rng(number).normal(0, 0.5, shape).astype("float32"), dtype
        )

    @property
    def layout_rules(self) -> Any:
        return (("table", ("model",)), ("up", (None, "model")), ("bias", ("model",)), ("down", ("model", None)))

    def call(self, ids_BL: Any) -> Any:
        x_BLD = ops.take(self.table, ids_BL, axis=0)
        x_BLD = x_BLD + ops.matmul(ops.tanh(ops.matmul(x_BLD, self.up) + self.bias), self.down)
        return ops.matmul(x_BLD, ops.transpose(self.table))


class PerceptronTask:
    """Predicts another token at positions of unequal weight."""

    loss_weights = {"token": 1.0}  # noqa: RUF012

    @property
    def metrics(self) -> tuple[str, ...]:
        return ()

    def build_model(self) -> keras.Model:
        return Perceptron()

    def companions(self) -> dict[str, keras.Model]:
        return {}

    def normalizers(self, batch: Any) -> Any:
        return {"token": ops.sum(batch["weights"])}

    def terms(self, model: Any, batch: Any, *, seed: Any, training: bool) -> Any:
        crossed = keras.losses.sparse_categorical_crossentropy(batch["labels"], model(batch["ids"]), from_logits=True)
        return {"token": (ops.sum(crossed * batch["weights"]), ops.sum(batch["weights"]))}, {}

    def predictions(self, model: Any, batch: Any) -> Any:
        return {"scores": model(batch["ids"])}


class TaughtTask(PerceptronTask):
    """Learns from the scores of a teacher alone."""

    def companions(self) -> dict[str, keras.Model]:
        self.teacher = Perceptron()
        self.teacher.up.assign(self.teacher.up * 2.0)
        return {"teacher": self.teacher}

    def terms(self, model: Any, batch: Any, *, seed: Any, training: bool) -> Any:
        distance_BL = ops.mean(ops.square(model(batch["ids"]) - self.teacher(batch["ids"])), -1)
        return {"token": (ops.sum(distance_BL * batch["weights"]), ops.sum(batch["weights"]))}, {}


class TokenBatches:
    num_examples = 1000

    def __init__(self, size: int = 16):
        self.size = size

    def batch(self, step: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(step)
        ids = generator.integers(0, 16, (self.size, 4), dtype=np.int32)
        # Devices differ in weight, so that a mean of means would show.
        weights = (generator.random((self.size, 4)) < generator.random((self.size, 1))).astype("float32")
        return {"ids": ids, "labels": ids * 5 % 16, "weights": weights}


def make_engine(task: Any, name: str, *, devices: int | None = None, **arguments: Any) -> Any:
    import jax

    from optimization import PolynomialDecay, create_optimizer
    from training.jax_engine import JaxEngine
    from training.placement import create_placement

    cuts = {key: arguments.pop(key) for key in ("model_parallel", "fsdp") if key in arguments}
    placement = create_placement(jax.devices()[:devices], **cuts)
    optimizer = create_optimizer(name, PolynomialDecay(0.01, 100, 2), clip_norm=0.5)
    return JaxEngine(task, optimizer, seed=7, placement=placement, ema_decay=0.9, **arguments)


def outcome(engine: Any, results: list[dict[str, float]]) -> Outcome:
    steps = {f"step/{number}/{name}": np.array(x) for number, step in enumerate(results) for name, x in step.items()}
    return engine.state() | steps


def every_optimizer() -> Outcome:
    """Each on every mesh for five steps, two of them in one call; one evaluates batches that cannot be cut, too."""
    from optimization import OPTIMIZERS

    found = {}
    for name in OPTIMIZERS:
        for mesh, cuts in MESHES.items():
            # Where weights are cut twice, every optimizer is; one of them on the meshes between.
            if "data" in mesh and name != "adamw":
                continue
            engine = make_engine(PerceptronTask(), name, steps_per_call=2, **cuts)
            results = engine.train([TokenBatches().batch(step) for step in range(5)])
            predicted = {}
            if name == "adamw":
                results.append(engine.evaluate([TokenBatches(6).batch(50), TokenBatches().batch(51)]))
                (predicted,) = engine.predict([TokenBatches().batch(52)])
            end = outcome(engine, results) | predicted
            found |= {f"{name}|{mesh}|{key}": value for key, value in end.items()}
    return found


def taught() -> Outcome:
    """A teacher on every mesh, and how one of its weights is cut there."""
    found = {}
    for mesh, cuts in MESHES.items():
        task = TaughtTask()
        engine = make_engine(task, "lamb", **cuts)
        results = engine.train([TokenBatches().batch(step) for step in range(3)])
        results.append(engine.evaluate([TokenBatches().batch(50)]))
        shape = np.array(task.teacher.up.value.addressable_shards[0].data.shape)
        end = outcome(engine, results) | {"shard": shape}
        found |= {f"{mesh}|{key}": value for key, value in end.items()}
    return found


def pretraining() -> Outcome:
    """The real model with dropout, in micro-batches, on three meshes; how its weights stand; resumed on another."""
    from engine_cases import pretraining_batches, pretraining_task

    found, engines, states = {}, {}, {}
    for mesh in ("one", "data 2, model 4", "fsdp 4, model 2"):
        engine = engines[mesh] = make_engine(pretraining_task(0.1), "lamb", micro_batches=2, **MESHES[mesh])
        results = engine.train(pretraining_batches(0, 3, 16))
        states[mesh] = engine.state()
        results += engine.train(pretraining_batches(3, 4, 16))
        kernel = engine.model.backbone.encoder.feed_forwards[0].intermediate.kernel.value
        slot = engine._slots["v"]["backbone/embeddings/word_embeddings"]
        shards = {
            f"{name}_shard": x.addressable_shards[0].data.shape for name, x in {"kernel": kernel, "slot": slot}.items()
        }
        found |= {f"{mesh}|{key}": np.asarray(x) for key, x in (outcome(engine, results) | shards).items()}
    engine = engines["data 2, model 4"]
    engine.load_state(states["fsdp 4, model 2"])
    engine.step = 3
    engine.train(pretraining_batches(3, 4, 16))
    return found | {f"resumed|{key}": x for key, x in engine.state().items()}


def blocks() -> Outcome:
    """Layers that share nothing: plain on one device, recomputed and looped over where weights are cut."""
    from engine_cases import CONFIG, pretraining_batches

    from modeling import Computation, Config
    from tasks.pretraining import PretrainingTask

    config = Config(family="bert", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, **CONFIG)
    found = {}
    for mesh, remat, scan in (("one", False, False), ("fsdp 4, model 2", True, False), ("fsdp 4, model 2", True, True)):
        engine = make_engine(
            PretrainingTask(config, computation=Computation(remat=remat, scan=scan)), "lamb", **MESHES[mesh]
        )
        results = engine.train(pretraining_batches(0, 3, 16))
        found |= {f"{mesh} {remat} {scan}|{key}": x for key, x in outcome(engine, results).items()}
    return found


def lowered() -> Outcome:
    """The step of a model without values, lowered from shapes for eight devices and compiled."""
    import jax
    from engine_cases import pretraining_batches, pretraining_task

    from modeling import declared
    from optimization import PolynomialDecay, create_optimizer
    from training.jax_step import JaxStep
    from training.placement import create_placement

    task = pretraining_task()
    model = declared(task.build_model)
    optimizer = create_optimizer("adamw", PolynomialDecay(0.01, 100, 2))
    (batch,) = pretraining_batches(0, 1, 16)
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in batch.items()}
    found = {}
    for fsdp in (False, True):
        step = JaxStep(task, optimizer, model, create_placement(fsdp=fsdp))
        compiled: Any = step.lower(shapes).compile()
        found[f"arguments/{fsdp}"] = np.array(compiled.memory_analysis().argument_size_in_bytes)
        found[f"gathers/{fsdp}"] = np.array(compiled.as_text().count("all-gather"))
    found["values"] = np.array(sum(variable._value is not None for variable in step.variables.values()))
    return found


def mistakes() -> Outcome:
    """What is said where a mesh and a model do not go together."""
    from absl.app import UsageError

    from training.placement import create_placement

    cut = create_placement(model_parallel=4)
    tries = {
        "devices": lambda: create_placement(model_parallel=3),
        "axis": lambda: cut.computed({"table": (10, 8)}, [("table", ("model",))]),
        "rules": lambda: cut.computed({"table": (16, 8)}, None),
        "rule": lambda: cut.computed({"a": (8,), "b": (8,)}, [("a", ("model",))]),
    }
    found = {}
    for name, function in tries.items():
        try:
            function()
        except UsageError as error:
            found[name] = np.array(str(error))
    return found


class SignallingBatches:
    """Rows of one process; sends this process a signal when the batch of a step is made."""

    num_examples = 1000

    def __init__(self, part: tuple[int, int], step: int = -1):
        self.part, self.step = part, step

    def batch(self, step: int) -> dict[str, np.ndarray]:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
        index, count = self.part
        return {name: np.split(x, count)[index] for name, x in TokenBatches().batch(step).items()}


def loop(output_dir: str, signal_step: str, process: str = "0") -> Outcome:
    """A run of twelve steps, cut in hosts and over them; the last process is told to end at a step."""
    import jax

    from training.loop import train
    from training.run import RunPlan

    last = int(process) == jax.process_count() - 1
    cuts = {"model_parallel": 2, "fsdp": True} if len(jax.devices()) > 1 else {}
    engine = make_engine(PerceptronTask(), "lamb", **cuts)
    dataset = SignallingBatches(engine.placement.host_part, int(signal_step) if last else -1)

    def evaluate() -> dict[str, float]:
        return engine.evaluate([TokenBatches().batch(100)])

    plan = RunPlan(
        output_dir=Path(output_dir),
        config={},
        best_metric="loss",
        num_steps=12,
        save_every_steps=6,
        log_every_steps=2,
        eval_every_steps=4,
    )
    train(engine, dataset, plan, evaluate=evaluate)
    return engine.state()


def whole() -> Outcome:
    """The run of `loop` in this process alone, and its losses."""
    from training.hooks import read_metrics

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        state = loop(folder, "-1")
        losses = [record["loss"] for record in read_metrics(Path(folder) / "metrics.jsonl")]
    return {f"state/{key}": x for key, x in state.items()} | {"losses": np.array(losses)}


def disagreement(*arguments: str) -> Outcome:
    """A mistake that only one process sees ends all, with its own words; the last argument is the process."""
    from absl.app import UsageError

    from training.processes import current

    processes, process = current(), arguments[-1]

    def look() -> None:
        if process == "1":
            raise UsageError("no record file matches 'gone*'")

    try:
        processes.together(look)
    except UsageError as error:
        text = str(error)
    else:
        text = "nothing"
    return {"text": np.array(text), "largest": np.array(processes.largest(int(process)))}


def start(path: Path, cases: str, *arguments: object, devices: int = 8, address: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", __file__, str(path), cases, *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=environment_on_jax(devices=devices) | {"ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a process, which is to exit with `code`; returns what it wrote to stderr."""
    _, error = process.communicate(timeout=900)
    assert process.returncode == code, error
    return error


def run_apart(path: Path, cases: str, *arguments: object, devices: int = 8) -> Outcome:
    """Run cases one after another in a process of their own."""
    end(start(path, cases, *arguments, devices=devices))
    return dict(np.load(path))


def run_in_two(folder: Path, case: str, *arguments: object, code: int = 0) -> Iterator[tuple[Outcome, str]]:
    """Run a case in two processes of two devices that know one another; yields what each found and wrote to stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    paths = [folder / f"process_{index}.npz" for index in range(2)]
    started = [start(path, case, *arguments, i, devices=2, address=address) for i, path in enumerate(paths)]
    for path, process in zip(paths, started, strict=True):
        error = end(process, code)
        yield (dict(np.load(path)) if code == 0 else {}), error


def main(path: str, cases: str, *arguments: str) -> None:
    if address := os.environ["ADDRESS"]:
        from commands.options import DeviceOptions
        from commands.startup import start_jax_processes

        options = DeviceOptions(coordinator_address=address, num_processes=2, process_id=int(arguments[-1]))
        start_jax_processes(options)
    found = {name: globals()[name](*arguments) for name in cases.split(",")}
    np.savez(path, **{f"{name}/{key}": x for name, values in found.items() for key, x in values.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
