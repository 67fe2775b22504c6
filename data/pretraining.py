"""Text -> examples of pretraining, many at a time: tokens, words, pairs, masks, records; and what manifests say.

A span of the input is the unit of work: its examples are a function of the span, the recipe and the seed.
`data.writing` hands spans to workers.
"""

from __future__ import annotations

import importlib.metadata
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl.app import UsageError

from data import corpus
from data.masking import Masking, MaskVocabulary, hide_tokens
from data.objectives import OBJECTIVES
from data.pairing import PAIRINGS, Block, Pairing, Pairs, chunk_and_pair, make_divisible, pack, truncate
from data.randomness import keys, stream_number
from data.segmentation import segmenter_version, word_starts
from data.tfrecord.encoding import Rows, encode_examples
from data.tokenizers import Tokenizer
from data.word_order import WordOrder, shuffle_words

MANIFEST_SUFFIX = ".manifest.json"
# Documents are handled together up to this many characters: enough for NumPy, little enough for memory and caches.
BLOCK_CHARACTERS = 1 << 18
_SMALLEST_SPAN_BYTES = 1 << 20
_LARGEST_SPAN_BYTES = 1 << 26
_SPANS = 64
_BATCH_TOKENS = 1 << 19
_CLAUSE_ENDS = "，、；：。！？,;:.!?"
_CHUNKING = stream_number("chunks and pairs")
_MASK = stream_number("masks")


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
        word_order: what is shuffled after masking, with any objective; None: nothing.
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
    word_order: WordOrder | None = None

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
    for number, batch in enumerate(_batched(documents, recipe.pairing.min_documents)):
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
        packed = {}
        if recipe.packing:
            packed = {"sequences": len(pairs)}
            tokens, pairs = pack_sequences(tokens, pairs, recipe, vocabulary)
        counts = Counter(
            **packed,
            documents=len(batch),
            sentences=len(texts),
            tokens=len(encoding.ids),
            unknown_tokens=int((encoding.ids == vocabulary.unk_id).sum()),
            examples=len(pairs),
            truncated_tokens=int(cut.sum()),
            truncated_examples=int((cut > 0).sum()),
            documents_too_short_to_pair=unpaired,
            **_partners(block, pairs, recipe.pairing),
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


def _partners(block: Block, pairs: Pairs, pairing: Pairing) -> dict[str, int]:
    """Counts what `check_partners` looks at; nothing for pairings that any text will do for."""
    if pairing.min_documents == 1:
        return {}
    return {
        "pairs_without_another_document": len(pairs) if block.num_documents < pairing.min_documents else 0,
        "documents_of_enough_sentences": int((block.end - block.begin >= pairing.min_sentences).sum()),
    }


def check_partners(counts: Mapping[str, int], recipe: Recipe) -> None:
    """Raises `UsageError` where the text has too few documents or sentences for some label of the pairing."""
    pairing, found = recipe.pairing, counts.get("documents", 0)
    where = "held out" if recipe.held_out else "in the input"
    if counts.get("pairs_without_another_document", 0) == counts["examples"]:
        raise UsageError(
            f"--objective={recipe.objective} pairs sentences of different documents, but of the {found:,} document(s) "
            f"{where} no two are in one file: put a blank line between documents, or several documents into a file"
        )
    if pairing.min_documents > 1 and not counts.get("documents_of_enough_sentences", 0):
        raise UsageError(
            f"--objective={recipe.objective} leaves out sentences between two others, but none of the {found:,} "
            f"documents {where} has {pairing.min_sentences} sentences: put one sentence a line, or give "
            "--objective=structbert"
        )


def _batched(documents: Iterable[list[str]], min_documents: int) -> Iterator[list[list[str]]]:
    """Some documents at a time; at least `min_documents` unless there are no more."""
    held: list[list[str]] = []
    batch: list[list[str]] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += sum(map(len, document))
        if characters >= BLOCK_CHARACTERS and len(batch) >= min_documents:
            if held:
                yield held
            held, batch, characters = batch, [], 0
    if len(batch) < min_documents:
        held, batch = held + batch, []
    yield from filter(None, (held, batch))


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
    examples: Assembled,
    label_N: np.ndarray,
    keys_N: np.ndarray,
    masking: Masking,
    vocabulary: MaskVocabulary,
    word_order: WordOrder | None = None,
) -> dict[str, np.ndarray]:
    """Masks examples; returns BERT's features, and three more with `word_order`: int32 [N, ...], weights float32."""
    ids, lengths = examples.input_ids, examples.lengths
    special_NL = vocabulary.special.take(ids)
    features, hidden_NL = hide_tokens(ids, examples.word_starts, lengths, keys_N, masking, vocabulary, special_NL)
    if word_order:
        features |= shuffle_words(features["input_ids"], ids, hidden_NL, lengths, keys_N, word_order, special_NL)
    column_L = np.arange(examples.input_ids.shape[1])
    mask_NL = (column_L < examples.lengths[:, None]).astype(np.int32)
    return {
        "input_ids": features.pop("input_ids"),
        "input_mask": mask_NL,
        "segment_ids": mask_NL * (column_L >= examples.first_lengths[:, None]),
        **features,
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
                examples,
                part.label,
                keys_N[begin : begin + size],
                recipe.masking,
                vocabulary.masking,
                recipe.word_order,
            )
            counts["predictions"] = int(features["masked_lm_weights"].sum())
            if recipe.word_order:
                counts["word_order_predictions"] = int(features["word_order_weights"].sum())
        watch.stop("mask")
        content, offsets = encode_examples(features)
        watch.stop("encode")
        yield content, offsets, counts


