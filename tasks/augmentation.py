"""Copies of labelled texts in which a masked-LM model has written some words anew (TinyBERT, Jiao et al. 2020).

    a film that I liked  ->  a [MASK] that I liked  ->  a book that I liked

Differs from EasyNLP's app, which takes the best word everywhere: words are drawn from the best few, no copy is equal to
its original or to another copy of it, and what is not written anew is the text itself, character by character.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from data.token_cache import encoding_of
from data.tokenizers.template import kept_lengths
from data.tokenizers.wordpiece import is_ideograph
from tasks.filling import CLASSES, FORMER, POSITIONS
from tasks.grouped import ROW_FEATURES

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer

Texts = tuple[str, ...]
Fill = Callable[[Iterator[Mapping[str, np.ndarray]]], Iterator[Mapping[str, np.ndarray]]]
"""Batches -> what `tasks.filling.FillingTask` predicts of each."""

_ATTEMPTS = 3
_STEP = 32  # tokens; batches are padded to a multiple of it
_MARKS = ("##", "▁")
_REFUSED = -1e8


@dataclass(frozen=True)
class Recipe:
    """How texts are written anew.

    Attributes:
        num_copies: wanted of every example.
        mask_share: of its words, one at least.
        pick: "sample" draws from the best candidates by their probabilities, "best" takes the best.
        top_k: how many candidates there are.
        seed: of words and draws.
    """

    num_copies: int = 4
    mask_share: float = 0.15
    pick: str = "sample"
    top_k: int = 10
    seed: int = 0


@dataclass
class Made:
    """What became of some examples.

    Attributes:
        copies: of every example, in its order.
        words: that were written anew, in all copies.
        lacking: copies that would not have differed, after a few attempts.
    """

    copies: list[list[Texts]] = field(default_factory=list)
    words: int = 0
    lacking: int = 0


@dataclass(frozen=True)
class _Text:
    """A text, its tokens, and its words as ranges of tokens."""

    text: str
    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    words: list[tuple[int, int]]


@dataclass(frozen=True)
class _Row:
    """An attempt at a copy: the tokens of the model's row, and which words of which text are hidden."""

    example: int
    random: np.random.Generator
    ids: list[int]
    segments: list[int]
    hidden: list[tuple[int, int, int]]
    places: list[int]
    former: list[int]


