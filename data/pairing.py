"""Documents -> pairs of segments: sentence order (ALBERT, Lan et al. 2020, section 3.1), next sentence (BERT,
Devlin et al. 2019, section 3.1), sentence structure (StructBERT, Wang et al. 2020, section 2.2.2), adjacent segments
(VECO, Luo et al. 2021), or single segments.

Sentences are gathered up to a target length as BERT's script does. Unlike there, no sentence is dropped for want of a
partner, the length of short examples is drawn for each of them and not once a document, and swapped pairs are never
mixed with random ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from data.tokenizers.template import kept_lengths

# A sentence too long for one example is cut into pieces of about this share of an example, so that little is truncated.
_PIECES_PER_EXAMPLE = 8


@dataclass(frozen=True, slots=True)
class Block:
    """Some documents, tokenised, one after the other.

    Attributes:
        sentences: int64 [S + 1], token offsets of the sentences.
        begin, end: int64 [D], the sentences [begin, end) of each document.
    """

    sentences: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    @property
    def num_documents(self) -> int:
        return len(self.begin)


@dataclass(frozen=True, slots=True)
class Chunks:
    """Consecutive sentences [begin, end) of a document each, about to be paired; all int64 [C]."""

    begin: np.ndarray
    end: np.ndarray
    document: np.ndarray
    target_tokens: np.ndarray


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two spans of tokens each: start and length of segment A and of segment B; label by the pairing. int64 [C]."""

    first_start: np.ndarray
    first_length: np.ndarray
    second_start: np.ndarray
    second_length: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def take(self, chosen: slice | np.ndarray) -> Pairs:
        """Return some of the pairs."""
        return Pairs(*(getattr(self, name)[chosen] for name in Pairs.__slots__))


