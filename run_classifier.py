"""Fine-tune, evaluate and predict: a classifier, a tagger or a reader of answers; checkpoint + task -> predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from absl.app import UsageError

from commands import distillation, ensembles, exporting, fine_tuning, prompting, pruning, seeds
from commands.distillation import DistillationOptions, Teaching
from commands.fine_tuning import FineTuningOptions
from commands.flags import Group, flag, run
from commands.needs import Need, check_needs
from commands.prompting import PromptOptions
from commands.pruning import Pruning, PruningOptions
from commands.task_files import find_task
from commands.techniques import TechniqueOptions, check_techniques

if TYPE_CHECKING:
    from commands.session import Session
    from optimization import TaskDrivenChild
    from tasks.kinds import HeadOptions
    from tasks.splits import Splits


@dataclass(frozen=True, kw_only=True)
class Options(FineTuningOptions, TechniqueOptions, DistillationOptions, PromptOptions, PruningOptions):
    """Fine-tune, evaluate and predict: classes of texts and pairs, entities in texts, answers in texts."""

    task_name: str = flag("", help="a row of tasks/datasets.toml; xnli where only --task_type is given", essential=True)
    data_dir: str = flag(
        "",
        help="folder of the task's train, dev and test files, by default TASK_NAME or data/TASK_NAME; or tfds:NAME, a "
        "data set that tensorflow_datasets has prepared on this machine",
        essential=True,
    )
    _files: ClassVar = Group.DATA
    test_data_path: str | None = flag(
        None,
        help="JSON lines, as {premise, hypothesis, label}, in the place of the test file; where there is no "
        "--data_dir, of all files, for a trial",
    )
    do_export: bool = flag(
        False,
        help="write the model as a SavedModel that TensorFlow alone loads, and compare its answers with the run's",
        group=Group.EVALUATION,
    )
    export_model_dir: str | None = flag(
        None, help="the SavedModel becomes EXPORT_MODEL_DIR/export; by default OUTPUT_DIR/export"
    )
    overwrite_output_dir: bool = flag(
        False, help="train anew where a run lies in the output folder; its files are removed, and no others"
    )
    text_column: str | None = flag(
        None, help="what the files call the column of the text, or of the first of two", group=Group.DATA
    )
    text_pair_column: str | None = flag(
        None, help="what the files call the column of the second text", group=Group.DATA
    )
    label_column: str | None = flag(None, help="what the files call the column of the label", group=Group.DATA)
    domain_column: str | None = flag(
        None,
        help="what the training file calls the column of a text's domain: the model is MetaKD's teacher of several "
        "domains or, with --teacher, its student",
        group=Group.EXAMPLES,
    )
    task_type: str | None = flag(
        None,
        help="how a task in several languages, as xnli, is trained: on the source language alone, or on the files of "
        "all languages together",
        choices=("cross-lingual-transfer", "translate-train-all"),
        group=Group.TRAINING,
    )
    languages: tuple[str, ...] = flag(
        (),
        help="codes of the languages to train on, score and predict; by default all that have files",
        group=Group.DATA,
    )
    selection_language: str | None = flag(
        None,
        help="the language whose development file decides which weights are best, or 'all', for the average; by "
        "default the source language, English",
        group=Group.WATCHING,
    )
    classifier_dropout: float = flag(
        0.1, help="dropout on the input of the head while training", minimum=0, maximum=0.9, group=Group.MODEL
    )
    plug_in: bool = flag(
        False,
        help="classify an example beside the same one in another language, through VECO's cross-attention; needs "
        "files whose rows are translations of each other",
        group=Group.TRAINING,
    )
    pooling: str | None = flag(
        None,
        help="how a text becomes one vector, for matching: the mean of its tokens, or the first; by default the row's",
        choices=("mean", "cls"),
        group=Group.MODEL,
    )
    pooling_layer: int | None = flag(
        None,
        help="layer whose states are pooled, from 0, the embeddings, or backwards from -1, the last; by default the "
        "row's",
        group=Group.MODEL,
    )
    in_batch_temperature: float | None = flag(
        None,
        help="by which cosines are divided where matching learns from the other texts of a batch; by default 0.05",
        group=Group.MODEL,
    )
    _windows: ClassVar = Group.EXAMPLES
    doc_stride: int | None = flag(
        None,
        help="from a window of a long text to the next, at most what a window holds; by default half of that, at most "
        "BERT's 128",
        unit="tokens",
        minimum=1,
    )
    max_query_length: int = flag(64, help="longer questions are cut", unit="tokens", minimum=1)
    _answers: ClassVar = Group.EVALUATION
    n_best_size: int = flag(20, help="candidates for an answer that are kept", minimum=1)
    max_answer_length: int = flag(30, help="longer answers are not given", unit="tokens", minimum=1)
    null_score_diff_threshold: float = flag(
        0.0, help="no answer is given where its score exceeds that of the best text by more than this"
    )
    threshold: float | None = flag(
        None,
        help="cosine from which two texts match, or probability from which a label of several is given; by default "
        "the best for the development file, which is kept in run.json, or the row's",
    )
    retrieval_margin: str | None = flag(
        None,
        help="finds the partner of a text by its cosine alone, or by the cosine over (ratio) or less (distance) the "
        "mean cosine of both texts to their nearest; by default the row's",
        choices=("none", "ratio", "distance"),
    )
    margin_neighbours: int | None = flag(None, help="texts that are the nearest there; by default 4", minimum=1)
    version_2_with_negative: bool = flag(
        False,
        help="questions may have no answer, as in SQuAD 2.0; a task with no_answer has it on",
        group=Group.DATA,
    )


NEEDS = (
    *fine_tuning.NEEDS,
    *prompting.NEEDS,
    *pruning.NEEDS,
    Need(("export_model_dir",), "--do_export", lambda o: o.do_export),
    Need(("overwrite_output_dir", "domain_column"), "--do_train", lambda o: o.do_train),
)


def with_defaults(options: Options) -> Options:
    """Return the options with a task and the folder of its files, where --task_type or the folders here tell them.

    Raises:
        UsageError: they do not.
    """
    if not options.task_name:
        if not options.task_type:
            raise UsageError("missing required flag: --task_name; or --task_type, which is of xnli where none is given")
        options = dataclasses.replace(options, task_name="xnli")
    if options.data_dir or options.test_data_path:
        return options
    candidates = [Path(options.task_name), Path("data") / options.task_name]
    found = next((folder for folder in candidates if folder.is_dir()), None)
    if found is None:
        raise UsageError(
            f"missing required flag: --data_dir, the folder of {options.task_name}'s files; without it they are looked "
            f"for in {' and '.join(map(str, candidates))}, which are not here"
        )
    return dataclasses.replace(options, data_dir=str(found))


def main(options: Options) -> None:
    """Fine-tune, evaluate and predict as the flags say, once a seed."""
    if not (options.do_train or options.do_eval or options.do_predict or options.do_export):
        raise UsageError("nothing to do: give at least one of --do_train, --do_eval, --do_predict, --do_export")
    check_needs(options, NEEDS)
    options = with_defaults(options)
    seeds.seeds_of(options)
    check_techniques(options)
    pruning.check_pruning(options)
    teaching = distillation.teaching_of(options)
    session, options = fine_tuning.checked(options)
    exporting.check(session, options)
    row, files = find_task(session, options, Classification.verb)
    if options.unlabelled_file:
        ensembles.run_ensemble(session, options, row, files, lambda: Classification(teaching, Pruning()))
        return
    if options.pruning_levels > 1:
        pruning.run_levels(session, options, row, files, lambda level: Classification(teaching, level))
        return
    pruned = Pruning()
    seeds.run_seeds(session, options, row, files, lambda own: Classification(teaching, pruned))


class Classification:
    """The course of a run that answers by one pass over the rows; fulfils `commands.fine_tuning.Course`."""

    verb = "run_classifier"
    predictions = ".tsv"
    _child: TaskDrivenChild | None = None

    def __init__(self, teaching: Teaching, pruned: Pruning):
        self._teaching, self._pruning = teaching, pruned

    def head(self, options: Options) -> HeadOptions:
        """Return dropout, regularizers, what is learnt from a teacher and what methods are told."""
        from commands.techniques import regularizers
        from tasks.kinds import HeadOptions

        return HeadOptions(
            options.classifier_dropout,
            regularizers(options),
            around=[*self._teaching.around(options), *self._pruning.around(options)],
            further=prompting.further(options),
        )

    def checked(self, session: Session, options: Options, splits: Splits) -> None:
        """Open the teacher and the models that texts stay near to; labels were checked as they were read."""
        self._teaching.open(session, options, splits)
        self._pruning.open(session, options, splits, self._teaching.teacher)

    def optimizing(self, session: Session, options: Options, num_steps: int) -> Mapping[str, Any]:
        """Return what the techniques do to the optimizer; keep the child whose weights are yet to be chosen."""
        from commands.techniques import optimizer_behaviour

        behaviour, self._child = optimizer_behaviour(options, session.config, num_steps)
        return behaviour | {"around": pruning.around_optimizer(options, session.config, num_steps)}

    def best_from_step(self, options: Options, num_steps: int) -> int:
        """Return the first step by which everything is pruned that is to be."""
        return pruning.best_from_step(options, num_steps)

    def before_training(self, session: Session, options: Options, task: Any, splits: Splits) -> Mapping[str, str]:
        """Ask the teacher, where it is asked once; choose the weights that are trained, or what texts stay near to."""
        from commands.techniques import choose_child

        facts = self._teaching.before_training(session, options, splits)
        facts |= self._pruning.before_training(options, splits)
        if not self._child:
            return facts
        model, training = session.engine.model, splits.datasets["train"]
        return facts | {"child": choose_child(options, session.config, task, model, self._child, training)}

    def answers(self, session: Session, options: Options, splits: Splits, split: str) -> list[Any]:
        """Return the answer to every example."""
        batch_size = options.eval_batch_size if split.startswith("dev") else options.predict_batch_size
        return splits.answers(session.engine, split, batch_size)

    def finish(self, session: Session, options: Options, splits: Splits) -> None:
        """With --do_export write the model as a SavedModel."""
        if options.do_export:
            exporting.export(session, options, splits)


if __name__ == "__main__":
    run(main, Options)
