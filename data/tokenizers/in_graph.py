"""The tokenizers as TensorFlow graphs: raw strings to ids inside tf.data and SavedModels, equal to the tokenizers that
they are made from, on any Unicode text.

tensorflow-text finds the pieces; what comes before them is written here as look-ups by code point, in tables taken from
the same functions that the other path uses: tensorflow-text's own normalisation knows another version of Unicode, drops
other characters than BERT's and folds case differently. The only module of `data` up to the records that imports
TensorFlow.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow
import tensorflow_text
from absl.app import UsageError

from data.tokenizers import Tokenizer
from data.tokenizers.ernie_m import ErnieMTokenizer
from data.tokenizers.sentencepiece import SentencePieceTokenizer
from data.tokenizers.template import kept_lengths
from data.tokenizers.vocabulary import SPECIAL_TOKENS
from data.tokenizers.wordpiece import (
    IDEOGRAPH_RANGES,
    MAX_WORD_CHARACTERS,
    WordPieceTokenizer,
    is_dropped,
    is_punctuation,
    is_space,
)
from ground.pieces import MARK

# TensorFlow's members are made at run time.
tf: Any = tensorflow
text: Any = tensorflow_text
Tensor = Any

_CODE_POINTS = 0x110000
_PAGE = 256
_CAPITAL_SIGMA, _FINAL_SIGMA = 0x3A3, 0x3C2
# Bits of a code point's properties; the lowest eight are its canonical combining class.
_COMBINING_CLASS = 255
_DROPPED, _SPACE, _IDEOGRAPH, _PUNCTUATION, _MARK, _CASED, _IGNORABLE, _WHITE = (256 << i for i in range(8))
# An expansion is offset * this + length.
_LONGEST_EXPANSION = 32
_LONGEST_CHARACTER_BYTES = 4
# Cleaning drops it from every text.
_UNMATCHED = "\ufffd"


def _assigned() -> Iterable[int]:
    """Return the code points that any rule may treat differently from others."""
    return (c for c in range(_CODE_POINTS) if unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs"))


def code_point_properties() -> np.ndarray:
    """Return combining class and properties of every code point; int32 [0x110000]."""
    properties = np.zeros(_CODE_POINTS, np.int32)
    for first, last in IDEOGRAPH_RANGES:
        properties[first : last + 1] = _IDEOGRAPH
    for code in _assigned():
        c = chr(code)
        # Lower-casing a capital sigma after it tells whether a letter is cased, and whether it is looked through.
        cased = f"{c}Σ".lower()[-1] == "ς"
        properties[code] |= (
            unicodedata.combining(c)
            + _DROPPED * is_dropped(c)
            + _SPACE * is_space(c)
            + _PUNCTUATION * is_punctuation(c)
            + _MARK * (unicodedata.category(c) == "Mn")
            + _CASED * cased
            + _IGNORABLE * (not cased and f"A{c}Σ".lower()[-1] == "ς")
            + _WHITE * c.isspace()
        )
    return properties


class _Table(tf.Module):
    """Integers by code point; equal pages are kept once."""

    def __init__(self, values: np.ndarray):
        super().__init__()
        pages, page_of = np.unique(values.reshape(-1, _PAGE), axis=0, return_inverse=True)
        self._pages, self._first = pages.ravel().astype(np.int32), (page_of.ravel() * _PAGE).astype(np.int32)

    def __call__(self, codes: Tensor) -> Tensor:
        return tf.gather(self._pages, tf.gather(self._first, codes // _PAGE) + codes % _PAGE)


class _Expansions(tf.Module):
    """Numbers below `size`, each to a list of numbers; what has no list of its own stays."""

    def __init__(self, expansions: Mapping[int, Sequence[int]], size: int):
        super().__init__()
        places = np.zeros(-(-size // _PAGE) * _PAGE, np.int32)
        # The first is never pointed to: a place of 0 is that of a number that stays.
        parts = [0]
        for number, expansion in expansions.items():
            assert len(expansion) < _LONGEST_EXPANSION
            places[number] = len(parts) * _LONGEST_EXPANSION + len(expansion)
            parts += expansion
        self._places, self._parts = _Table(places), np.asarray(parts, np.int32)

    def __call__(self, numbers: Tensor, *owners: Tensor) -> tuple[Tensor, ...]:
        """Return the expanded numbers and, of every tensor in `owners`, the row of the number each comes from."""
        places = self._places(numbers)
        lengths = tf.where(places == 0, 1, places % _LONGEST_EXPANSION)
        origin = tf.repeat(tf.range(tf.size(numbers)), lengths)
        within = tf.range(tf.size(origin)) - tf.gather(tf.cumsum(lengths, exclusive=True), origin)
        place = tf.gather(places, origin)
        expanded = tf.gather(self._parts, tf.where(place == 0, 0, place // _LONGEST_EXPANSION + within))
        return tf.where(place == 0, tf.gather(numbers, origin), expanded), *(tf.gather(x, origin) for x in owners)


def _differs(x: Tensor) -> Tensor:
    """Whether each element is unlike the one before it; the first always is."""
    return tf.concat([tf.ones_like(x[:1], tf.bool), x[1:] != x[:-1]], axis=0)


def _after(flags: Tensor) -> Tensor:
    """Whether the element before is flagged."""
    return tf.concat([tf.zeros_like(flags[:1]), flags[:-1]], axis=0)


def _only(keep: Tensor, *tensors: Tensor) -> list[Tensor]:
    place = tf.where(keep)[:, 0]
    return [tf.gather(x, place) for x in tensors]


def _characters(texts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the code points of strings [T], int32 [N], and their texts, int64 [N]; invalid UTF-8 is U+FFFD."""
    decoded = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
    return decoded.flat_values, decoded.value_rowids()


