"""Where a run computes: its backend, its processes, its devices, and the engine on them."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from commands.options import DeviceOptions, TrainingOptions
from commands.startup import choose_backend, patience, start_backend, start_jax_processes
from commands.unused_gpu import unused_gpu

if TYPE_CHECKING:
    import tensorflow as tf

    from training.engine import Optimizer, Task
    from training.jax_engine import JaxEngine
    from training.placement import Placement
    from training.planning import Chip
    from training.processes import Processes
    from training.tensorflow_engine import TensorFlowEngine

    AnyEngine = TensorFlowEngine | JaxEngine


class Devices:
    """The devices of this process and the processes of the run; made once, before anything is computed.

    Attributes:
        processes: all processes of the run, of which this is one.

    Raises:
        UsageError: the backend cannot do what the flags ask for, or not all processes came.
    """

    def __init__(self, options: DeviceOptions):
        from training.processes import current

        self._options = options
        self._strategy: tf.distribute.Strategy | None = None
        self._has_strategy = False
        backend = choose_backend(options)
        if backend == "jax":
            start_jax_processes(options)
        elif options.use_tpu or "TF_CONFIG" in os.environ:
            # TensorFlow brings processes together by a strategy, which has to exist before anything is computed.
            start_backend(options)
            self._tensorflow_strategy()
        self.processes: Processes = current()

    def start(self) -> None:
        """Import the backend and let it look for devices; call it before anything imports keras.

        Raises `UsageError` where --use_tpu finds no TPU, or another number of cores than --num_tpu_cores.
        """
        start_backend(self._options)

    def _tensorflow_strategy(self) -> tf.distribute.Strategy | None:
        """Return the one strategy of this process."""
        if not self._has_strategy:
            import tensorflow as tf

            from training.processes import use
            from training.strategies import TensorFlowProcesses, choose_strategy

            options = self._options
            several = "TF_CONFIG" in os.environ and not options.use_tpu
            with patience("the workers of TF_CONFIG") if several else contextlib.nullcontext():
                self._strategy = choose_strategy(
                    use_tpu=options.use_tpu,
                    tpu_name=options.tpu_name or options.master,
                    tpu_zone=options.tpu_zone,
                    gcp_project=options.gcp_project,
                    num_tpu_cores=options.num_tpu_cores,
                )
            self._has_strategy = True
            if isinstance(self._strategy, tf.distribute.MultiWorkerMirroredStrategy):
                use(TensorFlowProcesses(self._strategy))
        return self._strategy

    def engine(
        self,
        task: Task,
        optimizer: Optimizer,
        options: TrainingOptions,
        batch_size: int,
        most_steps_per_call: int | None = None,
    ) -> AnyEngine:
        """Return the engine of the backend for a task; raises `UsageError` for a batch that devices cannot share."""
        import keras

        from training.loss_scaling import LossScaling

        arguments: dict[str, Any] = {
            "norm_steps": options.norm_steps,
            "seed": options.seed,
            "micro_batches": options.gradient_accumulation_steps,
            "ema_decay": options.ema_decay or None,
            "steps_per_call": min(steps_per_call(options), most_steps_per_call or sys.maxsize),
            "loss_scaling": LossScaling() if options.precision == "float16" else None,
        }
        if keras.config.backend() == "jax":
            from training.jax_engine import JaxEngine

            placement = _placement(options)
            check_batch(options, batch_size, placement.data_parts)
            return JaxEngine(task, optimizer, placement=placement, **arguments)
        from training.tensorflow_engine import TensorFlowEngine

        strategy = self._tensorflow_strategy()
        check_batch(options, batch_size, self.data_parts())
        return TensorFlowEngine(task, optimizer, strategy=strategy, **arguments)

    def predictor(self, task: Task, options: TrainingOptions, batch_size: int) -> AnyEngine:
        """Return an engine of a task that is only asked for predictions; raises as `engine`."""
        return self.engine(task, _NothingLearnt(), options, batch_size)

    def data_parts(self) -> int:
        """Return over how many devices, of all processes, a batch is cut; once the backend is started."""
        import keras

        if keras.config.backend() == "jax":
            return _placement(self._options).data_parts
        strategy = self._tensorflow_strategy()
        return strategy.num_replicas_in_sync if strategy else 1

    def text(self) -> str:
        """Return devices, cores, processes, cuts and backend in one line."""
        import keras

        kind, count = found_devices()
        options, processes = self._options, self.processes.count
        cut = [f"weights over {options.model_parallel}"] if options.model_parallel > 1 else []
        cut += ["FSDP"] if options.fsdp else []
        hosts = [f"{processes} processes"] if processes > 1 else []
        facts = ", ".join([f"{os.cpu_count()} cores", *hosts, *cut])
        return f"{count} x {kind} ({facts}), {keras.config.backend()}"

    def unused_text(self) -> str | None:
        """Return, where the CPU computes beside an NVIDIA GPU, which it is, why, and what mends it, in one line."""
        import keras

        return unused_gpu(keras.config.backend()) if found_devices()[0] == "CPU" else None


class _NothingLearnt:
    """The optimizer of an engine that only predicts: it has no slots, and nothing is trained."""

    def trainable(self, names: Iterable[str]) -> list[str]:
        return []

    def init(self, parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        return {}

    def update(self, gradients: Any, parameters: Any, slots: Any, step: Any) -> Any:
        raise AssertionError


def _placement(options: DeviceOptions) -> Placement:
    from training.placement import create_placement

    return create_placement(model_parallel=options.model_parallel, fsdp=options.fsdp)


def check_batch(options: TrainingOptions, batch_size: int, devices: int) -> None:
    """Raise `UsageError` for a batch that the devices cannot share."""
    micro_batches = options.gradient_accumulation_steps
    if batch_size % (devices * micro_batches):
        among = f" on each of {devices} devices" if devices > 1 else ""
        raise UsageError(
            f"--train_batch_size={batch_size} cannot be cut into {micro_batches} equal micro-batches{among}: "
            f"give a multiple of {devices * micro_batches}"
        )


def found_devices() -> tuple[str, int]:
    """Return the kind of the devices that the backend computes on, and their number."""
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


def steps_per_call(options: TrainingOptions) -> int:
    """Return the steps of one compiled call: one on a CPU, where calling costs nothing."""
    return 1 if found_devices()[0] == "CPU" else min(options.iterations_per_loop, options.log_steps)


def peak_flops_per_second(device: str, count: int, precision: str) -> float:
    """Return the peak of `count` devices together, named as JAX and TensorFlow name them; 0 where it is not known."""
    chip = chip_of(device)
    return count * chip.flops(precision) if chip else 0.0


def chip_of(device: str) -> Chip | None:
    """Return the rates of a device, named as JAX and TensorFlow name it; None where they are not known."""
    from training.planning import CHIPS

    # Of names that begin with the same letters the longer one comes first.
    names = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
    names |= {"TPU v6e": "v6e", "H200": "h200", "H100": "h100", "A100": "a100", "L40S": "l40s", "L4": "l4"}
    found = next((names[name] for name in names if re.search(rf"\b{name}\b", device)), None)
    if found == "a100" and "40GB" in device:
        found = "a100_40gb"
    return CHIPS[found] if found else None
