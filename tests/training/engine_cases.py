"""What both engines are made to do, in this process or, on the other backend or on several devices, in one of its own.

As a program: `engine_cases.py OUTPUT.npz CASE [STATE.npz]` on the backend of KERAS_BACKEND.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[level]) for level in range(3)]

import keras
import numpy as np
from on_jax import environment_on_jax
from toy_task import DistilledTask, MixtureTask, ScheduledTask, ToyDataset, ToyTask

from ground.tensors import ops
from modeling import Computation, Config
from optimization import OPTIMIZERS, PolynomialDecay, create_optimizer
from tasks.pretraining import PretrainingTask
from training.engine import Engine
from training.loss_scaling import LossScaling

Outcome = dict[str, np.ndarray]
CONFIG: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 12,
    "initializer_range": 0.2,
}


def pretraining_task(dropout: float = 0.0, seed: int = 0) -> PretrainingTask:
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = Config(family="albert", sharing="all", embedding_size=4, **rates, **CONFIG)
    return PretrainingTask(config, computation=Computation(seed=seed))


def pretraining_batches(first: int, last: int, batch_size: int = 8) -> list[dict[str, np.ndarray]]:
    batches = []
    for step in range(first, last):
        generator = np.random.default_rng(step)
        real = generator.integers(6, 13, (batch_size, 1))
        batches.append(
            {
                "input_ids": generator.integers(0, 32, (batch_size, 12), dtype=np.int32),
                "input_mask": (np.arange(12) < real).astype(np.int32),
                "segment_ids": generator.integers(0, 2, (batch_size, 12), dtype=np.int32),
                "masked_lm_positions": generator.integers(0, 6, (batch_size, 3), dtype=np.int32),
                "masked_lm_ids": generator.integers(0, 32, (batch_size, 3), dtype=np.int32),
                # Replicas and micro-batches differ in weight, so that a mean of means would show.
                "masked_lm_weights": (generator.random((batch_size, 3)) < 0.6).astype(np.float32),
                "next_sentence_labels": generator.integers(0, 2, (batch_size, 1), dtype=np.int32),
            }
        )
    return batches


def make_engine(
    task: Any = None, name: str = "adamw", *, optimizer: Any = None, seed: int = 7, **arguments: Any
) -> Engine:
    """Return the engine of the backend that is loaded."""
    optimizer = optimizer or create_optimizer(name, PolynomialDecay(0.01, 100, 2))
    task = task or pretraining_task()
    if keras.config.backend() == "jax":
        from training.jax_engine import JaxEngine

        return JaxEngine(task, optimizer, seed=seed, **arguments)
    from training.tensorflow_engine import TensorFlowEngine

    return TensorFlowEngine(task, optimizer, seed=seed, **arguments)


def assert_undropped(found: Outcome) -> None:
    """Evaluation and prediction are functions of weights and batch alone; training is not."""
    names = [name.removeprefix("0.0/0/") for name in found if name.startswith("0.0/0/")]
    assert {"loss", "predicted/sentence_pair_probabilities"} <= {*names}
    for name in names:
        for other in ("0.0/1", "0.4/0", "0.4/1"):
            np.testing.assert_array_equal(found[f"0.0/0/{name}"], found[f"{other}/{name}"], err_msg=f"{other}/{name}")
    assert abs(found["0.0/trained"] - found["0.4/trained"]) > 1e-4


def assert_clipped(found: Outcome) -> None:
    """The limit bounds the gradient that the moments see, and a gradient within the limit is left as it is."""
    norm = found["None/gradient_norm"]
    assert 0.02 < norm < 50
    for limit, expected in (("None", norm), ("0.01", 0.01), ("100.0", norm)):
        np.testing.assert_allclose(found[f"{limit}/received"], expected, rtol=1e-5, err_msg=limit)
        np.testing.assert_allclose(found[f"{limit}/gradient_norm"], norm, rtol=1e-6, err_msg=limit)


def outcome(engine: Engine, results: list[dict[str, float]]) -> Outcome:
    steps = {f"step/{number}/{name}": np.array(x) for number, step in enumerate(results) for name, x in step.items()}
    return engine.state() | steps


def eight_steps() -> Outcome:
    """Every optimizer from the same weights on the same batches, with averaging; one on a model of this project too.

    That one cuts its batches into micro-batches as well.
    """
    found = {}
    for name in OPTIMIZERS:
        engine = make_engine(ToyTask(), name, ema_decay=0.9)
        results = engine.train(toy_batches(0, 8))
        found |= {f"{name}/toy/{key}": x for key, x in outcome(engine, results).items()}
    for micro_batches in (1, 2):
        engine = make_engine(name="lamb", micro_batches=micro_batches, ema_decay=0.9)
        results = engine.train(pretraining_batches(0, 8))
        results.append(engine.evaluate(pretraining_batches(90, 91, 6)))
        found |= {f"lamb/{micro_batches}/{key}": x for key, x in outcome(engine, results).items()}
    return found


def toy_steps() -> Outcome:
    """A task of which a variable has no gradient, steps that are not finite and one above the limit, predictions."""
    scaling = LossScaling(2.0**6, growth_steps=2)
    engine = make_engine(ToyTask(), "lamb", ema_decay=0.8, norm_steps=2, loss_scaling=scaling)
    dataset = ToyDataset(poison=(2, 3))
    results = engine.train([dataset.batch(step) for step in range(5)])
    engine.loss_limit = results[-1]["loss"] / 2
    results += engine.train([dataset.batch(5)])
    assert [result["skipped"] for result in results] == [0, 0, 1, 1, 0, 1]
    # A loss above the limit says nothing of the scale.
    assert [result["loss_scale"] for result in results] == [64, 64, 128, 64, 32, 32]
    assert engine.state()["optimizer/loss_scale/scale"] == 64
    assert "update_norm/embed" in results[1]
    (predicted,) = engine.predict([dataset.batch(50)])
    return outcome(engine, results) | {f"predicted/{name}": x for name, x in predicted.items()}


def toy_state() -> Outcome:
    """The state of `toy_engine` after four steps."""
    engine = toy_engine()
    engine.train(toy_batches(0, 4))
    return engine.state()


def continued(state: Outcome) -> Outcome:
    """From the state of another run at step 4 to step 8."""
    engine = toy_engine()
    engine.load_state(state)
    engine.step = 4
    return outcome(engine, engine.train(toy_batches(4, 8)))


def resumed() -> Outcome:
    """With dropout: a whole run, and one that was resumed at step 3 and took its steps in calls of other sizes."""
    more = {"steps_per_call": 3} if keras.config.backend() == "jax" else {}
    whole, again = (toy_engine(dropout=0.3, micro_batches=2, **more) for _ in range(2))
    whole.train(toy_batches(0, 3))
    again.load_state(whole.state())
    again.step = 3
    whole.train(toy_batches(3, 7))
    again.train(toy_batches(3, 4))
    again.train(toy_batches(4, 7))
    states = {"whole": whole.state(), "again": again.state()}
    return {f"{run}/{key}": x for run, state in states.items() for key, x in state.items()}


def restarted() -> Outcome:
    """With dropout: a new engine, and one that had taken steps with another seed before; and what these left."""
    arguments: dict[str, Any] = {"ema_decay": 0.9, "loss_scaling": LossScaling(growth_steps=2)}
    new = make_engine(pretraining_task(0.3, seed=2**40 + 5), seed=2**40 + 5, **arguments)
    again = make_engine(pretraining_task(0.3), **arguments)
    former = outcome(again, again.train(pretraining_batches(0, 3)))
    again.evaluate(pretraining_batches(90, 91))
    again.restart(pretraining_task(0.3, seed=2**40 + 5), 2**40 + 5)
    found = {f"former/{key}": x for key, x in former.items()}
    for run, engine in (("new", new), ("again", again)):
        results = engine.train(pretraining_batches(0, 3))
        results.append(engine.evaluate(pretraining_batches(90, 91)))
        found |= {f"{run}/{key}": x for key, x in outcome(engine, results).items()}
    return found


def assert_restarted(found: Outcome) -> None:
    """No bit of a former run is left, and the seeds differ in all that is drawn."""
    names = [name.removeprefix("new/") for name in found if name.startswith("new/")]
    assert any(name.startswith("optimizer/") for name in names)
    for name in names:
        np.testing.assert_array_equal(found[f"again/{name}"], found[f"new/{name}"], err_msg=name)
    for name in ("step/0/loss", "model/masked_lm/output_bias"):
        assert np.any(found[f"former/{name}"] != found[f"new/{name}"]), name


def mixture() -> Outcome:
    """Batches of two objectives in one run: programs of other features return other terms."""
    engine = make_engine(MixtureTask(), "lamb", norm_steps=1, micro_batches=2)
    batches = mixed_batches(0, 5)
    results = engine.train(batches)
    # A program that was traced before, after the other one was.
    results += engine.train(batches[:1])
    results += [engine.evaluate(batches), engine.evaluate(batches[:1])]
    return outcome(engine, results)


def scheduled() -> Outcome:
    """A loss that weighs nothing from a step on, in the middle of a call of several steps."""
    task = ScheduledTask(3)
    engine = make_engine(task, "lamb", steps_per_call=2, micro_batches=2)
    results = engine.train(toy_batches(0, 5))
    return outcome(engine, [*results, engine.evaluate(toy_batches(9, 10))])


def mixed_batches(first: int, last: int) -> list[dict[str, np.ndarray]]:
    """Every other batch has no labels."""
    batches = toy_batches(first, last)
    return [{"ids": batch["ids"]} if number % 2 else batch for number, batch in enumerate(batches)]


def distilled(strategy: Any = None) -> Outcome:
    """A teacher beside the model, whose weights are set anew between steps."""
    task = DistilledTask()
    engine = make_engine(task, "lamb", ema_decay=0.8, **({"strategy": strategy} if strategy else {}))
    results = engine.train(toy_batches(0, 2))
    task.teacher.score.kernel.assign(ops.zeros((6, 5)))
    results += engine.train(toy_batches(2, 4))
    results.append(engine.evaluate(toy_batches(50, 51)))
    (predicted,) = engine.predict(toy_batches(52, 53))
    return outcome(engine, results) | {f"predicted/{name}": x for name, x in predicted.items()}


def undropped() -> Outcome:
    """The evaluations and predictions of models that differ in dropout alone; each evaluates twice."""
    found = {}
    for rate in (0.0, 0.4):
        engine = make_engine(pretraining_task(rate))
        for turn in range(2):
            values = engine.evaluate(pretraining_batches(90, 92))
            (predicted,) = engine.predict(pretraining_batches(92, 93))
            # Ids are the argmax of many scores, which dropout seldom changes; probabilities tell.
            everything = values | {f"predicted/{name}": x for name, x in predicted.items()}
            found |= {f"{rate}/{turn}/{name}": np.asarray(x) for name, x in everything.items()}
        trained = engine.train(pretraining_batches(90, 91))[0]
        found[f"{rate}/trained"] = np.array(trained["loss"])
    return found


def clipped() -> Outcome:
    """The gradient that Adam's first moment received in the first step, with and without a limit on its norm."""
    found = {}
    for limit in (None, 0.01, 100.0):
        optimizer = create_optimizer("adamw", PolynomialDecay(0.01, 100), clip_norm=limit)
        engine = make_engine(ToyTask(), optimizer=optimizer, micro_batches=2)
        (step,) = engine.train(toy_batches(0, 1))
        moments = [x / 0.1 for name, x in engine.state().items() if name.startswith("optimizer/m/")]
        received = np.sqrt(sum(np.square(moment.astype("float64")).sum() for moment in moments))
        found |= {f"{limit}/received": received, f"{limit}/gradient_norm": np.array(step["gradient_norm"])}
    return found


def toy_engine(dropout: float = 0.0, **arguments: Any) -> Engine:
    return make_engine(ToyTask(dropout), "lamb", ema_decay=0.8, **arguments)


def toy_batches(first: int, last: int) -> list[dict[str, np.ndarray]]:
    return [ToyDataset().batch(step) for step in range(first, last)]


def toy_cases(state: Outcome) -> Outcome:
    """All cases, most of them of the toy task."""
    cases = {"steps": toy_steps(), "continued": continued(state), "resumed": resumed()}
    cases |= {"mixture": mixture(), "distilled": distilled(), "undropped": undropped(), "clipped": clipped()}
    cases |= {"scheduled": scheduled(), "restarted": restarted(), "eight_steps": eight_steps()}
    return {f"{case}/{key}": x for case, found in cases.items() for key, x in found.items()}


def run_apart(path: Path, case: str, *, backend: str, state: Path | None = None) -> Outcome:
    """Run a case in a process of its own."""
    environment = {**environment_on_jax(), "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-W", "error", __file__, str(path), case, *([str(state)] if state else [])]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return dict(np.load(path))


def main(path: str, case: str, state: str | None = None) -> None:
    function = globals()[case]
    np.savez(path, **(function() if state is None else function(dict(np.load(state)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
