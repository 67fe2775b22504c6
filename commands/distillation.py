"""What a student learns from: the flags of a teacher, and the teacher, opened and held against the student's task.

--teacher=DIR    the output folder of a run, a folder of transformers or of PaddleNLP with a classifier of the task
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from absl.app import UsageError

from commands.flags import Group, flag
from commands.needs import Need, check_needs
from commands.options import TrainingOptions
from ground.words import few_names

if TYPE_CHECKING:
    import keras
    import numpy as np

    from commands.session import Session
    from conversion.readers import Checkpoint
    from modeling.config import Config
    from tasks.datasets import DatasetRow
    from tasks.splits import Splits
    from training.engine import Batch


@dataclass(frozen=True, kw_only=True)
class DistillationOptions(TrainingOptions):
    """What a model learns from a larger one that was trained on the same task."""

    # Beside other inputs, as far as the first screen of --help has room there.
    _teacher: ClassVar = Group.DATA
    teacher: str | None = flag(
        None,
        help="learn what this model decides too: the output folder of a run on the same task, labels and vocabulary, "
        "or a transformers folder",
    )
    distillation_weight: float = flag(
        0.5, help="share of the teacher's decisions in the loss; the labels keep the rest", minimum=0, maximum=1
    )
    distillation_temperature: float = flag(
        2.0,
        help="by which the logits of teacher and student are divided; the loss is multiplied by its square",
        minimum=1,
    )
    hidden_distillation_weight: float = flag(
        0.0,
        help="weight of the squared distance from the teacher's hidden states, through a learnt projection where its "
        "layers have another width",
        minimum=0,
        group=Group.TECHNIQUES,
    )
    attention_distillation_weight: float = flag(
        0.0, help="weight of the divergence from where the teacher's attention looks", minimum=0, group=Group.TECHNIQUES
    )
    cached_teacher: bool = flag(
        False,
        help="ask the teacher once for each training example and keep what it says in the cache, for later epochs and "
        "runs; a step then costs no pass of the teacher",
        group=Group.DEVICES,
    )
    domain_weight: float = flag(
        0.5,
        help="of the loss by which a teacher of several domains forgets which one a text is of",
        minimum=0,
        group=Group.TECHNIQUES,
    )
    layer_map: tuple[str, ...] = flag(
        (),
        help="layers that are compared, STUDENT:TEACHER, as 0:0,2:6,4:12, where 0 is the embeddings; by default each "
        "of the student's, evenly spread over the teacher's",
    )


NEEDS = (
    Need(("teacher",), "--do_train", lambda o: o.do_train),
    Need(
        (
            "distillation_weight",
            "distillation_temperature",
            "hidden_distillation_weight",
            "attention_distillation_weight",
            "cached_teacher",
        ),
        "--teacher",
        lambda o: o.teacher,
    ),
    Need(
        ("domain_weight",),
        "--domain_column, and --teacher left out",
        lambda o: o.domain_column and not o.teacher,
    ),
    Need(
        ("layer_map",),
        "--hidden_distillation_weight or --attention_distillation_weight",
        lambda o: o.hidden_distillation_weight or o.attention_distillation_weight,
    ),
)


def teaching_of(options: Any) -> Teaching:
    """Return what is learnt from a teacher; raises `UsageError` for flags that would do nothing, or no such folder."""
    check_needs(options, NEEDS)
    if options.domain_column and not options.init_checkpoint:
        raise UsageError(
            f"--domain_column={options.domain_column}: how typical a text is of its domain is measured with a "
            "pretrained model; give --init_checkpoint"
        )
    if options.teacher is None:
        return Teaching(None)
    if not Path(options.teacher).exists():
        raise UsageError(f"--teacher={options.teacher}: no such folder; give the --output_dir of a run")
    weights = (
        options.distillation_weight,
        options.hidden_distillation_weight,
        options.attention_distillation_weight,
    )
    if not any(weights):
        raise UsageError("--distillation_weight=0: nothing is learnt from --teacher; give a share above 0, at most 1")
    if options.cached_teacher and any(weights[1:]):
        raise UsageError(
            "--cached_teacher keeps what the teacher decides, not its layers: leave it out, or "
            "--hidden_distillation_weight and --attention_distillation_weight"
        )
    return Teaching(options.teacher)


@dataclass(eq=False)
class OpenTeacher:
    """A teacher that fits the student's task; fulfils `tasks.distillation.Teacher`.

    Attributes:
        task: of the teacher's own shape and head, a `training.engine.Task`.
        checkpoint: its weights.
        unused: expressions over names of tensors that its model has no use for.
    """

    task: Any
    checkpoint: Checkpoint
    unused: Sequence[str]

    @property
    def config(self) -> Config:
        """Of its model."""
        return self.task.config

    def build(self) -> keras.Model:
        """Return the model with its weights."""
        from conversion.loading import load_into

        model = self.task.build_model()
        load_into(model, self.checkpoint, allow_unexpected=self.unused)
        return model


class Teaching:
    """The teacher of a command, opened once for all seeds; without one it does nothing."""

    def __init__(self, folder: str | None):
        self._folder, self._scores = folder, None
        self._teacher: OpenTeacher | None = None
        self._domains: list[str] = []
        self._facts: Any = None

    def open(self, session: Session, options: Any, splits: Splits) -> None:
        """Open the teacher, and find the domains; raises `UsageError` where something does not fit the task."""
        if options.domain_column:
            self._domains = domains_of(options, splits)
        if self._folder is not None and self._teacher is None:
            self._teacher = opened(self._folder, session, options, splits)

    @property
    def teacher(self) -> OpenTeacher | None:
        """The teacher, once it is open."""
        return self._teacher

    def around(self, options: Any) -> list[Callable[[Any], Any]]:
        """Return what makes of a task one that learns from the teacher."""
        if self._teacher is None:
            if not self._domains:
                return []
            from tasks.meta_distillation import MetaTeaching

            return [MetaTeaching(len(self._domains), options.domain_weight)]
        from tasks.distillation import Distillation

        return [
            Distillation(
                self._teacher,
                weight=options.distillation_weight,
                temperature=options.distillation_temperature,
                hidden_weight=options.hidden_distillation_weight,
                attention_weight=options.attention_distillation_weight,
                layers=options.layer_map,
                cached=options.cached_teacher,
            )
        ]

    def before_training(self, session: Session, options: Any, splits: Splits) -> dict[str, str]:
        """Let the batches of training bring what flags ask for; return what is to be said of that.

        With --cached_teacher they bring the teacher's scores, with --domain_column how typical their texts are.
        """
        facts = self._with_domains(session, options, splits) if self._domains else {}
        return facts | (self._with_scores(session, options, splits) if options.cached_teacher else {})

    def _with_domains(self, session: Session, options: Any, splits: Splits) -> dict[str, str]:
        from tasks.meta_distillation import DomainDataset, facts_of

        training, examples = splits.datasets["train"], splits.examples["train"]
        if self._facts is None:
            domains = [self._domains.index(example.domain) for example in examples]
            classes = [splits.row.labels.index(example.label) for example in examples]
            predict = partial(_vectors, session, options)
            self._facts = facts_of(training, domains, classes, predict, options.eval_batch_size)
        splits.datasets["train"] = DomainDataset(training, self._facts, teaches=self._teacher is None)
        typical = [each for each, _ in self._facts.values()]
        told = f"{len(self._domains)} ({few_names(self._domains)}), typicality {min(typical):.2f} to {max(typical):.2f}"
        return {"domains": told}

    def _with_scores(self, session: Session, options: Any, splits: Splits) -> dict[str, str]:
        assert self._teacher
        import tasks.taught

        training, left = splits.datasets["train"], None
        if self._scores is None:
            predict = partial(_predicted, session, options, self._teacher)
            key = key_of(self._teacher, session)
            self._scores, left = tasks.taught.taught(training, options.eval_batch_size, key, predict)
        splits.datasets["train"] = tasks.taught.TaughtDataset(training, self._scores)
        known = "" if left is None else f", of {left:,} from the cache"
        return {"teacher": f"scores of {len(self._scores):,} examples{known}"}


def domains_of(options: Any, splits: Splits) -> list[str]:
    """Return the domains of the training examples; raises `UsageError` where one has none, or all have one."""
    examples = splits.examples["train"]
    where = f"--domain_column={options.domain_column}"
    if splits.row.plug_in or splits.row.by_language or splits.row.kind != "classification":
        raise UsageError(
            f"{where}: {splits.row.name} is no classification of texts of one language; leave it out, or --method and "
            "--plug_in"
        )
    lacking = sum(not example.domain for example in examples)
    if lacking:
        raise UsageError(
            f"{where}: {lacking:,} of {len(examples):,} training examples have no such column; name a column of the "
            "header line, or a key of JSON lines"
        )
    found = sorted({example.domain for example in examples})
    if len(found) < 2 and not options.teacher:
        raise UsageError(f"{where}: all training examples are of {found[0]!r}; a teacher of domains needs two or more")
    return found


def key_of(teacher: OpenTeacher, session: Session) -> str:
    """Return the digest of all that decides what a teacher says: weights, shape, head, precision, backend, code."""
    import keras
    import numpy as np

    import modeling
    from data import teacher_scores

    sources = sorted(Path(modeling.__file__).parent.glob("*.py"))
    told = {name: repr(value) for name, value in vars(teacher.task).items() if name not in ("computation", "_head")}
    parts = {f"code {path.name}": path.read_bytes() for path in sources}
    parts["task"] = f"{type(teacher.task).__name__} {sorted(told.items())}".encode()
    parts["where"] = f"{keras.config.backend()} {session.options.precision}".encode()
    for name, value in teacher.checkpoint.tensors.items():
        parts[f"weights {name} {tuple(value.shape)}"] = hashlib.sha256(np.asarray(value).tobytes()).digest()
    return teacher_scores.key_of(parts)


def _predicted(
    session: Session, options: Any, teacher: OpenTeacher, batches: Iterable[Batch]
) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield what the teacher says of batches, on the devices of the run."""
    from tasks.taught import ScoringTask

    yield from session.devices.predictor(ScoringTask(teacher), options, options.eval_batch_size).predict(batches)


