"""Mining of translations among sentences of two languages (BUCC), the host half: pairs by the margin of their cosines.

The candidates are the best partner of every sentence on either side; the nearest pairs are taken first, each sentence
once (Artetxe and Schwenk 2019, section 3.3). A pair counts from a threshold on, which is the one of best F1 on dev.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from data.labelled import EncodedGroups, GroupedDataset, encode_examples
from tasks.datasets import DatasetRow
from tasks.inspection import Inspection, MostWrong, Text, cut, shown
from tasks.kinds import HeadOptions, Prediction, Scores, matching
from tasks.readers import find_reader
from tasks.retrieval import Margin, best_f1_threshold, mined_pairs

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from modeling.computation import Computation
    from modeling.config import Config
    from tasks.matching import MatchingTask

verb = "run_classifier"
suffix = ".jsonl"
needs = ()
header_names: Mapping[str, tuple[str, ...]] = {"text_a": ("text_a",), "label": ("label",)}
columns = tuple(header_names)
metrics = ("f1", "precision", "recall")
row_flags = {name: field for name, field in matching.row_flags.items() if field != "temperature"}
new_heads, unused_heads = matching.new_heads, matching.unused_heads
served_as = "matching"  # a user gives no two languages, but two texts, or one whose vector is looked for


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of one of two languages; `label` is the id of its translation, "" for none, None where unknown."""

    text: str
    id: str
    side: str
    label: str | None


@dataclass(frozen=True, slots=True)
class Mined:
    """The sentence that was found for one, the number of its example; -1 for none."""

    partner: int
    score: float


def read(row: DatasetRow, path: Path, *, need_labels: bool) -> list[Sentence]:
    """Return the sentences of both files in order; raises `UsageError` that names file and line."""
    found = [
        Sentence(record["text_a"], record["id"], record["group"], record.get("label"))
        for _, record in find_reader(row.format).records(row, path)
    ]
    if need_labels and any(each.label is None for each in found):
        raise UsageError(f"{path} has no {path.stem}.gold beside it; expected the pairs of ids that belong together")
    return found


def dataset(
    row: DatasetRow,
    examples: Sequence[Sentence],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    batch_size: int,
    seed: int = 0,
) -> GroupedDataset:
    """Tokenise the sentences, two a row of the data set, whatever they have to do with each other."""
    rows = encode_examples([each.text for each in examples], None, [-1] * len(examples), tokenizer, max_seq_length)
    splits = np.append(np.arange(0, len(examples), 2), len(examples))
    labels = np.zeros(len(splits) - 1, np.float32)
    return GroupedDataset(EncodedGroups(rows, splits, labels), batch_size, max_seq_length, seed=seed)


def task(row: DatasetRow, config: Config, computation: Computation, head: HeadOptions) -> MatchingTask:
    """Return the encoder of matching."""
    return matching.task(row, config, computation, head)


def answers(row: DatasetRow, predictions: Sequence[Prediction], examples: Sequence[Sentence]) -> list[Mined]:
    """Return what was mined for every sentence; each is mined once."""
    vectors = np.stack([each[f"embedding_{side}"] for each in predictions for side in "ab"])[: len(examples)]
    sides = [np.array([n for n, each in enumerate(examples) if each.side == side], np.int64) for side in "ab"]
    found = [Mined(-1, -np.inf)] * len(examples)
    margin = Margin(row.retrieval_margin, row.margin_neighbours)
    for a, b, score in mined_pairs(vectors[sides[0]], vectors[sides[1]], margin):
        one, other = int(sides[0][a]), int(sides[1][b])
        found[one], found[other] = Mined(other, score), Mined(one, score)
    return found


def tuned(row: DatasetRow, answers: Sequence[Mined], examples: Sequence[Sentence]) -> DatasetRow:
    """Return the row with the threshold of the best F1 on these sentences, those of dev."""
    pairs = [(each.score, _is_right(each, example, examples)) for each, example in _firsts(answers, examples)]
    total = sum(bool(each.label) for each in examples if each.side == "a")
    return replace(row, threshold=best_f1_threshold(pairs, total))


def scores(row: DatasetRow, answers: Sequence[Mined], examples: Sequence[Sentence]) -> Scores:
    """Return precision, recall and F1 of the set of pairs from the row's threshold on, and that threshold."""
    kept = [pair for pair in _firsts(answers, examples) if pair[0].score >= row.threshold]
    right = sum(_is_right(each, example, examples) for each, example in kept)
    total = sum(bool(each.label) for each in examples if each.side == "a")
    precision, recall = right / max(len(kept), 1), right / max(total, 1)
    f1 = 2 * right / max(len(kept) + total, 1)
    return {"f1": f1, "precision": precision, "recall": recall, "threshold": row.threshold}


def lines(row: DatasetRow, answers: Sequence[Mined], examples: Sequence[Sentence]) -> Iterator[str]:
    """Yield a JSON object for each pair from the threshold on, the nearest first."""
    kept = [pair for pair in _firsts(answers, examples) if pair[0].score >= row.threshold]
    for each, example in sorted(kept, key=lambda pair: -pair[0].score):
        other = examples[each.partner]
        content = {"score": round(each.score, 6), "id_a": example.id, "id_b": other.id}
        yield json.dumps(content | {"text_a": example.text, "text_b": other.text}, ensure_ascii=False)


def submitted(row: DatasetRow, answers: Sequence[Mined], examples: Sequence[Sentence]) -> list[tuple[Any, Any]]:
    """Return the ids of both sentences of every pair from the threshold on."""
    kept = [pair for pair in _firsts(answers, examples) if pair[0].score >= row.threshold]
    return [(None, (example.id, examples[each.partner].id)) for each, example in kept]


def degenerate(row: DatasetRow, answers: Sequence[Mined], examples: Sequence[Sentence]) -> str:
    """Return that all pairs are equally near: the vectors are one."""
    found = [each.score for each, _ in _firsts(answers, examples)]
    if len(found) > 1 and np.ptp(found) < 1e-3:
        return f"every score is about {found[0]:.4f}"
    return ""


def inspected(row: DatasetRow, answers: Sequence[Mined], examples: Sequence[Sentence]) -> Inspection:
    """Return the sentences whose pair is none, and those whose translation was not found, the surest first."""
    firsts = [(n, each) for n, each in enumerate(answers) if examples[n].side == "a"]
    taken = np.array([each.score >= row.threshold for _, each in firsts], bool)
    right = np.array(
        [
            _is_right(each, examples[n], examples) if kept else not examples[n].label
            for (n, each), kept in zip(firsts, taken, strict=True)
        ],
        bool,
    )

    def look(place: int):
        number, each = firsts[place]
        facts = {"id": examples[number].id, "true": examples[number].label or "none", "score": shown(each.score)}
        texts = [Text("text", cut(examples[number].text))]
        return facts, texts + ([Text("found", cut(examples[each.partner].text))] if taken[place] else [])

    distances = np.array([each.score if np.isfinite(each.score) else 0.0 for _, each in firsts])
    return Inspection([], MostWrong(distances, right).seen(look), "by the score of the pair")


def _firsts(answers: Sequence[Mined], examples: Sequence[Sentence]) -> list[tuple[Mined, Sentence]]:
    """Return the pairs, each once: the answers to sentences of the first side that have a partner."""
    both = zip(answers, examples, strict=True)
    return [(answer, example) for answer, example in both if example.side == "a" and answer.partner >= 0]


def _is_right(answer: Mined, example: Sentence, examples: Sequence[Sentence]) -> bool:
    return answer.partner >= 0 and examples[answer.partner].id == example.label
