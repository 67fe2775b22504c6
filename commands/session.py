"""Prepare a training run: what run_pretraining.py and run_classifier.py do alike between their flags and the loop."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from commands.flags import write_config
from commands.options import DeviceOptions, RunOptions, TrainingOptions
from commands.startup import choose_backend, start_backend, start_jax_processes
from ground.files import write_atomically

if TYPE_CHECKING:
    import keras
    import numpy as np
    import tensorflow as tf

    from modeling.config import Config
    from optimization import Schedule
    from training.engine import Batch, Dataset, Task
    from training.jax_engine import JaxEngine
    from training.processes import Processes
    from training.tensorflow_engine import TensorFlowEngine

    AnyEngine = TensorFlowEngine | JaxEngine

DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def check_files(options: Any, names: Sequence[str]) -> None:
    """Raise `UsageError` for the first of the named flags whose file is not there."""
    for name in names:
        path = getattr(options, name)
        if path and not Path(path).is_file():
            raise UsageError(f"--{name}={path}: no such file")


def check_device(options: DeviceOptions) -> Processes:
    """Choose the backend and bring the processes of the run together; raises `UsageError` for what cannot be."""
    from training.processes import current

    backend = choose_backend(options)
    if backend == "jax":
        start_jax_processes(options)
    elif options.use_tpu or "TF_CONFIG" in os.environ:
        start_backend(options)
        _tensorflow_strategy(options)
    processes = current()
    if not processes.writes:
        # What all would say alike, the first says.
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    return processes


def _tensorflow_strategy(options: DeviceOptions) -> tf.distribute.Strategy | None:
    """Return the one strategy of this process; the first call makes it, before anything is computed."""
    if not _strategies:
        import tensorflow as tf

        from training.processes import use
        from training.strategies import TensorFlowProcesses, choose_strategy

        _strategies.append(
            choose_strategy(
                use_tpu=options.use_tpu,
                tpu_name=options.tpu_name or options.master,
                tpu_zone=options.tpu_zone,
                gcp_project=options.gcp_project,
                num_tpu_cores=options.num_tpu_cores,
            )
        )
        if isinstance(_strategies[0], tf.distribute.MultiWorkerMirroredStrategy):
            use(TensorFlowProcesses(_strategies[0]))
    return _strategies[0]


_strategies: list[tf.distribute.Strategy | None] = []


def check_cuts(config: Config, path: str, options: DeviceOptions) -> None:
    """Raise `UsageError` where --model_parallel would cut through an attention head."""
    if config.num_attention_heads % options.model_parallel:
        raise UsageError(
            f"--model_parallel={options.model_parallel} does not divide the {config.num_attention_heads} attention "
            f"heads of {path}: choose a number that does"
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


def create_engine(
    task: Task, options: TrainingOptions, schedule: Schedule, *, batch_size: int, **behaviour: Any
) -> AnyEngine:
    """Build the model, the optimizer of the flags and the engine; `behaviour` goes to `create_optimizer`.

    Raises `UsageError` for a batch that the devices cannot share.
    """
    import keras

    from optimization import create_optimizer
    from training.loss_scaling import LossScaling

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
    arguments: dict[str, Any] = {
        "norm_steps": options.norm_steps,
        "seed": options.seed,
        "micro_batches": options.gradient_accumulation_steps,
        "ema_decay": options.ema_decay or None,
        "steps_per_call": steps_per_call(options),
        "loss_scaling": LossScaling() if options.precision == "float16" else None,
    }
    if keras.config.backend() == "jax":
        from training.jax_engine import JaxEngine
        from training.placement import create_placement

        placement = create_placement(model_parallel=options.model_parallel, fsdp=options.fsdp)
        check_batch(options, batch_size, placement.data_parts)
        return JaxEngine(task, optimizer, placement=placement, **arguments)
    from training.tensorflow_engine import TensorFlowEngine

    strategy = _tensorflow_strategy(options)
    check_batch(options, batch_size, strategy.num_replicas_in_sync if strategy else 1)
    return TensorFlowEngine(task, optimizer, strategy=strategy, **arguments)


def check_batch(options: TrainingOptions, batch_size: int, devices: int) -> None:
    """Raise `UsageError` for a batch that the devices cannot share."""
    micro_batches = options.gradient_accumulation_steps
    if batch_size % (devices * micro_batches):
        among = f" on each of {devices} devices" if devices > 1 else ""
        raise UsageError(
            f"--train_batch_size={batch_size} cannot be cut into {micro_batches} equal micro-batches{among}: "
            f"give a multiple of {devices * micro_batches}"
        )


def initialize(
    model: keras.Model,
    config: Config,
    path: str,
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    prefer_best: bool = False,
    adjust: Callable[[dict[str, np.ndarray]], None] | None = None,
) -> str:
    """Load the weights of any checkpoint into the model; returns what became of every tensor.

    `adjust` may look at the tensors by name, and take some out, before they are loaded.
    """
    from conversion.loading import load_into
    from conversion.readers import read_checkpoint

    checkpoint = read_checkpoint(path, config=config, prefer_best=prefer_best)
    if adjust:
        adjust(checkpoint.tensors)
    report = load_into(model, checkpoint, allow_missing=allow_missing, allow_unexpected=allow_unexpected)
    return f"{path} ({checkpoint.source_format}): {report}"


def restore_weights(
    engine: AnyEngine,
    config: Config,
    output_dir: str,
    init_checkpoint: str | None = None,
    *,
    allow_unexpected: Sequence[str] = (),
    adjust: Callable[[dict[str, np.ndarray]], None] | None = None,
) -> int:
    """Load the weights that a finished run works with: the best in `output_dir`, its newest, or `init_checkpoint`.

    `adjust` may look at the tensors before they are loaded. Returns their step, 0 for an `init_checkpoint`.

    Raises:
        UsageError: there are none, or they do not fit the model.
    """
    from training.checkpoints import CorruptCheckpointError, checkpoint_folder, latest_state, read_state
    from training.processes import current

    best, source, step, unused = Path(output_dir) / "best", init_checkpoint, 0, allow_unexpected
    if best.is_dir():
        try:
            source, step, unused = str(best), read_state(best, groups=()).step, ()
        except CorruptCheckpointError as error:
            raise UsageError(f"{error}; remove {best}, and the newest checkpoint is taken") from None
    elif found := latest_state(Path(output_dir), processes=current()):
        source, step, unused = str(checkpoint_folder(Path(output_dir), found.step)), found.step, ()
    if not source:
        raise UsageError(
            f"no weights: --output_dir={output_dir} holds no checkpoint; "
            "train with --do_train, or give --init_checkpoint"
        )
    initialize(engine.model, config, source, allow_unexpected=unused, adjust=adjust)
    _average_present_weights(engine)
    return step


def _average_present_weights(engine: AnyEngine) -> None:
    """Let the average of the weights, with which an engine evaluates, be the weights themselves."""
    state = engine.state()
    averages = {name: state[f"model/{name.removeprefix('ema/')}"] for name in state if name.startswith("ema/")}
    if averages:
        engine.load_state(state | averages)


def write_run_files(options: RunOptions, config: Config) -> None:
    """Leave the resolved flags and the model's shape beside the output.

    Raises `UsageError` where the processes of the run do not share that folder.
    """
    from training.processes import current

    folder, processes = Path(options.output_dir), current()

    def write() -> None:
        if processes.writes:
            write_config(options, folder / "config.json")
            write_atomically(folder / "model_config.json", config.to_json())

    def read() -> None:
        if not (folder / "config.json").exists():
            raise UsageError(
                f"--output_dir={folder} is not the same folder everywhere: put it on a file system that all hosts share"
            )

    processes.together(write)
    processes.together(read)


def preamble(config: Config, engine: AnyEngine, options: TrainingOptions, **facts: str) -> dict[str, str]:
    """What a run shows first: the model, its size, where and how it computes, and `facts`."""
    parameters = sum(math.prod(variable.shape) for variable in engine.model.trainable_variables)
    slots = 2 + bool(options.ema_decay)
    return {
        "model": f"{config.family}, {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{parameters:,} parameters",
        "memory": f"{parameters * 4 * (2 + slots) / 2**20:,.0f} MiB for weights, gradients and optimizer state",
        "device": f"{_devices_text(options)}, {options.precision}",
        **facts,
        "output": options.output_dir,
    }


def _devices_text(options: DeviceOptions) -> str:
    import keras

    from training.processes import current

    kind, count = _devices()
    processes = current().count
    cut = [f"weights over {options.model_parallel}"] if options.model_parallel > 1 else []
    cut += ["FSDP"] if options.fsdp else []
    hosts = [f"{processes} processes"] if processes > 1 else []
    facts = ", ".join([f"{os.cpu_count()} cores", *hosts, *cut])
    return f"{count} x {kind} ({facts}), {keras.config.backend()}"


def steps_per_call(options: TrainingOptions) -> int:
    """How many steps the engine takes between two looks of the host: one on a CPU, where a look costs nothing."""
    return 1 if _devices()[0] == "CPU" else min(options.iterations_per_loop, options.log_steps)


def _devices() -> tuple[str, int]:
    """What kind of device the backend computes on, and how many there are."""
    import keras

    if keras.config.backend() == "jax":
        import jax

        devices = jax.devices()
        return "CPU" if devices[0].platform == "cpu" else devices[0].device_kind, len(devices)
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU")
    if not devices:
        return "CPU", len(tf.config.list_logical_devices("CPU"))
    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])
    return details.get("device_name", "GPU"), len(devices)


def watching(options: TrainingOptions) -> dict[str, Any]:
    """Return the fields of a `RunPlan` that say what a run watches of itself."""
    return {
        "on_spike": options.on_spike,
        "spike_threshold": options.spike_threshold,
        "profile_steps": options.profile_range(),
        "peak_flops_per_second": peak_flops_per_second(*_devices(), options.precision),
    }


def peak_flops_per_second(device: str, count: int, precision: str) -> float:
    """Peak of `count` devices of that name together, as JAX and TensorFlow name them; 0 where it is not known."""
    from training.planning import CHIPS

    # Of names that begin alike the longer comes first.
    names = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
    names |= {"TPU v6e": "v6e", "H200": "h200", "H100": "h100", "A100": "a100", "L40S": "l40s", "L4": "l4"}
    chip = next((CHIPS[names[name]] for name in names if re.search(rf"\b{name}\b", device)), None)
    return count * chip.flops(precision) if chip else 0.0


def rows_of_process(engine: AnyEngine) -> tuple[int, int]:
    """(index, count): of every training batch the engine is to be given the index-th of count equal parts."""
    placement = getattr(engine, "placement", None)
    return placement.host_part if placement else (0, 1)


class OwnRows:
    """Of every batch of a data set the rows that one process computes."""

    def __init__(self, dataset: Dataset, index: int, count: int):
        self.num_examples = dataset.num_examples
        self._dataset, self._index, self._count = dataset, index, count

    def batch(self, step: int) -> Batch:
        """Return that part of the batch of `step`."""
        import numpy as np

        return {name: np.split(value, self._count)[self._index] for name, value in self._dataset.batch(step).items()}


def own_rows(dataset: Dataset, engine: AnyEngine) -> Dataset:
    """Return the data set with the rows that this process gives to the engine."""
    index, count = rows_of_process(engine)
    return dataset if count == 1 else OwnRows(dataset, index, count)


def write_results(output_dir: str, results: Mapping[str, float], name: str = "eval_results") -> None:
    """Write scores as JSON and, as albert_zh does, as `name = value` lines."""
    if writes():
        folder = Path(output_dir)
        write_atomically(folder / f"{name}.json", json.dumps(dict(results), indent=2) + "\n")
        text = "".join(f"{key} = {value}\n" for key, value in sorted(results.items()))
        write_atomically(folder / f"{name}.txt", text)


def writes() -> bool:
    """Whether this is the process of the run that writes its files."""
    from training.processes import current

    return current().writes


def config_json(config: Config) -> dict[str, Any]:
    """The model's config as JSON values, for checkpoints."""
    return json.loads(config.to_json())


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's config of an older checkpoint with the defaults of the fields that it lacks."""
    from modeling.config import Config

    defaults = {x.name: x.default for x in dataclasses.fields(Config) if x.default is not dataclasses.MISSING}
    return defaults | dict(config)


def options_json(options: Any) -> dict[str, Any]:
    """The flags as JSON values, for the replay of a failed step."""
    return json.loads(json.dumps(dataclasses.asdict(options)))