def allowed_ids(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Return which ids may stand in the place of a token without a mark and of one with it, boolean [2, V].

    WordPiece marks what continues a word (##), SentencePiece what begins one (▁): a word stays a word.
    """
    real = np.zeros(vocab_size, bool)
    real[tokenizer.replacement_ids] = True
    tokens = tokenizer.tokens(list(range(vocab_size)))
    marked = np.array([token.startswith(_MARKS) for token in tokens])
    # A sign is no word, and might be one that a file has between its cells.
    real &= np.array([token.removeprefix(_MARKS[0]).removeprefix(_MARKS[1]).isalnum() for token in tokens])
    return np.stack([real & ~marked, real & marked])


def augmented(
    examples: Sequence[Texts], tokenizer: Tokenizer, recipe: Recipe, fill: Fill, *, max_seq_length: int, batch_size: int
) -> Made:
    """Return copies of examples of one or two texts; a function of texts, tokenizer, model and seed.

    Args:
        examples: their texts; of each the same number.
        tokenizer: the model's.
        recipe: what is written anew.
        fill: the model.
        max_seq_length: in tokens, specials counted; what lies behind stays as it is.
        batch_size: rows of a batch.
    """
    sizes = (batch_size, max_seq_length)
    marked = allowed_ids(tokenizer, tokenizer.vocab_size)[1]
    texts = [_tokenised([each[side] for each in examples], tokenizer) for side in range(len(examples[0]))]
    split = list(zip(*texts, strict=True))
    made = Made([[] for _ in examples])
    for attempt in range(_ATTEMPTS):
        rows = [
            row
            for number, sides in enumerate(split)
            for copy in range(recipe.num_copies - len(made.copies[number]))
            if (row := _row(number, (attempt, copy), sides, tokenizer, recipe, max_seq_length)) is not None
        ]
        # Rows of one length side by side; the order of the copies does not depend on it.
        order = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
        batches = _batches([rows[place] for place in order], marked, tokenizer, *sizes)
        found: list[tuple[Texts, int] | None] = [None] * len(rows)
        for place, candidates, scores in zip(order, *_of_rows(fill(batches), len(rows)), strict=True):
            found[place] = _written(rows[place], split[rows[place].example], candidates, scores, tokenizer, recipe)
        for row, outcome in zip(rows, found, strict=True):
            copies = made.copies[row.example]
            if outcome and outcome[0] != examples[row.example] and outcome[0] not in copies:
                copies.append(outcome[0])
                made.words += outcome[1]
    made.lacking = sum(recipe.num_copies - len(copies) for copies in made.copies)
    return made


def _tokenised(texts: Sequence[str], tokenizer: Tokenizer) -> list[_Text]:
    found = encoding_of(texts, tokenizer)
    special = tokenizer.special_ids
    split = []
    for text, begin, end in zip(texts, found.splits[:-1], found.splits[1:], strict=True):
        ids, starts, ends = found.ids[begin:end], found.starts[begin:end].copy(), found.ends[begin:end]
        for place, (first, last) in enumerate(zip(starts, ends, strict=True)):
            # A piece of SentencePiece may reach over the space in front of it.
            starts[place] = first + len(text[first:last]) - len(text[first:last].lstrip())
        words: list[tuple[int, int]] = []
        for place, continues in enumerate(found.continuation[begin:end].tolist()):
            joins = (
                continues and words and not _is_apart(text, starts[place]) and not _is_apart(text, ends[place - 1] - 1)
            )
            if joins and starts[place] == ends[place - 1]:
                words[-1] = (words[-1][0], place + 1)
            else:
                words.append((place, place + 1))
        known = [word for word in words if not special.intersection(ids[word[0] : word[1]].tolist())]
        # A word of no character, or one that is a part of another, cannot be cut out of the text.
        known = [(a, b) for a, b in known if starts[a] < ends[b - 1] and text[starts[a] : ends[b - 1]].isalnum()]
        split.append(_Text(text, ids, starts, ends, known))
    return split


def _is_apart(text: str, place: int) -> bool:
    return place < len(text) and is_ideograph(text[place])


def _row(
    number: int,
    attempt: tuple[int, int],
    sides: Sequence[_Text],
    tokenizer: Tokenizer,
    recipe: Recipe,
    max_seq_length: int,
) -> _Row | None:
    """Return the model's row of an attempt at a copy; None for an example without a word to write anew."""
    template = tokenizer.template
    budget = template.max_tokens(max_seq_length, len(sides))
    lengths = [len(side.ids) for side in sides]
    kept = [min(lengths[0], budget)] if len(sides) == 1 else [int(each) for each in kept_lengths(*lengths, budget)]
    words = [(side, *word) for side, own in enumerate(sides) for word in own.words if word[1] <= kept[side]]
    if not words:
        return None
    random = np.random.default_rng([recipe.seed & 0xFFFFFFFF, recipe.seed >> 32, number, *attempt])
    count = min(len(words), max(1, round(recipe.mask_share * len(words))))
    hidden = [words[place] for place in sorted(random.choice(len(words), count, replace=False).tolist())]
    ids, segments, begins = list(template.first), [template.segment_ids[0]] * len(template.first), []
    for side, (own, behind) in enumerate(zip(sides, template.behind(len(sides)), strict=True)):
        begins.append(len(ids))
        ids += [*own.ids[: kept[side]].tolist(), *behind]
        segments += [template.segment_ids[side]] * (kept[side] + len(behind))
    places = [begins[side] + place for side, first, last in hidden for place in range(first, last)]
    former = [ids[place] for place in places]
    for place in places:
        ids[place] = tokenizer.mask_id
    return _Row(number, random, ids, segments, hidden, places, former)


def _batches(
    rows: Sequence[_Row], marked: np.ndarray, tokenizer: Tokenizer, batch_size: int, longest: int
) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield rows as batches, padded to a multiple of a few tokens and to the most places of any row."""
    most = max((len(row.places) for row in rows), default=0)
    for begin in range(0, len(rows), batch_size):
        members = rows[begin : begin + batch_size]
        length = min(-(-max(len(row.ids) for row in members) // _STEP) * _STEP, longest)
        batch: dict[str, Any] = {name: np.zeros((batch_size, length), np.int32) for name in ROW_FEATURES}
        batch |= {name: np.zeros((batch_size, most), np.int32) for name in (POSITIONS, CLASSES, FORMER)}
        batch["input_ids"][:] = tokenizer.pad_id
        for place, row in enumerate(members):
            size, count = len(row.ids), len(row.places)
            batch["input_ids"][place, :size], batch["segment_ids"][place, :size] = row.ids, row.segments
            batch["input_mask"][place, :size] = 1
            batch[POSITIONS][place, :count], batch[FORMER][place, :count] = row.places, row.former
            batch[CLASSES][place, :count] = marked[row.former]
        yield batch


def _of_rows(found: Iterator[Mapping[str, np.ndarray]], count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return candidates and scores of every row, without those that fill up the last batch."""
    candidates, scores = [], []
    for batch in found:
        candidates += list(batch["candidates"])
        scores += list(batch["scores"])
    return candidates[:count], scores[:count]


def _written(
    row: _Row, sides: Sequence[_Text], candidates: np.ndarray, scores: np.ndarray, tokenizer: Tokenizer, recipe: Recipe
) -> tuple[Texts, int]:
    """Return the texts with new words in the place of the hidden ones, and how many there are."""
    pieces: list[list[str]] = [[] for _ in sides]
    ends = [0] * len(sides)
    count, place = 0, 0
    for side, first, last in row.hidden:
        own, chosen = sides[side], []
        for number in range(place, place + last - first):
            usable = scores[number] > _REFUSED
            if not usable.any():
                break
            chosen.append(int(_picked(row.random, candidates[number][usable], scores[number][usable], recipe)))
        place += last - first
        word = tokenizer.decode(chosen).strip() if len(chosen) == last - first else ""
        if word:
            pieces[side] += [own.text[ends[side] : own.starts[first]], word]
            ends[side] = int(own.ends[last - 1])
            count += 1
    return tuple("".join([*parts, own.text[end:]]) for parts, own, end in zip(pieces, sides, ends, strict=True)), count


def _picked(random: np.random.Generator, candidates: np.ndarray, scores: np.ndarray, recipe: Recipe) -> int:
    if recipe.pick == "best":
        return candidates[0]
    weights = np.exp(scores.astype(np.float64) - scores.max())
    return candidates[random.choice(len(candidates), p=weights / weights.sum())]
