"""What takes the place of engines, the loop and devices, so that a training verb runs to its end in milliseconds."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from observing.plain import digest
from observing.rows import Notes, stand_in

import commands.across
import commands.devices
import commands.exporting
import commands.session
import conversion.loading
import tasks.contrastive_pruning
import tasks.fisher
import tasks.meta_distillation
import tasks.taught
import tasks.text_generator
import training.loop
import training.strategies
import training.tensorflow_engine
from commands import startup
from modeling import declared, named_variables
from optimization import Selection
from training.loop import Outcome

# Flags, the model's shape and the summary are only repeated there.
_NOT_OBSERVED = ("config.json", "model_config.json")
_NOT_OF_A_PLAN = ("options", "summary", "complete_config")
_STEPS = (0, 1, 2, 4, 10, 19)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where a run is: what is installed, and which devices there are."""

    packages: frozenset[str]
    platform: str = "cpu"
    kind: str = "cpu"
    attached: bool = True


_BOTH = frozenset({"tensorflow", "jax"})
MACHINES = {
    "cpu": Machine(_BOTH),
    "gpu": Machine(_BOTH, "gpu", "NVIDIA H100"),
    "tpu": Machine(_BOTH | {"libtpu"}, "tpu", "TPU v4"),
    "tensorflow_tpu": Machine(_BOTH | {"tensorflow-tpu"}),
    "away_from_tpu": Machine(_BOTH | {"libtpu"}, attached=False),
}


def content(path: Path) -> Any:
    """Return what is observed of a file: the values of JSON, the digest of all else, nothing of repeated flags."""
    if path.name in _NOT_OBSERVED:
        return None
    if path.name == "run.json":
        # Digests of the data change with it, and say no more than that.
        content = json.loads(path.read_bytes())
        return {name: value for name, value in content.items() if name not in ("config", "data")}
    return json.loads(path.read_bytes()) if path.suffix == ".json" else digest(path.read_bytes())


def replaced(patch: pytest.MonkeyPatch, notes: Notes, machine: str) -> None:
    """Let the verb run on the machine of that name, and note what would have been computed there."""
    here = MACHINES[machine]
    patch.setenv("KERAS_BACKEND", "tensorflow")
    for name in ("TF_CONFIG", "JAX_COORDINATOR_ADDRESS"):
        patch.delenv(name, raising=False)
    patch.setattr(startup, "_is_installed", lambda package: package in here.packages)
    patch.setattr(startup, "_is_distributed", lambda package: package in here.packages)
    patch.setattr(startup, "_tpu_is_attached", lambda: here.attached)
    patch.setattr(startup, "_find_coordinator", lambda address, process_id: None)
    patch.setattr(sys, "argv", ["verb.py"])
    patch.setattr(keras.config, "backend", lambda: os.environ["KERAS_BACKEND"])
    if here.platform == "gpu":
        for module in (commands.devices, commands.session):
            patch.setattr(module, "found_devices", lambda: (here.kind, 1))

    def initialize(
        coordinator_address: str | None, num_processes: int | None, process_id: int | None, **further: Any
    ) -> None:
        given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
        notes.add("processes", given)

    stand_in(
        patch,
        "jax",
        devices=lambda: [types.SimpleNamespace(platform=here.platform, device_kind=here.kind)] * 4,
        distributed=types.SimpleNamespace(initialize=initialize),
        process_count=lambda: 1,
    )
    stand_in(patch, "training.jax_engine", JaxEngine=engine_of("JaxEngine", notes))
    stand_in(patch, "training.placement", create_placement=_placement)

    def choose_strategy(**arguments: Any) -> Any:
        notes.add("strategy", arguments)
        return types.SimpleNamespace(num_replicas_in_sync=2) if arguments["use_tpu"] else None

    patch.setattr(training.strategies, "choose_strategy", choose_strategy)
    patch.setattr(training.tensorflow_engine, "TensorFlowEngine", engine_of("TensorFlowEngine", notes))
    patch.setattr(training.loop, "train", loop_of(notes))
    patch.setattr(tasks.text_generator, "TextGenerator", generator_of(notes))
    patch.setattr(tasks.fisher, "fisher_information", fisher_of(notes))
    patch.setattr(conversion.loading, "load_into", loader_of(notes))
    patch.setattr(tasks.taught, "taught", teaching_of(notes))
    patch.setattr(commands.across, "with_sentences", writing_of(notes))
    patch.setattr(tasks.meta_distillation, "facts_of", facts_of(notes))
    patch.setattr(tasks.contrastive_pruning, "bank_of", bank_of(notes))
    patch.setattr(
        commands.exporting,
        "export",
        lambda session, options, splits: notes.add("export", str(commands.exporting.target_of(options))),
    )


