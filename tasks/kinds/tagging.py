"""Entities in a text by tags of its words, the host half: tags to tokens and back, windows of long texts joined again.

The first token of a word carries its tag, further tokens weigh nothing. A word that the tokenizer drops (a space, a
control character) has no token and keeps its tag: inside of an entity it belongs to it. Where one token covers several
words ("1998" in a file with a character a line) it carries the tag of the first, and the others follow it. Tags are
chosen together, so that none continues an entity that did not begin; there is no CRF.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from data.windows import Window, WindowedDataset, Windows, encode_windows, labels_in_rows
from ground.words import did_you_mean
from tasks.datasets import DatasetRow
from tasks.entity_scores import ENTITY_METRICS, OUTSIDE, Entity, entities_of, entity_scores, tags_of
from tasks.given import columns_of
from tasks.inspection import Inspection, Mark, MostWrong, Text, excerpt, rates, rates_table, shown
from tasks.kinds import PRETRAINING_HEADS, HeadOptions, Prediction, Scores
from tasks.readers import find_reader

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from modeling.computation import Computation
    from modeling.config import Config
    from tasks.tagging import TaggingTask

verb = "run_classifier"
needs = ()
header_names: Mapping[str, tuple[str, ...]] = {
    "text_a": ("text_a", "text", "tokens", "words", "sentence"),
    "label": ("label", "labels", "tags", "ner_tags"),
}
columns = tuple(header_names)
metrics = ENTITY_METRICS
new_heads = ("tagger/.*", "tagger_layer_norm/.*")
unused_heads = PRETRAINING_HEADS
on_strings = "entities"
flags = ("doc_stride",)
head = "tagger"
suffix = ".jsonl"
_JOINED_BY = {"characters": "", "words": " "}
# What other schemes call the beginning and the inside of an entity.
_PREFIXES = {"B": "B", "S": "B", "I": "I", "M": "I", "E": "I"}


@dataclass(frozen=True, slots=True)
class TaggedText:
    """A text of words (in Chinese, mostly of characters), and the entities of these words.

    Attributes:
        text: as the model reads it.
        bounds: first character of every word, and the one behind it, int64 [U, 2].
        entities: None where the file does not tell them (a test file).
    """

    text: str
    bounds: np.ndarray
    entities: tuple[Entity, ...] | None

    @property
    def label(self) -> tuple[Entity, ...] | None:
        """What is to be found."""
        return self.entities


@dataclass(frozen=True, slots=True)
class Tagged:
    """The answer to a text: entities of its words, and how probable each is.

    Attributes:
        entities: in their order.
        probabilities: of the least certain token of each.
    """

    entities: tuple[Entity, ...]
    probabilities: tuple[float, ...]


def read(row: DatasetRow, path: Path, *, need_labels: bool) -> list[TaggedText]:
    """Return all texts of a file in order.

    Raises:
        UsageError: an unknown type of entity, a missing label, an empty text, or no text; file and line are named.
    """
    examples = []
    for where, record in find_reader(row.format).records(row, path):
        words, label = record["text_a"], record.get("label")
        if label is None and need_labels:
            raise UsageError(f"{where}: no label; training and evaluation need {', '.join(row.columns)}")
        if row.format == "lines":
            words, label = words.split(" "), label.split(" ") if label else None
            if label and len(words) != len(label):
                raise UsageError(f"{where}: {len(words)} words and {len(label)} tags; expected a tag for each word")
        text, bounds = _text(words, _JOINED_BY[row.units])
        if not text.strip():
            raise UsageError(f"{where}: the text is empty; expected {', '.join(row.columns)}")
        examples.append(TaggedText(text, bounds, None if label is None else _entities(row, where, label)))
    if not examples:
        raise UsageError(f"{path} holds no example: expected {', '.join(row.columns)} of at least one text")
    return examples


def _text(words: Sequence[str], joined_by: str) -> tuple[str, np.ndarray]:
    """Return the text of the words, and first and last character of each; characters are words that nothing joins."""
    between = 0 if isinstance(words, str) else len(joined_by)
    lengths = np.array([len(word) for word in words], np.int64)
    ends = np.cumsum(lengths + between) - between
    text = words if isinstance(words, str) else joined_by.join(words)
    return text, np.stack([ends - lengths, ends], axis=1)


def _entities(row: DatasetRow, where: str, label: Sequence[Any]) -> tuple[Entity, ...]:
    """Return the entities of tags, or of (type, begin, end), with the names of the row's types."""
    if label and isinstance(label[0], str):
        label = entities_of(_tag(where, tag) for tag in label)
    named = [Entity(row.label_names.get(kind, kind), begin, end) for kind, begin, end in label]
    for kind in {each.type for each in named} - {*row.ignored_labels}:
        if row.labels and kind not in row.labels:
            hint = did_you_mean(kind, row.labels) or f"; expected one of {', '.join(row.labels)}"
            raise UsageError(f"{where}: {kind!r} is not a type of entity of {row.name}{hint}")
    return tuple(each for each in named if each.type not in row.ignored_labels)


