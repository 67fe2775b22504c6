"""Text -> shards of pretraining examples: streaming, parallel and resumable, with bounded memory.

First phase, per span of input: tokenise, find words, pair; ids go to a token file and every example is six numbers.
Second phase, per piece of output: gather, shuffle, assemble, mask, encode, hundreds of examples at once. The result is
a function of the input, the recipe and the seed; not of the number of workers, of interruptions or machines.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import signal
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from absl.app import UsageError

from data import corpus
from data.masking import Masking, MaskVocabulary, mask_examples
from data.pairing import PAIRINGS, Block, Pairing, Pairs, chunk_and_pair, make_divisible, pack, truncate
from data.randomness import keys, stream_number
from data.records import Rows, encode_examples
from data.segmentation import segmenter_version, word_starts
from data.tokenizers import Tokenizer

MANIFEST_SUFFIX = ".manifest.json"
# Documents are handled together up to this many characters: enough for NumPy, little enough for memory and caches.
BLOCK_CHARACTERS = 1 << 18
_SMALLEST_SPAN_BYTES = 1 << 20
_LARGEST_SPAN_BYTES = 1 << 26
_SPANS = 64
# A piece of output holds this many tokens at most, which is what bounds the memory of the second phase.
_PIECE_TOKENS = 1 << 23
_BATCH_TOKENS = 1 << 19
_CLAUSE_ENDS = "，、；：。！？,;:.!?"
_CHUNKING = stream_number("chunks and pairs")
_SHUFFLE_SPAN = stream_number("order in a span")
_SHUFFLE_PIECE = stream_number("order in a piece")
_MASK = stream_number("masks")


@dataclass(frozen=True)
class Objective:
    """A published pretraining method, as far as its data goes; what it masks is up to `Masking`."""

    pairing: str
    paper: str


OBJECTIVES: dict[str, Objective] = {
    "albert": Objective("sop", "Lan et al. 2020: masked tokens and sentence order"),
    "bert": Objective("nsp", "Devlin et al. 2019: masked tokens and next sentence"),
    "masked_lm": Objective("single", "Liu et al. 2019 (RoBERTa): masked tokens only"),
}


@dataclass(frozen=True)
class Recipe:
    """All that decides which examples are made of a text.

    Attributes:
        objective: a key of `OBJECTIVES`.
        masking: amounts; with `dynamic` they are left to the input pipeline.
        dynamic: write compact examples without masks.
        whole_word: hide words rather than tokens.
        segmenter: what finds Chinese words (`data.segmentation`).
        max_seq_length: tokens of an example, specials counted.
        dupe_factor: passes over the text, each with its own pairs and masks.
        short_seq_prob: share of examples with a shorter target length.
        seed: of all draws.
        albert_zh_labels: label a character inside a word '##X' where the vocabulary has that, as published zh weights
            were trained; off, labels are the input ids.
        text_field: of JSON lines.
        held_out_fraction: share of the documents that is set apart; a document's text alone decides on which side it
            falls, so that copies of it fall on the same one.
        held_out: use the documents that are set apart, instead of all others.
        packing: several sequences to an example, each with its [CLS] and [SEP]; for objectives without pairs.
    """

    objective: str
    masking: Masking
    dynamic: bool
    whole_word: bool
    segmenter: str
    max_seq_length: int
    dupe_factor: int
    short_seq_prob: float
    seed: int
    albert_zh_labels: bool = False
    text_field: str = "text"
    held_out_fraction: float = 0.0
    held_out: bool = False
    packing: bool = False

    def takes(self, document: Sequence[str]) -> bool:
        """Whether the document is on this recipe's side of the held-out split."""
        if not self.held_out_fraction:
            return True
        share = zlib.crc32("\n".join(document).encode(), self.seed & 0xFFFFFFFF) / 2**32
        return (share < self.held_out_fraction) == self.held_out

    @property
    def pairing(self) -> Pairing:
        return PAIRINGS[OBJECTIVES[self.objective].pairing]

    @property
    def max_tokens(self) -> int:
        return self.pairing.max_tokens(self.max_seq_length)