def _vectors(session: Session, options: Any, batches: Iterable[Batch]) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield the vectors of texts of batches by the weights that training starts from."""
    from commands.weights import initialize
    from tasks.meta_distillation import VectorTask

    task = VectorTask(session.config, session.computation())
    engine = session.devices.predictor(task, options, options.eval_batch_size)
    initialize(engine.model, session.config, options.init_checkpoint, allow_unexpected=(".*",))
    yield from engine.predict(batches)


def opened(folder: str, session: Session, options: Any, splits: Splits) -> OpenTeacher:
    """Return the teacher of a folder, held against the student's task; raises `UsageError` for any other."""
    from conversion.class_order import in_order_of
    from conversion.loading import assignment
    from conversion.readers import read_checkpoint
    from modeling import variable_shapes
    from modeling.families import FAMILIES
    from tasks.kinds import HeadOptions

    where, kind = f"--teacher={folder}", splits.kind
    checkpoint = read_checkpoint(folder, prefer_best=True)
    config = checkpoint.config
    if config is None:
        raise UsageError(f"{where}: no config lies beside its weights; give the --output_dir of a run")
    row = _row_of(checkpoint, where, splits.row)
    _check_labels(checkpoint, where, splits.row)
    _check_vocabulary(checkpoint, where, splits)
    if options.max_seq_length > config.max_sequence_length:
        raise UsageError(
            f"{where} has positions for {config.max_sequence_length} tokens, --max_seq_length={options.max_seq_length} "
            "is more: give a lower one, or another teacher"
        )
    _check_layers(options, session.config, config, splits.row)
    checkpoint, told = in_order_of(checkpoint, splits.row.labels, splits.row.label_names)
    task = kind.task(row, config, session.computation(), HeadOptions(dropout=0.0))
    if not hasattr(task, "decisions"):
        raise UsageError(f"{where}: a task of the kind {splits.row.kind} learns from no teacher; leave it out")
    shapes = variable_shapes(task.build_model)
    try:
        beginning = FAMILIES[config.family].begins(shapes, checkpoint.tensors)
        assignment(shapes, checkpoint, allow_unexpected=kind.unused_heads, beginning=beginning)
    except UsageError as error:
        raise UsageError(
            f"{where} is no model of a {splits.row.kind} task with {len(splits.row.labels)} labels: fine-tune it on "
            f"{splits.row.name} first ({error})"
        ) from None
    session.say(
        f"teacher  {folder}: {config.family}, {config.num_hidden_layers} layers of width {config.hidden_size}{told}"
    )
    return OpenTeacher(task, checkpoint, kind.unused_heads)


