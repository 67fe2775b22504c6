"""One fine-tuning run on a row of datasets.toml, from its files to scores and predictions, for every kind of task.

A verb brings a `Course`: what is its own in encoding, optimizing and answering. Everything else is the same for
classification and generation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from commands.flags import Group, flag
from commands.needs import DEVICE_NEEDS, Need
from commands.options import SEGMENTATIONS, TrainingOptions
from commands.other_scripts import FOREIGN
from commands.resuming import results_name
from commands.task_files import best_metric, language_options

if TYPE_CHECKING:
    from commands.session import Session
    from data.tokenizers import Tokenizer
    from tasks.datasets import DatasetRow
    from tasks.kinds import HeadOptions, LabelledDataset, Scores
    from tasks.run_file import RunFile
    from tasks.splits import Splits

FILES = ("bert_config_file", "vocab_file", "spm_model_file", "task_file")
"""The flags that name a file, which has to be there before anything slow begins."""


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions(TrainingOptions):
    """What every verb that trains on labelled data has."""

    foreign: ClassVar = FOREIGN
    _data: ClassVar = Group.DATA
    task_name: str = flag(help="a row of tasks/datasets.toml")
    data_dir: str = flag(
        help="folder of the task's train, dev and test files; or tfds:NAME, a data set that tensorflow_datasets has "
        "prepared on this machine"
    )
    bert_config_file: str = flag(
        "",
        help="JSON file of the model's shape; by default the one beside --init_checkpoint",
        aliases=("albert_config_file",),
        group=Group.MODEL,
    )
    vocab_file: str | None = flag(
        None, help="WordPiece vocabulary; by default the tokenizer beside --init_checkpoint", essential=True
    )
    spm_model_file: str | None = flag(
        None, help="SentencePiece model, in place of --vocab_file; of ERNIE-M beside it, where that lists its pieces"
    )
    segmentation: str | None = flag(
        None,
        help="how ERNIE-M's tokenizer, of both files, cuts text; by default as the checkpoint says, else paddlenlp",
        choices=SEGMENTATIONS,
    )
    do_lower_case: bool = flag(True, help="lower the case and strip accents, as the vocabulary was made")
    task_file: str | None = flag(None, help="TOML file of task rows of your own, in the form of tasks/datasets.toml")
    init_checkpoint: str | None = flag(
        None,
        help="pretrained weights: a folder of ours, a TensorFlow 1 prefix, or a transformers folder; an archive of "
        "one, or its http(s) address, works too",
        essential=True,
        group=Group.MODEL,
        aliases=("model_name_or_path",),
    )
    encoding: str | None = flag(
        None, help="of the files, as Python names it: gb18030, big5 ...; by default the row's, or utf-8"
    )
    dev_share: float = flag(
        0.0,
        help="hold this share of the training examples out as development examples, where the task has no file of them",
        minimum=0,
        maximum=0.5,
    )
    max_seq_length: int = flag(128, help="longer inputs are cut", unit="tokens", minimum=4, essential=True)
    _training: ClassVar = Group.TRAINING
    do_train: bool = flag(False, help="train on the task's training file", essential=True)
    do_eval: bool = flag(
        False, help="score the best checkpoint on the development file", essential=True, group=Group.EVALUATION
    )
    do_predict: bool = flag(
        False, help="predict the test file with the best checkpoint", essential=True, group=Group.EVALUATION
    )
    train_batch_size: int = flag(32, help="of training", unit="examples", minimum=1, essential=True)
    per_device_train_batch_size: int | None = flag(
        None,
        help="examples that a device takes at once: --train_batch_size is this times the devices that share a batch "
        "and --gradient_accumulation_steps",
        unit="examples",
        minimum=1,
        group=Group.EXAMPLES,
    )
    eval_batch_size: int = flag(
        32,
        help="of evaluation; results do not depend on it",
        unit="examples",
        minimum=1,
        group=Group.EVALUATION,
        aliases=("per_device_eval_batch_size",),
    )
    predict_batch_size: int = flag(
        32, help="of prediction; results do not depend on it", unit="examples", minimum=1, group=Group.EVALUATION
    )
    learning_rate: float | None = flag(
        None,
        help="peak learning rate; by default one for the size of the model, from 1e-4 to 1e-5, which the run says",
        minimum=0,
        essential=True,
    )
    num_train_epochs: float = flag(3.0, help="passes over the training file", unit="epochs", minimum=0, essential=True)
    num_train_steps: int | None = flag(
        None,
        help="optimizer steps, in place of --num_train_epochs",
        unit="steps",
        minimum=1,
        aliases=("train_step", "max_steps"),
        unset=("-1",),
    )
    warmup_proportion: float = flag(
        0.1,
        help="share of the steps in which the learning rate rises from 0",
        minimum=0,
        maximum=1,
        aliases=("warmup_ratio",),
    )
    num_warmup_steps: int = flag(
        0,
        help="steps in which the learning rate rises from 0, in place of --warmup_proportion, which 0 leaves them to",
        unit="steps",
        minimum=0,
        group=Group.OPTIMIZER,
        aliases=("warmup_step", "warmup_steps"),
    )
    _evaluation: ClassVar = Group.EVALUATION
    save_checkpoints_steps: int = flag(
        1000,
        help="steps between two evaluations on the development file, each with a checkpoint",
        unit="steps",
        minimum=1,
        essential=True,
        aliases=("save_steps",),
    )
    eval_steps: int | None = flag(
        None,
        help="steps between two evaluations, where they are not those between two checkpoints",
        unit="steps",
        minimum=1,
    )
    load_best_model_at_end: bool = flag(
        True,
        help="score and predict with the best weights by the development file, not with the last",
        group=Group.WATCHING,
    )
    metric_for_best_model: str | None = flag(
        None,
        help="score of the development file that decides which weights are best; by default the task's",
        group=Group.WATCHING,
    )
    early_stopping_evaluations: int = flag(
        0, help="stop after this many evaluations without a better one; 0 never stops early", minimum=0
    )
    seeds: tuple[int, ...] = flag(
        (),
        help="train once with each of these seeds, below OUTPUT_DIR/seed_N, and report mean and deviation",
        group=Group.TRAINING,
    )
    num_seeds: int | None = flag(
        None, help="as --seeds, with the seeds from 1 to this one", minimum=1, group=Group.TRAINING
    )
    restart_degenerate: int = flag(
        0,
        help="train again with the next seed, at most so often, where a run has learnt nothing: its loss is not "
        "finite, its answers are all alike, or right no more often than a guess; runs lie below OUTPUT_DIR/seed_N",
        minimum=0,
        group=Group.WATCHING,
    )


NEEDS = (
    *DEVICE_NEEDS,
    Need(
        ("early_stopping_evaluations", "eval_steps", "metric_for_best_model", "num_warmup_steps", "restart_degenerate"),
        "--do_train",
        lambda o: o.do_train,
    ),
    Need(("dev_share",), "--do_train or --do_eval", lambda o: o.do_train or o.do_eval),
    Need(("seed",), "--seeds and --num_seeds left out", lambda o: not o.seeds and not o.num_seeds),
    Need(("num_seeds",), "--seeds left out", lambda o: not o.seeds),
    Need(
        ("train_batch_size",),
        "--per_device_train_batch_size left out",
        lambda o: not o.per_device_train_batch_size,
    ),
    Need(("per_device_train_batch_size",), "--do_train", lambda o: o.do_train),
    Need(("warmup_proportion",), "--num_warmup_steps left out", lambda o: not o.num_warmup_steps),
)


def checked(options: Any) -> tuple[Session, Any]:
    """Return the session of a verb and the options with what lies beside the weights.

    Raises `UsageError` for what the devices cannot do, and for files that are missing.
    """
    from commands.model_folder import with_folder
    from commands.session import Session

    session = Session.check(options, FILES)
    options, session.config_beside = session.together(lambda: with_folder(options))
    session.options = options
    return session, options


@dataclass(frozen=True)
class Finished:
    """How a run with one seed ended: scores by split, and why it has learnt nothing, a clause; empty where it has."""

    scores: Mapping[str, Scores]
    degenerate: str = ""


class Course(Protocol):
    """What a verb does its own way in the runs of its flags."""

    verb: str
    """Its name, as rows of `tasks.kinds` know it."""
    predictions: str
    """Suffix of the files of predictions."""

    def head(self, options: Any) -> HeadOptions:
        """Return what the head of the model is told."""
        ...

    def optimizing(self, session: Session, options: Any, num_steps: int) -> Mapping[str, Any]:
        """Return further arguments of `create_optimizer`."""
        ...

    def best_from_step(self, options: Any, num_steps: int) -> int:
        """Return the first step whose weights may be the best."""
        ...

    def before_training(self, session: Session, options: Any, task: Any, splits: Splits) -> Mapping[str, str]:
        """Do what has to be done once the weights are loaded; return facts for the preamble."""
        ...

    def checked(self, session: Session, options: Any, splits: Splits) -> None:
        """Raise `UsageError` where flags, model and examples do not go together."""
        ...

    def answers(self, session: Session, options: Any, splits: Splits, split: str) -> list[Any]:
        """Return the answer of the present weights to every example of a split."""
        ...

    def finish(self, session: Session, options: Any, splits: Splits) -> None:
        """Do what is left once everything is written."""
        ...


def fine_tune(
    session: Session, options: FineTuningOptions, row: DatasetRow, files: Mapping[str, Sequence[Path]], course: Course
) -> Finished:
    """Run once with one seed; return the scores of the best weights on every split whose examples have labels."""
    from commands.estimate import Work

    tokenizer, splits = read_data(session, options, row, files)
    row = splits.row
    session.start()
    options, facts = settle(session, options)
    fits = partial(
        session.check_fit,
        vocab_size=tokenizer.vocab_size,
        vocabulary=options.spm_model_file or options.vocab_file or "",
        max_seq_length=options.max_seq_length,
    )
    fits()
    encode(session, options, splits, tokenizer)
    rows = max((getattr(dataset, "rows_per_example", 1) for dataset in splits.datasets.values()), default=1)
    fits(rows_per_example=rows)
    session.together(lambda: course.checked(session, options, splits))

    from tasks.run_file import describe_tokenizer

    num_steps = training_steps(options, splits.datasets.get("train"))
    task = build(session, options, splits, num_steps, course)
    content = run_file(session, options, row, files, tokenizer.fingerprint)
    with session.entered(content, reads(options, files), num_steps):
        step = load_weights(session, options, splits)
        if options.dry_run:
            target = splits.further.get("max_target_length", 0)
            work = Work(options.train_batch_size * rows, options.max_seq_length, 0, num_steps, target)
            session.show_plan(
                works=[work] if options.do_train else [], **plan_of(options, splits, num_steps, course, facts)
            )
            return Finished({})
        session.describe(
            lambda folder: describe_tokenizer(
                tokenizer, folder, do_lower_case=options.do_lower_case, max_seq_length=options.max_seq_length
            )
        )
        answers: Mapping[str, list] = {}
        if options.do_train:
            facts |= course.before_training(session, options, task, splits)
            step, answers = train(session, options, splits, plan_of(options, splits, num_steps, course, facts), course)
        finished = predict(session, options, splits, step, answers, course)
        course.finish(session, options, splits)
        return finished


def read_data(
    session: Session, options: FineTuningOptions, row: DatasetRow, files: Mapping[str, Sequence[Path]]
) -> tuple[Tokenizer, Splits]:
    """Return the tokenizer and the examples, and say what there is to say of the files."""
    from data.tokenizers import load_tokenizer
    from tasks.languages import LanguageSplits
    from tasks.splits import Splits

    tokenizer = session.together(
        lambda: load_tokenizer(
            vocab_file=options.vocab_file,
            spm_model_file=options.spm_model_file,
            do_lower_case=options.do_lower_case,
            segmentation=options.segmentation,
        )
    )
    if row.by_language:
        splits = session.together(lambda: LanguageSplits(row, files, **language_options(options, row)))
    else:
        splits = session.together(lambda: Splits(row, files, dev_share=options.dev_share))
    if settled := getattr(splits.kind, "settled", None):
        splits.row = session.together(lambda: settled(splits.row, tokenizer, splits.examples))
    splits.tunes = getattr(options, "threshold", None) is None
    for note in splits.notes:
        session.say(note)
    return tokenizer, splits


def settle(session: Session, options: Any) -> tuple[Any, dict[str, str]]:
    """Return the options with what model and devices decide, which become the session's, and what is said of it."""
    from commands.learning_rates import default_learning_rate

    facts = {}
    if options.per_device_train_batch_size:
        parts = session.devices.data_parts() * options.gradient_accumulation_steps
        whole = options.per_device_train_batch_size * parts
        options = dataclasses.replace(options, train_batch_size=whole, per_device_train_batch_size=None)
    if options.do_train and options.learning_rate is None:
        rate, facts["rate"] = default_learning_rate(session.config)
        options = dataclasses.replace(options, learning_rate=rate)
    session.options = options
    return options, facts


