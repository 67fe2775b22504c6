"""The examples of `data.pretraining` made by local processes: streaming, resumable, with bounded memory.

First phase, per span of input: tokenise, find words, pair; ids go to a token file and every example is six numbers.
Second phase, per piece of output: gather, shuffle, assemble, mask, encode, hundreds of examples at once. The result is
a function of the input, the recipe and the seed; not of the number of workers, of interruptions or machines.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from absl.app import UsageError

from data import corpus
from data.pairing import Pairs
from data.pretraining import (
    MANIFEST_SUFFIX,
    PairedBlock,
    Recipe,
    Stopwatch,
    Vocabulary,
    check_partners,
    describe,
    encode_pairs,
    example_keys,
    nothing_made,
    plan,
    read_blocks,
    stamp,
    tally,
    versions,
)
from data.randomness import stream_number
from data.tokenizers import Tokenizer

# A piece of output holds this many tokens at most, which is what bounds the memory of the second phase.
_PIECE_TOKENS = 1 << 23
# The same for the first phase.
_SEGMENT_TOKENS = 1 << 25
_SHUFFLE_SPAN = stream_number("order in a span")
_SHUFFLE_PIECE = stream_number("order in a piece")


@dataclass(frozen=True)
class Output:
    """Where the shards go: the files named, or one name that is given a number when there are several.

    Attributes:
        files: paths; examples are dealt over them.
        num_shards: make this many files of the only name.
        shard_size: make as many files of the only name as hold about this many examples each.
    """

    files: tuple[Path, ...]
    num_shards: int | None = None
    shard_size: int | None = None

    def paths(self, num_examples: int) -> list[Path]:
        """The files for `num_examples` examples."""
        if self.num_shards is None and self.shard_size is None:
            return list(self.files)
        count = self.num_shards or max(1, -(-num_examples // (self.shard_size or 1)))
        (path,) = self.files
        return [path.with_name(f"{path.stem}-{i:05d}-of-{count:05d}{path.suffix}") for i in range(count)]

    @property
    def manifest_path(self) -> Path:
        """Beside the first file, named after it."""
        return self.files[0].with_suffix(MANIFEST_SUFFIX)

    @property
    def work_path(self) -> Path:
        """The folder of what is unfinished."""
        return self.files[0].with_suffix(".partial")


@dataclass(frozen=True)
class Job:
    """What every worker knows."""

    recipe: Recipe
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    work_path: Path


class Report(Protocol):
    """Is told how far the work is: stage, what is done of it and all of it, in bytes of input or examples."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


_PAIR_COLUMNS = (*Pairs.__slots__, "sequence")
_job: Job | None = None


def _start_worker(job: Job) -> None:
    global _job  # noqa: PLW0603
    _job = job
    # Ctrl-C is for the parent to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with _naming(path), temporary.open("wb") as stream:
        stream.write(content)
    temporary.replace(path)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives an `OSError` raised inside (a full disk) the name of the file, which writing leaves out."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _finish(marker: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Records that a unit of work is done, after its files are; returns the content."""
    _write(marker, json.dumps(content).encode())
    return dict(content)