def _tag(where: str, tag: str) -> str:
    if tag == OUTSIDE:
        return tag
    prefix, kind = tag[:1], tag[2:]
    if prefix not in _PREFIXES or tag[1:2] not in ("-", "_") or not kind:
        raise UsageError(f"{where}: {tag!r} is no tag; expected O, B-TYPE or I-TYPE (or BMES)")
    return f"{_PREFIXES[prefix]}-{kind}"


def find_labels(row: DatasetRow, paths: Sequence[Path]) -> tuple[str, ...]:
    """Return the types of entities that the training files have, sorted, for a row that names none."""
    examples = [example for path in paths for example in read(row, path, need_labels=True)]
    found = {each.type for example in examples for each in example.entities or ()}
    if not found:
        raise UsageError(f"{paths[0]} marks no entity: expected tags B-TYPE and I-TYPE")
    return tuple(sorted(found))


def tag_names(types: Sequence[str]) -> list[str]:
    """Return the tags of the types in the order of their ids: O, B-X, I-X, B-Y, I-Y ..."""
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]


def dataset(
    row: DatasetRow,
    examples: Sequence[TaggedText],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    batch_size: int,
    seed: int = 0,
    doc_stride: int | None = None,
) -> WindowedDataset:
    """Tokenise the texts; long ones become several windows, `doc_stride` tokens apart."""
    windows = encode_windows(None, [each.text for each in examples], tokenizer, max_seq_length, stride=doc_stride)
    carriers = [_carriers(windows, number, each.bounds) for number, each in enumerate(examples)]
    id_of = {tag: number for number, tag in enumerate(tag_names(row.labels))}
    labels, hidden = [], 0
    for number, (example, tokens) in enumerate(zip(examples, carriers, strict=True)):
        text = windows.text_of[number]
        tags = np.full(windows.encoding.splits[text + 1] - windows.encoding.splits[text], -1, np.int32)
        if example.entities is not None:
            ids = np.array([id_of[tag] for tag in tags_of(example.entities, len(example.bounds))[0]], np.int32)
            first = _is_first(tokens)
            tags[tokens[first]] = ids[first]
            starts = np.append(first | (tokens < 0), True)  # at which a tag may change
            hidden += sum(not (starts[each.begin] and starts[each.end]) for each in example.entities)
        labels.append(tags)
    return WindowedDataset(
        windows.rows,
        batch_size,
        max_seq_length,
        seed=seed,
        windows=windows,
        token_labels=labels_in_rows(windows, labels),
        further={"carriers": carriers},
        notes=f"{hidden:,} entities begin or end inside of a token, which no tag tells" if hidden else "",
    )


def _carriers(windows: Windows, example: int, bounds: np.ndarray) -> np.ndarray:
    """Return the number of the token that carries each word, int64 [U]; -1 for a word without a token."""
    text = windows.text_of[example]
    tokens = slice(windows.encoding.splits[text], windows.encoding.splits[text + 1])
    starts, ends = windows.encoding.starts[tokens], windows.encoding.ends[tokens]
    real = np.flatnonzero(ends > starts)
    if not len(real):
        return np.full(len(bounds), -1)
    # The first token that ends behind the beginning of the word, if it begins before the end of the word.
    place = np.searchsorted(ends[real], bounds[:, 0], side="right")
    found = real[np.minimum(place, len(real) - 1)]
    return np.where((place < len(real)) & (starts[found] < bounds[:, 1]), found, -1)


def _is_first(tokens: np.ndarray) -> np.ndarray:
    """Return whether a word is the first that its token carries, bool [U]."""
    carried = tokens >= 0
    first = carried.copy()
    first[np.flatnonzero(carried)[1:]] = np.diff(tokens[carried]) != 0
    return first


def task(row: DatasetRow, config: Config, computation: Computation, head: HeadOptions) -> TaggingTask:
    """Return a softmax over the tags of the row's types."""
    from tasks.tagging import TaggingTask

    return TaggingTask(
        config,
        len(tag_names(row.labels)),
        dropout=head.dropout,
        computation=computation,
        regularizers=head.regularizers,
    )


def answers(
    row: DatasetRow, predictions: Sequence[Prediction], examples: Sequence[TaggedText], **flags: Any
) -> list[Tagged]:
    """Return the entities of every text. A token in several windows is answered by that with most text around it."""
    rows: list[list[Prediction]] = [[] for _ in examples]
    for prediction in predictions:
        rows[prediction["window"].example].append(prediction)
    names = tag_names(row.labels)
    return [_answer(names, each, example) for each, example in zip(rows, examples, strict=True)]