def _check_layers(options: Any, student: Config, teacher: Config, row: DatasetRow) -> None:
    """Raise `UsageError` where layers are to be compared that are not there."""
    from modeling.sharing import shared_bricks
    from tasks.layer_distillation import layer_pairs

    if not (options.hidden_distillation_weight or options.attention_distillation_weight):
        return
    if row.plug_in:
        raise UsageError(
            "--plug_in: of two languages that read each other no layers are compared; leave "
            "--hidden_distillation_weight and --attention_distillation_weight out"
        )
    pairs = layer_pairs(options.layer_map, *(len(shared_bricks(config)) for config in (student, teacher)))
    if options.attention_distillation_weight and not any(min(pair) for pair in pairs):
        raise UsageError(
            f"--layer_map={','.join(options.layer_map)}: the embeddings have no attention to compare; name a layer "
            "from 1 on both sides"
        )


def _row_of(checkpoint: Checkpoint, where: str, ours: DatasetRow) -> DatasetRow:
    """Return the teacher's row with the student's labels; raises `UsageError` for one of another kind of task."""
    from tasks.run_file import NAME, RunFile

    folder = next((each for each in checkpoint.folders if (each / NAME).is_file()), None)
    if folder is None:
        return ours
    content = RunFile.read(folder)
    theirs = content.row
    if theirs is None or theirs.kind != ours.kind or theirs.plug_in != ours.plug_in:
        plugged = " with --plug_in" if theirs is not None and theirs.plug_in else ""
        raise UsageError(
            f"{where} was trained for {content.kind}{plugged}, {ours.name} is {ours.kind}: give a teacher of the same "
            "kind of task"
        )
    if theirs.score_range != ours.score_range:
        raise UsageError(
            f"{where} gives scores of {theirs.score_range}, {ours.name} has {ours.score_range}: give a teacher of the "
            "same task"
        )
    return dataclasses.replace(theirs, labels=ours.labels)