def _finished(marker: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(marker.read_bytes())
    except FileNotFoundError:
        return None
    files = content["files"].items()
    whole = all(
        (marker.parent / name).is_file() and (marker.parent / name).stat().st_size == size for name, size in files
    )
    return content if whole else None


def _span_name(span: int, segment: int | None = None) -> str:
    return f"span-{span:06d}" if segment is None else f"span-{span:06d}-{segment:04d}"


class _SegmentWriter:
    """Writes the blocks of a span to pairs of files: tokens as they come, the rows that point to them in random order.

    A new pair is begun after so many tokens, because the rows of one are in memory until it ends.
    """

    def __init__(self, job: Job, span: int):
        self._job, self._span = job, span
        self.examples: list[int] = []
        self.files: dict[str, int] = {}
        self._sequence = 0
        self._open()

    def _open(self) -> None:
        self._path = self._job.work_path / _span_name(self._span, len(self.examples))
        self._temporary = self._path.with_suffix(".tokens.tmp")
        self._rows: list[np.ndarray] = []
        self._written = 0
        self._stream = self._temporary.open("wb")

    def write(self, block: PairedBlock) -> None:
        if self._written + len(block.tokens) > _SEGMENT_TOKENS and self._written:
            self.close()
            self._open()
        pairs = block.pairs
        with _naming(self._temporary):
            self._stream.write(block.tokens.view(np.uint8).data)
        sequence = np.arange(len(pairs)) + self._sequence
        starts = pairs.first_start + self._written, pairs.second_start + self._written
        columns = (starts[0], pairs.first_length, starts[1], pairs.second_length, pairs.label, sequence)
        self._rows.append(np.stack(columns, axis=1).astype(np.uint32))
        self._sequence += len(pairs)
        self._written += len(block.tokens)

    def close(self) -> None:
        """Ends the pair of files; without a call they stay temporary."""
        with _naming(self._temporary):
            self._stream.close()
        self._temporary.replace(self._path.with_suffix(".tokens"))
        table = np.concatenate([np.zeros((0, len(_PAIR_COLUMNS)), np.uint32), *self._rows])
        seed = [self._job.recipe.seed % 2**64, _SHUFFLE_SPAN, self._span, len(self.examples)]
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(table))
        _write(self._path.with_suffix(".pairs"), table[order].tobytes())
        self.examples.append(len(table))
        for suffix in (".tokens", ".pairs"):
            self.files[self._path.name + suffix] = self._path.with_suffix(suffix).stat().st_size


def _write_span(span: corpus.Span, index: int) -> dict[str, Any]:
    """First phase for one span: files of tokens and of pairs, marker."""
    assert _job is not None
    job, watch, counts = _job, Stopwatch(), Counter[str]()
    writer = _SegmentWriter(job, index)
    for block in read_blocks(span, index, job.recipe, job.tokenizer, job.vocabulary, watch):
        writer.write(block)
        counts += block.counts
        watch.stop("write")
    writer.close()
    watch.stop("write")
    content = {"files": writer.files, "examples": writer.examples, "counts": counts, "seconds": watch.seconds}
    return _finish(job.work_path / f"{_span_name(index)}.json", content)


@dataclass(frozen=True)
class _Deal:
    """How the examples of all segments are dealt over the pieces of the output: evenly, to within one."""

    segments: tuple[tuple[int, int, int], ...]  # span, segment of it, examples
    num_pieces: int

    def slices(self, piece: int) -> Iterator[tuple[int, int, int, int]]:
        """(span, segment, begin, end) of the rows that `piece` gets."""
        # The first example beyond the equal shares of a segment goes to the piece after the last that got one.
        extra_begin = 0
        for span, segment, examples in self.segments:
            share, extra = divmod(examples, self.num_pieces)
            wrapped = max(0, extra_begin + extra - self.num_pieces)
            before, after = (
                share * p + min(p, wrapped) + min(max(p - extra_begin, 0), extra - wrapped) for p in (piece, piece + 1)
            )
            if after > before:
                yield span, segment, before, after
            extra_begin = (extra_begin + examples) % self.num_pieces