def encode(session: Session, options: FineTuningOptions, splits: Splits, tokenizer: Tokenizer) -> None:
    """Tokenise the examples; say which tokens a former run has left."""
    from data.token_cache import told
    from tasks.kinds import flags_of

    splits.encode(
        tokenizer,
        max_seq_length=options.max_seq_length,
        batch_size=options.train_batch_size,
        seed=options.seed,
        **{name: getattr(options, name) for name in flags_of(splits.kind)},
    )
    if found := told():
        session.say(found)


def run_file(
    session: Session, options: FineTuningOptions, row: DatasetRow, files: Mapping[str, Sequence[Path]], fingerprint: str
) -> RunFile:
    """Return what the run is made of; `fingerprint` is the tokenizer's."""
    from commands.resuming import data_of_files
    from tasks.run_file import RunFile, TokenizerFile

    return RunFile(
        kind=row.kind,
        config=session.config,
        computation=dataclasses.asdict(session.computation()),
        tokenizer=TokenizerFile(fingerprint=fingerprint, do_lower_case=options.do_lower_case),
        row=row,
        data=data_of_files(files),
    )


def reads(options: FineTuningOptions, files: Mapping[str, Sequence[Path]]) -> dict[str, Sequence[str | Path | None]]:
    """Return the files that the run reads, by flag."""
    return {
        "--bert_config_file": [options.bert_config_file or None],
        "--vocab_file": [options.vocab_file],
        "--spm_model_file": [options.spm_model_file],
        "--task_file": [options.task_file],
        "--data_dir": [path for paths in files.values() for path in paths],
        "--init_checkpoint": [options.init_checkpoint if options.do_train else None],
        "--teacher": [getattr(options, "teacher", None)],
    }


