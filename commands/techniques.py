"""The techniques of fine-tuning on little data: their flags, and what they hand to the task and to the optimizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from absl.app import UsageError

from commands.flags import Group, flag
from commands.needs import Need, check_needs
from commands.options import TrainingOptions

if TYPE_CHECKING:
    import keras

    from modeling.config import Config
    from optimization import TaskDrivenChild
    from tasks.kinds import LabelledDataset
    from tasks.regularization import Regularizer
    from training.engine import Batch, Task


@dataclass(frozen=True, kw_only=True)
class TechniqueOptions(TrainingOptions):
    """What makes fine-tuning on little data stronger; all are off by default, and any combine."""

    _techniques: ClassVar = Group.TECHNIQUES
    adversarial_weight: float = flag(
        0.0,
        help="weight of the divergence from predictions on adversarially perturbed word vectors; 1 is the recipe "
        "released with StructBERT, whose values are the defaults of the next three; triples the forward passes",
        minimum=0,
    )
    adversarial_sigma: float = flag(5e-6, help="deviation of the random perturbation before the step", minimum=0)
    adversarial_step: float = flag(5e-5, help="length of the step along the scaled gradient", minimum=0)
    adversarial_bound: float = flag(1e-5, help="largest step of a component", minimum=0)
    r_drop_weight: float = flag(
        0.0, help="weight of the divergence between two dropout masks (R-Drop); doubles the passes", minimum=0
    )
    child_tuning: str | None = flag(
        None,
        help="train a part of the network: F, redrawn every step, or D, of the largest Fisher information",
        choices=("F", "D"),
    )
    child_tuning_fraction: float = flag(0.2, help="share of the weights in the child", minimum=0.001, maximum=1)
    child_tuning_fisher: str = flag(
        "paper",
        help="for D: from every example without dropout (paper), or every batch as trained, clipped (released)",
        choices=("paper", "released"),
    )
    layer_decay: float = flag(
        1.0,
        help="factor on the learning rate from each layer to the one below, head to embeddings",
        minimum=0,
        maximum=1,
        aliases=("layerwise_decay",),
    )
    freeze: tuple[str, ...] = flag((), help="regular expressions over names of variables that keep their values")
    freeze_layers: int = flag(
        0, help="layers from the lowest, embeddings included, that keep their values", unit="layers", minimum=0
    )
    gradual_unfreezing: float = flag(
        0.0,
        help="share of the steps in which the layers join the training, from the highest to the embeddings; the head "
        "trains from the start",
        minimum=0,
        maximum=1,
    )


NEEDS = (
    Need(
        ("adversarial_sigma", "adversarial_step", "adversarial_bound"),
        "--adversarial_weight",
        lambda o: o.adversarial_weight,
    ),
    Need(("child_tuning_fraction",), "--child_tuning", lambda o: o.child_tuning),
    Need(("child_tuning_fisher",), "--child_tuning=D", lambda o: o.child_tuning == "D"),
)


def check_techniques(options: TechniqueOptions) -> None:
    """Raise `UsageError` for flags of techniques that would do nothing."""
    check_needs(options, NEEDS)
    if options.adversarial_weight and options.precision != "float32":
        bits = {"bfloat16": 8, "float16": 11}[options.precision]
        raise UsageError(
            f"--adversarial_weight={options.adversarial_weight:g} with --precision={options.precision}: steps of "
            f"{options.adversarial_bound:g} are lost in its {bits} bits; use --precision=float32"
        )


def regularizers(options: TechniqueOptions) -> list[Regularizer]:
    """Return the further losses; those of weight 0 are off."""
    from tasks.regularization import Adversarial, RDrop

    adversarial = Adversarial(
        options.adversarial_weight, options.adversarial_sigma, options.adversarial_step, options.adversarial_bound
    )
    return [RDrop(options.r_drop_weight), adversarial]


def optimizer_behaviour(
    options: TechniqueOptions, config: Config, num_steps: int
) -> tuple[dict[str, Any], TaskDrivenChild | None]:
    """Return arguments of `create_optimizer`, and with --child_tuning=D the child whose weights are not chosen yet.

    The arguments say which variables are trained, at which rate, and from which step on. Raises `UsageError` where
    layers that share their weights are to be trained differently.
    """
    from optimization import Start, TaskDrivenChild, TaskFreeChild
    from tasks.layer_rates import frozen_expressions, learning_rate_multipliers

    child = {
        None: None,
        "F": TaskFreeChild(options.child_tuning_fraction, options.seed),
        "D": TaskDrivenChild(),
    }[options.child_tuning]
    rates = learning_rate_multipliers(config, options.layer_decay, options.gradual_unfreezing, num_steps)
    behaviour = {
        "frozen": [*options.freeze, *frozen_expressions(config, options.freeze_layers)],
        "learning_rate_multipliers": [
            (expression, Start(factor, first_step) if first_step else factor)
            for expression, factor, first_step in rates
        ],
        "transforms_after_clipping": [child] if child else [],
    }
    return behaviour, child if isinstance(child, TaskDrivenChild) else None


def choose_child(
    options: TechniqueOptions,
    config: Config,
    task: Task,
    model: keras.Model,
    child: TaskDrivenChild,
    dataset: LabelledDataset,
) -> str:
    """Choose the child by the Fisher information of the model's present weights; return how many weights it has.

    A run that continues has the same weights here as when it began, and so chooses the same child. Raises `UsageError`
    where all layers are frozen.
    """
    from modeling import named_variables
    from optimization import child_masks
    from tasks.fisher import fisher_information
    from tasks.layer_rates import BLOCKS, frozen_expressions

    frozen = [*options.freeze, *frozen_expressions(config, options.freeze_layers)]
    names = [
        name
        for name in named_variables(model)
        if re.search(BLOCKS, name) and not any(re.search(expression, name) for expression in frozen)
    ]
    if not names:
        raise UsageError("--child_tuning=D: all layers are frozen, there is none to choose a child from; freeze fewer")
    released = options.child_tuning_fisher == "released"
    batches: Iterable[Batch] = (
        (dataset.batch(step) for step in range(dataset.steps_per_epoch)) if released else dataset.evaluation_batches(1)
    )
    fisher = fisher_information(task, model, batches, names, released=released, seed=options.seed)
    masks = child_masks(fisher, options.child_tuning_fraction)
    child.choose(masks)
    kept, total = (sum(int(count(mask)) for mask in masks.values()) for count in (lambda m: m.sum(), lambda m: m.size))
    return f"{kept:,} of {total:,} weights of the layers, by the {options.child_tuning_fisher} Fisher information"