@dataclass(frozen=True)
class Vocabulary:
    """The ids that examples are put together from."""

    cls_id: int
    sep_id: int
    unk_id: int
    clause_ends: np.ndarray  # bool [V]
    masking: MaskVocabulary
    token_dtype: np.dtype[Any]  # of token files: id * 2 + (begins a word)

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, albert_zh_labels: bool = False) -> Vocabulary:
        size = tokenizer.vocab_size
        special_V, clause_ends_V = np.zeros(size, bool), np.zeros(size, bool)
        special_V[list(tokenizer.special_ids)] = True
        for mark in _CLAUSE_ENDS:
            clause_ends_V[tokenizer.encode(mark)[-1:]] = True
        clause_ends_V &= ~special_V
        inside = None
        if albert_zh_labels:
            tokens = tokenizer.tokens(range(size))
            id_of = {token: i for i, token in enumerate(tokens)}
            inside = np.asarray([id_of.get("##" + token, i) for i, token in enumerate(tokens)], np.int32)
        masking = MaskVocabulary(tokenizer.mask_id, np.asarray(tokenizer.replacement_ids, np.int32), special_V, inside)
        dtype = np.dtype(np.uint16 if size <= 2**15 else np.uint32)
        return cls(tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id, clause_ends_V, masking, dtype)


def _ranges(ids: Iterable[int]) -> list[list[int]]:
    """Ascending integers as [first, last] of each run."""
    values = np.unique(np.fromiter(ids, np.int64))
    breaks = np.flatnonzero(np.diff(values) > 1)
    return np.stack([values[np.append(0, breaks + 1)], values[np.append(breaks, -1)]], axis=1).tolist()


def _from_ranges(ranges: Iterable[Sequence[int]]) -> np.ndarray:
    return np.concatenate([np.arange(first, last + 1, dtype=np.int32) for first, last in ranges])


def mask_vocabulary_to_json(vocabulary: MaskVocabulary) -> dict[str, Any]:
    """What a manifest keeps of a vocabulary, so that shards can be masked without it."""
    return {
        "mask_id": vocabulary.mask_id,
        "size": len(vocabulary.special),
        "special_ids": _ranges(np.flatnonzero(vocabulary.special)),
        "replacement_ids": _ranges(vocabulary.replacement_ids),
        "inside_labels": None if vocabulary.inside_labels is None else vocabulary.inside_labels.tolist(),
    }


def mask_vocabulary_from_json(content: Mapping[str, Any]) -> MaskVocabulary:
    """The inverse of `mask_vocabulary_to_json`."""
    special_V = np.zeros(content["size"], bool)
    special_V[_from_ranges(content["special_ids"])] = True
    inside = content["inside_labels"]
    return MaskVocabulary(
        content["mask_id"],
        _from_ranges(content["replacement_ids"]),
        special_V,
        None if inside is None else np.asarray(inside, np.int32),
    )


class Stopwatch:
    """Adds up seconds by stage; a stage ends where the next begins."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    def stop(self, stage: str) -> None:
        """Books the time since the last stop under `stage`."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._since
        self._since = now


# -- text to pairs -----------------------------------------------------------------------------------------------------


@dataclass
class PairedBlock:
    """Tokens of some documents and the examples cut from them."""

    tokens: np.ndarray  # token_dtype
    pairs: Pairs
    counts: Counter[str]


