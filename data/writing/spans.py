"""First phase, per span of input: tokenise, find words, pair. Ids go to a token file, every example is six numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np

from data import corpus
from data.examples import PairedBlock, Stopwatch, read_blocks
from data.pairing import Pairs
from data.randomness import stream_number
from data.writing.workers import Done, Job, advance, finish
from ground.files import naming, open_new, write_atomically

# Bounds the memory of the first phase: the rows of a segment are in memory until it ends.
SEGMENT_TOKENS = 1 << 25
PAIR_COLUMNS = (*Pairs.__slots__, "sequence")
_SHUFFLE_SPAN = stream_number("order in a span")


def span_name(span: int, segment: int | None = None) -> str:
    """Return the name of the files of a span, or of one segment of them."""
    return f"span-{span:06d}" if segment is None else f"span-{span:06d}-{segment:04d}"


class _SegmentWriter:
    """Writes the blocks of a span to segments: a file of tokens as they come, and a file of rows in random order.

    A row points to the tokens of one example; a new segment begins after SEGMENT_TOKENS tokens.
    """

    def __init__(self, job: Job, span: int):
        self._job, self._span = job, span
        self.examples: list[int] = []
        self.files: dict[str, int] = {}
        self._sequence = 0
        self._open()

    def _open(self) -> None:
        self._path = self._job.work_path / span_name(self._span, len(self.examples))
        self._temporary = self._path.with_suffix(".tokens.tmp")
        self._rows: list[np.ndarray] = []
        self._written = 0
        self._stream = open_new(self._temporary)

    def write(self, block: PairedBlock) -> None:
        """Add a block, behind a new segment if this one is full."""
        if self._written + len(block.tokens) > SEGMENT_TOKENS and self._written:
            self.close()
            self._open()
        pairs = block.pairs
        with naming(self._temporary):
            self._stream.write(block.tokens.view(np.uint8).data)
        sequence = np.arange(len(pairs)) + self._sequence
        starts = pairs.first_start + self._written, pairs.second_start + self._written
        columns = (starts[0], pairs.first_length, starts[1], pairs.second_length, pairs.label, sequence)
        self._rows.append(np.stack(columns, axis=1).astype(np.uint32))
        self._sequence += len(pairs)
        self._written += len(block.tokens)

    def close(self) -> None:
        """End the segment; without this call its token file keeps a temporary name."""
        with naming(self._temporary):
            self._stream.close()
        self._temporary.replace(self._path.with_suffix(".tokens"))
        table = np.concatenate([np.zeros((0, len(PAIR_COLUMNS)), np.uint32), *self._rows])
        seed = [self._job.recipe.seed % 2**64, _SHUFFLE_SPAN, self._span, len(self.examples)]
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(table))
        write_atomically(self._path.with_suffix(".pairs"), table[order].tobytes(), sync=False)
        self.examples.append(len(table))
        for suffix in (".tokens", ".pairs"):
            self.files[self._path.name + suffix] = self._path.with_suffix(suffix).stat().st_size


def write_span(job: Job, span: corpus.Span, index: int) -> Done:
    """Write the segments of one span, then its marker; return the examples of each segment and the counts."""
    watch, counts = Stopwatch(), Counter[str]()
    writer = _SegmentWriter(job, index)
    for block in read_blocks(span, index, job.recipe, job.tokenizer, job.vocabulary, watch, advance):
        writer.write(block)
        counts += block.counts
        watch.stop("write")
    writer.close()
    watch.stop("write")
    content = {"files": writer.files, "examples": writer.examples, "counts": counts, "seconds": watch.seconds}
    return finish(job.work_path / f"{span_name(index)}.json", content)