def build(session: Session, options: FineTuningOptions, splits: Splits, num_steps: int, course: Course) -> Any:
    """Build the task and its engine; return the task."""
    from optimization import create_schedule

    head, computation = course.head(options), session.computation()
    task = splits.kind.task(splits.row, session.config, computation, head)
    for around in head.around:
        task = around(task)
    schedule = create_schedule(
        "polynomial",
        rate=options.learning_rate or 0.0,
        total_steps=num_steps,
        warmup_steps=options.num_warmup_steps or int(num_steps * options.warmup_proportion),
    )
    behaviour = course.optimizing(session, options, num_steps)
    # A mask that is drawn from the seed, or chosen by the weights, is part of `behaviour` and never equal.
    of_all_seeds = dataclasses.replace(computation, seed=0)
    program = (splits.kind, splits.row, session.config, of_all_seeds, head, schedule, behaviour)
    session.build(task, schedule, batch_size=options.train_batch_size, program=program, **behaviour)
    return task


def load_weights(session: Session, options: FineTuningOptions, splits: Splits) -> int:
    """Load the weights to train from, or those of the finished run to score; return their step."""
    kind, labels, aliases = splits.kind, splits.row.labels, splits.row.label_names
    if not options.do_train:
        return session.restore(
            options.init_checkpoint,
            allow_unexpected=kind.unused_heads,
            best=options.load_best_model_at_end,
            labels=labels,
            aliases=aliases,
        )
    session.start_from(
        options.init_checkpoint,
        allow_missing=kind.new_heads,
        allow_unexpected=kind.unused_heads,
        labels=labels,
        aliases=aliases,
    )
    return 0