def read_blocks(
    span: corpus.Span,
    span_index: int,
    recipe: Recipe,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    watch: Stopwatch | None = None,
) -> Iterator[PairedBlock]:
    """Reads a span and yields its documents, some at a time, tokenised and paired; at last what was read, as counts.

    Raises `UsageError` for what `data.corpus` cannot read.
    """
    watch = watch or Stopwatch()
    read = corpus.Counts()
    documents = filter(recipe.takes, corpus.read_documents(span, read, text_field=recipe.text_field))
    for number, batch in enumerate(_batched(documents)):
        watch.stop("read")
        texts = [sentence for document in batch for sentence in document]
        encoding = tokenizer.encode_batch(texts)
        watch.stop("tokenize")
        if recipe.whole_word:
            starts = word_starts(texts, encoding, segmenter=recipe.segmenter)
        else:
            starts = np.ones(len(encoding.ids), bool)
        watch.stop("segment")
        bounds = np.concatenate([[0], np.cumsum([len(document) for document in batch])])
        block, unpaired = make_divisible(
            Block(encoding.splits, bounds[:-1], bounds[1:]),
            starts,
            vocabulary.clause_ends[encoding.ids],
            recipe.max_tokens,
            recipe.pairing.num_segments,
        )
        random = np.random.Generator(np.random.PCG64([recipe.seed % 2**64, _CHUNKING, span_index, number]))
        pairs = chunk_and_pair(
            block,
            recipe.pairing,
            num_passes=recipe.dupe_factor,
            max_tokens=recipe.max_tokens,
            short_seq_prob=recipe.short_seq_prob,
            random=random,
        )
        pairs, cut = truncate(pairs, recipe.max_tokens, random)
        tokens = encoding.ids.astype(vocabulary.token_dtype) * 2 + starts.astype(vocabulary.token_dtype)
        if recipe.packing:
            tokens, pairs = pack_sequences(tokens, pairs, recipe, vocabulary)
        counts = Counter(
            documents=len(batch),
            sentences=len(texts),
            tokens=len(encoding.ids),
            unknown_tokens=int((encoding.ids == vocabulary.unk_id).sum()),
            examples=len(pairs),
            truncated_tokens=int(cut.sum()),
            truncated_examples=int((cut > 0).sum()),
            documents_too_short_to_pair=unpaired,
        )
        watch.stop("build")
        yield PairedBlock(tokens, pairs, counts)
    nothing = np.zeros(0, np.int64)
    counts = Counter({f"read_{name}": value for name, value in asdict(read).items()})
    yield PairedBlock(nothing.astype(vocabulary.token_dtype), Pairs(*[nothing] * 5), counts)


def pack_sequences(
    tokens: np.ndarray, pairs: Pairs, recipe: Recipe, vocabulary: Vocabulary
) -> tuple[np.ndarray, Pairs]:
    """Lays single sequences out one behind the other, [SEP] [CLS] between them, as many as an example holds.

    Returns the tokens in their new order and the spans of the packed examples, whose first [CLS] and last [SEP]
    `assemble` adds. `sequence_ids` finds the sequences again.
    """
    sizes = pairs.first_length + 2
    bins = pack(sizes, recipe.max_seq_length)
    order = np.argsort(bins, kind="stable")
    begins = np.concatenate([[0], np.cumsum(sizes[order])])
    packed = np.empty(begins[-1], tokens.dtype)
    ends = begins[1:]
    packed[ends - 2] = vocabulary.sep_id * 2 + 1
    packed[ends - 1] = vocabulary.cls_id * 2 + 1
    lengths = pairs.first_length[order]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    target = np.repeat(begins[:-1], lengths) + within
    packed[target] = tokens[np.repeat(pairs.first_start[order], lengths) + within]
    # A sequence may begin inside a word that truncation cut; what is left of it is a word.
    packed[begins[:-1]] |= 1
    bounds = np.concatenate([[0], np.cumsum(np.bincount(bins, weights=sizes).astype(np.int64))])
    zeros = np.zeros(len(bounds) - 1, np.int64)
    return packed, Pairs(bounds[:-1], np.diff(bounds) - 2, zeros, zeros, zeros)


def sequence_ids(input_ids: np.ndarray, input_mask: np.ndarray, cls_id: int) -> np.ndarray:
    """The number of each position's sequence, from 1, in packed examples; 0 for padding. int32 [N, L].

    Positions may attend to those with the same number only.
    """
    return (np.cumsum(input_ids == cls_id, axis=1) * input_mask).astype(np.int32)


