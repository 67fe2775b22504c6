"""The flags of pruning, and CAP's course of a run with them: levels, each a run of its own, and what it is held to.

OUTPUT_DIR/level_N   the run of a level before the last, which the next begins from and is compared with
OUTPUT_DIR           the last level
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from absl.app import UsageError

from commands.fine_tuning import Course, fine_tune
from commands.flags import Group, flag
from commands.needs import Need
from commands.options import TrainingOptions

if TYPE_CHECKING:
    import numpy as np

    from commands.session import Session
    from modeling.config import Config
    from tasks.contrastive_pruning import Bank
    from tasks.datasets import DatasetRow
    from tasks.splits import Splits
    from training.engine import Batch

CHOICES_OF_A_RUN, MOST_STEPS_BETWEEN = 50, 10
"""Single weights are chosen so often in a run, or every so many steps, whichever is oftener."""
SOFT_THRESHOLD = 0.1
"""Least sigmoid of a score at the end, of CAP-soft."""


@dataclass(frozen=True, kw_only=True)
class PruningOptions(TrainingOptions):
    """What is taken out of a model while it learns a task."""

    _pruning: ClassVar = Group.TECHNIQUES
    pruning: str | None = flag(
        None,
        help="take out heads and feed-forward units by first-order importance (structured, CAP-f), or single weights "
        "by size (magnitude), by learnt movement (movement, CAP-m) or by learnt scores above a threshold (soft, "
        "CAP-soft)",
        choices=("structured", "magnitude", "movement", "soft"),
    )
    sparsity: float = flag(0.5, help="share that is taken out in the end", minimum=0, maximum=0.99)
    pruning_levels: int = flag(
        1,
        help="times that heads and units are taken out, each more of them, with training after each; those before the "
        "last are runs in OUTPUT_DIR/level_N",
        minimum=1,
    )
    pruning_warmup: float = flag(0.1, help="share of the steps before anything is taken out", minimum=0, maximum=1)
    pruning_cooldown: float = flag(
        0.3, help="share of the steps after the last single weights are taken out", minimum=0, maximum=1
    )
    score_learning_rate: float = flag(0.01, help="peak learning rate of scores", minimum=0)
    score_penalty: float = flag(
        100.0,
        help="weight of the mean of the scores' sigmoids, which lowers them",
        minimum=0,
    )
    contrast_weight: float = flag(
        0.0,
        help="of the terms by which a text stays near to what the pretrained model, --teacher and former levels say of "
        "it (CAP)",
        minimum=0,
    )
    supervised_contrast_weight: float = flag(0.0, help="of such terms between texts of one label", minimum=0)
    contrast_temperature: float = flag(0.1, help="by which cosines are divided there", minimum=0.001)


NEEDS = (
    Need(("pruning",), "--do_train", lambda o: o.do_train),
    Need(("sparsity",), "--pruning=structured, magnitude or movement", lambda o: o.pruning not in (None, "soft")),
    Need(("pruning_levels",), "--pruning=structured", lambda o: o.pruning == "structured"),
    Need(("pruning_warmup", "contrast_weight", "supervised_contrast_weight"), "--pruning", lambda o: o.pruning),
    Need(
        ("pruning_cooldown",),
        "--pruning=magnitude, movement or soft",
        lambda o: o.pruning not in (None, "structured"),
    ),
    Need(("score_learning_rate",), "--pruning=movement or soft", lambda o: o.pruning in ("movement", "soft")),
    Need(("score_penalty",), "--pruning=soft", lambda o: o.pruning == "soft"),
    Need(
        ("contrast_temperature",),
        "--contrast_weight or --supervised_contrast_weight",
        lambda o: o.contrast_weight or o.supervised_contrast_weight,
    ),
)


def check_pruning(options: Any) -> None:
    """Raise `UsageError` for flags of pruning that do not go together."""
    if options.pruning is None:
        return
    if options.ema_decay:
        raise UsageError(
            f"--ema_decay={options.ema_decay:g} with --pruning: an average of weights that are taken out one after the "
            "other is never 0; leave one of them out"
        )
    if options.pruning_warmup + (0 if options.pruning == "structured" else options.pruning_cooldown) > 1:
        raise UsageError(
            f"--pruning_warmup={options.pruning_warmup:g} and --pruning_cooldown={options.pruning_cooldown:g} are more "
            "than the whole run; give shares whose sum is at most 1"
        )
    if options.pruning_levels > 1:
        for name in ("seeds", "num_seeds", "restart_degenerate", "unlabelled_file"):
            if getattr(options, name):
                raise UsageError(f"--{name} with --pruning_levels: levels have one seed and one model; leave it out")


def contrasts(options: Any) -> bool:
    """Whether the terms of CAP are learnt."""
    return bool(options.pruning and (options.contrast_weight or options.supervised_contrast_weight))


class Pruning:
    """What is taken out in the runs of a command; without --pruning it does nothing.

    Args:
        snapshots: folders of the former levels.
        pretrained: weights before anything was taken out, where a run does not begin from them.
    """

    def __init__(self, snapshots: Sequence[str] = (), pretrained: str | None = None):
        self._snapshots, self._pretrained = snapshots, pretrained
        self._bank: Bank | None = None

    def open(self, session: Session, options: Any, splits: Splits, teacher: Any) -> None:
        """Ask the models that texts stay near to, once; raises `UsageError` where there are none, or that fit."""
        if options.pruning == "structured" and session.config.ffn_groups != 1:
            raise UsageError(
                f"--pruning=structured: the feed-forward of this model is cut into {session.config.ffn_groups} groups, "
                "whose units cannot leave alone; use --pruning=magnitude, movement or soft"
            )
        if not contrasts(options) or self._bank is not None:
            return
        pretrained = self._pretrained or options.init_checkpoint
        told = models_of(session, options, splits, teacher, pretrained, self._snapshots)
        if options.dry_run:
            from tasks.contrastive_pruning import empty_bank

            self._bank = empty_bank(session.config.hidden_size, [(name, len(each)) for name, each in told.items()])
            return
        from tasks.contrastive_pruning import bank_of

        self._bank = bank_of(splits.datasets["train"], told, options.eval_batch_size)

    def around(self, options: Any) -> list[Callable[[Any], Any]]:
        """Return what makes of a task one that stays near to other models."""
        if self._bank is None:
            return []
        from tasks.contrastive_pruning import Contrast

        return [
            Contrast(
                self._bank, options.contrast_weight, options.supervised_contrast_weight, options.contrast_temperature
            )
        ]

    def before_training(self, options: Any, splits: Splits) -> dict[str, str]:
        """Let the batches of training bring their rows of the bank; return what is to be said."""
        if (bank := self._bank) is None:
            return {}
        from tasks.contrastive_pruning import BankDataset

        splits.datasets["train"] = BankDataset(splits.datasets["train"], bank, options.seed)
        sources = ", ".join(name for name, _, _ in bank.sources)
        return {"contrast": f"{len(bank.labels):,} texts, with what {sources} said of them"}


def best_from_step(options: Any, num_steps: int) -> int:
    """Return the first step whose weights may be the best: before, less is taken out than was asked for."""
    if options.pruning is None:
        return 0
    first, last, _ = steps_of(options, num_steps)
    return (first if options.pruning == "structured" else last) + 1


def steps_of(options: Any, num_steps: int) -> tuple[int, int, int]:
    """Return the steps before which weights are taken out first and last, and how many are between two choices."""
    every = 1 if options.pruning == "structured" else max(1, min(MOST_STEPS_BETWEEN, num_steps // CHOICES_OF_A_RUN))
    first = min(round(options.pruning_warmup * num_steps), num_steps - 1)
    last = max(first, num_steps - 1 - round(options.pruning_cooldown * num_steps))
    # The last choice is of the whole share.
    last -= last % every
    return min(first, last), last, every


def around_optimizer(options: Any, config: Config, num_steps: int) -> list[Callable[[Any], Any]]:
    """Return what makes of an optimizer one that prunes."""
    from optimization import Cubic, Structured, Unstructured, create_schedule

    if options.pruning is None:
        return []
    first, last, every = steps_of(options, num_steps)
    if options.pruning == "structured":
        head_size = config.hidden_size // config.num_attention_heads
        return [Structured(options.sparsity, first, head_size)]
    warmup_steps = options.num_warmup_steps or int(num_steps * options.warmup_proportion)
    rate = None
    if options.pruning != "magnitude":
        rate = create_schedule(
            "polynomial", rate=options.score_learning_rate, total_steps=num_steps, warmup_steps=warmup_steps
        )
    soft = options.pruning == "soft"
    return [
        Unstructured(
            sparsity=Cubic(0.0 if soft else options.sparsity, first, last),
            every=every,
            scores=options.pruning,
            rate=rate,
            threshold=Cubic(SOFT_THRESHOLD, first, last) if soft else None,
            penalty=Cubic(options.score_penalty, first, last) if soft else None,
        )
    ]


def models_of(
    session: Session, options: Any, splits: Splits, teacher: Any, pretrained: str | None, snapshots: Sequence[str]
) -> dict[str, list[Callable[[Iterable[Batch]], Iterator[Mapping[str, np.ndarray]]]]]:
    """Return the models that texts stay near to, by source, each as a function of batches; raises `UsageError`."""
    row, flag_of = splits.row, "--contrast_weight and --supervised_contrast_weight"
    if row.kind != "classification" or row.plug_in or row.by_language or options.domain_column:
        raise UsageError(
            f"{flag_of}: {row.name} is no classification of texts of one language with a layer of its own; leave them, "
            "--method, --plug_in and --domain_column out"
        )
    found: dict[str, list[Any]] = {}
    if pretrained:
        found["pretrained"] = [partial(_vectors, session, options, pretrained)]
    if teacher is not None:
        if teacher.config.hidden_size != session.config.hidden_size:
            raise UsageError(
                f"{flag_of}: --teacher={options.teacher} has width {teacher.config.hidden_size}, this model "
                f"{session.config.hidden_size}: texts are compared in one width; give a teacher of the same, such as "
                "the fine-tuned model that is pruned"
            )
        found["fine_tuned"] = [partial(_vectors, session, options, options.teacher, config=teacher.config)]
    if snapshots:
        found["snapshots"] = [partial(_vectors, session, options, folder) for folder in snapshots]
    if not found:
        raise UsageError(f"{flag_of}: there is no model to stay near to; give --init_checkpoint or --teacher")
    return found


def _vectors(
    session: Session, options: Any, path: str, batches: Iterable[Batch], config: Config | None = None
) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield the vectors of texts of batches by the weights of a checkpoint."""
    from commands.weights import initialize
    from tasks.meta_distillation import VectorTask

    config = config or session.config
    task = VectorTask(config, session.computation(), pooling="cls")
    engine = session.devices.predictor(task, options, options.eval_batch_size)
    initialize(engine.model, config, path, allow_missing=("backbone/pooler/.*",), allow_unexpected=(".*",))
    yield from engine.predict(batches)


def run_levels(
    session: Session,
    options: Any,
    row: DatasetRow,
    files: Mapping[str, Sequence[Path]],
    course: Callable[[Pruning], Course],
) -> None:
    """Prune level by level, each as a run that begins from the one before; `course` makes that of one run."""
    folder, snapshots, begin = Path(options.output_dir), [], options.init_checkpoint
    for level in range(1, options.pruning_levels + 1):
        is_last = level == options.pruning_levels
        share = options.sparsity * level / options.pruning_levels
        below = folder if is_last else folder / f"level_{level}"
        session.say(f"level {level} of {options.pruning_levels}, {share:.0%} of heads and units -> {below}")
        further = {} if is_last else {"do_predict": False, "do_export": False, "export_model_dir": None}
        own = dataclasses.replace(options, sparsity=share, init_checkpoint=begin, output_dir=str(below), **further)
        fine_tune(
            session.with_options(own), own, row, files, course(Pruning(tuple(snapshots), options.init_checkpoint))
        )
        if options.dry_run:
            return  # the levels differ in nothing that a dry run shows
        snapshots.append(str(below))
        begin = str(below)