def _with_final_sigmas(codes: Tensor, runs: Tensor, properties: Tensor) -> Tensor:
    """Lower-case the capital sigmas that end a word of their run (Unicode's Final_Sigma); leave the others."""

    def changed() -> Tensor:
        solid = properties & _IGNORABLE == 0
        place = tf.cast(tf.where(solid)[:, 0], tf.int32)
        number = tf.cumsum(tf.cast(solid, tf.int32), exclusive=True)
        sigma = tf.cast(tf.where(codes == _CAPITAL_SIGMA)[:, 0], tf.int32)

        def beside_cased(step: int) -> Tensor:
            neighbour = tf.gather(number, sigma) + step
            there = (neighbour >= 0) & (neighbour < tf.size(place))
            at = tf.gather(place, tf.clip_by_value(neighbour, 0, tf.size(place) - 1))
            same_run = tf.gather(runs, at) == tf.gather(runs, sigma)
            return there & same_run & (tf.gather(properties, at) & _CASED != 0)

        final = tf.boolean_mask(sigma, beside_cased(-1) & ~beside_cased(1))
        return tf.tensor_scatter_nd_update(codes, final[:, None], tf.fill(tf.shape(final), _FINAL_SIGMA))

    return tf.cond(tf.reduce_any(codes == _CAPITAL_SIGMA), changed, lambda: codes)


def _within(rows: Tensor) -> Tensor:
    """Return the number of each element within its row, int64; `rows` ascend."""
    number = tf.range(tf.size(rows, tf.int64))
    (first,) = _only(_differs(rows), number)
    return number - tf.gather(first, _count(_differs(rows)) - 1)


def _count(flags: Tensor) -> Tensor:
    """Return how many flags are set up to each, itself included; int64."""
    return tf.cumsum(tf.cast(flags, tf.int64))