@dataclass
class KeptAnswers:
    """The answers of the last evaluation and of the best one: what was just evaluated is not predicted again.

    Attributes:
        metric: decides which is best, as in the training loop.
        lower_is_better: of it.
        first: step from which on an evaluation may be the best.
        by_step: answers by split, by the step of the weights that gave them; at most two.
    """

    metric: str
    lower_is_better: bool
    first: int = 0
    by_step: dict[int, Mapping[str, list[Any]]] = field(default_factory=dict)
    _best: float = math.nan
    _best_step: int = -1

    def keep(self, step: int, answers: Mapping[str, list[Any]], scores: Scores) -> None:
        """Keep the answers of an evaluation, and forget those that are neither the last nor the best."""
        value = scores.get(self.metric, math.nan)
        better = value < self._best if self.lower_is_better else value > self._best
        if step >= self.first and (better or (math.isnan(self._best) and not math.isnan(value))):
            self._best, self._best_step = value, step
        kept = {step: answers, **{at: each for at, each in self.by_step.items() if at == self._best_step}}
        self.by_step = kept | {step: answers}


def train(
    session: Session, options: FineTuningOptions, splits: Splits, plan: Mapping[str, Any], course: Course
) -> tuple[int, dict[str, list]]:
    """Train and load the weights to score; return their step and the answers that they already gave."""
    kept = KeptAnswers(plan["best_metric"], plan["lower_is_better"], plan["best_from_step"])

    def evaluate() -> Scores:
        answers = {split: course.answers(session, options, splits, split) for split in splits.selecting}
        scores = splits.selection_scores(answers)
        kept.keep(session.engine.step, answers, scores)
        return scores

    outcome = session.train(session.own_rows(splits.datasets["train"]), evaluate, **plan)
    step = wanted = outcome.best_step if options.load_best_model_at_end else outcome.step
    if wanted != outcome.step:
        step = session.restore()
    # Where no evaluation was the best one, the weights are those of the newest checkpoint.
    return step, dict(kept.by_step[step]) if step == wanted and step in kept.by_step else {}