def example_keys(recipe: Recipe, span_index: int | np.ndarray, sequence_N: np.ndarray) -> np.ndarray:
    """The uint64 keys that the masks of examples are drawn by."""
    return keys(recipe.seed, _MASK, span_index, sequence_N)


# -- the plan and the manifest -----------------------------------------------------------------------------------------


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
        "max_word_order_per_seq": recipe.word_order.num_slots(recipe.max_seq_length) if recipe.word_order else 0,
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
        "inputs": [{"name": str(path), "bytes": stamp(path)[0]} for path in inputs],
    }


def tally(counts: Mapping[str, int], shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The part of a manifest that is known at the end."""
    labels = {name.removeprefix("label_"): n for name, n in sorted(counts.items()) if name.startswith("label_")}
    others = {name: n for name, n in sorted(counts.items()) if not name.startswith("label_")}
    return {"num_examples": counts["examples"], "counts": {**others, "labels": labels}, "shards": list(shards)}


def nothing_made(counts: Mapping[str, int], recipe: Recipe) -> UsageError:
    """The error for an input without a single example."""
    if recipe.held_out and not counts.get("tokens"):
        return UsageError(
            f"--eval_fraction={recipe.held_out_fraction:g} holds out none of {counts.get('read_documents', 0)} "
            "documents: raise it, or set it to 0"
        )
    if counts.get("documents_too_short_to_pair", 0):
        return UsageError(
            f"--objective={recipe.objective} pairs sentences, but all {counts['documents']:,} documents "
            f"{'held out' if recipe.held_out else 'in the input'} are of one word each: put a sentence a line and a "
            "blank line between documents, or give --objective=masked_lm"
        )
    return UsageError(
        f"no example could be made: {counts.get('documents', 0)} documents, {counts.get('sentences', 0)} "
        f"sentences and {counts.get('tokens', 0)} tokens in the input; check that it is text"
    )


def stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change of a file; zeros for what is none."""
    try:
        status = path.stat()
    except FileNotFoundError:  # tfds
        return 0, 0
    return status.st_size, status.st_mtime_ns


def plan(inputs: Sequence[Path]) -> list[corpus.Span]:
    """Divides the input for workers, in a way that depends on its size alone."""
    size = sum(stamp(path)[0] for path in inputs)
    return corpus.plan_spans(inputs, min(max(size // _SPANS, _SMALLEST_SPAN_BYTES), _LARGEST_SPAN_BYTES))


def versions(recipe: Recipe) -> dict[str, str]:
    """The libraries whose version the examples depend on; those of the tokenizer are in its fingerprint."""
    names = ["numpy", *([recipe.segmenter] if recipe.whole_word and recipe.segmenter != "none" else [])]
    return {name: importlib.metadata.version(name) for name in names}
