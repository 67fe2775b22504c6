"""Multiple choice, the host half: C3, RACE, ChID, COPA and a user's own JSON lines; one row a choice.

    [CLS] context [SEP] question choice [SEP]

A blank in the question (RACE's "_") is filled with the choice instead. A blank in the context (ChID) is, too, in a
window of text around it, and the choice stands behind it: `before CHOICE after [SEP] CHOICE`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from data.labelled import EncodedGroups, GroupedDataset, encode_examples
from ground.ragged import bounds_of
from tasks.assignment import best_assignment
from tasks.datasets import DatasetRow
from tasks.given import columns_of
from tasks.inspection import Inspection, MostWrong, Text, calibration_table, cut, shown
from tasks.kinds import PRETRAINING_HEADS, HeadOptions, Prediction, Scores
from tasks.readers import find_reader

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from modeling.computation import Computation
    from modeling.config import Config
    from tasks.choice import ChoiceTask

verb = "run_classifier"
suffix = ".jsonl"
needs = ()
header_names: Mapping[str, tuple[str, ...]] = {
    "context": ("context", "premise", "passage", "article", "document", "text"),
    "question": ("question", "query"),
    "choices": ("choices", "options", "choice"),
    "answer": ("answer", "label"),
}
columns = tuple(header_names)
metrics = ("accuracy", "accuracy_assigned")
smaller_is_better = ("loss",)
new_heads = ("classifier/.*", "pooled_layer_norm/.*")
unused_heads = PRETRAINING_HEADS
on_strings = "choices"
_CLOZE = re.compile("_+")


@dataclass(frozen=True, slots=True)
class ChoiceExample:
    """One question.

    Attributes:
        context: what is read before it; up to the blank where there is one.
        question: about the context; may be empty, or have a blank "_".
        choices: as the file has them; the same text twice is one choice, the first.
        label: index of the right one, the first of its text; None where the file does not tell.
        after: the context behind a blank; None where there is no blank in it.
        name: by which a submission knows the question.
        group: by which it is scored too, as "middle".
        record: (file, number) that questions share which are to get different choices; None for no others.
    """

    context: str
    question: str
    choices: tuple[str, ...]
    label: int | None
    after: str | None = None
    name: str = ""
    group: str = ""
    record: tuple[str, int] | None = None

    @property
    def distinct(self) -> list[int]:
        """The first index of every text."""
        first = {text: index for index, text in reversed(list(enumerate(self.choices)))}
        return sorted(first.values())


def read(row: DatasetRow, path: Path, *, need_labels: bool) -> list[ChoiceExample]:
    """Return all questions of a file in order; raises `UsageError` that names file and place."""
    examples = []
    for where, record in find_reader(row.format).records(row, path):
        label, choices = record.pop("answer"), record["choices"]
        if label is None and need_labels:
            raise UsageError(f"{where}: no answer; training and evaluation need one")
        if len(set(choices)) < 2:
            raise UsageError(f"{where}: all choices are {choices[0]!r}; expected two different ones at least")
        number = record.pop("record", None)
        shared = None if number is None else (str(path), number)
        label = None if label is None else choices.index(choices[label])
        examples.append(ChoiceExample(**record, label=label, record=shared))
    if not examples:
        raise UsageError(f"{path} holds no question")
    return examples


def texts_of(example: ChoiceExample, choice: str, window: int) -> tuple[str, str]:
    """Return text a and text b of the row of one choice; text a with a blank is cut to `window` characters around it.

    Example:
        context "他", after "地走了。再见", choice "慢条斯理", window 7 -> "他慢条斯理地走", "慢条斯理"
    """
    if example.after is not None:
        room = max(window - len(choice), 0)
        behind = min(len(example.after), room - min(room // 2, len(example.context)))
        before = min(len(example.context), room - behind)
        around = example.context[len(example.context) - before :], example.after[:behind]
        return choice.join(around), choice
    if _CLOZE.search(example.question):
        # Not as a pattern's replacement, in which a backslash of the choice would mean something.
        return example.context, choice.join(_CLOZE.split(example.question))
    return example.context, f"{example.question} {choice}".strip()


def dataset(
    row: DatasetRow,
    examples: Sequence[ChoiceExample],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    batch_size: int,
    seed: int = 0,
) -> GroupedDataset:
    """Tokenise a row for every distinct choice; a label is the number of the right one among them, -1 for none.

    A token is a character or more, so that a window with room for the choice beside it is as good as never cut again.
    """
    specials = tokenizer.template.num_specials(2)
    texts_a, texts_b, labels, sizes = [], [], [], []
    for example in examples:
        distinct = example.distinct
        longest = max(len(example.choices[index]) for index in distinct)
        for index in distinct:
            a, b = texts_of(example, example.choices[index], max_seq_length - specials - longest)
            texts_a.append(a)
            texts_b.append(b)
        sizes.append(len(distinct))
        labels.append(-1 if example.label is None else distinct.index(example.label))
    rows = encode_examples(texts_a, texts_b, [-1] * len(texts_a), tokenizer, max_seq_length)
    groups = EncodedGroups(rows, bounds_of(np.array(sizes)), np.array(labels, np.int32))
    return GroupedDataset(groups, batch_size, max_seq_length, seed=seed)


def task(row: DatasetRow, config: Config, computation: Computation, head: HeadOptions) -> ChoiceTask:
    """Return a softmax over the choices."""
    from tasks.choice import ChoiceTask

    return ChoiceTask(config, classifier_dropout=head.dropout, computation=computation, regularizers=head.regularizers)


def answers(row: DatasetRow, predictions: Sequence[Prediction], examples: Sequence[ChoiceExample]) -> list[np.ndarray]:
    """Return the probability of each choice of each example, float32 [choices]; 0 for a text that stood before."""
    found = []
    for prediction, example in zip(predictions, examples, strict=True):
        distinct = example.distinct
        probabilities = np.zeros(len(example.choices), np.float32)
        probabilities[distinct] = prediction["probabilities"][: len(distinct)]
        found.append(probabilities)
    return found


def chosen(answers: Sequence[np.ndarray]) -> list[int]:
    """Return the most probable choice of each example."""
    return [int(probabilities.argmax()) for probabilities in answers]


def assigned(answers: Sequence[np.ndarray], examples: Sequence[ChoiceExample]) -> list[int]:
    """Return the choices of largest joint probability in which no two questions of a record have the same.

    A record with more questions than choices, of which some are right twice, keeps the most probable of each.
    """
    found, records = chosen(answers), defaultdict(list)
    for index, example in enumerate(examples):
        if example.record is not None:
            records[example.record].append(index)
    for members in records.values():
        distinct = examples[members[0]].distinct
        if 1 < len(members) <= len(distinct):
            scores = np.log(np.maximum(np.stack([answers[n] for n in members])[:, distinct].astype(np.float64), 1e-30))
            for member, column in zip(members, best_assignment(scores), strict=True):
                found[member] = distinct[column]
    return found


def scores(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[ChoiceExample]) -> Scores:
    """Return accuracy, the mean cross-entropy in nats as `loss`, `accuracy_GROUP` of every group, and where questions
    share their choices `accuracy_assigned`.
    """
    labels = np.array([example.label for example in examples])
    right = np.array(chosen(answers)) == labels
    chances = np.array([probabilities[label] for probabilities, label in zip(answers, labels, strict=True)])
    found = {"accuracy": float(right.mean()), "loss": float(-np.log(np.maximum(chances, 1e-30)).mean())}
    groups = np.array([example.group for example in examples])
    found |= {
        f"accuracy_{group}": float(right[groups == group].mean()) for group in sorted(set(groups.tolist()) - {""})
    }
    if any(example.record is not None for example in examples):
        found["accuracy_assigned"] = float((np.array(assigned(answers, examples)) == labels).mean())
    return found


def lines(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[ChoiceExample]) -> Iterator[str]:
    """Yield a JSON object a line: the choice, by number and text, all probabilities, and the right one where known."""
    for index, (probabilities, example) in enumerate(zip(answers, examples, strict=True)):
        content: dict[str, Any] = {"index": index}
        if example.name:
            content["id"] = example.name
        content |= told(row, probabilities, example)
        if example.label is not None:
            content["label"] = example.label
        content |= {"question": example.question, "choices": list(example.choices)}
        yield json.dumps(content, ensure_ascii=False)


def example_of(row: DatasetRow, given: Any) -> ChoiceExample:
    """Return a context, a question, which may be left out of an object, and the choices as an example."""
    if isinstance(given, Mapping):
        found = columns_of(row, given, ("context", "choices"), optional=("question",), lists=("choices",))
    else:
        found = columns_of(row, given, ("context", "question", "choices"), lists=("choices",))
    choices = found["choices"]
    if len(set(choices)) < 2:
        raise UsageError(f"choices are {', '.join(map(repr, choices[:3]))}; expected two different ones at least")
    return ChoiceExample(found["context"], found.get("question", ""), tuple(choices), None)


def told(row: DatasetRow, answer: np.ndarray, example: ChoiceExample) -> dict[str, Any]:
    """Return the most probable choice by its number, from 0, and its text, and the probability of each."""
    best = int(answer.argmax())
    return {
        "prediction": best,
        "choice": example.choices[best],
        "probabilities": [round(float(each), 4) for each in answer],
    }


def confidences(row: DatasetRow, answers: Sequence[np.ndarray]) -> tuple[list[int], list[float]]:
    """Return the number of the most probable choice of each example, counted from 0, and its probability."""
    return chosen(answers), [float(probabilities.max()) for probabilities in answers]


def degenerate(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[ChoiceExample]) -> str:
    """Return that the choice is always the one at the same place, or right no more often than by chance."""
    given, right = chosen(answers), [example.label for example in examples]
    if len(set(right)) < 2:
        return ""  # no other place could be right
    if len(set(given)) == 1:
        return f"every answer is choice {given[0]}"
    accuracy = float(np.mean([one == other for one, other in zip(given, right, strict=True)]))
    chance = float(np.mean([1 / len(example.distinct) for example in examples]))
    return f"accuracy {shown(accuracy)} is not above chance, {shown(chance)}" if accuracy <= chance else ""


def inspected(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[ChoiceExample]) -> Inspection:
    """Return the calibration, and the questions whose right choice is least probable."""
    given, labels = chosen(answers), [example.label or 0 for example in examples]
    chances = np.array([float(each[label]) for each, label in zip(answers, labels, strict=True)])
    right = np.array(given) == np.array(labels)

    def look(number: int):
        example = examples[number]
        facts = {
            "index": f"{number:,}",
            "true": example.choices[labels[number]],
            "predicted": example.choices[given[number]],
            "probability of the true one": shown(chances[number]),
        }
        context = example.context if example.after is None else f"{example.context}____{example.after}"
        texts = [("context", cut(context)), ("question", example.question), ("choices", " | ".join(example.choices))]
        return facts, [Text(name, text) for name, text in texts if text]

    table = calibration_table(np.array([float(each.max()) for each in answers]), right)
    return Inspection([table], MostWrong(-chances, right).seen(look), "by the probability of the right choice")


def group(example: ChoiceExample) -> str:
    """Return the text of a question: all about one text stay together where a share of them is held out."""
    return example.context


def submitted(
    row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[ChoiceExample]
) -> list[tuple[str | None, int]]:
    """Return the name of each example and its choice, counted from 0: what C3's lines and ChID's object are made of.

    A row whose metric is `accuracy_assigned` hands in the choices of `assigned`.
    """
    found = assigned(answers, examples) if row.metric == "accuracy_assigned" else chosen(answers)
    return [(example.name or None, choice) for example, choice in zip(examples, found, strict=True)]
