"""Text -> examples of pretraining, many at a time: sentences, tokens, words, pairs, segments, features, records.

A span of the input is the unit of work: its examples are a function of the span, the recipe and the seed.
`data.writing` hands spans to workers.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from absl.app import UsageError

from data import corpus
from data.continuation import continuations, too_short
from data.manifest import stamp
from data.pairing import Block, Pairing, Pairs, chunk_and_pair, make_divisible, truncate
from data.randomness import keys, stream_number
from data.recipe import Recipe, Vocabulary
from data.segmentation import word_starts
from data.tfrecord.encoding import Rows, encode_examples
from data.tokenizers import Encoding, Tokenizer
from data.translations import translations
from ground.ragged import bounds_of

# Documents are handled together up to this many characters: enough for NumPy, little enough for memory and caches.
BLOCK_CHARACTERS = 1 << 18
BATCH_TOKENS = 1 << 19
SMALLEST_SPAN_BYTES = 1 << 20
LARGEST_SPAN_BYTES = 1 << 26
_SPANS = 64
_CHUNKING = stream_number("chunks and pairs")
_MASK = stream_number("masks")
_TOO_SHORT = "documents_too_short_to_pair"


class Stopwatch:
    """Adds up seconds by stage; a stage ends where the next begins."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    def stop(self, stage: str) -> None:
        """Book the time since the last stop under `stage`."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._since
        self._since = now


def _report_nothing(done: float, total: float) -> None:
    del done, total


def plan(
    inputs: Sequence[Path], encoding: str = corpus.UTF8, report: Callable[[float, float], None] = _report_nothing
) -> list[corpus.Span]:
    """Divide the input for workers, in a way that depends on the size of its text alone.

    Args:
        inputs: files and `tfds:` names.
        encoding: of the files; of others than UTF-8 the size of the text is found by reading them.
        report: is told how much of that is done, and all of it, in bytes.
    """
    size, done, total = 0, 0, sum(stamp(path)[0] for path in inputs)
    for path in inputs:
        size += corpus.text_bytes(path, encoding)
        done += stamp(path)[0]
        if encoding != corpus.UTF8:
            report(done, total)
    return corpus.plan_spans(inputs, min(max(size // _SPANS, SMALLEST_SPAN_BYTES), LARGEST_SPAN_BYTES), encoding)


# -- text to pairs -----------------------------------------------------------------------------------------------------


@dataclass
class PairedBlock:
    """Tokens of some documents and the examples cut from them."""

    tokens: np.ndarray  # token_dtype, id * 2 + (begins a word)
    pairs: Pairs
    counts: Counter[str]


def read_blocks(
    span: corpus.Span,
    span_index: int,
    recipe: Recipe,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    watch: Stopwatch | None = None,
    report: corpus.Report = corpus.nothing,
) -> Iterator[PairedBlock]:
    """Read a span; yield its documents, some at a time, tokenised and paired, and at last the counts of reading.

    `report` is told of further bytes of the file as they are read.

    Raises:
        UsageError: the input cannot be read (`data.corpus.read_documents`).
    """
    watch = watch or Stopwatch()
    read = corpus.Counts()
    documents = corpus.read_documents(span, read, text_field=recipe.text_field, text=recipe.reads, report=report)
    for number, batch in enumerate(_batched(filter(recipe.takes, documents), recipe.pairing.min_documents)):
        watch.stop("read")
        texts = [sentence for document in batch for sentence in document]
        encoding = tokenizer.encode_batch(texts)
        watch.stop("tokenize")
        if recipe.whole_word:
            starts = word_starts(texts, encoding, segmenter=recipe.segmenter)
        else:
            starts = np.ones(len(encoding.ids), bool)
        watch.stop("segment")
        random = np.random.Generator(np.random.PCG64([recipe.seed % 2**64, _CHUNKING, span_index, number]))
        block = _paired(batch, texts, encoding, starts, recipe, vocabulary, random)
        watch.stop("build")
        yield block
    nothing = np.zeros(0, np.int64)
    counts = Counter({f"read_{name}": value for name, value in asdict(read).items()})
    yield PairedBlock(nothing.astype(vocabulary.token_dtype), Pairs(*[nothing] * 5), counts)


def _paired(
    documents: Sequence[Sequence[str]],
    texts: Sequence[str],
    encoding: Encoding,
    starts: np.ndarray,
    recipe: Recipe,
    vocabulary: Vocabulary,
    random: np.random.Generator,
) -> PairedBlock:
    """Cut tokenised documents into the examples of the recipe."""
    bounds = bounds_of([len(document) for document in documents])
    whole = Block(encoding.splits, bounds[:-1], bounds[1:])
    block, pairs, cut, left_out = _cut(whole, encoding, starts, texts, recipe, vocabulary, random)
    tokens = encoding.ids.astype(vocabulary.token_dtype) * 2 + starts.astype(vocabulary.token_dtype)
    tokens, pairs, of_form = recipe.layout.lay_out(tokens, pairs, recipe, vocabulary)
    counts = Counter(
        **of_form,
        documents=len(documents),
        sentences=int(bounds[-1]),
        tokens=len(encoding.ids),
        unknown_tokens=int((encoding.ids == vocabulary.unk_id).sum()),
        examples=len(pairs),
        truncated_tokens=int(cut.sum()),
        truncated_examples=int((cut > 0).sum()),
        **left_out,
        **_partners(block, pairs, recipe.pairing),
    )
    return PairedBlock(tokens, pairs, counts)


def _cut(
    whole: Block,
    encoding: Encoding,
    starts: np.ndarray,
    texts: Sequence[str],
    recipe: Recipe,
    vocabulary: Vocabulary,
    random: np.random.Generator,
) -> tuple[Block, Pairs, np.ndarray, dict[str, int]]:
    """Return the block of what is cut, its pairs, the tokens lost from each, and counts of what was left out."""
    pairing, continuation, apart = recipe.pairing, recipe.continuation, recipe.layout.apart
    max_tokens = recipe.layout.max_tokens(recipe, vocabulary.template)
    if recipe.reads == "pairs":
        return translations(
            whole,
            pairing,
            num_passes=recipe.dupe_factor,
            max_tokens=max_tokens,
            apart=apart,
            long_pairs=recipe.long_pairs,
            random=random,
        )
    clause_ends = vocabulary.clause_ends[encoding.ids]
    if continuation is not None:
        if not recipe.whole_word:
            # A cut keeps words whole even where single tokens are hidden.
            starts = word_starts(texts, encoding, segmenter="none")
        block, _ = make_divisible(whole, starts, clause_ends, max_tokens, num_segments=1)
        pairs, cut = continuations(
            block,
            starts,
            continuation,
            max_seq_length=recipe.max_seq_length,
            num_passes=recipe.dupe_factor,
            short_seq_prob=recipe.short_seq_prob,
            random=random,
        )
        return block, pairs, cut, {_TOO_SHORT: int(too_short(block, continuation).sum())}
    longest = max_tokens // 2 if apart else max_tokens
    block, unpaired = make_divisible(whole, starts, clause_ends, longest, pairing.num_segments)
    pairs = chunk_and_pair(
        block,
        pairing,
        num_passes=recipe.dupe_factor,
        max_tokens=max_tokens,
        short_seq_prob=recipe.short_seq_prob,
        random=random,
    )
    return block, *truncate(pairs, max_tokens, random, apart=apart), {_TOO_SHORT: unpaired}


def _batched(documents: Iterable[list[str]], min_documents: int) -> Iterator[list[list[str]]]:
    """Yield some documents at a time; at least `min_documents` unless there are no more."""
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


# -- pairs to records --------------------------------------------------------------------------------------------------


def encode_pairs(
    tokens: np.ndarray,
    pairs: Pairs,
    keys_N: np.ndarray,
    recipe: Recipe,
    vocabulary: Vocabulary,
    watch: Stopwatch | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, Counter[str]]]:
    """Yield (record bytes, their offsets, counts) of a few hundred examples at a time, in the order of `pairs`."""
    watch = watch or Stopwatch()
    size = max(1, BATCH_TOKENS // recipe.width)
    for begin in range(0, len(pairs), size):
        part = pairs.take(slice(begin, begin + size))
        segments = recipe.layout.join(tokens, part, recipe, vocabulary)
        watch.stop("build")
        counts = Counter(
            examples=len(part),
            example_tokens=int(segments.lengths.sum()),
            **{f"label_{label}": int(n) for label, n in enumerate(np.bincount(part.label)) if n},
        )
        if recipe.dynamic:
            features: Mapping[str, Rows] = segments.to_record()
        else:
            features = recipe.layout.features(
                segments, keys_N[begin : begin + size], recipe, vocabulary.specials, vocabulary.masking
            )
            counts.update(_predictions(features, recipe))
        watch.stop("mask")
        content, offsets = encode_examples(features)
        watch.stop("encode")
        yield content, offsets, counts


def _predictions(features: Mapping[str, np.ndarray], recipe: Recipe) -> dict[str, int]:
    """Return how many tokens are predicted, by the names that manifests have had for them since the first."""
    titles = {"masked_lm": "predictions"}
    sides = recipe.layout.sides
    return {
        titles.get(name, f"{name}_predictions"): int(features[f"{name}_weights"].sum())
        for side in sides
        for name in side.lists(features)
    }


def example_keys(recipe: Recipe, span_index: int | np.ndarray, sequence_N: np.ndarray) -> np.ndarray:
    """Return the uint64 keys that the masks of examples are drawn by."""
    return keys(recipe.seed, _MASK, span_index, sequence_N)


# -- texts that no example can be made of ------------------------------------------------------------------------------


def _partners(block: Block, pairs: Pairs, pairing: Pairing) -> dict[str, int]:
    """Return the counts that `check_partners` looks at; none for a pairing that any text will do for."""
    if pairing.min_documents == 1:
        return {}
    return {
        "pairs_without_another_document": len(pairs) if block.num_documents < pairing.min_documents else 0,
        "documents_of_enough_sentences": int((block.end - block.begin >= pairing.min_sentences).sum()),
    }


def check_text(counts: Mapping[str, int], *, accept: bool) -> None:
    """Raise `UsageError` where too much of what was read was invalid or is unknown, unless that is accepted."""
    invalid = counts.get("read_invalid_sequences", 0), counts.get("read_bytes", 0), corpus.limits.MAX_INVALID
    unknown = counts.get("unknown_tokens", 0), counts.get("tokens", 0), corpus.limits.MAX_UNKNOWN
    said = {
        "bytes are invalid: the text is damaged, or in another encoding (give --encoding)": invalid,
        "tokens are unknown to the vocabulary: it is of another language than the text (give another --vocab_file or "
        "--spm_model_file), or the text is in another encoding (give --encoding)": unknown,
    }
    for what, (found, among, limit) in said.items():
        if not accept and found > limit * among:
            raise UsageError(
                f"{found / among:.1%} of the {what}; at most {limit:.1%} goes, or {corpus.ACCEPT} to go on anyway"
            )


def check_partners(counts: Mapping[str, int], recipe: Recipe) -> None:
    """Raise `UsageError` where the text has too few documents or sentences for some label of the pairing."""
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


def nothing_made(counts: Mapping[str, int], recipe: Recipe) -> UsageError:
    """Return the error for an input without a single example."""
    if recipe.held_out and not counts.get("tokens") and counts.get("read_documents", 0):
        return UsageError(
            f"--eval_fraction={recipe.held_out_fraction:g} holds out none of {counts.get('read_documents', 0)} "
            "documents: raise it, or set it to 0"
        )
    if counts.get(_TOO_SHORT, 0) and recipe.continuation:
        needed = recipe.continuation.least_tokens
        return UsageError(
            f"--objective={recipe.objective} needs {needed} tokens for a source and its target, but all "
            f"{counts['documents']:,} documents {'held out' if recipe.held_out else 'in the input'} have fewer: put a "
            "sentence a line and a blank line between documents, or give lower --source_length_range and "
            "--target_length_range"
        )
    if recipe.reads == "pairs" and counts.get("documents", 0):
        return UsageError(
            f"--input_file: no example could be made of {counts['documents']:,} pairs: "
            f"{counts.get('pairs_without_tokens', 0):,} lack a side, {counts.get('pairs_too_long', 0):,} are longer "
            f"than --max_seq_length={recipe.max_seq_length}; raise it, or give --long_pairs=cut"
        )
    if counts.get(_TOO_SHORT, 0):
        return UsageError(
            f"--objective={recipe.objective} pairs sentences, but all {counts['documents']:,} documents "
            f"{'held out' if recipe.held_out else 'in the input'} are of one word each: put a sentence a line and a "
            "blank line between documents, or give --objective=masked_lm"
        )
    return UsageError(
        f"--input_file: no example could be made: {counts.get('documents', 0)} documents, "
        f"{counts.get('sentences', 0)} sentences and {counts.get('tokens', 0)} tokens in the input; "
        "check that it is text"
    )
