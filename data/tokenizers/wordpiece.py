"""BERT's WordPiece tokenizer (Devlin et al. 2018), normative in plain Python and fast in NumPy with equal output.

The normative path is BERT's original: cleaning, ideographs set apart, optional lower case without accents, punctuation
split off, then the greedy longest match. It differs from ports of it in three ways that show in real text: private-use
and unassigned code points are kept, U+2028 and U+2029 separate words, and words are looked up to 200 characters. As in
the original, '[MASK]' typed in raw text is the three words '[', 'mask', ']': text never yields a special id but [UNK].
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from absl.app import UsageError

from data.tokenizers import Encoding
from data.tokenizers.template import Template
from data.tokenizers.vocabulary import SPECIAL_TOKENS, UNUSED_TOKEN, read_vocabulary
from ground.files import write_atomically

MAX_WORD_CHARACTERS = 200
# The blocks that BERT calls Chinese: CJK Unified Ideographs, extensions A to E, and both compatibility blocks.
IDEOGRAPH_RANGES = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
_CAPITAL_SIGMA = 0x3A3  # the one character whose lower case depends on its neighbours, over punctuation too
_UNKNOWN, _SPACE, _DROPPED, _SINGLE, _WORD = range(5)
_BLOCK_CHARACTERS = 1 << 17
_MEMO_WORDS = 1 << 17
_MEMO_WORD_CHARACTERS = 64


def is_ideograph(character: str) -> bool:
    """Whether BERT sets the character apart as a word of its own."""
    code = ord(character)
    return any(first <= code <= last for first, last in IDEOGRAPH_RANGES)


def is_punctuation(character: str) -> bool:
    """Whether the character is of a punctuation category, or is ASCII and neither letter, digit, space nor control."""
    if character.isascii():
        return "!" <= character <= "~" and not character.isalnum()
    return unicodedata.category(character).startswith("P")


def is_space(character: str) -> bool:
    """Whether the character separates words: Unicode's separators, tab, line feed and carriage return."""
    return character in "\t\n\r" or unicodedata.category(character).startswith("Z")


def is_dropped(character: str) -> bool:
    """Whether cleaning removes the character: NUL, U+FFFD, control and format characters but tab and line ends."""
    return character == "\ufffd" or (character not in "\t\n\r" and unicodedata.category(character) in ("Cc", "Cf"))


def split_words(text: str, *, do_lower_case: bool) -> list[tuple[str, list[int]]]:
    """Return the words after BERT's basic tokenization, each with the positions of its characters in `text`."""
    words: list[tuple[str, list[int]]] = []
    run: list[int] = []
    for position, character in enumerate(text):
        if is_dropped(character):
            continue
        if is_space(character):
            words += _split_run(text, run, do_lower_case)
            run = []
        elif is_ideograph(character):
            words += _split_run(text, run, do_lower_case)
            words += _split_run(text, [position], do_lower_case)
            run = []
        else:
            run.append(position)
    return words + _split_run(text, run, do_lower_case)


def _split_run(text: str, origins: list[int], do_lower_case: bool) -> list[tuple[str, list[int]]]:
    run = "".join([text[position] for position in origins])
    if do_lower_case:
        if not run.isascii():
            # Decomposition may reorder marks, so the text comes from the whole and only the counts from the parts.
            origins = [p for p in origins for _ in _without_accents(text[p].lower())]
        run = _without_accents(run.lower())
    if run.isascii() and run.isalnum():
        return [(run, origins)]
    # Words are joined at the end only: a run of a million letters would be copied at each of them otherwise.
    words: list[tuple[list[str], list[int]]] = []
    joins = False
    for character, origin in zip(run, origins, strict=True):
        alone = is_punctuation(character)
        if joins and not alone:
            words[-1][0].append(character)
            words[-1][1].append(origin)
        else:
            words.append(([character], [origin]))
        joins = not alone
    return [("".join(characters), positions) for characters, positions in words]


