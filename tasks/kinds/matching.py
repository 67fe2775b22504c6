"""Two-tower matching, the host half: how well two texts match is the cosine of their vectors.

Rows are of three sorts: pairs with two labels (LCQMC), pairs with a score (STS-B), and pairs that all match, among
whose texts each one's partner is looked for (Tatoeba: retrieval).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from data.labelled import EncodedGroups, GroupedDataset, encode_examples
from ground.words import did_you_mean
from tasks.correlations import best_threshold, or_zero, pearson, roc_auc, spearman
from tasks.datasets import DatasetRow
from tasks.given import columns_of
from tasks.inspection import Inspection, MostWrong, class_tables, shown, texts_of
from tasks.kinds import PRETRAINING_HEADS, HeadOptions, Prediction, Scores, regression
from tasks.retrieval import Margin, ranks_and_nearest, retrieval_scores
from tasks.texts import text_records

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from modeling.computation import Computation
    from modeling.config import Config
    from tasks.matching import MatchingTask

verb = "run_classifier"
suffix = ".jsonl"
needs = ()
header_names: Mapping[str, tuple[str, ...]] = regression.header_names
columns = tuple(header_names)
row_flags: Mapping[str, str] = {
    **{name: name for name in ("pooling", "pooling_layer", "threshold", "retrieval_margin", "margin_neighbours")},
    "in_batch_temperature": "temperature",
}
metrics = ("accuracy", "roc_auc", "spearman", "pearson", "retrieval_accuracy", "mrr")
new_heads = ()
unused_heads = (*PRETRAINING_HEADS, "classifier/.*", "pooled_layer_norm/.*")
on_strings = "vectors"


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two texts; `label` is how well they match, None where the file does not tell; `group` is a language."""

    text_a: str
    text_b: str
    label: float | None
    group: str = ""


def complete(row: DatasetRow) -> bool:
    """Return whether a test file has all that its score needs: of pairs that all match, nobody knows a label."""
    return "label" not in row.columns


def complaint(row: DatasetRow) -> str:
    """Return what is wrong with the row: not two texts, or labels of which it does not say what they are."""
    if not {"text_a", "text_b"} <= {*row.columns}:
        return f"has the columns {', '.join(row.columns)}; matching needs text_a and text_b"
    if "label" in row.columns and (len(row.labels) == 2) == bool(row.score_range):
        return 'has a label; matching needs labels = ["0", "1"], the second one for a match, or a score_range = [0, 5]'
    if "label" not in row.columns and (row.labels or row.score_range):
        return "has labels or a score_range but no column label; leave them out where all pairs match"
    of_retrieval = row.metric in ("retrieval_accuracy", "mrr")
    if of_retrieval == ("label" in row.columns) or (row.metric in ("accuracy", "roc_auc") and not row.labels):
        return f"has the metric {row.metric}, which its labels do not give; {_METRICS_OF}"
    return ""


_METRICS_OF = "two labels give accuracy, roc_auc, spearman; scores spearman, pearson; none retrieval_accuracy, mrr"


def read(row: DatasetRow, path: Path, *, need_labels: bool) -> list[TextPair]:
    """Return all pairs of a file in order; raises `UsageError` that names file and line."""
    examples = []
    for where, record in text_records(row, path, need_labels=need_labels):
        text = record.get("label")
        label = 1.0 if "label" not in row.columns else None if text is None else _label(row, where, text)
        examples.append(TextPair(record["text_a"], record["text_b"], label, record.get("group", "")))
    return examples


def _label(row: DatasetRow, where: str, text: str) -> float:
    if row.score_range:
        return regression.number_of(row, where, text)
    label = row.label_names.get(text, text)
    if label not in row.labels:
        hint = did_you_mean(label, row.labels) or f"; expected one of {', '.join(row.labels)}"
        raise UsageError(f"{where}: label {label!r} is not a label of {row.name}{hint}")
    return float(row.labels.index(label))


def dataset(
    row: DatasetRow,
    examples: Sequence[TextPair],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    batch_size: int,
    seed: int = 0,
) -> GroupedDataset:
    """Tokenise both texts of every pair, each as a row of its own; a label is a number, 0 where there is none."""
    texts = [text for example in examples for text in (example.text_a, example.text_b)]
    rows = encode_examples(texts, None, [-1] * len(texts), tokenizer, max_seq_length)
    labels = np.array([example.label or 0.0 for example in examples], np.float32)
    return GroupedDataset(
        EncodedGroups(rows, np.arange(0, len(texts) + 1, 2), labels), batch_size, max_seq_length, seed=seed
    )