def _spans_of(block: Block, begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    start = block.sentences[begin]
    return start, block.sentences[end] - start


def _split_points(chunks: Chunks, random: np.random.Generator) -> np.ndarray:
    """Return the sentence that segment B begins with: uniform over the inner boundaries of a chunk, else its end."""
    count = chunks.end - chunks.begin
    return chunks.begin + 1 + (random.random(len(count)) * np.maximum(count - 1, 1)).astype(np.int64)


def _swap(chunks: Chunks, block: Block, random: np.random.Generator) -> tuple[Pairs, np.ndarray]:
    """Label 0: natural order; 1: swapped."""
    middle = _split_points(chunks, random)
    swapped = random.random(len(middle)) < 0.5
    first_begin, first_end = np.where(swapped, middle, chunks.begin), np.where(swapped, chunks.end, middle)
    second_begin, second_end = np.where(swapped, chunks.begin, middle), np.where(swapped, middle, chunks.end)
    first, second = _spans_of(block, first_begin, first_end), _spans_of(block, second_begin, second_end)
    return Pairs(*first, *second, swapped.astype(np.int64)), chunks.end


def _next_sentence(chunks: Chunks, block: Block, random: np.random.Generator) -> tuple[Pairs, np.ndarray]:
    """Label 0: B follows A; 1: B is from another document of the block, and the true B is used again."""
    middle = _split_points(chunks, random)
    unrelated = random.random(len(middle)) < 0.5
    b_begin, other_end = _elsewhere(chunks, block, random)
    first_start, first_length = _spans_of(block, chunks.begin, middle)
    unrelated |= middle == chunks.end
    if block.num_documents == 1:
        unrelated[:] = False
    b_end = _filling(block, b_begin, other_end, chunks.target_tokens - first_length)
    begin, end = np.where(unrelated, b_begin, middle), np.where(unrelated, b_end, chunks.end)
    pairs = Pairs(first_start, first_length, *_spans_of(block, begin, end), unrelated.astype(np.int64))
    return pairs, np.where(unrelated, middle, chunks.end)


def _elsewhere(chunks: Chunks, block: Block, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return for each chunk a sentence of another document (its own if it is alone), and the end of that document."""
    step = 1 + (random.random(len(chunks.begin)) * max(block.num_documents - 1, 1)).astype(np.int64)
    other = (chunks.document + step) % block.num_documents
    begin, end = block.begin[other], block.end[other]
    return begin + (random.random(len(begin)) * (end - begin)).astype(np.int64), end


def _filling(block: Block, begin: np.ndarray, limit: np.ndarray, wanted_tokens: np.ndarray) -> np.ndarray:
    """Return the end of the sentences from `begin` on that hold as many tokens as wanted, at least one sentence."""
    end = np.searchsorted(block.sentences, block.sentences[begin] + np.maximum(1, wanted_tokens))
    return np.minimum(np.maximum(end, begin + 1), limit)


def _structure(num_labels: int, chunks: Chunks, block: Block, random: np.random.Generator) -> tuple[Pairs, np.ndarray]:
    """Label 0: B is from another document of the block; 1: B follows A; 2: B precedes A; 3 and 4: as 1 and 2, but with
    sentences left out between them.

    All labels are equally likely. A chunk of two sentences has none to leave out, and becomes 1 or 2 instead; a block
    of one document has no random partners. What follows A in the text is used again after 0, 3 and 4.
    """
    label = (random.random(len(chunks.begin)) * num_labels).astype(np.int64)
    if block.num_documents == 1:
        label = 1 + (random.random(len(label)) * (num_labels - 1)).astype(np.int64)
    count = chunks.end - chunks.begin
    label = np.where((label >= 3) & (count < 3), label - 2, label)
    unrelated, apart, swapped = label == 0, label >= 3, (label == 2) | (label == 4)
    last = block.end[chunks.document]
    # A ends where a sentence is left for the gap; and no sentence may be left alone at a document's end.
    room = count - 1 - (apart | (unrelated & (chunks.end == last) & (count > 2)))
    middle = chunks.begin + 1 + (random.random(len(count)) * room).astype(np.int64)
    middle = np.where(unrelated & (last - middle == 1), last, middle)
    gap = 1 + (random.random(len(count)) * (chunks.end - middle - 1)).astype(np.int64)
    b_begin, b_limit = _elsewhere(chunks, block, random)
    b_begin = np.where(unrelated, b_begin, middle + np.where(apart, gap, 0))
    a_start, a_length = _spans_of(block, chunks.begin, middle)
    b_end = _filling(block, b_begin, np.where(unrelated, b_limit, last), chunks.target_tokens - a_length)
    b_end = np.where(unrelated | apart, b_end, chunks.end)
    b_start, b_length = _spans_of(block, b_begin, b_end)
    pairs = Pairs(
        np.where(swapped, b_start, a_start),
        np.where(swapped, b_length, a_length),
        np.where(swapped, a_start, b_start),
        np.where(swapped, a_length, b_length),
        label,
    )
    return pairs, np.where(unrelated | apart, middle, chunks.end)


def _adjacent(chunks: Chunks, block: Block, random: np.random.Generator) -> tuple[Pairs, np.ndarray]:
    """B follows A; they meet where the sentences end that are nearest to the middle. The label is always 0."""
    del random
    first, last = block.sentences[chunks.begin], block.sentences[chunks.end]
    most = chunks.end - 1
    after = np.clip(np.searchsorted(block.sentences, (first + last) / 2), chunks.begin + 1, most)
    before = np.maximum(after - 1, chunks.begin + 1)
    nearer = np.abs(2 * block.sentences[before] - first - last) <= np.abs(2 * block.sentences[after] - first - last)
    middle = np.where(nearer, before, after)
    spans = *_spans_of(block, chunks.begin, middle), *_spans_of(block, middle, chunks.end)
    return Pairs(*spans, np.zeros_like(middle)), chunks.end


def _single(chunks: Chunks, block: Block, random: np.random.Generator) -> tuple[Pairs, np.ndarray]:
    """Return chunks as single segments; the label is always 0."""
    del random
    zeros = np.zeros_like(chunks.begin)
    return Pairs(*_spans_of(block, chunks.begin, chunks.end), zeros, zeros, zeros), chunks.end


@dataclass(frozen=True)
class Pairing:
    """How a chunk becomes the segments of an example.

    Attributes:
        num_segments: 1 or 2.
        num_labels: classes of `next_sentence_labels`.
        pair: chunks -> (pairs, the sentence to go on with); None where `data.continuation` cuts fragments instead.
        min_documents: without so many beside one another, a label cannot occur.
        min_sentences: without a document of so many, a label cannot occur.
    """

    num_segments: int
    num_labels: int
    pair: Callable[[Chunks, Block, np.random.Generator], tuple[Pairs, np.ndarray]] | None
    min_documents: int = 1
    min_sentences: int = 1


PAIRINGS: dict[str, Pairing] = {
    "sop": Pairing(num_segments=2, num_labels=2, pair=_swap),
    "nsp": Pairing(num_segments=2, num_labels=2, pair=_next_sentence),
    "single": Pairing(num_segments=1, num_labels=1, pair=_single),
    "adjacent": Pairing(num_segments=2, num_labels=1, pair=_adjacent),
    "continuation": Pairing(num_segments=2, num_labels=1, pair=None),
    **{
        f"structure_{num_labels}": Pairing(
            num_segments=2,
            num_labels=num_labels,
            pair=partial(_structure, num_labels),
            min_documents=2,
            min_sentences=3 if num_labels == 5 else 2,
        )
        for num_labels in (2, 3, 5)
    },
}


def make_divisible(
    block: Block, word_starts: np.ndarray, clause_ends: np.ndarray, max_tokens: int, num_segments: int
) -> tuple[Block, int]:
    """Cut sentences that are too long to use, and leave out documents that yield no example.

    Sentences of more than `max_tokens` tokens are cut into pieces of about an eighth of that, after a clause if there
    is one near; for pairs, the only sentence of a document is cut in two. Empty sentences and documents vanish.

    Example:
        sentences  [0 3 3 9 10]     documents 0:2, 2:3 and 3:4 of them; max_tokens 8, two segments
        lengths    [3 0 6 1]        each document has one sentence that is not empty: cut it in two
        cuts       [1], [6], []     at word starts nearest to the middle; the last sentence is one word
        result     sentences [0 1 3 6 9 10], documents 0:2 and 2:4; 1 document is left out

    Args:
        block: documents of `len(word_starts)` tokens.
        word_starts: bool [tokens].
        clause_ends: bool [tokens], commas and the like.
        max_tokens: of an example.
        num_segments: segments that every document must yield.

    Returns:
        The block, and how many documents of one single word are missing from it.
    """
    lengths = np.diff(block.sentences)
    piece_tokens = max(1, max_tokens // _PIECES_PER_EXAMPLE)
    num_pieces = np.where(lengths > max_tokens, -(-lengths // piece_tokens), 1)
    first_token, last_token = block.sentences[block.begin], block.sentences[block.end]
    if num_segments > 1:
        filled = np.append(0, np.cumsum(lengths > 0))
        lonely = filled[block.end] - filled[block.begin] == 1
        sentence = np.searchsorted(block.sentences, first_token[lonely], side="right") - 1
        num_pieces[sentence] = np.maximum(num_pieces[sentence], num_segments)
    cuts = [
        _cuts(block.sentences[i], block.sentences[i + 1], num_pieces[i], word_starts, clause_ends)
        for i in np.flatnonzero(num_pieces > 1)
    ]
    sentences = np.unique(np.concatenate([block.sentences, *cuts]))
    begin, end = np.searchsorted(sentences, first_token), np.searchsorted(sentences, last_token)
    enough = end - begin >= num_segments
    return Block(sentences, begin[enough], end[enough]), int((~enough & (end > begin)).sum())


def _cuts(begin: int, end: int, num_pieces: int, word_starts: np.ndarray, clause_ends: np.ndarray) -> np.ndarray:
    """Return up to num_pieces - 1 offsets in a sentence, nearest to even: at clauses if near enough, else at words."""
    even = begin + (end - begin) * np.arange(1, num_pieces) / num_pieces
    words = begin + 1 + np.flatnonzero(word_starts[begin + 1 : end])
    if not len(words):
        return np.zeros(0, np.int64)
    cuts = _nearest(words, even)
    clauses = words[clause_ends[words - 1]]
    if len(clauses):
        near = _nearest(clauses, even)
        cuts = np.where(np.abs(near - even) <= (end - begin) / num_pieces / 2, near, cuts)
    return cuts


def _nearest(sorted_values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the values that are nearest to those wanted, the smaller of two equally near."""
    after = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    before = np.maximum(after - 1, 0)
    closer = np.abs(sorted_values[before] - wanted) <= np.abs(sorted_values[after] - wanted)
    return np.where(closer, sorted_values[before], sorted_values[after])


def chunk_and_pair(
    block: Block,
    pairing: Pairing,
    *,
    num_passes: int,
    max_tokens: int,
    short_seq_prob: float,
    random: np.random.Generator,
) -> Pairs:
    """Return the pairs of a block, all documents and passes in step; lengths may exceed `max_tokens` (see `truncate`).

    A chunk takes sentences until it has its target length: `max_tokens`, or with probability `short_seq_prob`, drawn
    for every chunk, a uniform length from 2 up. It takes at least one sentence per segment. Where a single sentence
    would be left over at a document's end it joins the last chunk if it fits; else the last chunk gives it a sentence
    for company if it can.

    Example:
        sentences  [0 4 8 12 15]    one document of sentences 0:4, two segments, max_tokens 8, one pass
        step 1     begin 0: two sentences reach 8 tokens, chunk 0:2; "sop" cuts it into 0:1 and 1:2
        step 2     begin 2: the rest, chunk 2:4 of 7 tokens, cut into 2:3 and 3:4
        result     first 0:4 and 8:12, second 4:8 and 12:15; label 1 where a draw swapped them

    Args:
        block: from `make_divisible`, so that every document has a sentence for each segment.
        pairing: an entry of `PAIRINGS`.
        num_passes: passes over the block, each with its own draws (BERT's dupe_factor).
        max_tokens: of an example, without specials.
        short_seq_prob: share of chunks with a shorter target.
        random: draws come from here, in an order that depends on the arguments alone.
    """
    assert pairing.pair is not None
    document = np.tile(np.arange(block.num_documents), num_passes)
    begin, last = block.begin[document], block.end[document]
    parts: list[Pairs] = []
    while len(document):
        short = random.random(len(document)) < short_seq_prob
        target = np.where(short, random.integers(2, max_tokens, len(document), endpoint=True), max_tokens)
        end = np.searchsorted(block.sentences, block.sentences[begin] + target)
        end = np.minimum(np.maximum(end, begin + pairing.num_segments), last)
        if pairing.num_segments > 1:
            leftover = last - end == 1
            fits = block.sentences[last] - block.sentences[begin] <= max_tokens
            can_give = end - begin > pairing.num_segments
            end = np.where(leftover, np.where(can_give & ~fits, end - 1, last), end)
        pairs, begin = pairing.pair(Chunks(begin, end, document, target), block, random)
        parts.append(pairs)
        unfinished = begin < last
        document, begin, last = document[unfinished], begin[unfinished], last[unfinished]
    if not parts:
        empty = np.zeros(0, np.int64)
        return Pairs(empty, empty, empty, empty, empty)
    return Pairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in Pairs.__slots__))


