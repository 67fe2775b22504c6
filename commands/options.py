"""The flags that every training verb has, in groups that the verbs' options inherit; names and defaults are BERT's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from absl.app import UsageError

from commands.flags import Group, flag

SPIKE_ACTIONS = ("ignore", "warn", "skip", "rollback")
OPTIMIZERS = ("adamw", "lamb", "lamb_paper", "lamb_albert_zh")
SEGMENTATIONS = ("paddlenlp", "hf", "ernie_repo")
"""How ERNIE-M's tokenizer cuts text: the names of `data.tokenizers.ernie_m.SEGMENTATIONS`, the first the default."""


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where a run computes."""

    _devices: ClassVar = Group.DEVICES
    backend: str = flag(
        "auto",
        help="what computes; auto is jax on a TPU or where there is no TensorFlow, else KERAS_BACKEND or tensorflow",
        choices=("auto", "tensorflow", "jax"),
        essential=True,
    )
    use_tpu: bool = flag(
        False, help="train on a TPU; on JAX start the command on the TPU VM, on all of a pod's", essential=True
    )
    tpu_name: str | None = flag(None, help="name of the TPU; on TensorFlow also its grpc address")
    tpu_zone: str | None = flag(None, help="zone of the TPU, where it is not the default one")
    gcp_project: str | None = flag(None, help="Google Cloud project of the TPU, where it is not the default one")
    master: str | None = flag(None, help="grpc address of a TPU worker; the older name of --tpu_name")
    num_tpu_cores: int | None = flag(
        None, help="TPU cores that have to be there, on all hosts together; by default any number", minimum=1
    )
    model_parallel: int = flag(
        1, help="devices over which each weight is cut (tensor parallelism; JAX), within those of a host", minimum=1
    )
    fsdp: bool = flag(
        False, help="cut weights and optimizer state over the devices that share a batch, too (ZeRO 3; JAX)"
    )
    coordinator_address: str | None = flag(
        None, help="HOST:PORT of the first process, where a run has several (JAX); on a TPU pod it is found"
    )
    num_processes: int | None = flag(None, help="processes of the run, with --coordinator_address", minimum=1)
    process_id: int | None = flag(None, help="which of them this is, from 0", minimum=0)
    iterations_per_loop: int = flag(
        1000, help="steps between two looks of the host at the results, at most", unit="steps", minimum=1
    )
    precision: str = flag(
        "float32",
        help="compute precision; weights stay float32; float16, for GPUs without bfloat16, scales the loss by itself",
        choices=("float32", "bfloat16", "float16"),
        essential=True,
    )
    remat: bool = flag(False, help="recompute activations in the backward pass: less memory, a third more compute")
    scan_layers: bool = flag(
        False, help="compile one layer and loop it over all: deep models compile in minutes (JAX); same numbers"
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How gradients become updates; the defaults are those of BERT and ALBERT."""

    _optimizer: ClassVar = Group.OPTIMIZER
    optimizer: str = flag("adamw", help="update rule", choices=OPTIMIZERS)
    weight_decay: float = flag(0.01, help="decoupled weight decay; LayerNorm and biases are exempt", minimum=0)
    adam_beta1: float = flag(0.9, help="decay of the first moment", minimum=0, maximum=1)
    adam_beta2: float = flag(0.999, help="decay of the second moment", minimum=0, maximum=1)
    adam_epsilon: float = flag(1e-6, help="added to the root of the second moment", minimum=0)
    adam_bias_correction: bool = flag(
        False, help="divide the moments by 1 - beta^t as the Adam paper does; BERT and ALBERT do not"
    )
    clip_norm: float = flag(
        1.0, help="largest global norm of the gradient; 0 does not clip", minimum=0, aliases=("max_grad_norm",)
    )
    ema_decay: float = flag(
        0.0, help="decay of an average of the weights for evaluation; 0 keeps none", minimum=0, maximum=1
    )
    gradient_accumulation_steps: int = flag(
        1, help="micro-batches that a batch is computed in; the update equals that of the whole batch", minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run keeps and tells."""

    _data: ClassVar = Group.DATA
    output_dir: str = flag(
        help="folder for checkpoints, metrics and results; a run that finds its checkpoints continues"
    )
    _training: ClassVar = Group.TRAINING
    seed: int = flag(12345, help="decides initial weights, order of examples and dropout", minimum=0)
    _watching: ClassVar = Group.WATCHING
    dry_run: bool = flag(
        False,
        help="read and check everything, show what the run would show first with a plan of memory and time, and stop; "
        "nothing is written",
        essential=True,
    )
    log_steps: int = flag(
        50, help="how often a line of metrics is written", unit="steps", minimum=1, aliases=("logging_steps",)
    )
    keep_checkpoint_max: int = flag(5, help="newest checkpoints that are kept", minimum=1)


@dataclass(frozen=True, kw_only=True)
class HealthOptions:
    """What a run watches of itself."""

    _watching: ClassVar = Group.WATCHING
    on_spike: str = flag(
        "ignore",
        help="what to do about a loss that leaps: say so, skip its batch before it changes anything, or go back to the "
        "newest checkpoint and pass over all batches since",
        choices=SPIKE_ACTIONS,
    )
    spike_threshold: float = flag(
        10.0,
        help="how far above the median of the last 128 steps a loss has leapt, in robust standard deviations",
        minimum=1,
    )
    norm_steps: int = flag(
        0,
        help="steps between two records of the norms of gradient and update of every layer; 0 keeps none",
        unit="steps",
        minimum=0,
    )
    profile_steps: str | None = flag(
        None, help="A:B profiles the steps from A up to B for TensorBoard, in OUTPUT/tensorboard"
    )

    def __post_init__(self):
        self.profile_range()

    def profile_range(self) -> tuple[int, int] | None:
        """Return --profile_steps as (first, last), the last not included; raises `UsageError` for no such range."""
        if self.profile_steps is None:
            return None
        first, colon, last = self.profile_steps.partition(":")
        if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
            raise UsageError(
                f"--profile_steps={self.profile_steps}: expected two steps A:B with A < B; 10:15 profiles five steps"
            )
        return int(first), int(last)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(DeviceOptions, OptimizerOptions, RunOptions, HealthOptions):
    """All of these groups."""
