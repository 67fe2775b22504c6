"""Documents of two sentences, such as a sentence and its translation -> pairs of segments, none of them divided."""

from __future__ import annotations

import numpy as np

from data.pairing import Block, Chunks, Pairing, Pairs, shorter

CUT, DROP = "cut", "drop"


def translations(
    block: Block,
    pairing: Pairing,
    *,
    num_passes: int,
    max_tokens: int,
    apart: bool,
    long_pairs: str,
    random: np.random.Generator,
) -> tuple[Block, Pairs, np.ndarray, dict[str, int]]:
    """Return the pairs of all documents and passes, each at most as long as an example.

    A pair that is too long loses the ends of its texts, never their beginnings, so that both keep speaking of the same.

    Example:
        sentences  [0 3 8 8 9]     documents 0:2 and 2:4 of them; rows of 4 tokens each, apart
        documents  3 and 5 tokens; 0 and 1: a side without a token is nothing to learn from, and is left out
        pairs      first 0:3, second 3:7; the second lost 1 token

    Args:
        block: documents of two sentences each.
        pairing: an entry of `PAIRINGS`.
        num_passes: passes over the block.
        max_tokens: of an example, without specials.
        apart: each text has a row of its own, of half of these.
        long_pairs: "cut", or "drop" those that are too long.
        random: of the pairing's draws.

    Returns:
        The block of the documents that are left, their pairs, the tokens cut from each, and counts for the manifest.
    """
    assert pairing.pair is not None
    first, second = (np.diff(block.sentences)[block.begin + side] for side in (0, 1))
    empty = (first == 0) | (second == 0)
    too_long = ~empty & (first + second > sum(shorter(first, second, max_tokens, apart=apart)))
    left_out = empty | too_long if long_pairs == DROP else empty
    kept = Block(block.sentences, block.begin[~left_out], block.end[~left_out])
    document = np.tile(np.arange(kept.num_documents), num_passes)
    targets = np.full(len(document), max_tokens)
    pairs, _ = pairing.pair(Chunks(kept.begin[document], kept.end[document], document, targets), kept, random)
    a, b = shorter(pairs.first_length, pairs.second_length, max_tokens, apart=apart)
    cut = pairs.first_length + pairs.second_length - a - b
    counts = {"pairs_without_tokens": int(empty.sum()), "pairs_too_long": int(too_long.sum())}
    return kept, Pairs(pairs.first_start, a, pairs.second_start, b, pairs.label), cut, counts
