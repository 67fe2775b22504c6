"""The labelled examples of a run by split, for any kind of task: read, encoded, answered by an engine, scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ground.files import write_atomically
from tasks.datasets import DatasetRow
from tasks.kinds import Batch, LabelledDataset, Prediction, Scores, find_kind, flags_of, in_order

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer


class Predictor(Protocol):
    """What is needed of a `training.engine.Engine`."""

    def predict(self, batches: Iterator[Batch]) -> Iterator[Prediction]:
        """Yield the predictions of every batch."""
        ...


class Splits:
    """The splits of one row: `train`, `dev`, `test`, as far as they are asked for.

    Attributes:
        row: of datasets.toml; what the kind learns from the scores of dev is written there (`Kind.tuned`).
        kind: of the row.
        examples: of every split, in the order of its file.
        datasets: of every split, once it is encoded.
        tokenizer: that encoded them.
        further: values of the kind's own flags.

    Raises:
        UsageError: a file is malformed, or an example of train or dev has no label; the message names file and line.
    """

    tokenizer: Tokenizer

    def __init__(self, row: DatasetRow, files: Mapping[str, Sequence[Path]]):
        self.row, self.kind = row, find_kind(row.kind)
        self.examples: dict[str, Sequence[Any]] = {
            split: [example for path in paths for example in self.kind.read(row, path, need_labels=split != "test")]
            for split, paths in files.items()
        }
        self.datasets: dict[str, LabelledDataset] = {}
        self.further: Mapping[str, Any] = {}

    def encode(self, tokenizer: Tokenizer, *, max_seq_length: int, batch_size: int, seed: int, **further: Any) -> None:
        """Tokenise the examples; inputs are cut to `max_seq_length` tokens. `further` is the kind's own."""
        self.tokenizer, self.further = tokenizer, further
        self.datasets = {
            split: self.kind.dataset(
                self.row,
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
        notes = [(split, told(self.row, examples)) for split, examples in self.examples.items()]
        notes += [(split, getattr(dataset, "notes", "")) for split, dataset in self.datasets.items()]
        return "; ".join(
            [f"{sizes} examples of {self.row.name}", *(f"{split}: {note}" for split, note in notes if note)]
        )

    def answers(self, engine: Predictor, split: str, batch_size: int) -> list[Any]:
        """Return the answer of the engine's present weights to every example of a split."""
        dataset = self.datasets[split]
        predictions = in_order(dataset, engine.predict(dataset.evaluation_batches(batch_size)))
        if facts := getattr(dataset, "facts", None):
            predictions = [{**each, **facts(number)} for number, each in enumerate(predictions)]
        further = self.further if flags_of(self.kind) else {}
        return self.kind.answers(self.row, predictions, self.examples[split], **further)

    def has_labels(self, split: str) -> bool:
        """Whether every example of the split has a label."""
        return all(example.label is not None for example in self.examples[split])

    def scores(self, split: str, answers: Sequence[Any]) -> Scores:
        """Return the scores of the answers to a split whose examples have labels."""
        if split == "dev" and (tuned := getattr(self.kind, "tuned", None)):
            self.row = tuned(self.row, answers, self.examples[split])
        return self.kind.scores(self.row, answers, self.examples[split])

    def write(self, path: Path, split: str, answers: Sequence[Any]) -> None:
        """Write the answers, one line an example, and what further files the kind has; raises `OSError`."""
        lines = self.kind.lines(self.row, answers, self.examples[split])
        files: dict[str, str | bytes] = {path.name: "".join(f"{line}\n" for line in lines)}
        if further := getattr(self.kind, "files", None):
            named = further(self.row, split, answers, self.examples[split])
            files |= {f"{split}_{name}": content for name, content in named.items()}
        for name, content in files.items():
            write_atomically(path.with_name(name), content)