def _read_tokens(path: Path, dtype: np.dtype[Any], table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads the tokens that rows of a pair file point to; returns them and the rows with their new places."""
    starts = table[:, [0, 2]].ravel()
    ends = starts + table[:, [1, 3]].ravel()
    order = np.argsort(starts, kind="stable")
    reach = np.maximum.accumulate(ends[order])
    opens = np.append(True, starts[order][1:] > reach[:-1])
    run_starts = starts[order][opens]
    run_ends = reach[np.append(np.flatnonzero(opens)[1:] - 1, len(reach) - 1)]
    places = np.concatenate([[0], np.cumsum(run_ends - run_starts)])
    tokens = np.empty(places[-1], dtype)
    view = tokens.view(np.uint8).data
    with path.open("rb", buffering=0) as stream:
        for start, begin, end in zip(run_starts.tolist(), places[:-1].tolist(), places[1:].tolist(), strict=True):
            size = (end - begin) * dtype.itemsize
            done = os.preadv(
                stream.fileno(), [view[begin * dtype.itemsize : end * dtype.itemsize]], start * dtype.itemsize
            )
            if done != size:
                raise OSError(f"{path}: {done} bytes where {size} were written")
    run = np.empty(len(starts), np.int64)
    run[order] = np.cumsum(opens) - 1
    moved = (starts - run_starts[run] + places[run]).reshape(-1, 2)
    table[:, 0], table[:, 2] = moved[:, 0], moved[:, 1]
    return tokens, table


def _gather(deal: _Deal, piece: int) -> tuple[np.ndarray, Pairs, np.ndarray]:
    """Returns the tokens, the pairs and the keys of a piece, in the order that they are written in."""
    assert _job is not None
    job = _job
    row_bytes = 4 * len(_PAIR_COLUMNS)
    tokens_parts, tables, spans = [np.zeros(1, job.vocabulary.token_dtype)], [], []
    offset = 1
    for span, segment, begin, end in deal.slices(piece):
        path = job.work_path / _span_name(span, segment)
        with path.with_suffix(".pairs").open("rb") as stream:
            stream.seek(begin * row_bytes)
            raw = stream.read((end - begin) * row_bytes)
        table = np.frombuffer(raw, np.uint32).reshape(-1, len(_PAIR_COLUMNS)).astype(np.int64)
        tokens, table = _read_tokens(path.with_suffix(".tokens"), job.vocabulary.token_dtype, table)
        table[:, [0, 2]] += offset
        offset += len(tokens)
        tokens_parts.append(tokens)
        tables.append(table)
        spans.append(np.full(len(table), span))
    table = np.concatenate([np.zeros((0, len(_PAIR_COLUMNS)), np.int64), *tables])
    span_N = np.concatenate([np.zeros(0, np.int64), *spans])
    random = np.random.Generator(np.random.PCG64([job.recipe.seed % 2**64, _SHUFFLE_PIECE, piece]))
    order = random.permutation(len(table))
    table = table[order]
    keys_N = example_keys(job.recipe, span_N[order], table[:, -1])
    return np.concatenate(tokens_parts), Pairs(*table[:, :-1].T), keys_N


def _write_pieces(deal: _Deal, pieces: range, target: Path, marker: Path, is_shard: bool) -> dict[str, Any]:
    """Second phase for a file of neighbouring pieces: gather, shuffle, mask, encode; marker.

    A file that is a shard is checksummed and synced; one that is to be joined to others needs neither.
    """
    assert _job is not None
    job, watch, counts, checksum = _job, Stopwatch(), Counter[str](), hashlib.sha256()
    temporary = target.with_name(f".{target.name}.tmp")
    with _naming(target), temporary.open("wb") as stream:
        for piece in pieces:
            tokens, pairs, keys_N = _gather(deal, piece)
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
    return _finish(marker, {**content, "bytes": size, "sha256": checksum.hexdigest()})


def _join(parts: Sequence[Path], target: Path) -> dict[str, Any]:
    """Third phase, where workers shared a file: its parts one after the other; the parts stay."""
    watch = Stopwatch()
    temporary = target.with_name(f".{target.name}.tmp")
    with _naming(target), temporary.open("w+b") as stream:
        for part in parts:
            with part.open("rb") as source:
                _append(source, stream)
        stream.flush()
        os.fsync(stream.fileno())
        size = os.fstat(stream.fileno()).st_size
        stream.seek(0)
        checksum = hashlib.file_digest(stream, "sha256")
    temporary.replace(target)
    watch.stop("write")
    return {"bytes": size, "sha256": checksum.hexdigest(), "seconds": watch.seconds}


def _append(source: IO[bytes], target: IO[bytes]) -> None:
    """Copies a file to the end of another, inside the kernel where that is possible."""
    target.flush()
    try:
        while os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
            pass
    except (AttributeError, OSError):
        # Not every system and file system can; what has been copied stays, both offsets stand behind it.
        shutil.copyfileobj(source, target, 1 << 20)


class _Pool:
    """Runs functions in worker processes, or right here when one worker is wanted."""

    def __init__(self, num_workers: int, job: Job):
        global _job  # noqa: PLW0603
        # Forked workers share what the parent has loaded and start in milliseconds.
        _job = job
        methods = multiprocessing.get_all_start_methods()
        self._executor = (
            ProcessPoolExecutor(
                num_workers,
                mp_context=multiprocessing.get_context("fork" if "fork" in methods else "spawn"),
                initializer=_start_worker,
                initargs=(job,),
            )
            if num_workers > 1
            else None
        )
        self.num_workers = num_workers

    def map(
        self, function: Callable[..., dict[str, Any]], calls: Iterable[tuple[int, tuple[Any, ...]]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Calls `function` for each (name, arguments) and yields (name, result) as results come; few calls wait."""
        if self._executor is None:
            for name, arguments in calls:
                yield name, function(*arguments)
            return
        running: dict[Future[dict[str, Any]], int] = {}
        for name, arguments in calls:
            running[self._executor.submit(function, *arguments)] = name
            if len(running) >= 2 * self.num_workers:
                yield from self._ready(running)
        while running:
            yield from self._ready(running)

    @staticmethod
    def _ready(running: dict[Future[dict[str, Any]], int]) -> Iterator[tuple[int, dict[str, Any]]]:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            try:
                yield running.pop(future), future.result()
            except BrokenProcessPool:
                raise UsageError(
                    "a worker process was killed, most likely for want of memory: run the same command again to go on "
                    "from here, with fewer --num_workers"
                ) from None

    def close(self, *, cancel: bool) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=cancel)


