"""Second phase, per piece of output: gather, shuffle, join, mask, encode, hundreds of examples at once."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from data.examples import Stopwatch, encode_pairs, example_keys
from data.pairing import Pairs
from data.randomness import stream_number
from data.writing.spans import PAIR_COLUMNS, span_name
from data.writing.workers import Done, Job, finish
from ground.files import naming, open_new
from ground.ragged import bounds_of

# A piece of output holds this many tokens at most, which bounds the memory of the second phase.
PIECE_TOKENS = 1 << 23
_SHUFFLE_PIECE = stream_number("order in a piece")


@dataclass(frozen=True)
class Deal:
    """How the examples of all segments are dealt over the pieces of the output: evenly, to within one.

    Attributes:
        segments: (span, segment of it, its examples).
        num_pieces: pieces of the output.
    """

    segments: tuple[tuple[int, int, int], ...]
    num_pieces: int

    def slices(self, piece: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (span, segment, begin, end) of the rows that `piece` gets.

        Every piece gets an equal share of every segment. The examples beyond equal shares go round: those of a segment
        begin at the piece behind the last one that got one.

        Example:
            segments of 5 and 4 examples, 3 pieces
            segment 0   share 1, extra 2, from piece 0 on      rows 0:2 | 2:4 | 4:5
            segment 1   share 1, extra 1, from piece 2 on      rows 0:1 | 1:2 | 2:4
            piece 2     (0, 0, 4, 5), (0, 1, 2, 4)             3 examples each
        """
        extra_begin = 0
        for span, segment, examples in self.segments:
            share, extra = divmod(examples, self.num_pieces)
            # Extras behind the last piece go on at the first one.
            wrapped = max(0, extra_begin + extra - self.num_pieces)
            before, after = (
                share * p + min(p, wrapped) + min(max(p - extra_begin, 0), extra - wrapped) for p in (piece, piece + 1)
            )
            if after > before:
                yield span, segment, before, after
            extra_begin = (extra_begin + examples) % self.num_pieces


