"""The labelled examples of a run by split, for any kind of task: read, encoded, answered by an engine, scored."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from absl.app import UsageError

from ground.files import write_atomically
from ground.words import few_names
from tasks.datasets import DatasetRow, Examples
from tasks.evaluation_page import write_page
from tasks.kinds import Batch, LabelledDataset, Prediction, Scores, find_kind, flags_of, in_order
from tasks.readers.aligned import CODES
from tasks.submissions import FOLDER, GROUP, write_submission

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Names of columns, and the cells of every row."""


class Predictor(Protocol):
    """What is needed of a `training.engine.Engine`."""

    def predict(self, batches: Iterator[Batch]) -> Iterator[Prediction]:
        """Yield the predictions of every batch."""
        ...


class Splits:
    """The splits of one row: `train`, `dev`, `test` and further ones (`dev_x`, `test_x`), as far as they are asked for.

    Attributes:
        row: of datasets.toml; what the kind learns from the scores of dev is written there (`Kind.tuned`).
        kind: of the row.
        examples: of every split, in the order of its file.
        notes: what there is to say of the files: rows that are left out, and files of another size than released ones.
        datasets: of every split, once it is encoded.
        tokenizer: that encoded them.
        further: values of the kind's own flags.

    Raises:
        UsageError: a file is malformed, or an example of train or dev has no label; the message names file and line.
    """

    tokenizer: Tokenizer
    tunes = True
    """Whether dev decides what it can decide, such as a threshold."""
    told = ""
    """What there is to say of languages before a run begins."""

    def __init__(self, row: DatasetRow, files: Mapping[str, Sequence[Path]], *, dev_share: float = 0.0):
        """Read the files; with `dev_share` that share of the training examples becomes the split dev."""
        self.row, self.kind = row, find_kind(row.kind)
        found = {split: self.read(split, paths) for split, paths in files.items()}
        self.examples: dict[str, Sequence[Any]] = {split: each for split, each in found.items() if each is not None}
        self.notes = [
            note
            for split, examples in self.examples.items()
            for note in notes_of(row, split, few_names(map(str, files[split])), examples)
        ]
        if dev_share:
            group = getattr(self.kind, "group", lambda example: example.text_a)
            self.examples["train"], self.examples["dev"] = held_out(self.examples["train"], dev_share, group)
        self.datasets: dict[str, LabelledDataset] = {}
        self.further: Mapping[str, Any] = {}

    def read(self, split: str, paths: Sequence[Path]) -> Examples | None:
        """Return the examples of the files of a split; None where it is to be done without."""
        needs_labels, row = not split.startswith("test"), self.row_of(split)
        return Examples.of(self.kind.read(row, path, need_labels=needs_labels) for path in paths)

    def row_of(self, split: str) -> DatasetRow:
        """Return the row as the examples of a split are read and scored."""
        return self.row

    @property
    def selecting(self) -> tuple[str, ...]:
        """The splits whose scores decide which weights are best."""
        return ("dev",)

    def selection_scores(self, answers: Mapping[str, Sequence[Any]]) -> Scores:
        """Return the scores that decide which weights are best, of the answers to the splits of `selecting`."""
        return self.scores("dev", answers["dev"])

    @property
    def reports(self) -> dict[str, tuple[str, ...]]:
        """The splits that are scored or predicted, by what their results are called; development comes first."""
        return {split: (split,) for split in sorted({*self.datasets} - {"train"})}

    def report_scores(self, report: str, found: Mapping[str, Scores]) -> Scores:
        """Return the results of a report from the scores of its splits."""
        return found[report]

    def report_names(self, report: str, scores: Scores) -> Scores:
        """Return scores under further names, for the JSON file alone; none of one language."""
        return {}

    def report_lists(self, report: str, answers: Mapping[str, Sequence[Any]]) -> dict[str, list]:
        """Return what the results of a test file list, as ERNIE-M's `test_results.json` has it; see `confidences`."""
        return self.confidences(answers[report]) if report.startswith("test") else {}

    def report_table(self, report: str, found: Mapping[str, Scores], scores: Scores) -> Table:
        """Return the columns and the rows in which a terminal shows the results of a report."""
        of_kind = getattr(self.kind, "table", lambda row, scores: None)(self.row, scores)
        return of_kind or (["score", "value"], [[key, f"{value:.4f}"] for key, value in scores.items()])

    def encode(self, tokenizer: Tokenizer, *, max_seq_length: int, batch_size: int, seed: int, **further: Any) -> None:
        """Tokenise the examples; inputs are cut to `max_seq_length` tokens. `further` is the kind's own."""
        self.tokenizer, self.further = tokenizer, further
        self.datasets = {
            split: self.kind.dataset(
                self.row_of(split),
                examples,
                tokenizer,
                max_seq_length=max_seq_length,
                batch_size=batch_size,
                seed=seed,
                **further,
            )
            for split, examples in self.examples.items()
        }

    @property
    def sizes(self) -> str:
        """The number of examples of every split, and what is to be said of them, as text."""
        sizes = ", ".join(f"{split} {len(examples):,}" for split, examples in self.examples.items())
        told = getattr(self.kind, "notes", lambda row, examples: "")
        notes = [(split, told(self.row_of(split), examples)) for split, examples in self.examples.items()]
        notes += [(split, getattr(dataset, "notes", "")) for split, dataset in self.datasets.items()]
        return "; ".join(
            [f"{sizes} examples of {self.row.name}", *(f"{split}: {note}" for split, note in notes if note)]
        )

    def answers(self, engine: Predictor, split: str, batch_size: int) -> list[Any]:
        """Return the answer of the engine's present weights to every example of a split."""
        dataset = self.datasets[split]
        if "train" in self.datasets and (prepare := getattr(self.kind, "prepare", None)):
            prepare(self.row, engine, self.datasets["train"], batch_size)
        predictions = in_order(dataset, engine.predict(dataset.evaluation_batches(batch_size)))
        if facts := getattr(dataset, "facts", None):
            predictions = [{**each, **facts(number)} for number, each in enumerate(predictions)]
        further = self.further if flags_of(self.kind) else {}
        return self.kind.answers(self.row_of(split), predictions, self.examples[split], **further)

    def labelled(self, split: str) -> list[int]:
        """Return the numbers of the examples of a split that have a label; those of a test set often have none."""
        return [number for number, example in enumerate(self.examples[split]) if example.label is not None]

    def scores(self, split: str, answers: Sequence[Any]) -> Scores:
        """Return the scores of the answers to those examples of a split that have labels."""
        answers, examples = self._with_labels(split, answers)
        if self.tunes and hasattr(self.kind, "tuned"):
            self.tune(split, answers, examples)
        return self.kind.scores(self.row_of(split), answers, examples)

    def tune(self, split: str, answers: Sequence[Any], examples: Sequence[Any]) -> None:
        """Let the answers to dev decide what they can decide of the row, for every split."""
        if split == "dev":
            self.row = self.kind.tuned(self.row, answers, examples)  # pyright: ignore[reportAttributeAccessIssue]

    def _with_labels(self, split: str, answers: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return the answers to the examples that have labels, and these."""
        numbers = self.labelled(split)
        return [answers[n] for n in numbers], [self.examples[split][n] for n in numbers]

    def write(self, path: Path, split: str, answers: Sequence[Any]) -> None:
        """Write the answers, one line an example, and what further files the kind has; raises `OSError`."""
        lines = self.kind.lines(self.row_of(split), answers, self.examples[split])
        files: dict[str, str | bytes] = {path.name: "".join(f"{line}\n" for line in lines)}
        if further := getattr(self.kind, "files", None):
            named = further(self.row_of(split), split, answers, self.examples[split])
            files |= {f"{split}_{name}": content for name, content in named.items()}
        for name, content in files.items():
            write_atomically(path.with_name(name), content)

    def degenerate(self, split: str, answers: Sequence[Any], scores: Scores) -> str:
        """Return in what the answers to a split show that nothing was learnt, one clause; empty where something was."""
        if strange := [name for name, value in scores.items() if not math.isfinite(value)]:
            return f"{strange[0]} is {scores[strange[0]]}"
        told = getattr(self.kind, "degenerate", lambda row, answers, examples: "")
        return told(self.row_of(split), *self._with_labels(split, answers))

    def confidences(self, answers: Sequence[Any]) -> dict[str, list]:
        """Return `label` and `confidence` as ERNIE-M's `test_results.json` has them; nothing for kinds without."""
        told = getattr(self.kind, "confidences", None)
        return dict(zip(("label", "confidence"), told(self.row, answers), strict=True)) if told else {}

    def write_page(self, path: Path, title: str, split: str, answers: Sequence[Any], scores: Scores) -> None:
        """Write the page of what there is to see of the answers, where the kind shows it; raises `OSError`."""
        if inspected := getattr(self.kind, "inspected", None):
            write_page(path, title, scores, inspected(self.row_of(split), *self._with_labels(split, answers)))

    def submit(self, folder: Path, split: str, answers: Sequence[Any]) -> list[str]:
        """Write what the row hands in to a leaderboard, below `folder`; return a line for each file.

        Raises:
            OSError: a file cannot be written.
        """
        if split not in self.row.submission.get("files", {}):
            return []
        submitted = self.kind.submitted(self.row_of(split), answers, self.examples[split])
        if not any(GROUP in name for name in self.row.submission["files"][split]):
            return write_submission(self.row, split, submitted, folder / FOLDER)
        by_group: dict[str, list[Any]] = {}
        for example, answer in zip(self.examples[split], submitted, strict=True):
            by_group.setdefault(example.group, []).append(answer)
        return [
            line
            for group, members in by_group.items()
            for line in write_submission(self.row, split, members, folder / FOLDER, group=CODES.get(group, group))
        ]


def notes_of(row: DatasetRow, split: str, where: object, examples: Sequence[Any]) -> Iterator[str]:
    """Yield a line where rows of a file are no examples, and where it has another number of rows than the released."""
    dropped = getattr(examples, "dropped", {})
    if dropped:
        reasons = ", ".join(f"{number:,} for {reason}" for reason, number in sorted(dropped.items()))
        yield f"{where}: left out {sum(dropped.values()):,} rows ({reasons}), {len(examples):,} remain"
    found, expected = len(examples) + sum(dropped.values()), row.counts.get(split)
    if expected and found != expected:
        yield f"{where}: {found:,} rows, the released {split} file of {row.name} has {expected:,}: is it another copy?"


def held_out(
    examples: Sequence[Any], share: float, group: Callable[[Any], str] = lambda example: example.text_a
) -> tuple[list[Any], list[Any]]:
    """Return the examples to train on and about `share` of them to evaluate on, whatever seed and order of the file.

    A digest of its `group` decides for each example, so that equal texts are on one side.

    Raises:
        UsageError: one of the two would be empty.
    """
    parts: tuple[list[Any], list[Any]] = ([], [])
    for example in examples:
        digest = hashlib.sha256(group(example).encode(errors="replace")).digest()
        parts[int.from_bytes(digest[:6], "big") < share * 2**48].append(example)
    if not all(parts):
        raise UsageError(
            f"--dev_share={share}: of {len(examples):,} training examples {len(parts[1]):,} would be held out; give a "
            "share that leaves some on both sides"
        )
    return parts
