"""Documents -> sources and what follows them: PALM (Bi et al. 2020, section 2.3) and PLUG (AliceMind 2021).

PALM cuts fragments of consecutive sentences by a share, sliding on sentence by sentence; PLUG draws both lengths.
Unlike there, a cut is moved to the nearest beginning of a word, as far as both rows have room.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from absl.app import UsageError

from data.pairing import Block, Pairs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from data.objectives import Continuing

# A longer word is cut: text without marks between words would else be cut at sentences only.
_LONGEST_WORD = 8
# [CLS] and [SEP], or <s> and </s>, around each of the two texts.
SPECIALS = 2
_DRAWN = (32, 512)

Range = tuple[int, int]


@dataclass(frozen=True)
class Continuation:
    """How fragments of documents are cut into a source and a target.

    Attributes:
        fragment_length: most tokens of a fragment that is cut by share, without specials.
        source_fraction: share of a fragment's tokens that is the source.
        stride: sentences from the beginning of one fragment to that of the next; 0: a whole fragment.
        max_target_length: most positions that a decoder runs on: the target's tokens and one special.
        source_lengths: least and greatest length of a source that is drawn, specials counted; None: cut by share.
        target_lengths: likewise of a target, in positions of the decoder.
    """

    fragment_length: int
    source_fraction: float
    stride: int
    max_target_length: int
    source_lengths: Range | None = None
    target_lengths: Range | None = None

    @classmethod
    def of(
        cls,
        continuing: Continuing,
        max_seq_length: int,
        *,
        fragment_length: int | None = None,
        source_fraction: float | None = None,
        stride: int | None = None,
        max_target_length: int | None = None,
        source_lengths: Range | None = None,
        target_lengths: Range | None = None,
    ) -> Self:
        """Return the amounts that are given, and for None those of the objective as far as the rows have room."""
        fraction = continuing.source_fraction if source_fraction is None else source_fraction
        stride = continuing.stride if stride is None else stride
        drawn = continuing.drawn or (_DRAWN if source_lengths or target_lengths else None)
        if drawn:
            least, most = drawn
            positions = max_target_length or (target_lengths or drawn)[1]
            source = source_lengths or (least, min(most, max_seq_length))
            target = target_lengths or (least, min(most, positions))
            return cls(fragment_length or continuing.fragment_length, fraction, stride, positions, source, target)
        if not 0 < fraction < 1:
            raise UsageError(
                f"--source_fraction={fraction:g}: a fragment without a source or without a target; expected a share "
                f"between 0 and 1, such as {continuing.source_fraction:g}"
            )
        length = fragment_length
        if length is None:
            room = [continuing.fragment_length, int((max_seq_length - SPECIALS) / fraction)]
            if max_target_length is not None:
                room.append(int((max_target_length - 1) / (1 - fraction)))
            length = max(2, min(room))
        positions = max_target_length or length - int(_source_tokens(length, fraction)) + 1
        return cls(length, fraction, stride, positions)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return that of a manifest's recipe."""
        values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in content.items()}
        return cls(**values)

    @property
    def least_tokens(self) -> int:
        """How many tokens a document must have."""
        if self.source_lengths is None or self.target_lengths is None:
            return 2
        return self.source_lengths[0] - SPECIALS + self.target_lengths[0] - 1

    @property
    def most_tokens(self) -> int:
        """How many tokens a fragment has at most."""
        if self.source_lengths is None or self.target_lengths is None:
            return self.fragment_length
        return self.source_lengths[1] - SPECIALS + self.target_lengths[1] - 1

    def check(self, max_seq_length: int) -> None:
        """Raise `UsageError`, naming the flags, where a source or a target has no room."""
        if self.max_target_length < 2:
            raise UsageError(
                f"--max_target_length={self.max_target_length}: a target of no token beside its end; expected 2 or more"
            )
        for flag, lengths, least, of, most in (
            ("source_length_range", self.source_lengths, SPECIALS + 1, "max_seq_length", max_seq_length),
            ("target_length_range", self.target_lengths, 2, "max_target_length", self.max_target_length),
        ):
            if lengths and not least <= lengths[0] <= lengths[1] <= most:
                raise UsageError(
                    f"--{flag}={lengths[0]},{lengths[1]}: expected the least and the greatest length, from {least} to "
                    f"--{of}={most}: raise --{of}, or give another range"
                )
        if self.source_lengths:
            return
        if self.fragment_length < 2:
            raise UsageError(f"--fragment_length={self.fragment_length}: expected at least 2, a source and a target")
        source = int(_source_tokens(self.fragment_length, self.source_fraction))
        for what, tokens, specials, flag, room in (
            ("sources", source, SPECIALS, "max_seq_length", max_seq_length),
            ("targets", self.fragment_length - source, 1, "max_target_length", self.max_target_length),
        ):
            if tokens + specials > room:
                raise UsageError(
                    f"--fragment_length={self.fragment_length} with --source_fraction={self.source_fraction:g} makes "
                    f"{what} of {tokens} tokens and {specials} special(s), but --{flag}={room}: give "
                    f"--{flag}={tokens + specials}, or leave --fragment_length out"
                )


