"""The host half of a task on labelled data: how a kind of task is read, encoded, answered, scored and written.

A kind is a module with the functions of `Kind`, and one row of KINDS; a row of datasets.toml names its kind.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from modeling.computation import Computation
    from modeling.config import Config
    from tasks.datasets import DatasetRow
    from tasks.regularization import Regularizer

Scores = dict[str, float]
Prediction = Mapping[str, Any]
"""What the task's `predictions` says of one row of a data set, without the batch axis, and the data set's `facts`."""
Batch = Mapping[str, np.ndarray]

PRETRAINING_HEADS = ("masked_lm/.*", "sentence_pair/.*")
# What a model that generates has beside an encoder's variables.
DECODER = ("backbone/decoder/.*", "backbone/target_embeddings/.*", "copy/.*")
KINDS: dict[str, str] = {
    "classification": "tasks.kinds.classification",
    "generation": "tasks.kinds.generation",
    "tagging": "tasks.kinds.tagging",
    "span": "tasks.kinds.span",
    "regression": "tasks.kinds.regression",
    "multilabel": "tasks.kinds.multilabel",
    "choice": "tasks.kinds.choice",
    "matching": "tasks.kinds.matching",
    "mining": "tasks.kinds.mining",
}
"""kind -> the module that implements it; imported when a row of that kind is used."""
METHODS: dict[str, str] = {
    "pet": "tasks.prompts.pet",
    "p_tuning": "tasks.prompts.p_tuning",
    "cp_tuning": "tasks.prompts.cp_tuning",
    "soft_labels": "tasks.prompts.soft_labels",
}
"""method -> the module that is the kind of a row of classification where --method, or an ensemble, asks for it."""


@dataclass(frozen=True)
class HeadOptions:
    """Flags that every kind hands to the head of its model.

    Attributes:
        dropout: rate on the input of the head, in training.
        regularizers: further losses in training.
        label_smoothing: share of a label that is spread over all, in training.
        around: each makes of the task a task that learns from something besides, as from a teacher.
        further: values of options that some methods read, by name; without one a method has its own default.
    """

    dropout: float = 0.1
    regularizers: Sequence[Regularizer] = ()
    label_smoothing: float = 0.0
    around: Sequence[Callable[[Any], Any]] = ()
    further: Mapping[str, Any] = field(default_factory=dict)


class LabelledDataset(Protocol):
    """Encoded examples in batches; one example may fill several rows (windows, choices)."""

    @property
    def num_examples(self) -> int:
        """Rows of one epoch."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""
        ...

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return the batch of `step`: a pure function of (seed, step)."""
        ...

    def evaluation_batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield every row once; the last batch is filled up with rows that weigh nothing."""
        ...

    def evaluation_order(self) -> np.ndarray:
        """Return the number of each row in the order of `evaluation_batches`."""
        ...

    # May be absent:
    # lengths: what batches may be padded to, ascending; who asks a trained model sets them, for few programs.
    # facts(row) -> Mapping: what `Kind.answers` has to know of a row beside its prediction.
    # notes: what is to be said of the encoded examples.


