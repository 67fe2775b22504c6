"""Prepare a training run: what run_pretraining.py and run_classifier.py do alike between their flags and the loop."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from training.files import write_atomically
from training.flags import write_config
from training.options import DeviceOptions, RunOptions, TrainingOptions

if TYPE_CHECKING:
    from modeling.config import Config
    from optimization import Schedule
    from training.engine import Task
    from training.tensorflow_engine import TensorFlowEngine

DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def check_files(options: Any, names: Sequence[str]) -> None:
    """Raise `UsageError` for the first of the named flags whose file is not there."""
    for name in names:
        path = getattr(options, name)
        if path and not Path(path).is_file():
            raise UsageError(f"--{name}={path}: no such file")


def check_device(options: DeviceOptions) -> None:
    """Raise `UsageError` for a device that this installation cannot train on."""
    if options.use_tpu:
        raise UsageError(
            "--use_tpu=True: this installation has no TPU runtime (TensorFlow 2.21 ships none); "
            "train on CPU or GPU with --use_tpu=False"
        )


def check_fit(config: Config, path: str, *, vocab_size: int, vocabulary: str, max_seq_length: int) -> None:
    """Raise `UsageError` unless the data fits the model: ids into the vocabulary, lengths into the positions."""
    if config.vocab_size != vocab_size:
        raise UsageError(
            f"{vocabulary} has {vocab_size:,} entries but {path} has vocab_size={config.vocab_size:,}: "
            "use the vocabulary that belongs to the config"
        )
    if max_seq_length > config.max_sequence_length:
        raise UsageError(
            f"max_seq_length={max_seq_length} but {path} has positions for {config.max_sequence_length} tokens: "
            "use shorter examples or a config with a larger max_position_embeddings"
        )


def create_engine(task: Task, options: TrainingOptions, schedule: Schedule, **behaviour: Any) -> TensorFlowEngine:
    """Build the model, the optimizer of the flags and the engine; `behaviour` goes to `create_optimizer`."""
    from optimization import create_optimizer
    from training.tensorflow_engine import TensorFlowEngine

    optimizer = create_optimizer(
        options.optimizer,
        schedule,
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm or None,
        beta_1=options.adam_beta1,
        beta_2=options.adam_beta2,
        epsilon=options.adam_epsilon,
        bias_correction=options.adam_bias_correction or None,
        **behaviour,
    )
    return TensorFlowEngine(
        task,
        optimizer,
        seed=options.seed,
        micro_batches=options.gradient_accumulation_steps,
        ema_decay=options.ema_decay or None,
    )


def initialize(
    engine: TensorFlowEngine,
    config: Config,
    path: str,
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    prefer_best: bool = False,
) -> str:
    """Load the weights of any checkpoint into the engine's model; returns what became of every tensor."""
    from conversion.loading import load_into
    from conversion.readers import read_checkpoint

    checkpoint = read_checkpoint(path, config=config, prefer_best=prefer_best)
    report = load_into(engine.model, checkpoint, allow_missing=allow_missing, allow_unexpected=allow_unexpected)
    return f"{path} ({checkpoint.source_format}): {report}"


def restore_weights(
    engine: TensorFlowEngine,
    config: Config,
    output_dir: str,
    init_checkpoint: str | None = None,
    *,
    allow_unexpected: Sequence[str] = (),
) -> int:
    """Load the weights that a finished run works with: the best in `output_dir`, its newest, or `init_checkpoint`.

    Returns their step, 0 for an `init_checkpoint`.

    Raises:
        UsageError: there are none, or they do not fit the model.
    """
    from training.checkpoints import latest_checkpoint, read_checkpoint

    best = Path(output_dir) / "best"
    checkpoint = read_checkpoint(best) if best.is_dir() else latest_checkpoint(Path(output_dir))
    if checkpoint is not None:
        initialize(engine, config, output_dir, prefer_best=True)
        return checkpoint.step
    if init_checkpoint:
        initialize(engine, config, init_checkpoint, allow_unexpected=allow_unexpected)
        return 0
    raise UsageError(
        f"no weights: --output_dir={output_dir} holds no checkpoint; train with --do_train, or give --init_checkpoint"
    )


def write_run_files(options: RunOptions, config: Config) -> None:
    """Leave the resolved flags and the model's shape beside the output."""
    folder = Path(options.output_dir)
    write_config(options, folder / "config.json")
    write_atomically(folder / "model_config.json", config.to_json())


def preamble(config: Config, engine: TensorFlowEngine, options: TrainingOptions, **facts: str) -> dict[str, str]:
    """What a run shows first: the model, its size, where and how it computes, and `facts`."""
    import tensorflow as tf

    parameters = sum(variable.shape.num_elements() or 0 for variable in engine.model.trainable_variables)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    slots = 2 + bool(options.ema_decay)
    return {
        "model": f"{config.family}, {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{parameters:,} parameters",
        "memory": f"{parameters * 4 * (2 + slots) / 2**20:,.0f} MiB for weights, gradients and optimizer state",
        "device": f"{len(devices)} x {devices[0].device_type} ({os.cpu_count()} cores), {options.precision}",
        **facts,
        "output": options.output_dir,
    }


def steps_per_call(options: DeviceOptions) -> int:
    """How many steps the engine takes between two looks of the host: one on a CPU, where a look costs nothing."""
    import tensorflow as tf

    return options.iterations_per_loop if tf.config.list_logical_devices("GPU") else 1


def write_results(output_dir: str, results: Mapping[str, float], name: str = "eval_results") -> None:
    """Write scores as JSON and, as albert_zh does, as `name = value` lines."""
    folder = Path(output_dir)
    write_atomically(folder / f"{name}.json", json.dumps(dict(results), indent=2) + "\n")
    write_atomically(folder / f"{name}.txt", "".join(f"{key} = {value}\n" for key, value in sorted(results.items())))


def config_json(config: Config) -> dict[str, Any]:
    """The model's config as JSON values, for checkpoints."""
    return json.loads(config.to_json())


def options_json(options: Any) -> dict[str, Any]:
    """The flags as JSON values, for the replay of a failed step."""
    return json.loads(json.dumps(dataclasses.asdict(options)))