def task(row: DatasetRow, config: Config, computation: Computation, head: HeadOptions) -> MatchingTask:
    """Return the loss that the labels of the row ask for."""
    from tasks.matching import MatchingTask

    low_and_high = (row.score_range[0], row.score_range[1]) if row.score_range else (0.0, 1.0)
    return MatchingTask(
        config,
        score_range=low_and_high if "label" in row.columns else None,
        temperature=row.temperature,
        pooling=row.pooling,
        pooling_layer=row.pooling_layer,
        classifier_dropout=head.dropout,
        computation=computation,
        regularizers=head.regularizers,
    )


def answers(row: DatasetRow, predictions: Sequence[Prediction], examples: Sequence[TextPair]) -> list[np.ndarray]:
    """Return the vectors of both texts of each pair, float32 [2, D], of length 1."""
    return [np.stack([prediction["embedding_a"], prediction["embedding_b"]]) for prediction in predictions]


def tuned(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[TextPair]) -> DatasetRow:
    """Return the row with the threshold that is right most often on these pairs, those of dev, of two labels."""
    if not row.labels:
        return row
    return replace(row, threshold=best_threshold(_labels(examples) > 0, cosines(answers)))


def scores(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[TextPair]) -> Scores:
    """Return the scores that go with the labels of the row.

    Two labels: `accuracy` at the row's threshold, which is dev's best (`tuned`), `threshold`, `roc_auc`, and as with
    scores `spearman`, `pearson` of the cosine and the squared error as `loss`. None: accuracy and reciprocal rank of
    retrieval within each group, by group and direction; the mean over the groups counts. What is not defined is said
    and counts 0.
    """
    if "label" not in row.columns:
        return _retrieval(row, answers, examples)
    found, labels = cosines(answers), _labels(examples)
    result: Scores = {}
    if row.labels:
        result["accuracy"] = float(((found >= row.threshold) == (labels > 0)).mean())
        result["threshold"] = row.threshold
        result["roc_auc"] = or_zero("roc_auc", roc_auc(labels > 0, found))
    result["spearman"] = or_zero("spearman", spearman(found, labels))
    result["pearson"] = or_zero("pearson", pearson(found, labels))
    low, high = row.score_range or (0.0, 1.0)
    return {**result, "loss": float(np.square(found - (labels - low) / (high - low)).mean())}


def _retrieval(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[TextPair]) -> Scores:
    groups = _groups(examples)
    by_group = {}
    for group, members in groups.items():
        vectors = np.stack([answers[index] for index in members])
        by_group[group] = retrieval_scores(vectors[:, 0], vectors[:, 1], _margin(row))
    names = next(iter(by_group.values()))
    found = {name: float(np.mean([each[name] for each in by_group.values()])) for name in names}
    for group, each in by_group.items() if len(groups) > 1 else ():
        for way in ("", "_a_to_b", "_b_to_a"):
            found[f"retrieval_accuracy_{group}{way}"] = each[f"retrieval_accuracy{way}"]
    return found


def _margin(row: DatasetRow) -> Margin:
    return Margin(row.retrieval_margin, row.margin_neighbours)


def table(row: DatasetRow, scores: Scores) -> tuple[list[str], list[list[str]]] | None:
    """Return the accuracies of retrieval with a line for each group, as a terminal shows them; None for other rows."""
    groups = [name.removesuffix("_a_to_b").removeprefix(_OF_GROUP) for name in scores if name.endswith("_a_to_b")]
    groups = [group for group in groups if f"{_OF_GROUP}{group}_a_to_b" in scores]
    if not groups:
        return None
    lines = [[group, *(scores[f"{_OF_GROUP}{group}{way}"] for way in _WAYS)] for group in groups]
    lines += [[name, *(scores[f"{name}{way}"] for way in _WAYS)] for name in ("retrieval_accuracy", "mrr")]
    return ["language", *_COLUMNS], [[str(name), *(f"{value:.4f}" for value in values)] for name, *values in lines]


_OF_GROUP, _WAYS, _COLUMNS = "retrieval_accuracy_", ("_a_to_b", "_b_to_a", ""), ("a to b", "b to a", "mean")