def pack(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Put items of `lengths`, none above `capacity`, into few bins: best fit, longest first.

    Example:
        lengths   [4, 6, 3]   capacity 9
        longest   6 -> bin 0 (room 3), 4 -> bin 1 (room 5), 3 -> the tightest room from 3 on, bin 0
        result    [1, 0, 0]

    Returns:
        The bin of each item, int64; bins are numbered from 0 without gaps.
    """
    bins = np.empty(len(lengths), np.int64)
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    # Bit r is set when there is a bin with room r; the lowest bit from the wanted length on is the tightest fit.
    rooms, count = 0, 0
    order = np.argsort(-lengths, kind="stable").tolist()
    for item, length in zip(order, lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, number, count = capacity, count, count + 1
        bins[item] = number
        by_room[room - length].append(number)
        rooms |= 1 << (room - length)
    return bins


def shorter(a: np.ndarray, b: np.ndarray, max_tokens: int, *, apart: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths that are left of two texts: of one row `kept_lengths`, of two rows at most half in each."""
    if apart:
        return np.minimum(a, max_tokens // 2), np.minimum(b, max_tokens // 2)
    return kept_lengths(a, b, max_tokens)


def truncate(
    pairs: Pairs, max_tokens: int, random: np.random.Generator, *, apart: bool = False
) -> tuple[Pairs, np.ndarray]:
    """Shorten the segments until both fit `max_tokens`, each token from the front or the back at random.

    Returns:
        The pairs, cut as `shorter` says; and the tokens cut from each, int64 [C].
    """
    a, b = pairs.first_length, pairs.second_length
    kept_a, kept_b = shorter(a, b, max_tokens, apart=apart)
    front_a, front_b = random.binomial(a - kept_a, 0.5), random.binomial(b - kept_b, 0.5)
    shortened = Pairs(pairs.first_start + front_a, kept_a, pairs.second_start + front_b, kept_b, pairs.label)
    return shortened, a + b - kept_a - kept_b