def _answer(names: Sequence[str], rows: Sequence[Prediction], example: TaggedText) -> Tagged:
    scores_TC = _joined(rows)
    tokens: np.ndarray = rows[0]["carriers"]
    first = _is_first(tokens)
    carrying = tokens[first]
    ids = best_tags(scores_TC[carrying])
    chosen = [names[each] for each in ids.tolist()]
    certain = np.exp(scores_TC[carrying, ids]).tolist()
    # Words without a token, and those that share one, continue what is before them.
    tags, chances, token = [], [], -1
    for word in range(len(tokens)):
        token += int(first[word])
        tag = chosen[token] if token >= 0 else OUTSIDE
        if not first[word] and tag != OUTSIDE:
            tag = f"I-{tag[2:]}"
            following = chosen[token + 1] if token + 1 < len(chosen) else OUTSIDE
            begin = int(example.bounds[word, 0])
            is_mark = any(map(unicodedata.combining, example.text[begin : begin + 1]))  # of the letter before it
            if tokens[word] < 0 and following != tag and not is_mark:
                tag = OUTSIDE
        tags.append(tag)
        chances.append(certain[token] if token >= 0 else 1.0)
    entities = entities_of(tags)
    return Tagged(tuple(entities), tuple(min(chances[each.begin : each.end]) for each in entities))


def _joined(rows: Sequence[Prediction]) -> np.ndarray:
    """Return the log-probabilities of all tokens of a text from its windows, float32 [T, C].

    The context of a token in a window is the lesser of its distances to the window's ends, as in BERT's script.
    """
    total = rows[0]["window"].total
    found = np.zeros((total, rows[0]["log_probabilities"].shape[-1]), np.float32)
    best = np.full(total, -1.0)
    for prediction in rows:
        window: Window = prediction["window"]
        count = len(window.starts)
        place = np.arange(count)
        context = np.minimum(place, count - 1 - place) + 0.01 * count
        span = slice(window.first, window.first + count)
        better = context > best[span]
        values = prediction["log_probabilities"][window.offset : window.offset + count]
        found[span][better] = values[better]
        best[span][better] = context[better]
    return found


def best_tags(scores_TC: np.ndarray) -> np.ndarray:
    """Return the most probable tags of which none continues an entity that did not begin, int64 [T] (Viterbi 1967).

    Ids are those of `tag_names`: I-X, which is even, follows B-X or I-X alone.
    """
    ids = scores_TC.argmax(axis=1)
    inside = (ids > 0) & (ids % 2 == 0)
    before = np.concatenate([[0], ids[:-1]])
    if not (inside & (before != ids) & (before != ids - 1)).any():
        return ids  # nearly always: what is best for each is allowed
    count = scores_TC.shape[1]
    tag = np.arange(count)
    continues = (tag > 0) & (tag % 2 == 0)
    allowed = ~continues[None, :] | (tag[:, None] == tag[None, :]) | (tag[:, None] == tag[None, :] - 1)
    forbidden = np.where(allowed, 0.0, -np.inf)
    score = np.where(continues, -np.inf, scores_TC[0])
    back = []
    for values in scores_TC[1:]:
        paths = score[:, None] + forbidden
        back.append(paths.argmax(axis=0))
        score = paths.max(axis=0) + values
    found = [int(score.argmax())]
    for pointers in reversed(back):
        found.append(int(pointers[found[-1]]))
    return np.array(found[::-1])


def scores(row: DatasetRow, answers: Sequence[Tagged], examples: Sequence[TaggedText]) -> Scores:
    """Return precision, recall and F1 of entities, micro and macro, and the F1 of each type."""
    return entity_scores([each.entities or () for each in examples], [each.entities for each in answers])


def lines(row: DatasetRow, answers: Sequence[Tagged], examples: Sequence[TaggedText]) -> Iterator[str]:
    """Yield a JSON object a line: the text, the entities found with their characters, and those that are right.

    `begin` is the first character of an entity in `text`, `end` the one behind its last.
    """
    for index, (answer, example) in enumerate(zip(answers, examples, strict=True)):
        content: dict[str, Any] = {"index": index, "text": example.text} | told(row, answer, example)
        if example.entities is not None:
            content["label"] = [_shown(example, entity) for entity in example.entities]
        yield json.dumps(content, ensure_ascii=False)


def example_of(row: DatasetRow, given: Any) -> TaggedText:
    """Return a text as an example: of the row's units, characters or words between spaces."""
    text = columns_of(row, given, ("text_a",))["text_a"]
    return TaggedText(*_text(text if row.units == "characters" else text.split(" "), _JOINED_BY[row.units]), None)


def told(row: DatasetRow, answer: Tagged, example: TaggedText) -> dict[str, Any]:
    """Return the entities with their characters: `begin` is the first, `end` the one behind the last."""
    pairs = zip(answer.entities, answer.probabilities, strict=True)
    return {"entities": [{**_shown(example, entity), "probability": round(chance, 4)} for entity, chance in pairs]}


