"""A classifier that learns the distributions which an ensemble gave to unlabelled texts (PET, Schick and Schütze 2021,
section 3.3): classification whose training file has a probability for every label; the host half.

    {"text_a": "...", "text_b": "...", "probabilities": {"0": 0.9, "1": 0.1}}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

import numpy as np
from msgspec import Meta

from data.labelled import ClassificationDataset, encode_examples
from ground.documents import check_shape, json_line
from ground.files import write_atomically
from tasks.datasets import DatasetRow, Example
from tasks.kinds import classification

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer

NAME = "train_soft_labels.jsonl"
TEMPERATURE = 2.0
"""The paper's."""
_LEAST = 1e-7  # predictions are written with six digits


def __getattr__(name: str) -> Any:
    return getattr(classification, name)


class _LineShape(TypedDict):
    text_a: str
    text_b: NotRequired[str]
    probabilities: dict[str, Annotated[float, Meta(ge=0, le=1)]]


@dataclass(frozen=True, slots=True)
class SoftExample(Example):
    """A text with a probability for every label of the row."""

    chances: tuple[float, ...] = ()


def softened(chances_PC: np.ndarray, temperature: float = TEMPERATURE) -> np.ndarray:
    """Return the distribution [C] that the models of P patterns give together to a text.

    The paper's: their scores, here log-probabilities, are averaged, divided by the temperature and normalised.

    Example:
        chances 0.8 0.2 and 0.5 0.5, temperature 2
        odds    4 and 1, of which the geometric mean is 2, whose square root is 1.41: 0.586 0.414
    """
    scores_C = np.log(np.maximum(chances_PC, _LEAST)).mean(axis=0) / temperature
    scores_C = np.exp(scores_C - scores_C.max())
    return scores_C / scores_C.sum()


def write_soft_labels(predictions: Sequence[Path], labels: Sequence[str], target: Path) -> int:
    """Write the joint answers of files of predictions to the same texts; return how many there are."""
    files = [[json_line(line) for line in path.read_text("utf-8").split("\n") if line] for path in predictions]
    lines = []
    for answers in zip(*files, strict=True):
        chances = softened(np.array([[each["probabilities"][label] for label in labels] for each in answers]))
        texts = {name: answers[0][name] for name in ("text_a", "text_b") if name in answers[0]}
        found = {label: round(float(chance), 6) for label, chance in zip(labels, chances, strict=True)}
        lines.append(json.dumps({**texts, "probabilities": found}, ensure_ascii=False) + "\n")
    write_atomically(target, "".join(lines))
    return len(lines)


def read(row: DatasetRow, path: Path, *, need_labels: bool) -> Sequence[Example]:
    """Return the examples of a file; of one of soft labels with these, and the most probable one as its label."""
    if path.name != NAME:
        return classification.read(row, path, need_labels=need_labels)
    found = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), start=1):
        if line:
            content = check_shape(json_line(line), _LineShape, where=f"{path}:{number}", fix="make the file anew")
            chances = tuple(content["probabilities"].get(label, 0.0) for label in row.labels)
            label = row.labels[int(np.argmax(chances))]
            found.append(SoftExample(content["text_a"], content.get("text_b"), label, chances=chances))
    return found


def dataset(
    row: DatasetRow,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    batch_size: int,
    seed: int = 0,
) -> ClassificationDataset:
    """Tokenise the examples; labels are distributions [C] where the examples have them."""
    if not isinstance(examples[0], SoftExample):
        return classification.dataset(
            row, examples, tokenizer, max_seq_length=max_seq_length, batch_size=batch_size, seed=seed
        )
    encoded = encode_examples(
        [example.text_a for example in examples],
        [example.text_b or "" for example in examples] if row.is_pair else None,
        np.array([getattr(example, "chances") for example in examples], np.float32),  # noqa: B009
        tokenizer,
        max_seq_length,
    )
    return ClassificationDataset(encoded, batch_size, max_seq_length, seed=seed)