def _check_labels(checkpoint: Checkpoint, where: str, row: DatasetRow) -> None:
    """Raise `UsageError` unless the teacher's labels are the task's, in any order, or nothing tells them."""
    from conversion.beside import class_names, labels_of

    theirs, ours = labels_of(checkpoint), class_names(checkpoint, row.labels)
    if not theirs or not ours:
        return
    known = {name.casefold(): label for name, label in ({**row.label_names} | {label: label for label in ours}).items()}
    if {known.get(name.casefold()) for name in theirs} != {*ours} or len(theirs) != len(ours):
        raise UsageError(
            f"{where} knows the labels {few_names(theirs)}; those of {row.name} are {few_names(ours)}: give a teacher "
            "of the same task"
        )


def _check_vocabulary(checkpoint: Checkpoint, where: str, splits: Splits) -> None:
    """Raise `UsageError` unless the teacher reads the student's tokens."""
    found, ours = _fingerprint(checkpoint), splits.tokenizer.fingerprint
    if found and found != ours:
        raise UsageError(
            f"{where} reads another vocabulary or casing (fingerprint {found[:8]}, the student's is {ours[:8]}): "
            "teacher and student need the same --vocab_file or --spm_model_file and --do_lower_case"
        )
    config = checkpoint.config
    if config is not None and config.vocab_size != splits.tokenizer.vocab_size:
        raise UsageError(
            f"{where} has a vocabulary of {config.vocab_size:,} tokens, the student's has "
            f"{splits.tokenizer.vocab_size:,}: teacher and student need the same one"
        )


def _fingerprint(checkpoint: Checkpoint) -> str:
    """Return the fingerprint of the tokenizer beside a checkpoint; empty where there is none that can be loaded."""
    from commands.model_folder import files_of
    from conversion.beside import find_vocabulary, is_lowered
    from data.tokenizers import load_tokenizer
    from tasks.run_file import NAME, RunFile

    for folder in checkpoint.folders:
        if (folder / NAME).is_file() and (known := RunFile.read(folder).tokenizer.fingerprint):
            return known
    found = find_vocabulary(checkpoint, None)
    if not found or not found[0].path.name.endswith((".txt", ".model")):
        return ""
    lowered = bool(found[0].ids) or is_lowered(checkpoint)
    tokenizer = load_tokenizer(
        **{"vocab_file": None, "spm_model_file": None, **files_of(found[0])},
        do_lower_case=lowered,
        segmentation=found[0].segmentation or None,
    )
    return tokenizer.fingerprint
