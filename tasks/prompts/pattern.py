"""Patterns of prompts: "{text}。这是一条[MASK][MASK]新闻。" -> rows of ids in which masks and soft slots stand.

    {text_a} {text_b}   the texts of an example; {text} is {text_a}
    [MASK]              a mask; one alone becomes as many as the longest word of a label has tokens
    [P1] [P2=it]        a soft slot; equal numbers are one vector, which may begin as that of a word
    [SEP]               what a tokenizer puts between two texts
    anything else       literal text

A pattern that is too long for a row loses tokens of its texts alone, from the end, of the longer one first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from absl.app import UsageError

from data.labelled import EncodedExamples
from data.token_cache import ids_of
from data.tokenizers.template import kept_lengths
from ground.ragged import bounds_of, span_indices
from ground.words import did_you_mean

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer

_PART = re.compile(
    r"\{(?P<field>\w+)\}|\[P(?P<slot>\d{1,4})(=(?P<word>[^\]]*))?\]|(?P<mask>\[MASK\])|(?P<between>\[SEP\])"
)
_FIELDS = {"text": "text_a", "text_a": "text_a", "text_b": "text_b"}


@dataclass(frozen=True)
class Piece:
    """A part of a pattern: a text of the example, or tokens, which are the same in every row.

    Attributes:
        kind: "text", "literal", "mask", "slot" or "between".
        text: name of the column, literal text, or number of the slot.
        word: that a slot begins as, or its id.
    """

    kind: str
    text: str = ""
    word: str | int = ""


@dataclass(frozen=True)
class EncodedPrompts(EncodedExamples):
    """Tokenised prompts.

    Attributes:
        is_text: bool [total], tokens of the examples' own texts.
    """

    is_text: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


def parse(pattern: str, columns: Sequence[str]) -> tuple[Piece, ...]:
    """Return the parts of a pattern.

    Raises:
        UsageError: a field that the task has not, a text of it that is missing, or no mask.
    """
    where, texts = f"--pattern={pattern}", [column for column in ("text_a", "text_b") if column in columns]
    pieces, begin = [], 0
    for found in _PART.finditer(pattern):
        if literal := pattern[begin : found.start()]:
            pieces.append(Piece("literal", literal))
        begin = found.end()
        if name := found["field"]:
            if _FIELDS.get(name) not in texts:
                known = [each for each, column in _FIELDS.items() if column in texts]
                raise UsageError(
                    f"{where}: {{{name}}} is no text of the task{did_you_mean(name, known)}; it has "
                    f"{', '.join(f'{{{each}}}' for each in known)}"
                )
            pieces.append(Piece("text", _FIELDS[name]))
        elif found["slot"]:
            pieces.append(Piece("slot", str(int(found["slot"])), found["word"] or ""))
        else:
            pieces.append(Piece("mask" if found["mask"] else "between"))
    if literal := pattern[begin:]:
        pieces.append(Piece("literal", literal))
    if missing := [column for column in texts if Piece("text", column) not in pieces]:
        raise UsageError(f"{where} lacks the text {{{missing[0]}}}; write it where the text is to stand")
    if Piece("mask") not in pieces:
        raise UsageError(f"{where} has no mask; write [MASK] where the word of a label is to stand")
    return tuple(pieces)


def pieces_of(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a text inside of a row, without the lone word boundary that SentencePiece begins with."""
    ids = tokenizer.encode(text)
    return ids[1:] if len(ids) > 1 and tokenizer.tokens(ids[:1]) == ["▁"] else ids


def with_soft_literals(pieces: Sequence[Piece], tokenizer: Tokenizer) -> tuple[Piece, ...]:
    """Return the pattern with a soft slot for every token of its literal text, which begins as that token.

    A pattern that has soft slots stays as it is.
    """
    if any(piece.kind == "slot" for piece in pieces):
        return tuple(pieces)
    found: list[Piece] = []
    for piece in pieces:
        if piece.kind != "literal":
            found.append(piece)
            continue
        for token in pieces_of(piece.text, tokenizer):
            found.append(Piece("slot", str(1 + sum(each.kind == "slot" for each in found)), token))
    return tuple(found)


def slots_of(pieces: Sequence[Piece], tokenizer: Tokenizer, where: str) -> list[int]:
    """Return of each soft slot, in the order of their numbers, the id that it begins as, or -1.

    Raises:
        UsageError: it is to begin as no word of the vocabulary, or as two.
    """
    found: dict[int, int] = {}
    for piece in pieces:
        if piece.kind != "slot":
            continue
        number = int(piece.text)
        initial = _initial(piece.word, tokenizer, where)
        if initial >= 0 and found.get(number, -1) not in (-1, initial):
            raise UsageError(f"{where}: [P{number}] is to begin as two words; name one")
        found[number] = max(initial, found.get(number, -1))
    return [found[number] for number in sorted(found)]