def _placement(*, model_parallel: int, fsdp: bool) -> Any:
    return types.SimpleNamespace(model_parallel=model_parallel, fsdp=fsdp, data_parts=2, host_part=(0, 1))


def engine_of(kind: str, notes: Notes) -> type:
    """Return a class that is constructed like an engine, notes with what, and answers without a model's weights."""

    class Engine:
        def __init__(self, task: Any, optimizer: Any, *, seed: int, **arguments: Any):
            self.task, self.optimizer, self.step, self.seed, self.arguments = task, optimizer, 0, seed, arguments
            self.placement = arguments.get("placement")
            self.model = declared(task.build_model)
            notes.add("engine", {"kind": kind, "seed": seed, **arguments})
            notes.add("task", task)

        def restart(self, task: Any, seed: int) -> None:
            Engine.__init__(self, task, self.optimizer, seed=seed, **self.arguments)

        def evaluate(self, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
            notes.add("held out", list(batches))
            return {"loss": 0.5}

        def predict(self, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
            seen = list(batches)
            notes.add("predicted", seen)
            answering = getattr(self.task, "student", self.task)
            for batch in seen:
                rows = len(batch["input_ids"])
                if "target_ids" in batch:
                    yield {name: np.ones(rows, np.float32) for name in ("target_loss", "target_tokens")}
                elif "start" in answering.loss_weights:
                    yield _ends(batch["input_ids"])
                elif not hasattr(answering, "num_labels"):
                    yield _vectors(batch["input_ids"])
                else:
                    yield {"probabilities": np.full((rows, answering.num_labels), 1 / answering.num_labels, np.float32)}

        def state(self) -> dict[str, np.ndarray]:
            return {}

        def evaluated_weights(self) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

    return Engine


def _ends(ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return logits of both ends of an answer that follow from the tokens; those of [CLS] are the highest."""
    logits = {"start_logits": ids % 11, "end_logits": ids * 7 % 13}
    found = {name: values.astype(np.float32) for name, values in logits.items()}
    for values in found.values():
        values[:, 0] = 20
    return found


def _vectors(ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return vectors of both texts of a pair that follow from the tokens, of length 1 and near to one another."""
    sums = (ids * np.arange(1, ids.shape[-1] + 1)).sum(axis=-1)
    found = np.stack([3 + np.cos(sums), np.sin(sums), np.cos(sums * 2)], axis=-1)
    found = (found / np.linalg.norm(found, axis=-1, keepdims=True)).astype(np.float32)
    return {"embedding_a": found[:, 0], "embedding_b": found[:, 1]}


def generator_of(notes: Notes) -> type:
    """Return a class that is constructed like `TextGenerator`, notes how it is to generate, and repeats the sources."""

    class TextGenerator:
        def __init__(self, model: keras.Model, tokenizer: Any, preset: Any, **sizes: int):
            self.tokenizer = tokenizer
            notes.add("generator", {"settings": preset.settings, "chunks": preset.chunks, **sizes})

        def __call__(self, features: Mapping[str, np.ndarray]) -> list[list[dict[str, Any]]]:
            notes.add("generated", features)
            texts = [self.tokenizer.decode(row.tolist()) for row in features["input_ids"]]
            return [[{"text": text, "score": 0.0}] for text in texts]

    return TextGenerator


def loop_of(notes: Notes) -> Callable[..., Outcome]:
    """Return what takes the place of `training.loop.train`: it evaluates once and calls that the end."""

    def train(engine: Any, dataset: Any, plan: Any, *, evaluate: Callable[[], Mapping[str, float]] | None) -> Outcome:
        batches = [dataset.batch(step) for step in range(2)]
        settled = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
        units = plan.count_units(batches[0])
        notes.add("plan", {n: v for n, v in settled.items() if n not in _NOT_OF_A_PLAN} | {"count_units": units})
        notes.add("training", batches)
        notes.add("optimizer", described(engine.optimizer, list(named_variables(engine.model))))
        engine.step = plan.num_steps
        evaluation = evaluate() if evaluate else {}
        return Outcome(plan.num_steps, False, evaluation, None, plan.num_steps)

    return train


def described(optimizer: Any, names: list[str]) -> dict[str, Any]:
    """Return the fields of an optimizer; schedules as their values, choices by variable as those of the `names`."""

    def of(value: Any) -> Any:
        if isinstance(value, Selection):
            return {name: of(choice) for name, choice in value.resolve(names).items()}
        schedule: Any = value if callable(value) else None
        return {str(step): float(schedule(step)) for step in _STEPS} if schedule else value

    if hasattr(optimizer, "pruning"):
        return described(optimizer.optimizer, names) | {"pruning": optimizer.pruning}
    fields = {field.name: getattr(optimizer, field.name) for field in dataclasses.fields(optimizer)}
    as_they_are = ("rule", "transforms", "transforms_after_clipping")
    return {name: value if name in as_they_are else of(value) for name, value in fields.items()} | {
        "frozen": sorted(set(names) - set(optimizer.trainable(names)))
    }


def fisher_of(notes: Notes) -> Callable[..., dict[str, np.ndarray]]:
    """Return what takes the place of `fisher_information`: some information, without a gradient."""

    def fisher_information(
        task: Any, model: keras.Model, batches: Iterable[Any], names: Iterable[str], *, released: bool, seed: int
    ) -> dict[str, np.ndarray]:
        notes.add("fisher", {"batches": list(batches), "released": released, "seed": seed})
        shapes = {name: tuple(variable.shape) for name, variable in named_variables(model).items()}
        return {name: np.arange(np.prod(shapes[name]), dtype=np.float32).reshape(shapes[name]) for name in names}

    return fisher_information


def teaching_of(notes: Notes) -> Callable[..., tuple[dict[bytes, np.ndarray], int]]:
    """Return what takes the place of `tasks.taught.taught`: every example has the same scores."""

    def taught(dataset: Any, batch_size: int, key: str, predict: Any) -> tuple[dict[bytes, np.ndarray], int]:
        notes.add("taught", {"batch_size": batch_size, "key": len(key)})
        scores = np.ones((1, 1, 1, 2), np.float32)
        return collections.defaultdict(lambda: scores, {b"any": scores}), 0

    return taught


def writing_of(notes: Notes) -> Callable[..., tuple[Any, str]]:
    """Return what takes the place of `commands.across.with_sentences`: nothing is written."""

    def with_sentences(session: Any, options: Any, records: Any, loss: Any) -> tuple[Any, str]:
        notes.add("written once", records.objective)
        return records, "none"

    return with_sentences


def facts_of(notes: Notes) -> Callable[..., dict[bytes, tuple[float, int]]]:
    """Return what takes the place of `tasks.meta_distillation.facts_of`: nothing is known of any example."""

    def of_domains(dataset: Any, domains: Any, classes: Any, predict: Any, batch_size: int) -> Any:
        notes.add("domains", {"domains": domains, "classes": classes, "batch_size": batch_size})
        return {b"any": (0.5, 0)}

    return of_domains


def bank_of(notes: Notes) -> Callable[..., Any]:
    """Return what takes the place of `tasks.contrastive_pruning.bank_of`: no model is asked for a vector."""

    def asked(dataset: Any, told: Mapping[str, Any], batch_size: int) -> Any:
        sources = [(name, len(models)) for name, models in told.items()]
        notes.add("bank", {"sources": dict(sources), "batch_size": batch_size})
        return tasks.contrastive_pruning.empty_bank(8, sources)

    return asked


def loader_of(notes: Notes) -> Callable[..., Any]:
    """Return what takes the place of `load_into`: it decides and checks as that does, and notes what it would load."""

    def load_into(model: keras.Model, checkpoint: Any, **allowed: Any) -> Any:
        shapes = {name: tuple(variable.shape) for name, variable in named_variables(model).items()}
        values, report = conversion.loading.assignment(shapes, checkpoint, **allowed)
        notes.add("loaded", values)
        return report

    return load_into