class InGraphTokenizer(tf.Module):
    """Strings [T] -> ids without specials, ragged int32 [T, tokens], by TensorFlow operations only.

    A graph that holds one needs `import tensorflow_text` wherever it is loaded, to make the operations known.
    """

    tokenizer: Tokenizer

    def __call__(self, texts: Tensor) -> Tensor:
        raise NotImplementedError

    def with_places(self, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ids, and of each of their tokens the first character in its text and the one behind, int64 [N]."""
        raise NotImplementedError


class InGraphWordPiece(InGraphTokenizer):
    """`WordPieceTokenizer` as a graph; bytes that are not UTF-8 are dropped like U+FFFD."""

    def __init__(self, tokenizer: WordPieceTokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self._properties = _properties()
        self._decomposed = _lower_case_decompositions() if tokenizer.do_lower_case else None
        last_of_a_token = {token: i for i, token in enumerate(tokenizer.vocabulary)}
        # Of equal entries the last counts; the places of the others, and of entries that no text can be, hold fillers.
        entries = [
            token
            if last_of_a_token[token] == i and token and not {"\0", _UNMATCHED} & set(token)
            else f"{_UNMATCHED}{i}"
            for i, token in enumerate(tokenizer.vocabulary)
        ]
        self._pieces = text.FastWordpieceTokenizer(
            entries,
            token_out_type=tf.int32,
            unknown_token=SPECIAL_TOKENS[1],
            no_pretokenization=True,
            max_bytes_per_word=MAX_WORD_CHARACTERS * _LONGEST_CHARACTER_BYTES,
        )

    def __call__(self, texts: Tensor) -> Tensor:
        return self._tokenized(texts, places=False)[0]

    def with_places(self, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ids, and of each of their tokens the first character in its text and the one behind, int64 [N]."""
        return self._tokenized(texts, places=True)

    def _tokenized(self, texts: Tensor, *, places: bool) -> tuple[Tensor, Tensor, Tensor]:
        texts = tf.convert_to_tensor(texts, tf.string)
        codes, row = _characters(texts)
        place = _within(row)
        properties = self._properties(codes)
        codes, row, place, properties = _only(properties & _DROPPED == 0, codes, row, place, properties)
        apart = properties & (_SPACE | _IDEOGRAPH) != 0
        run = _count(_differs(row) | apart | _after(apart))
        codes, row, place, run, properties = _only(properties & _SPACE == 0, codes, row, place, run, properties)
        if self._decomposed is not None:
            codes = _with_final_sigmas(codes, run, properties)
            codes, row, place, run = self._decomposed(codes, row, place, run)
            # Marks change their order before they are dropped; what is left stands for the characters in their order.
            (place,) = _only(self._properties(codes) & _MARK == 0, place)
            codes = self._in_canonical_order(codes, run)
            properties = self._properties(codes)
            codes, row, run, properties = _only(properties & _MARK == 0, codes, row, run, properties)
        alone = properties & _PUNCTUATION != 0
        begins = _differs(run) | alone | _after(alone)
        (row_of_word,) = _only(begins, row)
        spelt = tf.RaggedTensor.from_value_rowids(codes, _count(begins) - 1, tf.size(row_of_word, tf.int64))
        words = tf.strings.unicode_encode(spelt, "UTF-8")
        words = tf.where(spelt.row_lengths() > MAX_WORD_CHARACTERS, _UNMATCHED, words)
        starts = ends = place
        if places:
            pieces, first, behind = self._pieces.tokenize_with_offsets(words)
            starts, ends = self._characters_of(pieces, first.flat_values, behind.flat_values, spelt, place)
        else:
            pieces = self._pieces.tokenize(words)
        rows = tf.gather(row_of_word, pieces.value_rowids())
        ids = tf.RaggedTensor.from_value_rowids(pieces.flat_values, rows, tf.size(texts, tf.int64))
        return ids, starts, ends

    def _characters_of(
        self, pieces: Tensor, first: Tensor, behind: Tensor, spelt: Tensor, place: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the characters of pieces, of which the bytes in their words are known; an unknown word is one piece.

        Example:
            words of 1 and of 2 characters, 3 bytes each; the second word's piece has the bytes 3 to 6
            byte_of    0 3 6        before each of the three characters
            word       3            the first byte of the second word
            found      6 9          its bytes among all -> the third character
        """
        codes = spelt.flat_values
        sizes = 1 + sum(tf.cast(codes >= least, tf.int64) for least in (0x80, 0x800, 0x10000))
        byte_of = tf.cumsum(sizes, exclusive=True)
        word = pieces.value_rowids()
        begin, end = tf.gather(spelt.row_starts(), word), tf.gather(spelt.row_limits(), word)
        base = tf.gather(byte_of, begin)
        one = tf.searchsorted(byte_of, base + tf.cast(first, tf.int64), out_type=tf.int64)
        last = tf.searchsorted(byte_of, base + tf.cast(behind, tf.int64), out_type=tf.int64) - 1
        unknown = pieces.flat_values == self.tokenizer.unk_id
        return (
            tf.gather(place, tf.where(unknown, begin, one)),
            tf.gather(place, tf.where(unknown, end - 1, last)) + 1,
        )

    def _in_canonical_order(self, codes: Tensor, run: Tensor) -> Tensor:
        """Order combining characters as normalisation does, where the order still shows once marks are dropped."""
        properties = self._properties(codes)
        combining = properties & _COMBINING_CLASS

        def ordered() -> Tensor:
            group = _count((combining == 0) | _differs(run))
            order = tf.argsort(group * 256 + tf.cast(combining, tf.int64), stable=True)
            return tf.gather(codes, order)

        shows = (combining > 0) & (properties & _MARK == 0)
        return tf.cond(tf.reduce_any(shows), ordered, lambda: codes)


# The tables of Unicode are the same in all graphs, and take a second to make.
@functools.cache
def _properties() -> _Table:
    return _Table(code_point_properties())


@functools.cache
def _lower_case_decompositions() -> _Expansions:
    """Return lower case and NFD of the single code points that they change."""
    made = ((code, unicodedata.normalize("NFD", chr(code).lower())) for code in _assigned())
    return _Expansions({code: list(map(ord, new)) for code, new in made if new != chr(code)}, _CODE_POINTS)


@functools.cache
def _compatibility_decompositions() -> _Expansions:
    """Return NFKD without combining characters of the single code points that it changes."""
    made = (
        (code, [c for c in unicodedata.normalize("NFKD", chr(code)) if not unicodedata.combining(c)])
        for code in _assigned()
    )
    return _Expansions({code: list(map(ord, new)) for code, new in made if new != [chr(code)]}, _CODE_POINTS)


@functools.cache
def _lower_case() -> _Table:
    """Return the lower case of the code points that decomposition leaves; each of them has one."""
    lower = np.arange(_CODE_POINTS, dtype=np.int32)
    for code in _assigned():
        made = chr(code).lower()
        if len(made) == 1:
            lower[code] = ord(made)
    return _Table(lower)


class InGraphSentencePiece(InGraphTokenizer):
    """`SentencePieceTokenizer` as a graph, in the layout of its model."""

    def __init__(self, tokenizer: SentencePieceTokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self._pieces = text.SentencepieceTokenizer(model=tokenizer.model, out_type=tf.int32)
        own = len(tokenizer.id_of)
        self._parts = _Expansions({i: [part for part, _ in parts] for i, parts in tokenizer.parts.items()}, own)
        # Of each part the characters of the piece before it, and with it.
        ends = {i: np.cumsum([length for _, length in parts]).tolist() for i, parts in tokenizer.parts.items()}
        self._part_starts = _Expansions({i: [0, *each[:-1]] for i, each in ends.items()}, own)
        self._part_ends = _Expansions(ends, own)
        self._has_parts = np.isin(np.arange(own), list(tokenizer.parts))
        self._id_of = tokenizer.id_of
        self._properties = _properties()
        self._prepare: Callable[[Tensor], tuple[Tensor, Tensor | None]] = self._transcoded
        if tokenizer.prepares:
            self._decomposed = _compatibility_decompositions()
            self._lower = _lower_case() if tokenizer.do_lower_case else None
            self._prepare = self._prepared

    def __call__(self, texts: Tensor) -> Tensor:
        texts = tf.convert_to_tensor(texts, tf.string)
        pieces = self._pieces.tokenize(self._prepare(texts)[0])
        own_ids, rows = self._parts(pieces.flat_values, pieces.value_rowids())
        return tf.RaggedTensor.from_value_rowids(tf.gather(self._id_of, own_ids), rows, tf.size(texts, tf.int64))

    def with_places(self, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ids, and of each of their tokens the first character in its text and the one behind, int64 [N].

        A piece's mark has no extent.
        """
        texts = tf.convert_to_tensor(texts, tf.string)
        prepared, origins = self._prepare(texts)
        pieces, first, behind = self._pieces.tokenize_with_offsets(prepared)
        codes = tf.strings.unicode_decode(prepared, "UTF-8", errors="replace")
        own_ids, rows = pieces.flat_values, pieces.value_rowids()
        starts, ends = self._characters_of(codes, rows, first.flat_values, behind.flat_values)
        begin, end = self._part_starts(own_ids)[0], self._part_ends(own_ids)[0]
        divided = tf.gather(self._has_parts, own_ids)
        own_ids, rows, starts, ends, divided = self._parts(own_ids, rows, starts, ends, divided)
        begin, end = (tf.minimum(starts + tf.cast(each, tf.int64), ends) for each in (begin, end))
        starts, ends = tf.where(divided, begin, starts), tf.where(divided, end, ends)
        if origins is not None:
            lengths = tf.cast(tf.strings.length(texts, unit="UTF8_CHAR"), tf.int64)
            starts, ends = _original(codes, origins, tf.gather(lengths, rows), rows, starts, ends)
        ids = tf.RaggedTensor.from_value_rowids(tf.gather(self._id_of, own_ids), rows, tf.size(texts, tf.int64))
        return ids, starts, ends

    def _characters_of(self, codes: Tensor, rows: Tensor, first: Tensor, behind: Tensor) -> tuple[Tensor, Tensor]:
        """Return the characters of pieces whose bytes in their texts are known, without the white space before them.

        Example:
            "é b", of which a piece has the bytes 2 to 4
            byte_of    0 2 3        before each character
            found      1 3          of which the first is a space: 2 3
        """
        flat = codes.flat_values
        sizes = 1 + sum(tf.cast(flat >= least, tf.int64) for least in (0x80, 0x800, 0x10000))
        byte_of = tf.concat([[tf.constant(0, tf.int64)], tf.cumsum(sizes)], axis=0)
        text_begin = tf.gather(codes.row_starts(), rows)
        base = tf.gather(byte_of, text_begin)
        start, end = (
            tf.searchsorted(byte_of, base + tf.cast(each, tf.int64), out_type=tf.int64) for each in (first, behind)
        )
        shows = tf.where((self._properties(flat) & _WHITE == 0) & (flat != ord(MARK)))[:, 0]
        shows = tf.concat([shows, [tf.size(flat, tf.int64)]], axis=0)
        start = tf.minimum(tf.gather(shows, tf.searchsorted(shows, start, out_type=tf.int64)), tf.maximum(start, end))
        return start - text_begin, end - text_begin

    @staticmethod
    def _transcoded(texts: Tensor) -> tuple[Tensor, None]:
        return tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace"), None

    def _prepared(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """`data.tokenizers.sentencepiece.prepare`, and of each character that it makes the place in its text."""
        codes, row = _characters(texts)
        white = self._properties(codes) & _WHITE != 0
        begins = ~white & (_differs(row) | _after(white))
        (row_of_word,) = _only(begins, row)
        codes, word, place = _only(~white, codes, _count(begins) - 1, _within(row))
        space = tf.math.segment_max(place, word) + 1
        codes, word, place = self._decomposed(codes, word, place)
        if self._lower is not None:
            # A space ends what is looked at around a sigma, so that words can be taken one by one.
            codes = self._lower(_with_final_sigmas(codes, word, self._properties(codes)))
        spelt = tf.RaggedTensor.from_value_rowids(codes, word, tf.size(row_of_word, tf.int64))
        # TensorFlow's own joining leaves out the space behind a word of nothing.
        followed = tf.concat([row_of_word[1:] == row_of_word[:-1], tf.zeros_like(row_of_word[:1], tf.bool)], axis=0)
        spaces = tf.RaggedTensor.from_row_lengths(_only(followed, space)[0], tf.cast(followed, tf.int64))
        spaced = tf.concat([spelt, spaces.with_flat_values(tf.fill(tf.shape(spaces.flat_values), ord(" ")))], axis=1)
        words = tf.RaggedTensor.from_value_rowids(row_of_word, row_of_word, tf.size(texts, tf.int64))
        by_text = tf.RaggedTensor.from_row_splits(spaced.flat_values, tf.gather(spaced.row_splits, words.row_splits))
        origins = tf.concat([spelt.with_flat_values(place), spaces], axis=1).flat_values
        return tf.strings.unicode_encode(by_text, "UTF-8"), origins


def _original(
    codes: Tensor, origins: Tensor, lengths: Tensor, rows: Tensor, starts: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Return places in texts for places in what was prepared of them; `lengths` [N] are those of the tokens' texts."""
    base, there = tf.gather(codes.row_starts(), rows), tf.gather(codes.row_lengths(), rows)
    padded = tf.concat([origins, tf.zeros([1], tf.int64)], axis=0)
    begin = tf.where(starts < there, tf.gather(padded, tf.where(starts < there, base + starts, 0)), lengths)
    end = tf.gather(padded, base + tf.maximum(ends, 1) - 1) + 1
    return begin, tf.where(starts >= ends, begin, end)


def in_graph(tokenizer: Tokenizer) -> InGraphTokenizer:
    """Return the tokenizer as a graph that yields the same ids; raises `UsageError` for ERNIE-M's, which has none."""
    if isinstance(tokenizer, ErnieMTokenizer):
        raise UsageError("the tokenizer of ERNIE-M has no graph: tokenise outside, and give the model ids")
    if isinstance(tokenizer, WordPieceTokenizer):
        return InGraphWordPiece(tokenizer)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return InGraphSentencePiece(tokenizer)


class InGraphFeatures(tf.Module):
    """Strings [B], or two of them, -> `input_ids`, `input_mask`, `segment_ids`, int32 [B, max_seq_length] each.

    The same features as those of `data.labelled`: in the template of the tokenizer, cut as BERT cuts, padded with 0.

    Args:
        tokenizer: any tokenizer of `data.tokenizers`.
        max_seq_length: in tokens, specials counted.
    """

    def __init__(self, tokenizer: Tokenizer, max_seq_length: int):
        super().__init__()
        self.ids, self.max_seq_length = in_graph(tokenizer), max_seq_length
        self._template = tokenizer.template

    def __call__(self, texts_a: Tensor, texts_b: Tensor | None = None) -> dict[str, Tensor]:
        sides = [self.ids(texts) for texts in (texts_a, texts_b) if texts is not None]
        template, L = self._template, self.max_seq_length
        budget = template.max_tokens(L, len(sides))
        lengths = [side.row_lengths() for side in sides]
        kept = [tf.minimum(x, budget) for x in lengths]
        if len(sides) == 2:
            kept = kept_lengths(lengths[0], lengths[1], budget, tf.minimum)
        one = tf.ones_like(kept[0], tf.int32)[:, None]
        parts = [one * template.first]
        for side, length, behind in zip(sides, kept, template.behind(len(sides)), strict=True):
            parts += [_first(side, length), one * behind]
        ids = tf.concat(parts, axis=1)
        mask = tf.sequence_mask(ids.row_lengths(), L, tf.int32)
        of_first = len(template.first) + kept[0] + len(template.behind(len(sides))[0])
        is_first = tf.sequence_mask(of_first, L, tf.int32)
        first_id, second_id = template.segment_ids
        return {
            "input_ids": ids.to_tensor(shape=(None, L)),
            "input_mask": mask,
            "segment_ids": mask * (first_id * is_first + second_id * (1 - is_first)),
        }


def _first(ragged: Tensor, lengths: Tensor) -> Tensor:
    """Return the first `lengths` elements of every row."""
    rows = ragged.value_rowids()
    within = tf.range(tf.size(rows, tf.int64)) - tf.gather(ragged.row_starts(), rows)
    values, rows = _only(within < tf.gather(lengths, rows), ragged.flat_values, rows)
    return tf.RaggedTensor.from_value_rowids(values, rows, ragged.nrows())
