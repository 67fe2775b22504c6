"""One fine-tuning run on a row of datasets.toml, from its files to scores and predictions, for every kind of task.

A verb brings a `Course`: what is its own in encoding, optimizing and answering. Everything else is the same for
classification and generation.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from absl.app import UsageError

from commands.flags import Group, flag
from commands.needs import DEVICE_NEEDS, Need, check_needs
from commands.options import TrainingOptions
from commands.resuming import results_name
from ground.files import write_atomically
from ground.words import few_names

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

    _data: ClassVar = Group.DATA
    task_name: str = flag(help="a row of tasks/datasets.toml")
    data_dir: str = flag(
        help="folder of the task's train, dev and test files; or tfds:NAME, a data set that tensorflow_datasets has "
        "prepared on this machine"
    )
    bert_config_file: str = flag(
        help="JSON file of the model's shape", aliases=("albert_config_file",), group=Group.MODEL
    )
    vocab_file: str | None = flag(None, help="WordPiece vocabulary", essential=True)
    spm_model_file: str | None = flag(None, help="SentencePiece model, in place of --vocab_file")
    do_lower_case: bool = flag(True, help="lower the case and strip accents, as the vocabulary was made")
    task_file: str | None = flag(None, help="TOML file of task rows of your own, in the form of tasks/datasets.toml")
    init_checkpoint: str | None = flag(
        None,
        help="pretrained weights: a folder of ours, a TensorFlow 1 prefix, or a transformers folder; an archive of "
        "one, or its http(s) address, works too",
        essential=True,
        group=Group.MODEL,
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
    eval_batch_size: int = flag(
        32, help="of evaluation; results do not depend on it", unit="examples", minimum=1, group=Group.EVALUATION
    )
    predict_batch_size: int = flag(
        32, help="of prediction; results do not depend on it", unit="examples", minimum=1, group=Group.EVALUATION
    )
    learning_rate: float = flag(5e-5, help="peak learning rate", minimum=0, essential=True)
    num_train_epochs: float = flag(3.0, help="passes over the training file", unit="epochs", minimum=0, essential=True)
    num_train_steps: int | None = flag(
        None, help="optimizer steps, in place of --num_train_epochs", unit="steps", minimum=1, aliases=("train_step",)
    )
    warmup_proportion: float = flag(
        0.1, help="share of the steps in which the learning rate rises from 0", minimum=0, maximum=1
    )
    _evaluation: ClassVar = Group.EVALUATION
    save_checkpoints_steps: int = flag(
        1000,
        help="steps between two evaluations on the development file, each with a checkpoint",
        unit="steps",
        minimum=1,
        essential=True,
    )
    early_stopping_evaluations: int = flag(
        0, help="stop after this many evaluations without a better one; 0 never stops early", minimum=0
    )
    seeds: tuple[int, ...] = flag(
        (),
        help="train once with each of these seeds, below OUTPUT_DIR/seed_N, and report mean and deviation",
        group=Group.TRAINING,
    )


NEEDS = (
    *DEVICE_NEEDS,
    Need(("early_stopping_evaluations",), "--do_train", lambda o: o.do_train),
    Need(("dev_share",), "--do_train or --do_eval", lambda o: o.do_train or o.do_eval),
    Need(("seed",), "--seeds left out", lambda o: not o.seeds),
)


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


def find_task(
    session: Session, options: FineTuningOptions, verb: str
) -> tuple[DatasetRow, dict[str, tuple[Path, ...]]]:
    """Return the row of --task_name and its files by split, as far as they are asked for.

    Raises:
        UsageError: nothing is asked for, the row is another verb's, or a file is missing.
    """
    from data.corpus.encodings import find_encoding
    from tasks.datasets import find_row
    from tasks.kinds import find_kind
    from tasks.sources import find_files

    row = find_row(options.task_name, Path(options.task_file) if options.task_file else None)
    if (right := find_kind(row.kind).verb) != verb:
        raise UsageError(f"--task_name={options.task_name} is a row of {row.kind}: run {right}.py")
    check_needs(options, needs_of_kinds(verb, row.kind))
    row = dataclasses.replace(row, encoding=find_encoding(options.encoding or row.encoding), asked=asked(options, row))
    evaluates = options.do_train or options.do_eval
    wanted = {
        "train": options.do_train or (evaluates and options.dev_share),
        "dev": evaluates and not options.dev_share,
        "test": options.do_predict,
    }
    chosen = [split for split, is_wanted in wanted.items() if is_wanted]
    row, files = session.together(lambda: find_files(row, options.data_dir, chosen))
    if options.dev_share:
        session.together(lambda: refuse_dev_file(options, row))
    return session.together(lambda: settled(session, options, row, files)), files


def asked(options: Any, row: DatasetRow) -> dict[str, str]:
    """Return the names that flags of the verb give to columns, by column; raises `UsageError` for one it has not."""
    from tasks.kinds import find_kind

    known = find_kind(row.kind).columns
    wanted = {"text_column": "text_a", "text_pair_column": "text_b", "label_column": "label"}
    found = {}
    for name, column in wanted.items():
        if not (value := getattr(options, name, None)):
            continue
        if column not in known or column not in (*row.columns, *row.optional, "label"):
            raise UsageError(
                f"--{name}={value}: --task_name={row.name} has no such column; it has {', '.join(row.columns)}"
            )
        found[column] = value
    return found


def refuse_dev_file(options: FineTuningOptions, row: DatasetRow) -> None:
    """Raise `UsageError` where the task has a development file, which --dev_share would pass over."""
    from tasks.sources import find_files

    try:
        _, files = find_files(row, options.data_dir, ["dev"])
    except UsageError:
        return
    raise UsageError(
        f"--dev_share={options.dev_share}: {files['dev'][0]} holds the development examples; leave the flag out"
    )


def settled(
    session: Session, options: FineTuningOptions, row: DatasetRow, files: Mapping[str, Sequence[Path]]
) -> DatasetRow:
    """Return the row with the columns and labels that are found in the files, where it leaves them to these.

    Labels come from the training file; a run without one has those of the run that made its weights.
    """
    from tasks.found_labels import with_columns
    from tasks.kinds import find_kind
    from tasks.run_file import NAME, RunFile
    from tasks.sources import find_files

    row = with_columns(row, next(iter(files.values()))[0])
    find_labels = getattr(find_kind(row.kind), "find_labels", None)
    if row.labels or not find_labels:
        return row
    if not options.do_train:
        weights = Path(options.init_checkpoint) if options.init_checkpoint else None
        # Weights lie in the run folder, in its best/ or in its checkpoints/step_N/.
        for folder in (Path(options.output_dir), *((weights, *list(weights.parents)[:2]) if weights else ())):
            former = RunFile.read(folder).row if (folder / NAME).is_file() else None
            if former and former.name == row.name and former.labels:
                return dataclasses.replace(row, labels=former.labels)
    train = files.get("train") or find_files(row, options.data_dir, ["train"])[1]["train"]
    row = dataclasses.replace(row, labels=find_labels(row, train))
    session.say(f"{len(row.labels):,} labels in {few_names(map(str, train))}: {few_names(row.labels)}")
    return row


def needs_of_kinds(verb: str, kind: str) -> tuple[Need, ...]:
    """Return what the flags need that only some kinds of task take."""
    from tasks.kinds import flags_of_verb

    return tuple(
        Need((name,), f"a --task_name of the kind {' or '.join(kinds)}", lambda o, kinds=kinds: kind in kinds)
        for name, kinds in flags_of_verb(verb).items()
    )


def run_seeds(
    session: Session,
    options: FineTuningOptions,
    row: DatasetRow,
    files: Mapping[str, Sequence[Path]],
    course: Callable[[Any], Course],
) -> None:
    """Run once, or once a seed of --seeds, and report mean and deviation; `course` makes that of a run's options.

    A course keeps what belongs to one model, such as its compiled search: every seed has one of its own.
    """
    if not options.seeds:
        fine_tune(session, options, row, files, course(options))
        return
    with session.entered_for_seeds(reads(options, files)):
        scores = []
        # The runs differ in nothing that a dry run shows.
        for seed in options.seeds[:1] if options.dry_run else options.seeds:
            folder = str(Path(options.output_dir) / f"seed_{seed}")
            session.say(f"seed {seed} -> {folder}")
            own = dataclasses.replace(options, seed=seed, seeds=(), output_dir=folder)
            scores.append(fine_tune(session.with_options(own), own, row, files, course(own)))
        report_seeds(session, options, scores)


def fine_tune(
    session: Session, options: FineTuningOptions, row: DatasetRow, files: Mapping[str, Sequence[Path]], course: Course
) -> dict[str, Scores]:
    """Run once with one seed; return the scores of the best weights on every split whose examples have labels."""
    from commands.estimate import Work
    from data.tokenizers import load_tokenizer
    from tasks.splits import Splits

    tokenizer = session.together(
        lambda: load_tokenizer(
            vocab_file=options.vocab_file, spm_model_file=options.spm_model_file, do_lower_case=options.do_lower_case
        )
    )
    splits = session.together(lambda: Splits(row, files, dev_share=options.dev_share))
    for note in splits.notes:
        session.say(note)
    session.start()
    fits = partial(
        session.check_fit,
        vocab_size=tokenizer.vocab_size,
        vocabulary=options.spm_model_file or options.vocab_file or "",
        max_seq_length=options.max_seq_length,
    )
    fits()
    encode(session, options, splits, tokenizer)
    rows = max(getattr(dataset, "rows_per_example", 1) for dataset in splits.datasets.values())
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
            session.show_plan(work=work if options.do_train else None, **plan_of(options, splits, num_steps))
            return {}
        session.describe(
            lambda folder: describe_tokenizer(
                tokenizer, folder, do_lower_case=options.do_lower_case, max_seq_length=options.max_seq_length
            )
        )
        answers: Mapping[str, list] = {}
        if options.do_train:
            step, answers = train(session, options, splits, task, num_steps, course)
        scores = predict(session, options, splits, step, answers, course)
        course.finish(session, options, splits)
        return scores


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
        "--bert_config_file": [options.bert_config_file],
        "--vocab_file": [options.vocab_file],
        "--spm_model_file": [options.spm_model_file],
        "--task_file": [options.task_file],
        "--data_dir": [path for paths in files.values() for path in paths],
        "--init_checkpoint": [options.init_checkpoint if options.do_train else None],
    }


def build(session: Session, options: FineTuningOptions, splits: Splits, num_steps: int, course: Course) -> Any:
    """Build the task and its engine; return the task."""
    from optimization import create_schedule

    task = splits.kind.task(splits.row, session.config, session.computation(), course.head(options))
    schedule = create_schedule(
        "polynomial",
        rate=options.learning_rate,
        total_steps=num_steps,
        warmup_steps=int(num_steps * options.warmup_proportion),
    )
    behaviour = course.optimizing(session, options, num_steps)
    session.build(task, schedule, batch_size=options.train_batch_size, **behaviour)
    return task


def load_weights(session: Session, options: FineTuningOptions, splits: Splits) -> int:
    """Load the weights to train from, or those of the finished run to score; return their step."""
    kind = splits.kind
    if not options.do_train:
        return session.restore(options.init_checkpoint, allow_unexpected=kind.unused_heads)
    session.start_from(options.init_checkpoint, allow_missing=kind.new_heads, allow_unexpected=kind.unused_heads)
    return 0


def train(
    session: Session, options: FineTuningOptions, splits: Splits, task: Any, num_steps: int, course: Course
) -> tuple[int, dict[str, list]]:
    """Train and load the best weights; return their step and the answers that they already gave."""
    answers: dict[str, list] = {}
    plan = plan_of(options, splits, num_steps)
    plan["facts"] |= course.before_training(session, options, task, splits)

    def evaluate() -> Scores:
        answers["dev"] = course.answers(session, options, splits, "dev")
        return splits.scores("dev", answers["dev"])

    outcome = session.train(session.own_rows(splits.datasets["train"]), evaluate, **plan)
    if outcome.best_step == outcome.step:
        return outcome.step, answers
    return session.restore(), {}


def plan_of(options: FineTuningOptions, splits: Splits, num_steps: int) -> dict[str, Any]:
    """Return the facts of the preamble, and what `training.run.RunPlan` has to know of fine-tuning."""
    facts = {"data": splits.sizes}
    if options.do_train:
        facts["step"] = (
            f"{options.train_batch_size} examples; {num_steps:,} steps are "
            f"{num_steps / splits.datasets['train'].steps_per_epoch:.1f} epochs"
        )
    return {
        "facts": facts,
        "num_steps": num_steps,
        "save_every_steps": options.save_checkpoints_steps,
        "eval_every_steps": options.save_checkpoints_steps,
        "best_metric": splits.row.metric,
        "early_stopping_evaluations": options.early_stopping_evaluations,
    }


def training_steps(options: FineTuningOptions, dataset: LabelledDataset | None) -> int:
    """Return the length of training: --num_train_steps, or --num_train_epochs in steps."""
    if options.num_train_steps or dataset is None:
        return options.num_train_steps or 1
    return max(1, round(dataset.steps_per_epoch * options.num_train_epochs))


def predict(
    session: Session, options: FineTuningOptions, splits: Splits, step: int, known: Mapping[str, list], course: Course
) -> dict[str, Scores]:
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
    for split in sorted(set(splits.datasets) - {"train"}):
        answers = known.get(split) or course.answers(session, options, splits, split)
        suffix = getattr(splits.kind, "suffix", course.predictions)
        path, number = Path(options.output_dir) / f"{split}_predictions{suffix}", len(answers)
        if session.writes:
            splits.write(path, split, answers)
        session.say(f"predictions of {number:,} {split} examples  {path}")
        if session.writes:
            for line in splits.submit(Path(options.output_dir), split, answers):
                session.say(line)
        if number := len(splits.labelled(split)):
            found[split] = splits.scores(split, answers)
            title = f"{splits.row.name}, {split}, {number:,} examples, weights of step {step:,}"
            session.finish(results_name(split), found[split], title, global_step=step)
    return found


def report_seeds(session: Session, options: FineTuningOptions, scores: Sequence[Mapping[str, Scores]]) -> None:
    """Print and write mean and deviation of the scores over the seeds, by split."""
    from ground.tables import print_table
    from tasks.metrics import mean_and_deviation

    for split in scores[0] if session.writes else ():
        summary = mean_and_deviation([each[split] for each in scores])
        print_table(
            f"{options.task_name}, {split}, {len(scores)} seeds",
            ["score", "mean", "deviation"],
            [[name, f"{mean:.4f}", f"{deviation:.4f}"] for name, (mean, deviation) in summary.items()],
        )
        content = {name: {"mean": mean, "deviation": deviation} for name, (mean, deviation) in summary.items()}
        write_atomically(Path(options.output_dir) / f"{results_name(split)}.json", json.dumps(content, indent=2) + "\n")