@dataclass
class Result:
    """What `create_examples` did: the manifest as written, and seconds of work by stage, summed over workers."""

    manifest: dict[str, Any]
    seconds: dict[str, float]


def create_examples(
    inputs: Sequence[Path],
    output: Output,
    recipe: Recipe,
    tokenizer: Tokenizer,
    *,
    num_workers: int,
    vocabulary_file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> Result:
    """Writes shards and manifest; continues what an interrupted call with the same arguments left.

    Args:
        inputs: files or `tfds:` names, from `corpus.expand_inputs`.
        output: where to.
        recipe: what to make.
        tokenizer: for the text.
        num_workers: processes; the result does not depend on it.
        vocabulary_file: named in the manifest.
        flags: the resolved flags, for the manifest.
        report: is called as work is done.

    Raises `UsageError` when the input holds nothing that an example can be made of.
    """
    work = output.work_path
    spans = plan(inputs)
    work_plan = {
        "recipe": asdict(recipe),
        "spans": [[str(span.path), span.start, span.end] for span in spans],
        "sizes": [[str(path), *stamp(path)] for path in inputs],
        "tokenizer": tokenizer.fingerprint,
        "output": [*map(str, output.files), output.num_shards, output.shard_size],
        "versions": versions(recipe),
    }
    _open_work(work, work_plan)
    for path in output.files:
        path.parent.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary.of(tokenizer, albert_zh_labels=recipe.albert_zh_labels)
    pool = _Pool(num_workers, Job(recipe, vocabulary, tokenizer, work))
    done = False
    try:
        result = _run(pool, spans, output, recipe, report or (lambda stage, done, total: None))
        done = True
    finally:
        pool.close(cancel=not done)
    result.manifest = (
        describe(inputs, recipe, tokenizer, vocabulary_file) | result.manifest | {"flags": dict(flags or {})}
    )
    _remove_former(output.manifest_path, (shard["name"] for shard in result.manifest["shards"]))
    _write(output.manifest_path, json.dumps(result.manifest, indent=2, ensure_ascii=False).encode() + b"\n")
    shutil.rmtree(work)
    return result


def _open_work(work: Path, plan: Mapping[str, Any]) -> None:
    """Keeps a work folder that the same plan left, and clears any other."""
    content = json.dumps(plan, default=str).encode()
    plan_path = work / "plan.json"
    if not (plan_path.is_file() and plan_path.read_bytes() == content):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(work)
        work.mkdir(parents=True)
        _write(plan_path, content)


def _run(pool: _Pool, spans: Sequence[corpus.Span], output: Output, recipe: Recipe, report: Report) -> Result:
    work = output.work_path
    counts, seconds = Counter[str](), defaultdict[str, float](float)

    def add(spent: Mapping[str, float]) -> None:
        for name, value in spent.items():
            seconds[name] += value

    def stage(
        name: str,
        markers: Mapping[int, Path],
        function: Callable[..., dict[str, Any]],
        calls: Mapping[int, Any],
        size: Any,
    ) -> dict[int, dict[str, Any]]:
        results = {i: found for i, marker in markers.items() if (found := _finished(marker)) is not None}
        total, done = sum(map(size, calls)), sum(map(size, results))
        report(name, done, total)
        for i, found in pool.map(function, ((i, call) for i, call in calls.items() if i not in results)):
            results[i] = found
            add(found["seconds"])
            done += size(i)
            report(name, done, total)
        return results

    weights = [(span.end if span.end is not None else stamp(span.path)[0]) - span.start for span in spans]
    tokenized = stage(
        "reading",
        {i: work / f"{_span_name(i)}.json" for i in range(len(spans))},
        _write_span,
        {i: (span, i) for i, span in enumerate(spans)},
        lambda i: weights[i],
    )
    for found in tokenized.values():
        counts.update(found["counts"])
    if not counts["examples"]:
        raise nothing_made(counts, recipe)
    check_partners(counts, recipe)

    paths = output.paths(counts["examples"])
    num_examples = counts.pop("examples")
    pieces_per_shard = max(1, -(-num_examples * recipe.max_seq_length // (_PIECE_TOKENS * len(paths))))
    segments = tuple((i, k, n) for i in range(len(spans)) for k, n in enumerate(tokenized[i]["examples"]))
    deal = _Deal(segments, pieces_per_shard * len(paths))
    shards = [range(i * pieces_per_shard, (i + 1) * pieces_per_shard) for i in range(len(paths))]
    # Shards that are enough for all workers are written at once; of fewer, workers write pieces, to be joined then.
    whole = len(paths) >= 2 * pool.num_workers or pieces_per_shard == 1
    files = dict(enumerate(paths)) if whole else {}
    members = dict(enumerate(shards)) if whole else {}
    if not whole:
        files = {piece: work / f"piece-{piece:06d}.records" for piece in range(deal.num_pieces)}
        members = {piece: range(piece, piece + 1) for piece in files}
    markers = {i: work / f"{'shard' if whole else 'piece'}-{i:06d}.json" for i in files}
    written = stage(
        "writing",
        markers,
        _write_pieces,
        {i: (deal, members[i], files[i], markers[i], whole) for i in files},
        lambda i: num_examples / len(files),
    )
    for found in written.values():
        counts.update(found["counts"])
    examples = {i: found["counts"].get("examples", 0) for i, found in written.items()}
    if not whole:
        joined = dict(pool.map(_join, ((i, ([files[p] for p in shard], paths[i])) for i, shard in enumerate(shards))))
        for found in joined.values():
            add(found["seconds"])
        examples = {i: sum(examples[piece] for piece in shard) for i, shard in enumerate(shards)}
        written = joined
    listed = [
        {
            "name": os.path.relpath(path, output.manifest_path.parent),
            "examples": examples[i],
            "bytes": written[i]["bytes"],
            "sha256": written[i]["sha256"],
        }
        for i, path in enumerate(paths)
    ]
    return Result(tally(counts, listed), seconds)


def _remove_former(manifest_path: Path, current: Iterable[str]) -> None:
    """Removes shards that only a former manifest of the same output names, so that no pattern mixes old and new."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        for name in {shard["name"] for shard in json.loads(manifest_path.read_bytes())["shards"]} - set(current):
            (manifest_path.parent / name).unlink(missing_ok=True)