def _without_accents(text: str) -> str:
    if text.isascii():
        return text
    return "".join([c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn"])


class _Memo(dict[str, tuple[int, ...]]):
    """Word -> (id, start, end) triples, flattened; filled by the normative path, emptied when full."""

    def __init__(self, encode):
        self._encode = encode

    def __missing__(self, word: str) -> tuple[int, ...]:
        triples = tuple(chain.from_iterable(self._encode(word)))
        if len(word) <= _MEMO_WORD_CHARACTERS:
            if len(self) >= _MEMO_WORDS:
                self.clear()
            self[word] = triples
        return triples


class WordPieceTokenizer:
    """WordPiece over a vocabulary list: a token's id is its place in the list."""

    def __init__(self, vocabulary: Sequence[str], *, do_lower_case: bool = True):
        self.vocabulary = tuple(vocabulary)
        self.do_lower_case = do_lower_case
        self._id_of = {token: i for i, token in enumerate(self.vocabulary)}
        missing = [token for token in SPECIAL_TOKENS if token not in self._id_of]
        if missing:
            raise UsageError(
                f"the vocabulary of {len(self.vocabulary)} tokens lacks {', '.join(missing)}; "
                "expected a BERT vocab.txt with one token a line"
            )
        self.vocab_size = len(self.vocabulary)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (self._id_of[t] for t in SPECIAL_TOKENS)
        self.template = Template.of_bert(self.cls_id, self.sep_id)
        self.special_ids = frozenset(
            i for i, token in enumerate(self.vocabulary) if token in SPECIAL_TOKENS or UNUSED_TOKEN.fullmatch(token)
        )
        settings = f"wordpiece 1 lower={do_lower_case}"
        self.fingerprint = hashlib.sha256("\n".join((settings, *self.vocabulary)).encode()).hexdigest()
        self._longest_piece = max(map(len, self.vocabulary))
        self._is_continuation = np.array([token.startswith("##") for token in self.vocabulary])
        # Zero pages cost nothing until a character of theirs is met; both tables are filled as text is read.
        self._class_of = np.zeros(0x110000, np.uint8)
        self._single_id = np.zeros(0x110000, np.int32)
        self._replacement_ids: np.ndarray | None = None
        self._memo = _Memo(self.encode_normatively)

    @classmethod
    def load(cls, vocab_file: Path, *, do_lower_case: bool = True) -> WordPieceTokenizer:
        """Load a vocabulary of a token a line (`data.tokenizers.vocabulary`); raises `UsageError`."""
        vocabulary = read_vocabulary(vocab_file)
        try:
            return cls(vocabulary, do_lower_case=do_lower_case)
        except UsageError as error:
            raise UsageError(f"{vocab_file}: {error}") from None

    def encode_normatively(self, text: str) -> list[tuple[int, int, int]]:
        """Return (id, start, end) of every token, in characters of `text`: the slow path, which defines the output."""
        tokens: list[tuple[int, int, int]] = []
        for word, origins in split_words(text, do_lower_case=self.do_lower_case):
            pieces = self._longest_matches(word)
            tokens += [(i, origins[start], origins[end - 1] + 1) for i, start, end in pieces]
        return tokens

    def _longest_matches(self, word: str) -> list[tuple[int, int, int]]:
        unknown = [(self.unk_id, 0, len(word))]
        if len(word) > MAX_WORD_CHARACTERS:
            return unknown
        pieces: list[tuple[int, int, int]] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(min(len(word), start + self._longest_piece), start, -1):
                token_id = self._id_of.get(prefix + word[start:end])
                if token_id is not None:
                    break
            else:
                return unknown
            pieces.append((token_id, start, end))
            start = end
        return pieces

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text, without [CLS] and [SEP]."""
        return self.encode_batch([text]).ids.tolist()

    def encode_batch(self, texts: Sequence[str]) -> Encoding:
        """Encode many texts at once; the output is that of `encode_normatively` on each.

        Nearly every Chinese character is a word of its own, so characters are looked up in a table over code points,
        and only the runs between them (Latin words, numbers) are cut out as strings, each distinct one tokenized once.
        """
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        # Blocks that stay in the processor's cache are twice as fast as all at once.
        block_of = np.cumsum(lengths + 1) // _BLOCK_CHARACTERS
        cuts = np.flatnonzero(np.diff(block_of)) + 1
        bounds = [0, *cuts.tolist(), len(texts)]
        blocks = [self._encode_block(texts[a:b], lengths[a:b]) for a, b in pairwise(bounds)]
        if len(blocks) == 1:
            return blocks[0]
        offsets = np.cumsum([0, *(len(block.ids) for block in blocks)])
        splits = [block.splits[:-1] + offset for block, offset in zip(blocks, offsets[:-1], strict=True)]
        columns = ("ids", "starts", "ends", "continuation")
        joined = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in columns}
        return Encoding(splits=np.concatenate([*splits, offsets[-1:]]), **joined)

    def _encode_block(self, texts: Sequence[str], lengths: np.ndarray) -> Encoding:
        joined = "\n".join(texts)
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        classes = self._class_of[codes]
        if not classes.all():
            self._learn(np.unique(codes[classes == _UNKNOWN]))
            classes = self._class_of[codes]
        kept = None
        if (classes == _DROPPED).any():
            kept = np.flatnonzero(classes != _DROPPED)
            codes, classes = codes[kept], classes[kept]
            joined = codes.tobytes().decode("utf-32-le", "surrogatepass")
        if self.do_lower_case:
            self._join_around_sigma(codes, classes)

        in_word = np.zeros(len(codes) + 2, bool)
        np.equal(classes, _WORD, out=in_word[1:-1])
        run_begins = in_word[1:-1] & ~in_word[:-2]
        run_starts = np.flatnonzero(run_begins)
        run_ends = np.flatnonzero(in_word[1:-1] & ~in_word[2:]) + 1
        memo = self._memo
        entries = [memo[joined[s:e]] for s, e in zip(run_starts.tolist(), run_ends.tolist(), strict=True)]
        run_counts = np.fromiter(map(len, entries), np.int64, len(entries)) // 3
        triples = np.fromiter(chain.from_iterable(entries), np.int32, 3 * int(run_counts.sum())).reshape(-1, 3)

        units = np.flatnonzero((classes == _SINGLE) | run_begins)
        is_run = in_word[1:-1][units]
        unit_counts = np.ones(len(units), np.int64)
        unit_counts[is_run] = run_counts
        from_run = np.repeat(is_run, unit_counts)
        starts = np.repeat(units, unit_counts)
        last = starts.copy()
        ids = self._single_id[codes[starts]]
        ids[from_run] = triples[:, 0]
        starts[from_run] += triples[:, 1]
        last[from_run] += triples[:, 2] - 1
        if kept is not None:
            starts, last = kept[starts], kept[last]

        bases = np.cumsum(lengths + 1) - (lengths + 1)
        splits = np.append(np.searchsorted(starts, bases), len(starts))
        shift = np.repeat(bases, np.diff(splits))
        return Encoding(
            ids=ids,
            splits=splits,
            starts=(starts - shift).astype(np.int32),
            ends=(last + 1 - shift).astype(np.int32),
            continuation=self._is_continuation[ids],
        )

    def _learn(self, codes: np.ndarray) -> None:
        for code in codes.tolist():
            character = chr(code)
            kind = _WORD
            if is_dropped(character):
                kind = _DROPPED
            elif is_space(character):
                kind = _SPACE
            elif is_ideograph(character) or is_punctuation(character):
                tokens = self.encode_normatively(character)
                if len(tokens) == 1:
                    kind = _SINGLE
                    self._single_id[code] = tokens[0][0]
            self._class_of[code] = kind

    def _join_around_sigma(self, codes: np.ndarray, classes: np.ndarray) -> None:
        """Join every space-separated run that holds a capital sigma to one word, for the normative path."""
        joined = 0  # a run is joined at its first sigma, whatever others it holds
        for position in np.flatnonzero(codes == _CAPITAL_SIGMA).tolist():
            if position < joined:
                continue
            for step in (-1, 1):
                joined = position + step
                while 0 <= joined < len(codes) and classes[joined] != _SPACE and not is_ideograph(chr(codes[joined])):
                    classes[joined] = _WORD
                    joined += step

    @property
    def replacement_ids(self) -> np.ndarray:
        """int32, ascending: ids that some text can yield, other than the special ones."""
        if self._replacement_ids is None:
            ids = [i for i, t in enumerate(self.vocabulary) if i not in self.special_ids and self._can_occur(t, i)]
            self._replacement_ids = np.array(ids, np.int32)
        return self._replacement_ids

    def _can_occur(self, token: str, token_id: int) -> bool:
        if self._id_of[token] != token_id:
            return False
        word = "a" + token[2:] if token.startswith("##") and len(token) > 2 else token
        return [w for w, _ in split_words(word, do_lower_case=self.do_lower_case)] == [word]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the vocabulary's strings, '##' included."""
        return [self.vocabulary[i] for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Return tokens as readable text: pieces joined, spaces between words except beside ideographs."""
        text = ""
        for token in self.tokens(ids):
            if token.startswith("##") and len(token) > 2:
                text += token[2:]
            elif text and not (_stands_alone(token[:1]) or _stands_alone(text[-1])):
                text += " " + token
            else:
                text += token
        return text

    def save(self, directory: Path) -> list[Path]:
        """Write `vocab.txt`, a token a line, which does not hold the casing."""
        path = directory / "vocab.txt"
        write_atomically(path, vocabulary_bytes(self.vocabulary))
        return [path]


def vocabulary_bytes(vocabulary: Sequence[str]) -> bytes:
    """Return the content of a vocab.txt: one token a line, LF only."""
    return "".join(f"{token}\n" for token in vocabulary).encode()


def _stands_alone(character: str) -> bool:
    return bool(character) and (is_ideograph(character) or (is_punctuation(character) and not character.isascii()))