def _batched(documents: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    batch: list[list[str]] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += sum(map(len, document))
        if characters >= BLOCK_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


# -- pairs to examples -------------------------------------------------------------------------------------------------


@dataclass
class Assembled:
    """Examples with their specials, not yet masked."""

    input_ids: np.ndarray  # int32 [N, L]
    word_starts: np.ndarray  # bool [N, L], specials are words of their own
    lengths: np.ndarray  # int64 [N]
    first_lengths: np.ndarray  # int64 [N], tokens of segment 0 with its specials


def assemble(tokens: np.ndarray, pairs: Pairs, recipe: Recipe, vocabulary: Vocabulary) -> Assembled:
    """Puts [CLS] A [SEP] B [SEP] together from tokens (id * 2 + begins a word) that `pairs` points into."""
    L = recipe.max_seq_length
    column_L = np.arange(L, dtype=np.int32)
    a_N, b_N = pairs.first_length, pairs.second_length
    two = recipe.pairing.num_segments == 2
    first_N = a_N + 2
    lengths_N = first_N + (b_N + 1 if two else 0)
    in_first_NL = column_L < first_N[:, None]
    offset_first, offset_second = pairs.first_start - 1, pairs.second_start - first_N
    source_NL = np.where(in_first_NL, offset_first[:, None], offset_second[:, None])
    source_NL += column_L
    packed_NL = tokens.take(source_NL, mode="clip")
    input_ids_NL = (packed_NL >> 1).astype(np.int32)
    word_starts_NL = (packed_NL & 1).astype(bool)
    rows = np.arange(len(a_N))
    for position_N, special in ((np.zeros_like(a_N), vocabulary.cls_id), (a_N + 1, vocabulary.sep_id)):
        input_ids_NL[rows, position_N] = special
        # Truncation may begin a segment inside a word; what is left of the word is one.
        word_starts_NL[rows, position_N] = word_starts_NL[rows, np.minimum(position_N + 1, L - 1)] = True
    if two:
        input_ids_NL[rows, lengths_N - 1] = vocabulary.sep_id
        word_starts_NL[rows, lengths_N - 1] = True
    padding_NL = column_L >= lengths_N[:, None]
    input_ids_NL[padding_NL] = 0
    word_starts_NL[padding_NL] = False
    return Assembled(input_ids_NL, word_starts_NL, lengths_N, first_N)


def static_features(
    examples: Assembled, label_N: np.ndarray, keys_N: np.ndarray, masking: Masking, vocabulary: MaskVocabulary
) -> dict[str, np.ndarray]:
    """Masks examples; returns BERT's features: int32 [N, ...] and float32 `masked_lm_weights`."""
    masked = mask_examples(examples.input_ids, examples.word_starts, examples.lengths, keys_N, masking, vocabulary)
    column_L = np.arange(examples.input_ids.shape[1])
    mask_NL = (column_L < examples.lengths[:, None]).astype(np.int32)
    return {
        "input_ids": masked["input_ids"],
        "input_mask": mask_NL,
        "segment_ids": mask_NL * (column_L >= examples.first_lengths[:, None]),
        "masked_lm_positions": masked["masked_lm_positions"],
        "masked_lm_ids": masked["masked_lm_ids"],
        "masked_lm_weights": masked["masked_lm_weights"],
        "next_sentence_labels": label_N.astype(np.int32)[:, None],
    }


def compact_features(examples: Assembled, label_N: np.ndarray) -> dict[str, Rows]:
    """What masking on the fly needs, unpadded: ids, word starts (Google's name), where segment 1 begins, label."""
    return {
        "input_ids": (examples.input_ids, examples.lengths),
        "token_boundary": (examples.word_starts.astype(np.int32), examples.lengths),
        "first_segment_length": examples.first_lengths[:, None],
        "next_sentence_labels": label_N[:, None],
    }


def encode_pairs(
    tokens: np.ndarray,
    pairs: Pairs,
    keys_N: np.ndarray,
    recipe: Recipe,
    vocabulary: Vocabulary,
    watch: Stopwatch | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, Counter[str]]]:
    """Yields (record bytes, their offsets, counts) of a few hundred examples at a time, in the order of `pairs`."""
    watch = watch or Stopwatch()
    size = max(1, _BATCH_TOKENS // recipe.max_seq_length)
    for begin in range(0, len(pairs), size):
        part = Pairs(*(getattr(pairs, name)[begin : begin + size] for name in Pairs.__slots__))
        examples = assemble(tokens, part, recipe, vocabulary)
        watch.stop("build")
        counts = Counter(
            examples=len(part),
            example_tokens=int(examples.lengths.sum()),
            **{f"label_{label}": int(n) for label, n in enumerate(np.bincount(part.label)) if n},
        )
        if recipe.dynamic:
            features: Mapping[str, Rows] = compact_features(examples, part.label)
        else:
            features = static_features(
                examples, part.label, keys_N[begin : begin + size], recipe.masking, vocabulary.masking
            )
            counts["predictions"] = int(features["masked_lm_weights"].sum())
        watch.stop("mask")
        content, offsets = encode_examples(features)
        watch.stop("encode")
        yield content, offsets, counts


def example_keys(recipe: Recipe, span_index: int | np.ndarray, sequence_N: np.ndarray) -> np.ndarray:
    """The uint64 keys that the masks of examples are drawn by."""
    return keys(recipe.seed, _MASK, span_index, sequence_N)


# -- local processes ---------------------------------------------------------------------------------------------------


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


def _span_name(index: int) -> str:
    return f"span-{index:06d}"


def _write_span(span: corpus.Span, index: int) -> dict[str, Any]:
    """First phase for one span: token file, pair file (in random order), marker."""
    assert _job is not None
    job, watch, counts = _job, Stopwatch(), Counter[str]()
    path = job.work_path / _span_name(index)
    rows: list[np.ndarray] = []
    written = 0
    temporary = path.with_suffix(".tokens.tmp")
    with _naming(path), temporary.open("wb") as stream:
        for block in read_blocks(span, index, job.recipe, job.tokenizer, job.vocabulary, watch):
            stream.write(block.tokens.view(np.uint8).data)
            pairs = block.pairs
            sequence = np.arange(len(pairs)) + counts["examples"]
            columns = (
                pairs.first_start + written,
                pairs.first_length,
                pairs.second_start + written,
                pairs.second_length,
                pairs.label,
                sequence,
            )
            rows.append(np.stack(columns, axis=1).astype(np.uint32))
            written += len(block.tokens)
            counts += block.counts
            watch.stop("write")
    temporary.replace(path.with_suffix(".tokens"))
    table = np.concatenate(rows) if rows else np.zeros((0, len(_PAIR_COLUMNS)), np.uint32)
    order = np.random.Generator(np.random.PCG64([job.recipe.seed % 2**64, _SHUFFLE_SPAN, index]))
    _write(path.with_suffix(".pairs"), table[order.permutation(len(table))].tobytes())
    watch.stop("write")
    files = {path.name + suffix: path.with_suffix(suffix).stat().st_size for suffix in (".tokens", ".pairs")}
    return _finish(path.with_suffix(".json"), {"files": files, "counts": counts, "seconds": watch.seconds})


@dataclass(frozen=True)
class _Deal:
    """How the examples of all spans are dealt over the pieces of the output: evenly, to within one."""

    span_examples: tuple[int, ...]
    num_pieces: int

    def slice(self, span: int, piece: int, extra_begin: int) -> tuple[int, int]:
        """Begin and end, in the pair file of `span`, of what `piece` gets.

        `extra_begin` is the piece that the first example beyond the equal shares of this span goes to.
        """
        share, extra = divmod(self.span_examples[span], self.num_pieces)

        def extras_before(p: int) -> int:
            wrapped = max(0, extra_begin + extra - self.num_pieces)
            return min(p, wrapped) + min(max(p - extra_begin, 0), extra - wrapped)

        return share * piece + extras_before(piece), share * (piece + 1) + extras_before(piece + 1)

    def slices(self, piece: int) -> Iterator[tuple[int, int, int]]:
        """(span, begin, end) of all that `piece` gets."""
        extra_begin = 0
        for span, examples in enumerate(self.span_examples):
            begin, end = self.slice(span, piece, extra_begin)
            if end > begin:
                yield span, begin, end
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


def _write_piece(deal: _Deal, piece: int) -> dict[str, Any]:
    """Second phase for one piece of output: gather, shuffle, mask, encode; marker."""
    assert _job is not None
    job, watch, counts = _job, Stopwatch(), Counter[str]()
    tokens_parts, table_parts, spans, offset = [], [], [], 0
    for span, begin, end in deal.slices(piece):
        path = job.work_path / _span_name(span)
        row_bytes = 4 * len(_PAIR_COLUMNS)
        with path.with_suffix(".pairs").open("rb") as stream:
            stream.seek(begin * row_bytes)
            raw = stream.read((end - begin) * row_bytes)
        table = np.frombuffer(raw, np.uint32).reshape(-1, len(_PAIR_COLUMNS)).astype(np.int64)
        tokens, table = _read_tokens(path.with_suffix(".tokens"), job.vocabulary.token_dtype, table)
        table[:, [0, 2]] += offset
        offset += len(tokens)
        tokens_parts.append(tokens)
        table_parts.append(table)
        spans.append(np.full(len(table), span))
    if table_parts:
        tokens, table, span_N = np.concatenate(tokens_parts), np.concatenate(table_parts), np.concatenate(spans)
    else:
        tokens, span_N = np.zeros(1, job.vocabulary.token_dtype), np.zeros(0, np.int64)
        table = np.zeros((0, len(_PAIR_COLUMNS)), np.int64)
    del tokens_parts, table_parts
    random = np.random.Generator(np.random.PCG64([job.recipe.seed % 2**64, _SHUFFLE_PIECE, piece]))
    order = random.permutation(len(table))
    table, span_N = table[order], span_N[order]
    keys_N = example_keys(job.recipe, span_N, table[:, 5])
    watch.stop("gather")

    path = job.work_path / f"piece-{piece:06d}.records"
    temporary = path.with_suffix(".tmp")
    pairs = Pairs(*table[:, :5].T)
    with _naming(path), temporary.open("wb") as stream:
        for content, _, part_counts in encode_pairs(tokens, pairs, keys_N, job.recipe, job.vocabulary, watch):
            stream.write(content.data)
            counts += part_counts
            watch.stop("write")
    temporary.replace(path)
    content = {"files": {path.name: path.stat().st_size}, "counts": counts, "seconds": watch.seconds}
    return _finish(path.with_suffix(".json"), content)


def _write_shard(pieces: Sequence[Path], target: Path) -> dict[str, Any]:
    """Third phase for one output file: its pieces one after the other, and its checksum; the pieces stay."""
    assert _job is not None
    watch = Stopwatch()
    temporary = target.with_name(f".{target.name}.tmp")
    with _naming(target), temporary.open("w+b") as stream:
        for piece in pieces:
            with piece.open("rb") as source:
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
        self._num_workers = num_workers

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
            if len(running) >= 2 * self._num_workers:
                yield from self._ready(running)
        while running:
            yield from self._ready(running)

    @staticmethod
    def _ready(running: dict[Future[dict[str, Any]], int]) -> Iterator[tuple[int, dict[str, Any]]]:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()

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
        "sizes": [[str(path), *_stamp(path)] for path in inputs],
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


def describe(
    inputs: Sequence[Path], recipe: Recipe, tokenizer: Tokenizer, vocabulary_file: Path | None
) -> dict[str, Any]:
    """The part of a manifest that is known before anything is made."""
    vocabulary = Vocabulary.of(tokenizer, albert_zh_labels=recipe.albert_zh_labels)
    return {
        "objective": recipe.objective,
        "recipe": asdict(recipe),
        "max_seq_length": recipe.max_seq_length,
        "max_predictions_per_seq": recipe.masking.num_slots,
        "masking": "dynamic" if recipe.dynamic else "static",
        "num_pair_labels": recipe.pairing.num_labels,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "cls_id": tokenizer.cls_id,
            "file": None if vocabulary_file is None else vocabulary_file.name,
        },
        **({"mask_vocabulary": mask_vocabulary_to_json(vocabulary.masking)} if recipe.dynamic else {}),
        "segmenter": segmenter_version(recipe.segmenter) if recipe.whole_word else "none",
        "versions": versions(recipe),
        "inputs": [{"name": str(path), "bytes": _stamp(path)[0]} for path in inputs],
    }