class Kind(Protocol):
    """One kind of task.

    Attributes:
        verb: the root script that runs tasks of this kind.
        needs: fields of a row that must not be empty.
        columns: names that the columns of a row may have, besides "-" for one that is not read.
        header_names: what published files call each of them; the first name that a header line holds is the column.
        metrics: names of the scores by which a row may choose its best checkpoint.
        new_heads: expressions over names of variables that a pretrained checkpoint need not have.
        unused_heads: expressions over names of tensors of a checkpoint that the model of this kind need not have.

    A kind may also have:
        flags: names of options of the verb that its `dataset` and `answers` take as further arguments, and other kinds
            do not.
        by_language: names of the scores that are told by language, by default the row's metric.
        row_flags: names of options of the verb that take the place of fields of the row, with these fields.
        table(row, scores): columns and rows in which a terminal shows scores, or None for a line a score.
        complete(row): whether any file is scored without labels; --do_eval alone then scores test, where dev is not.
        suffix: of the files of predictions, in place of the verb's.
        find_labels(row, paths): the labels of the training files, for a row that names none.
        group(example): what keeps examples together where a share of them is held out; by default the first text.
        complaint(row): what is wrong with a row, one clause, or "".
        notes(row, examples): what is to be said of the examples of a split; empty for nothing.
        settled(row, tokenizer, examples by split): the row with what tokenizer and training examples decide, or a
            `UsageError`.
        kept: fields of a row that a run which is only scored has from the finished run, unless flags say otherwise.
        prepare(row, engine, dataset, batch_size): lets the present weights know the training examples, before they are
            asked for answers.
        tuned(row, answers, examples of dev): the row with what dev decides for every split, such as a threshold.
        files(row, split, answers, examples): further files of predictions, contents by the end of their name.
        submitted(row, answers, examples): id and released answer of each example, to be handed in.
        smaller_is_better: names of scores by which a user may choose the best checkpoint besides `metrics`; less is
            better.
        degenerate(row, answers, examples): in what the answers show that nothing was learnt, one clause, or "".
        inspected(row, answers, examples): what there is to see of the answers, an `Inspection`.
        confidences(row, answers): number of each label that was chosen, and its probability, as ERNIE-M's script has
            them.
        served_as: the kind whose `example_of` and `told` answer a user's inputs in its place.
        settings: names of further options of the verb that decide answers; `predictor` takes their values.
        predictor(model, tokenizer, ...): what predicts the rows of a data set, where one pass of the task does not.
        on_strings: the form in which a SavedModel reads strings and answers them, a key of `serving.strings.FORMS`.
        graphs: "encoder_decoder" where a model is asked step by step, and exported so (`serving/steps.py`).
        parts_of_row(row, tokenizer): for the form "prompts", the ids and the names of texts that make a row.
        head, foreign_row(labels, count): the head by which a checkpoint that no run wrote is known to be of this kind,
            and the row that such a checkpoint has, from the names of its classes, if they are known, and their number.
    """

    verb: str
    needs: tuple[str, ...]
    columns: tuple[str, ...]
    header_names: Mapping[str, tuple[str, ...]]
    metrics: tuple[str, ...]
    new_heads: tuple[str, ...]
    unused_heads: tuple[str, ...]

    def read(self, row: DatasetRow, path: Path, *, need_labels: bool) -> list[Any]:
        """Return the examples of a file; raises `UsageError` that names file and line."""
        ...

    def dataset(
        self,
        row: DatasetRow,
        examples: Sequence[Any],
        tokenizer: Tokenizer,
        *,
        max_seq_length: int,
        batch_size: int,
        seed: int,
        **further: Any,
    ) -> LabelledDataset:
        """Return the examples as batches; `further` are the values of `flags`."""
        ...

    def task(self, row: DatasetRow, config: Config, computation: Computation, head: HeadOptions) -> Any:
        """Return the device half, a `training.engine.Task`: model, losses, predictions."""
        ...

    def answers(
        self, row: DatasetRow, predictions: Sequence[Prediction], examples: Sequence[Any], **further: Any
    ) -> list[Any]:
        """Return one answer for each example, from the predictions of its rows, in the order of the data set's rows.

        `further` are the values of `flags`.
        """
        ...

    def scores(self, row: DatasetRow, answers: Sequence[Any], examples: Sequence[Any]) -> Scores:
        """Return the scores of the answers; every example has a label."""
        ...

    def lines(self, row: DatasetRow, answers: Sequence[Any], examples: Sequence[Any]) -> Iterator[str]:
        """Yield the lines of the predictions file, a header line first."""
        ...

    def example_of(self, row: DatasetRow, given: Any) -> Any:
        """Return what a user gives, a text, a list or an object, as an example without label; raises `UsageError`."""
        ...

    def told(self, row: DatasetRow, answer: Any, example: Any) -> dict[str, Any]:
        """Return one answer as a dictionary that JSON can hold, with the numbers that `lines` and `files` have."""
        ...

    def submitted(self, row: DatasetRow, answers: Sequence[Any], examples: Sequence[Any]) -> list[tuple[Any, Any]]:
        """Return id and released answer of each example; only kinds whose rows have a `submission` need it."""
        ...


def find_kind(name: str) -> Kind:
    """Return the kind called `name`, a key of KINDS or METHODS."""
    return importlib.import_module(KINDS.get(name) or METHODS[name])  # pyright: ignore[reportReturnType]


def flags_of(kind: Kind) -> tuple[str, ...]:
    """Return the names of the options that are the kind's own."""
    return getattr(kind, "flags", ())


def settings_of(kind: Kind) -> tuple[str, ...]:
    """Return the names of all options of the verb that decide how a trained model of a kind answers."""
    return (*flags_of(kind), *getattr(kind, "settings", ()))


def row_flags_of(kind: Kind) -> Mapping[str, str]:
    """Return the names of the options that take the place of fields of a row, with these fields."""
    return getattr(kind, "row_flags", {})


def flags_of_verb(verb: str) -> dict[str, list[str]]:
    """Return each option that some kinds of a verb take and others do not, with the names of those that do."""
    found: dict[str, list[str]] = {}
    for name in KINDS:
        kind = find_kind(name)
        for flag in (*flags_of(kind), *row_flags_of(kind)) if kind.verb == verb else ():
            found.setdefault(flag, []).append(name)
    return found


def in_order(dataset: LabelledDataset, batches: Iterator[Prediction]) -> list[Prediction]:
    """Return the predictions of `evaluation_batches`, one for each row of the data set, in the order of its rows.

    Example: rows 0, 1, 2 were evaluated in the order 2, 0, 1 in batches of two, the second filled up with padding:
        batches            [p2, p0], [p1, padding]
        evaluation_order   2, 0, 1
        returned           p0, p1, p2
    """
    found: list[Prediction] = [{}] * dataset.num_examples
    order = iter(dataset.evaluation_order().tolist())
    for batch in batches:
        for number, row in zip(range(len(next(iter(batch.values())))), order, strict=False):
            found[row] = {name: values[number] for name, values in batch.items()}
    return found