def foreign_row(labels: Sequence[str], count: int) -> DatasetRow:
    """Return the row of a tagger that another program made; raises `UsageError` where its classes are no tags."""
    types = tuple(dict.fromkeys(label[2:] for label in labels if label != OUTSIDE))
    if not labels or {*tag_names(types)} != {*labels} or len(labels) != count:
        raise UsageError(
            f"the {count} classes of the tagger are {', '.join(labels[:4]) or 'without names'}: expected O, B-TYPE, "
            "I-TYPE ..., as id2label of its config.json"
        )
    return DatasetRow(
        name="tagger",
        columns=("text_a", "label"),
        metric="f1",
        files={},
        kind="tagging",
        labels=types,
    )


def _shown(example: TaggedText, entity: Entity) -> dict[str, Any]:
    begin, end = int(example.bounds[entity.begin, 0]), int(example.bounds[entity.end - 1, 1])
    return {"type": entity.type, "text": example.text[begin:end], "begin": begin, "end": end}


def group(example: TaggedText) -> str:
    """Return the text: examples of one text stay together where a share of them is held out."""
    return example.text


def submitted(
    row: DatasetRow, answers: Sequence[Tagged], examples: Sequence[TaggedText]
) -> list[tuple[str | None, Any]]:
    """Return the text of each example and its entities as CLUENER has them: by type and text the places.

    A place is the first and the last character of an entity; the examples have no ids. XTREME takes the tags of words.
    """
    found: list[tuple[str | None, Any]] = []
    if row.submission["form"] == "tag_lines":
        pairs = zip(answers, examples, strict=True)
        return [(None, tags_of(answer.entities, len(example.bounds))[0]) for answer, example in pairs]
    for answer, example in zip(answers, examples, strict=True):
        label: dict[str, dict[str, list[list[int]]]] = {}
        for entity in answer.entities:
            shown = _shown(example, entity)
            places = label.setdefault(shown["type"], {}).setdefault(shown["text"], [])
            places.append([shown["begin"], shown["end"] - 1])
        found.append((None, {"text": example.text, "label": label}))
    return found


def notes(row: DatasetRow, examples: Sequence[TaggedText]) -> str:
    """Return what tags cannot tell of the entities of a file; empty where they tell all."""
    lost = sum(tags_of(each.entities or (), len(each.bounds))[1] for each in examples)
    return f"{lost:,} entities overlap others, which no tag tells" if lost else ""


def degenerate(row: DatasetRow, answers: Sequence[Tagged], examples: Sequence[TaggedText]) -> str:
    """Return that no entity was found, or none that is right."""
    true, given = (sum(len(each.entities or ()) for each in some) for some in (examples, answers))
    if not true:
        return ""
    if not given:
        return "no answer has an entity"
    right = any({*a.entities} & {*(e.entities or ())} for a, e in zip(answers, examples, strict=True))
    return "" if right else f"none of {given:,} entities is right"


def inspected(row: DatasetRow, answers: Sequence[Tagged], examples: Sequence[TaggedText]) -> Inspection:
    """Return the rates of each type, and the texts with most mistakes, with what is true and what was found."""
    pairs = [({*a.entities}, {*(e.entities or ())}) for a, e in zip(answers, examples, strict=True)]
    right = Counter(each.type for given, true in pairs for each in given & true)
    found = Counter(each.type for given, _ in pairs for each in given)
    known = Counter(each.type for _, true in pairs for each in true)
    rows = [rates(kind, right[kind], found[kind], known[kind]) for kind in row.labels]
    wrong = np.array([len(given ^ true) for given, true in pairs])

    def look(number: int):
        given, true = pairs[number]
        facts = {"index": f"{number:,}", "missed": f"{len(true - given)}", "wrong": f"{len(given - true)}"}
        answer = answers[number]
        least = [p for each, p in zip(answer.entities, answer.probabilities, strict=True) if each not in true]
        if least:
            facts["most certain mistake"] = shown(max(least))
        return facts, [
            _marked("true", examples[number], true, given),
            _marked("found", examples[number], given, true),
        ]

    tables = rates_table("Types of entities", rows)
    return Inspection(tables, MostWrong(wrong, wrong == 0).seen(look), "by the number of entities missed and wrong")


def _marked(name: str, example: TaggedText, entities: set[Entity], others: set[Entity]) -> Text:
    """Return the text with marks of the entities; right are those among `others`."""
    marks = []
    for entity in sorted(entities, key=lambda each: each[1:]):
        place = _shown(example, entity)
        marks.append(Mark(place["begin"], place["end"], entity.type, entity in others))
    return Text(name, *excerpt(example.text, marks))