def _read_tokens(path: Path, dtype: np.dtype[Any], table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read the tokens that rows of a pair file point to; return them, and the rows pointing to their new places.

    Spans that touch or overlap are read in one run, so that most of the file is read once and the rest not at all.

    Example:
        spans     40:50, 0:10, 10:12, 45:60          of two rows, two each
        in order  0:10, 10:12, 40:50, 45:60          reach [10, 12, 50, 60]
        opens     1     0      1      0              a span opens a run where it begins behind all before it
        runs      0:12, 40:60                        read to places 0:12 and 12:32
        moved     12:22, 0:10, 10:12, 17:32

    Raises:
        OSError: the file is shorter than it was.
    """
    starts = table[:, [0, 2]].ravel()
    ends = starts + table[:, [1, 3]].ravel()
    order = np.argsort(starts, kind="stable")
    reach = np.maximum.accumulate(ends[order])
    opens = np.append(True, starts[order][1:] > reach[:-1])
    run_starts = starts[order][opens]
    run_ends = reach[np.append(np.flatnonzero(opens)[1:] - 1, len(reach) - 1)]
    places = bounds_of(run_ends - run_starts)
    tokens = np.empty(places[-1], dtype)
    view = tokens.view(np.uint8).data
    with path.open("rb", buffering=0) as stream:
        for start, begin, end in zip(run_starts.tolist(), places[:-1].tolist(), places[1:].tolist(), strict=True):
            size = (end - begin) * dtype.itemsize
            target = view[begin * dtype.itemsize : end * dtype.itemsize]
            done = os.preadv(stream.fileno(), [target], start * dtype.itemsize)
            if done != size:
                raise OSError(f"{path}: {done} bytes where {size} were written")
    run = np.empty(len(starts), np.int64)
    run[order] = np.cumsum(opens) - 1
    moved = (starts - run_starts[run] + places[run]).reshape(-1, 2)
    table[:, 0], table[:, 2] = moved[:, 0], moved[:, 1]
    return tokens, table


def _gather(job: Job, deal: Deal, piece: int) -> tuple[np.ndarray, Pairs, np.ndarray]:
    """Return the tokens, the pairs and the keys of a piece, in the order in which they are written."""
    row_bytes = 4 * len(PAIR_COLUMNS)
    tokens_parts, tables, spans = [np.zeros(1, job.vocabulary.token_dtype)], [], []
    offset = 1
    for span, segment, begin, end in deal.slices(piece):
        path = job.work_path / span_name(span, segment)
        with path.with_suffix(".pairs").open("rb") as stream:
            stream.seek(begin * row_bytes)
            raw = stream.read((end - begin) * row_bytes)
        table = np.frombuffer(raw, np.uint32).reshape(-1, len(PAIR_COLUMNS)).astype(np.int64)
        tokens, table = _read_tokens(path.with_suffix(".tokens"), job.vocabulary.token_dtype, table)
        table[:, [0, 2]] += offset
        offset += len(tokens)
        tokens_parts.append(tokens)
        tables.append(table)
        spans.append(np.full(len(table), span))
    table = np.concatenate([np.zeros((0, len(PAIR_COLUMNS)), np.int64), *tables])
    span_N = np.concatenate([np.zeros(0, np.int64), *spans])
    random = np.random.Generator(np.random.PCG64([job.recipe.seed % 2**64, _SHUFFLE_PIECE, piece]))
    order = random.permutation(len(table))
    table = table[order]
    keys_N = example_keys(job.recipe, span_N[order], table[:, -1])
    return np.concatenate(tokens_parts), Pairs(*table[:, :-1].T), keys_N


def write_pieces(job: Job, deal: Deal, pieces: range, target: Path, marker: Path, is_shard: bool) -> Done:
    """Write neighbouring pieces to one file, then its marker; return the counts of the file.

    A file that is a shard is checksummed and synced; a part that is to be joined to others needs neither.
    """
    watch, counts, checksum = Stopwatch(), Counter[str](), hashlib.sha256()
    temporary = target.with_name(f".{target.name}.tmp")
    with naming(target), open_new(temporary) as stream:
        for piece in pieces:
            tokens, pairs, keys_N = _gather(job, deal, piece)
            watch.stop("gather")
            for content, _, part_counts in encode_pairs(tokens, pairs, keys_N, job.recipe, job.vocabulary, watch):
                stream.write(content.data)
                if is_shard:
                    checksum.update(content.data)
                counts += part_counts
                watch.stop("write")
        if is_shard:
            stream.flush()
            os.fsync(stream.fileno())
    temporary.replace(target)
    watch.stop("write")
    size = target.stat().st_size
    content = {"files": {os.path.relpath(target, marker.parent): size}, "counts": counts, "seconds": watch.seconds}
    return finish(marker, {**content, "bytes": size, "sha256": checksum.hexdigest()})


def join_parts(job: Job, parts: Sequence[Path], target: Path) -> Done:
    """Write the parts of a shard, one after the other, to its file; the parts stay, for a run that is interrupted."""
    del job
    watch = Stopwatch()
    temporary = target.with_name(f".{target.name}.tmp")
    with naming(target), open_new(temporary, "x+b") as stream:
        for part in parts:
            with part.open("rb") as source:
                _append(source, stream)
        stream.flush()
        os.fsync(stream.fileno())
        size = os.fstat(stream.fileno()).st_size
        stream.seek(0)
        checksum = hashlib.file_digest(stream, "sha256")  # pyright: ignore[reportArgumentType]
    temporary.replace(target)
    watch.stop("write")
    return {"bytes": size, "sha256": checksum.hexdigest(), "seconds": watch.seconds}


def _append(source: IO[bytes], target: IO[bytes]) -> None:
    """Copy a file to the end of another, inside the kernel where that is possible."""
    target.flush()
    try:
        while os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
            pass
    except (AttributeError, OSError):
        # Not every system and file system can; what is copied by then stays, both offsets are behind it.
        shutil.copyfileobj(source, target, 1 << 20)