def tally(counts: Mapping[str, int], shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The part of a manifest that is known at the end."""
    labels = {name.removeprefix("label_"): n for name, n in sorted(counts.items()) if name.startswith("label_")}
    others = {name: n for name, n in sorted(counts.items()) if not name.startswith("label_")}
    return {"num_examples": counts["examples"], "counts": {**others, "labels": labels}, "shards": list(shards)}


def nothing_made(counts: Mapping[str, int], num_files: int, recipe: Recipe) -> UsageError:
    """The error for an input without a single example."""
    if recipe.held_out and not counts.get("tokens"):
        return UsageError(
            f"--eval_fraction={recipe.held_out_fraction:g} holds out none of {counts.get('read_documents', 0)} "
            "documents: raise it, or set it to 0"
        )
    return UsageError(
        f"no example could be made: {counts.get('documents', 0)} documents, {counts.get('sentences', 0)} "
        f"sentences and {counts.get('tokens', 0)} tokens in {num_files} files; check that the input is text"
    )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:  # tfds
        return 0, 0
    return status.st_size, status.st_mtime_ns


def plan(inputs: Sequence[Path]) -> list[corpus.Span]:
    """Divides the input for workers, in a way that depends on its size alone."""
    size = sum(_stamp(path)[0] for path in inputs)
    return corpus.plan_spans(inputs, min(max(size // _SPANS, _SMALLEST_SPAN_BYTES), _LARGEST_SPAN_BYTES))


def versions(recipe: Recipe) -> dict[str, str]:
    """The libraries whose version the examples depend on; those of the tokenizer are in its fingerprint."""
    names = ["numpy", *([recipe.segmenter] if recipe.whole_word and recipe.segmenter != "none" else [])]
    return {name: importlib.metadata.version(name) for name in names}


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

    weights = [(span.end if span.end is not None else _stamp(span.path)[0]) - span.start for span in spans]
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
        raise nothing_made(counts, len({span.path for span in spans}), recipe)

    paths = output.paths(counts["examples"])
    per_shard = -(-counts["examples"] // len(paths))
    pieces_per_shard = max(1, -(-per_shard * recipe.max_seq_length // _PIECE_TOKENS))
    span_examples = tuple(tokenized[i]["counts"].get("examples", 0) for i in range(len(spans)))
    deal = _Deal(span_examples, pieces_per_shard * len(paths))
    piece_examples = counts.pop("examples") / deal.num_pieces
    pieces = stage(
        "writing",
        {i: work / f"piece-{i:06d}.json" for i in range(deal.num_pieces)},
        _write_piece,
        {i: (deal, i) for i in range(deal.num_pieces)},
        lambda i: piece_examples,
    )
    shards = []
    for i in range(len(paths)):
        members = range(i * pieces_per_shard, (i + 1) * pieces_per_shard)
        shards.append([work / f"piece-{piece:06d}.records" for piece in members])
        for piece in members:
            counts.update(pieces[piece]["counts"])
    written = dict(pool.map(_write_shard, ((i, (shard, paths[i])) for i, shard in enumerate(shards))))
    listed = []
    for i, path in enumerate(paths):
        add(written[i].pop("seconds"))
        members = range(i * pieces_per_shard, (i + 1) * pieces_per_shard)
        num_examples = sum(pieces[piece]["counts"].get("examples", 0) for piece in members)
        listed.append(
            {"name": os.path.relpath(path, output.manifest_path.parent), "examples": num_examples, **written[i]}
        )
    return Result(tally(counts, listed), seconds)


def _remove_former(manifest_path: Path, current: Iterable[str]) -> None:
    """Removes shards that only a former manifest of the same output names, so that no pattern mixes old and new."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        for name in {shard["name"] for shard in json.loads(manifest_path.read_bytes())["shards"]} - set(current):
            (manifest_path.parent / name).unlink(missing_ok=True)