def _source_tokens(length: Any, fraction: float) -> Any:
    """Return how many of `length` tokens are the source's, at least one and not all; an integer or an array."""
    return np.clip(np.rint(length * fraction).astype(np.int64), 1, length - 1)


def continuations(
    block: Block,
    word_starts: np.ndarray,
    continuation: Continuation,
    *,
    max_seq_length: int,
    num_passes: int,
    short_seq_prob: float,
    random: np.random.Generator,
) -> tuple[Pairs, np.ndarray]:
    """Return a source and its target for every fragment, and the tokens cut from each fragment's end.

    A fragment takes sentences up to `fragment_length` tokens or, with probability `short_seq_prob`, up to a uniform
    length from 2. With a stride, a document's last fragment is the first that would reach its end at full length.
    Where lengths are drawn a fragment has no more than both, and begins where the document has enough left for the
    least of both: the ranges of the draws end where the document does.

    Example:
        sentences  [0 4 8 12 15]    one document of sentences 0:4; fragments of 10 tokens, source_fraction 0.8, stride 1
        reach      [2 3 4 4]        the sentence behind each fragment: the third is the last
        fragments  0:8, 4:12, 8:15
        cuts       6, 10, 14        8 * 0.8, 8 * 0.8 and 7 * 0.8, rounded; then to words
        pairs      0:6 and 6:8, 4:10 and 10:12, 8:14 and 14:15

    Args:
        block: from `data.pairing.make_divisible`.
        word_starts: bool [tokens].
        continuation: amounts.
        max_seq_length: of the row of a source, specials counted.
        num_passes: passes over the block, each with its own draws.
        short_seq_prob: share of shorter fragments, where lengths are not drawn.
        random: draws come from here, in an order that depends on the arguments alone.
    """
    words = np.append(np.flatnonzero(word_starts), len(word_starts))
    rooms = max_seq_length - SPECIALS, continuation.max_target_length - 1
    parts: list[tuple[np.ndarray, ...]] = []
    begin, last = _first_fragments(block, continuation, num_passes)
    while len(begin):
        ends = block.sentences[last]
        if continuation.source_lengths:
            found = _drawn(block.sentences[begin], ends, words, continuation, random)
            behind = np.searchsorted(block.sentences, found[2], side="right") - 1
        else:
            full = np.full(len(begin), continuation.fragment_length)
            short = random.random(len(begin)) < short_seq_prob
            behind = _reach(block, begin, last, np.where(short, random.integers(2, full, endpoint=True), full))
            found = _by_share(block, begin, behind, words, rooms, continuation)
        parts.append(found)
        if continuation.stride:
            break
        begin = np.maximum(behind, begin + 1)
        left = block.sentences[last] - block.sentences[np.minimum(begin, last)] >= continuation.least_tokens
        begin, last = begin[left], last[left]
    empty = (np.zeros(0, np.int64),) * 4
    start, middle, end, cut = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
    return Pairs(start, middle - start, middle, end - middle, np.zeros_like(start)), cut