def lines(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[TextPair]) -> Iterator[str]:
    """Yield a JSON object a line: the cosine, the label where it is known, and the texts.

    In retrieval there is `nearest`: the number, from 0 within its group, of the text b that is nearest to text a.
    """
    found = cosines(answers)
    near = nearest(row, answers, examples) if "label" not in row.columns else None
    for index, (cosine, example) in enumerate(zip(found, examples, strict=True)):
        content: dict[str, Any] = {"index": index, "cosine": round(float(cosine), 6)}
        if example.group:
            content["group"] = example.group
        if near is not None:
            content["nearest"] = int(near[index])
        if row.labels:
            content["prediction"] = row.labels[int(cosine >= row.threshold)]
        if near is None and example.label is not None:
            content["label"] = row.labels[int(example.label)] if row.labels else example.label
        content |= {"text_a": example.text_a, "text_b": example.text_b}
        yield json.dumps(content, ensure_ascii=False)


def files(
    row: DatasetRow, split: str, answers: Sequence[np.ndarray], examples: Sequence[TextPair]
) -> dict[str, str | bytes]:
    """Return `embeddings.npy` for the test split, float32 [N, 2, D] in the order of its pairs; none for others."""
    if split != "test":
        return {}
    stream = io.BytesIO()
    np.save(stream, np.stack(answers).astype(np.float32))
    return {"embeddings.npy": stream.getvalue()}


def degenerate(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[TextPair]) -> str:
    """Return that the two texts of every pair are equally near, though not all match alike: the vectors are one."""
    found = cosines(answers)
    differ = "label" not in row.columns or len({example.label for example in examples}) > 1
    if len(found) > 1 and differ and np.ptp(found) < 1e-3:
        return f"every cosine is about {found[0]:.4f}"
    return ""


def inspected(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[TextPair]) -> Inspection:
    """Return the confusions of two labels, and the pairs whose cosine is farthest from what it should be."""
    found, labels = cosines(answers), _labels(examples)
    low, high = row.score_range or (0.0, 1.0)
    wanted = (labels - low) / (high - low) if "label" in row.columns else np.ones(len(found))
    distances = np.abs(found - wanted)
    given = (found >= row.threshold).astype(np.int64)
    if row.labels:
        right, tables = given == labels.astype(np.int64), class_tables(labels.astype(np.int64), given, row.labels)
    else:
        right, tables = distances == 0, []

    def look(number: int):
        true = row.labels[int(labels[number])] if row.labels else f"{labels[number]:g}"
        return {"index": f"{number:,}", "true": true, "cosine": shown(found[number])}, texts_of(examples[number])

    return Inspection(tables, MostWrong(distances, right).seen(look), "by the distance of cosine and label")


def nearest(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[TextPair]) -> np.ndarray:
    """Return the number of the text b that is nearest to each text a, both of one group, int64 [N]."""
    found = np.empty(len(answers), np.int64)
    for members in _groups(examples).values():
        vectors = np.stack([answers[index] for index in members])
        found[members] = ranks_and_nearest(vectors[:, 0], vectors[:, 1], _margin(row))[1]
    return found


def example_of(row: DatasetRow, given: Any) -> TextPair:
    """Return two texts as a pair; a text alone is one without second, whose vector is the answer."""
    found = columns_of(row, given, ("text_a",), optional=("text_b",))
    return TextPair(found["text_a"], found.get("text_b", ""), None)


def told(row: DatasetRow, answer: np.ndarray, example: TextPair) -> dict[str, Any]:
    """Return the cosine of two texts, with the label that it means where the row has labels; of one text its vector."""
    if not example.text_b:
        return {"embedding": [round(float(each), 6) for each in answer[0]]}
    (cosine,) = cosines([answer])
    found: dict[str, Any] = {"cosine": round(float(cosine), 6)}
    return found | ({"prediction": row.labels[int(cosine >= row.threshold)]} if row.labels else {})


def submitted(
    row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[TextPair]
) -> list[tuple[str | None, Any]]:
    """Return the number of the nearest text b of each text a, as XTREME's Tatoeba has it, or the cosine."""
    if "label" in row.columns:
        return [(None, round(float(cosine), 6)) for cosine in cosines(answers)]
    return [(None, int(number)) for number in nearest(row, answers, examples)]


def cosines(answers: Sequence[np.ndarray]) -> np.ndarray:
    """Return the cosine of each pair, float64 [N]."""
    return np.array([float(np.dot(a.astype(np.float64), b.astype(np.float64))) for a, b in answers])


def _labels(examples: Sequence[TextPair]) -> np.ndarray:
    return np.array([example.label or 0.0 for example in examples])


def _groups(examples: Sequence[TextPair]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.group, []).append(index)
    return groups