def plan_of(
    options: FineTuningOptions,
    splits: Splits,
    num_steps: int,
    course: Course,
    facts: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the facts of the preamble, and what `training.run.RunPlan` has to know of fine-tuning."""
    told = {"data": splits.sizes}
    if options.do_train:
        told["step"] = (
            f"{options.train_batch_size} examples; {num_steps:,} steps are "
            f"{num_steps / splits.datasets['train'].steps_per_epoch:.1f} epochs"
        )
    if splits.told:
        told["languages"] = splits.told
    metric, lower_is_better = best_metric(options, splits.row)
    return {
        "facts": told | dict(facts),
        "num_steps": num_steps,
        "save_every_steps": options.save_checkpoints_steps,
        "eval_every_steps": options.eval_steps or options.save_checkpoints_steps,
        "best_metric": metric,
        "lower_is_better": lower_is_better,
        "best_from_step": course.best_from_step(options, num_steps),
        "early_stopping_evaluations": options.early_stopping_evaluations,
    }


def training_steps(options: FineTuningOptions, dataset: LabelledDataset | None) -> int:
    """Return the length of training: --num_train_steps, or --num_train_epochs in steps."""
    if options.num_train_steps or dataset is None:
        return options.num_train_steps or 1
    return max(1, round(dataset.steps_per_epoch * options.num_train_epochs))


def predict(
    session: Session, options: FineTuningOptions, splits: Splits, step: int, known: Mapping[str, list], course: Course
) -> Finished:
    """Write the answers and scores of the present weights, those of `step`; return the scores by split.

    Args:
        session: of the run.
        options: its flags.
        splits: its examples.
        step: of the present weights.
        known: answers that these weights already gave, by split.
        course: of the verb.
    """
    found: dict[str, Scores] = {}
    degenerate = ""
    for report, members in splits.reports.items():
        answers: dict[str, list] = {}
        scores: dict[str, Scores] = {}
        for split in members:
            answers[split] = known.get(split) or course.answers(session, options, splits, split)
            if (each := written(session, options, splits, split, answers[split], step, course)) is not None:
                scores[split] = each
        # As ERNIE-M's script writes them, beside the scores of a test file that has labels.
        lists = splits.report_lists(report, answers)
        if scores:
            found[report] = splits.report_scores(report, scores)
            title = title_of(splits, report, sum(len(splits.labelled(split)) for split in scores), step)
            table = splits.report_table(report, scores, found[report])
            lists = {**splits.report_names(report, found[report]), **lists}
            session.finish(results_name(report), found[report], title, lists, table, global_step=step)
            session.keep_row(splits.row)
            if report == "dev" and options.do_train:
                judged = splits.selecting[0]
                degenerate = splits.degenerate(judged, answers[judged], scores[judged])
        elif lists:
            session.write_results(results_name(report), {}, lists)
    return Finished(found, degenerate)


def written(
    session: Session,
    options: FineTuningOptions,
    splits: Splits,
    split: str,
    answers: Sequence[Any],
    step: int,
    course: Course,
) -> Scores | None:
    """Write the answers to a split, what is handed in, and the page of its scores; return these, if it has labels."""
    suffix = getattr(splits.kind, "suffix", course.predictions)
    path = Path(options.output_dir) / f"{split}_predictions{suffix}"
    if session.writes:
        splits.write(path, split, answers)
    session.say(f"predictions of {len(answers):,} {split} examples  {path}")
    if session.writes:
        for line in splits.submit(Path(options.output_dir), split, answers):
            session.say(line)
    if not (number := len(splits.labelled(split))):
        return None
    scores = splits.scores(split, answers)
    if session.writes:
        page = path.with_name(f"{split}_report.html")
        splits.write_page(page, title_of(splits, split, number, step), split, answers, scores)
        session.say(f"what went wrong, and where  {page}")
    return scores


def title_of(splits: Splits, split: str, number: int, step: int) -> str:
    """Return what scores are called where they are shown."""
    return f"{splits.row.name}, {split}, {number:,} examples, weights of step {step:,}"