def too_short(block: Block, continuation: Continuation) -> np.ndarray:
    """Return which documents have too few tokens for a single fragment, bool [D]."""
    tokens = block.sentences[block.end] - block.sentences[block.begin]
    return tokens < continuation.least_tokens


def _first_fragments(block: Block, continuation: Continuation, num_passes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sentences that fragments begin with, without a stride the first alone, and their documents' ends."""
    enough = ~too_short(block, continuation)
    first, last = block.begin[enough], block.end[enough]
    stride = continuation.stride
    if stride:
        counts = -(-(last - first) // stride)
        document = np.repeat(np.arange(len(first)), counts)
        number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
        begin, last = first[document] + number * stride, last[document]
        kept = block.sentences[last] - block.sentences[begin] >= continuation.least_tokens
        if not continuation.source_lengths:
            former = np.maximum(begin - stride, 0)
            full = np.full(len(begin), continuation.fragment_length)
            kept &= (number == 0) | (_reach(block, former, last, full) < last)
        first, last = begin[kept], last[kept]
    return np.tile(first, num_passes), np.tile(last, num_passes)


def _reach(block: Block, begin: np.ndarray, last: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the end of the sentences from `begin` on that hold at most so many tokens, but two tokens at least."""
    start = block.sentences[begin]
    end = np.searchsorted(block.sentences, start + tokens, side="right") - 1
    return np.minimum(np.maximum(end, np.searchsorted(block.sentences, start + 2)), last)


def _by_share(
    block: Block,
    begin: np.ndarray,
    behind: np.ndarray,
    words: np.ndarray,
    rooms: tuple[int, int],
    continuation: Continuation,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return start, middle and end of fragments, and the tokens of a single sentence that are too many for one."""
    start, end = block.sentences[begin], block.sentences[behind]
    length = np.minimum(end - start, continuation.fragment_length)
    source_room, target_room = rooms
    least, most = np.maximum(length - target_room, 1), np.minimum(length - 1, source_room)
    middle = start + np.clip(_source_tokens(length, continuation.source_fraction), least, most)
    middle = _to_words(middle, words, start + least, start + most)
    return start, middle, start + length, end - start - length


def _drawn(
    start: np.ndarray, last: np.ndarray, words: np.ndarray, continuation: Continuation, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return start, middle and end of fragments whose two lengths are drawn; nothing is cut from them."""
    assert continuation.source_lengths
    assert continuation.target_lengths
    source, target = (np.subtract(continuation.source_lengths, SPECIALS), np.subtract(continuation.target_lengths, 1))

    def drawn(begin: np.ndarray, lengths: np.ndarray, limit: np.ndarray) -> np.ndarray:
        least, most = begin + lengths[0], np.minimum(begin + lengths[1], limit)
        return _to_words(random.integers(least, most, endpoint=True), words, least, most)

    middle = drawn(start, source, last - target[0])
    end = drawn(middle, target, last)
    return start, middle, end, np.zeros_like(start)


def _to_words(position: np.ndarray, words: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Return the nearest beginnings of words, the earlier of two equally near; where none is allowed or near, the
    position.

    Example:
        position [6 6 6]    words [0 5 8 9]
        least    [1 6 6]    most  [8 8 7]      before 5, after 8
        result   [5 8 6]
    """
    place = np.searchsorted(words, position, side="right")
    before = words[np.maximum(place - 1, 0)]
    after = words[np.minimum(place, len(words) - 1)]
    good_before = (before >= np.maximum(least, position - _LONGEST_WORD)) & (before <= position)
    good_after = (after <= np.minimum(most, position + _LONGEST_WORD)) & (after >= position)
    earlier = good_before & ((position - before <= after - position) | ~good_after)
    return np.where(earlier, before, np.where(good_after, after, position))