def _initial(word: str | int, tokenizer: Tokenizer, where: str) -> int:
    if isinstance(word, int):
        return word
    if not word:
        return -1
    ids = pieces_of(word, tokenizer)
    if len(ids) != 1 or ids[0] == tokenizer.unk_id:
        told = "is not in the vocabulary" if tokenizer.unk_id in ids else f"has {len(ids)} tokens there"
        raise UsageError(f"{where}: a soft slot begins as one token of the vocabulary, but {word!r} {told}")
    return ids[0]


def encode_prompts(
    pieces: Sequence[Piece],
    texts: Mapping[str, Sequence[str]],
    labels: Sequence[int],
    tokenizer: Tokenizer,
    *,
    num_masks: int,
    max_seq_length: int,
) -> EncodedPrompts:
    """Return the examples in the pattern, each cut to `max_seq_length` tokens with specials.

    Example:
        pieces text_a, literal "x" [9], mask; text 5 6 7 8; max_seq_length 6, [CLS] 2, [SEP] 3, [MASK] 4
        ids      2 5 6 9 4 3
        is_text  0 1 1 0 0 0

    Args:
        pieces: of `parse`.
        texts: by column.
        labels: a class id each, -1 where unknown.
        tokenizer: any tokenizer of `data.tokenizers`.
        num_masks: of a row; a pattern with one mask has them all in its place.
        max_seq_length: in tokens.

    Raises:
        UsageError: the pattern leaves no room for a text.
    """
    template, fixed = tokenizer.template, parts_of(pieces, tokenizer, num_masks)
    used = [part for part in fixed if isinstance(part, str)]
    budget = max_seq_length - sum(len(part) for part in fixed if not isinstance(part, str))
    if budget < len(used):
        raise UsageError(
            f"--max_seq_length={max_seq_length}: the pattern alone takes {max_seq_length - budget} tokens; give more "
            "tokens or a shorter --pattern"
        )
    encoded = {column: ids_of(texts[column], tokenizer) for column in dict.fromkeys(used)}
    kept = _kept(used, {column: np.diff(splits) for column, (_, splits) in encoded.items()}, budget)
    lengths = [kept[part] if isinstance(part, str) else np.full(len(labels), len(part)) for part in fixed]
    splits = bounds_of(np.sum(lengths, axis=0))
    ids, is_text, begin = np.empty(splits[-1], np.int32), np.zeros(splits[-1], bool), splits[:-1]
    for part, length in zip(fixed, lengths, strict=True):
        places = span_indices(begin, length)
        if isinstance(part, str):
            flat, bounds = encoded[part]
            ids[places], is_text[places] = flat[span_indices(bounds[:-1], length)], True
        else:
            ids[places] = np.tile(np.array(part, np.int32), len(labels))
        begin = begin + length
    segments = np.full(splits[-1], template.segment_ids[0], np.int32)
    cut = sum(int((np.diff(bounds) > kept[column]).sum()) for column, (_, bounds) in encoded.items())
    return EncodedPrompts(ids, segments, splits, np.asarray(labels, np.int32), cut, is_text)


def parts_of(pieces: Sequence[Piece], tokenizer: Tokenizer, num_masks: int) -> list[list[int] | str]:
    """Return the parts of a row from its first special to its last: ids, or the name of a text."""
    template, numbers = tokenizer.template, sorted({int(piece.text) for piece in pieces if piece.kind == "slot"})
    masks = sum(piece.kind == "mask" for piece in pieces)
    found: list[list[int] | str] = [list(template.first)]
    for piece in pieces:
        if piece.kind == "text":
            found.append(piece.text)
        elif piece.kind == "literal":
            found.append(pieces_of(piece.text, tokenizer))
        elif piece.kind == "slot":
            found.append([tokenizer.vocab_size + numbers.index(int(piece.text))])
        elif piece.kind == "mask":
            found.append([tokenizer.mask_id] * (num_masks if masks == 1 else 1))
        else:
            found.append(list(template.between))
    return [*found, list(template.last)]


def _kept(used: Sequence[str], lengths: Mapping[str, np.ndarray], budget: int) -> dict[str, np.ndarray]:
    """Return how many tokens of each text are kept; a text that stands n times in the pattern counts n times."""
    if len(lengths) == 1:
        (column,) = lengths
        return {column: np.minimum(lengths[column], budget // len(used))}
    one, two = lengths
    if len(used) == 2:
        kept = kept_lengths(lengths[one], lengths[two], budget)
        return dict(zip((one, two), kept, strict=True))
    return {column: np.minimum(length, budget // len(used)) for column, length in lengths.items()}
