"""The tokenizer of ERNIE-M (Ouyang et al. 2021): a SentencePiece model cuts the text, a vocab.txt decides the ids.

Three programs that read the same two files cut the same text in three ways; a checkpoint knows the one that it was
trained with, and `--segmentation` names it:

    paddlenlp     ideographs, marks of punctuation and runs of digits are tokens of their own; a '▁' alone is dropped
    hf            the same, but a '▁' alone stays inside a text where what follows has none
    ernie_repo    quotes and dashes become ASCII, control characters go; only the comma behind a digit is cut off

Differs from the originals in that text that spells a special token does not become one, and that `hf` drops a '▁' at
the end of a text, where transformers raises an error. `ernie_repo` re-cuts a number as that code is meant to: as it is
written, it compares bytes with text and never takes the mark away.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
from absl.app import UsageError

from data.tokenizers import Encoding
from data.tokenizers.sentencepiece import MARK, NOT_TEXT, load_processor
from data.tokenizers.template import Template
from data.tokenizers.vocabulary import read_numbered_vocabulary
from ground.files import check_plain, write_atomically
from ground.ragged import span_indices

MODEL_NAME, VOCABULARY_NAME = "sentencepiece.bpe.model", "vocab.txt"
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ALONE = frozenset(",;:.?!~，；：。？！《》【】")
_FIRST_IDEOGRAPH, _LAST_IDEOGRAPH = "\u4e00", "\u9fff"
_ASCII = str.maketrans("“”‘’—", "\"\"''-")
_MOST_PIECES = 1 << 20

Cut = Callable[[str], list[str]]
"""A piece of text, without the '▁' before it -> the pieces of it when it is cut anew, with theirs."""


def divided(piece: str, cut: Cut) -> list[str]:
    """Return the parts of a piece: each ideograph and mark of punctuation, runs of digits, and runs of what is left.

    The '▁' belongs to what is left, and is dropped where it is all of it.

    Example: "▁in1999年," gives "▁in", "1999", "年", ","; "▁1999" gives "1999".
    """
    del cut
    runs = [
        "".join(character for _, character in run)
        for _, run in groupby(enumerate(piece), lambda each: _kind(each[1]) or (each[0],))
    ]
    return [run for run in runs if run != MARK]


def _kind(character: str) -> str:
    """Return what characters may stand together with this one; empty where none may."""
    if _FIRST_IDEOGRAPH <= character <= _LAST_IDEOGRAPH or character in _ALONE:
        return ""
    return "digit" if character.isdigit() else "other"


def without_comma(piece: str, cut: Cut) -> list[str]:
    """Return the piece, or where it ends in a digit and a comma the pieces of what is before it, and the comma."""
    if not (piece.endswith(",") and piece[-2:-1].isdigit()):
        return [piece]
    first, *others = cut(piece[:-1].replace(MARK, ""))
    kept = first if piece.startswith(MARK) else first.removeprefix(MARK)
    return [*([kept] if kept else []), *others, ","]


def cleaned(text: str) -> tuple[str, np.ndarray | None]:
    """Return text without control characters, quotes and dashes in ASCII, white space as spaces; and what was kept.

    The second is the position in `text` of every character, or None where none is dropped.
    """
    if text.isascii() and text.isprintable():
        return text, None
    text = "".join([" " if c in "\t\n\r" or unicodedata.category(c) == "Zs" else c for c in text.translate(_ASCII)])
    kept = [place for place, c in enumerate(text) if unicodedata.category(c) not in ("Cc", "Cf")]
    if len(kept) == len(text):
        return text, None
    return "".join([text[place] for place in kept]), np.array(kept, np.int64)


@dataclass(frozen=True)
class Segmentation:
    """One of the published ways.

    Attributes:
        divide: a piece into its parts.
        lone_mark: whether a '▁' that is a piece of its own is kept: "inside" is neither first nor before another '▁'.
        cleans: whether the text is cleaned before the model sees it.
    """

    divide: Callable[[str, Cut], list[str]]
    lone_mark: Literal["never", "inside", "always"]
    cleans: bool


SEGMENTATIONS = {
    "paddlenlp": Segmentation(divided, "never", cleans=False),
    "hf": Segmentation(divided, "inside", cleans=False),
    "ernie_repo": Segmentation(without_comma, "always", cleans=True),
}
DEFAULT = "paddlenlp"


class ErnieMTokenizer:
    """A SentencePiece model and a vocabulary behind the interface of `data.tokenizers.Tokenizer`.

    Args:
        model: the content of the `.model` file.
        vocabulary: tokens by id, the special ones `[CLS] [PAD] [SEP] [UNK] [MASK]` among them.
        segmentation: a key of SEGMENTATIONS.
    """

    def __init__(self, model: bytes, vocabulary: Sequence[str], segmentation: str = DEFAULT):
        if segmentation not in SEGMENTATIONS:
            raise UsageError(f"--segmentation={segmentation}: expected one of {', '.join(SEGMENTATIONS)}")
        self.model, self.vocabulary, self.segmentation = model, tuple(vocabulary), segmentation
        self._processor, self._way = load_processor(model), SEGMENTATIONS[segmentation]
        ids = {token: i for i, token in enumerate(self.vocabulary)}
        if missing := [token for token in SPECIALS if token not in ids]:
            raise UsageError(
                f"the vocabulary of {len(ids)} tokens lacks {', '.join(missing)}; expected ERNIE-M's vocab.txt, a "
                "token a line, with [CLS], [PAD], [SEP], [UNK] and [MASK] among them"
            )
        self.vocab_size = len(self.vocabulary)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[token] for token in SPECIALS)
        self.template = Template.of_roberta(self.cls_id, self.sep_id)
        self.special_ids = frozenset(i for token, i in ids.items() if token in SPECIALS or NOT_TEXT.fullmatch(token))
        # Text that spells a special token is unknown rather than special.
        self._text_ids = {token: i for token, i in ids.items() if i not in self.special_ids}
        settings = "\n".join((f"ernie-m 1 {segmentation}", *self.vocabulary, ""))
        self.fingerprint = hashlib.sha256(settings.encode() + model).hexdigest()
        self._replacement_ids: np.ndarray | None = None
        self._forget()

    @classmethod
    def load(cls, model_file: Path, vocab_file: Path, segmentation: str = DEFAULT) -> ErnieMTokenizer:
        """Load a `.model` file and the vocab.txt that decides its ids; raises `UsageError`."""
        model, vocabulary = check_plain(model_file).read_bytes(), read_numbered_vocabulary(vocab_file)
        try:
            return cls(model, vocabulary, segmentation)
        except UsageError as error:
            raise UsageError(f"{model_file} with {vocab_file}: {error}") from None

    def _forget(self) -> None:
        """Empty the table of pieces: piece -> number, and by number the ids and lengths of its parts."""
        self._number: dict[str, int] = {}
        self._ids: list[int] = []
        self._lengths: list[int] = []
        self._bounds, self._is_marked = [0], list[bool]()
        self._lone = self._learn(MARK)

    def _learn(self, piece: str) -> int:
        """Enter a piece that was not met before; return its number."""
        parts = [MARK] if piece == MARK else self._way.divide(piece, self._cut)
        self._number[piece] = number = len(self._number)
        self._ids += [self._text_ids.get(part, self.unk_id) for part in parts]
        self._lengths += [len(part.removeprefix(MARK)) for part in parts]
        self._bounds.append(len(self._ids))
        self._is_marked.append(piece.startswith(MARK))
        return number

    def _cut(self, text: str) -> list[str]:
        return self._processor.encode(text, return_type=str)

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text, without [CLS] and [SEP]."""
        return self.encode_batch([text]).ids.tolist()

    def encode_batch(self, texts: Sequence[str]) -> Encoding:
        """Encode many texts at once; each distinct piece is divided once.

        Example, paddlenlp: "a 今天1" of the pieces ▁a, ▁, 今天1
            pieces kept    ▁a          今天1        the '▁' alone is dropped
            tokens         ▁a          今 天 1
            starts, ends   0:1         2:3 3:4 4:5
            continuation   F           F T T         today begins a word, by the '▁' that was dropped
        """
        if len(self._number) > _MOST_PIECES:
            self._forget()
        prepared, kept = list(texts), []
        if self._way.cleans:
            pairs = [cleaned(text) for text in texts]
            prepared, kept = [text for text, _ in pairs], [places for _, places in pairs]
        rows = self._processor.encode(prepared, return_type=str, num_threads=1) if prepared else []
        number, learn = self._number, self._learn
        pieces = [piece for row in rows for piece in row]
        numbers = np.fromiter(
            (n if (n := number.get(piece)) is not None else learn(piece) for piece in pieces), np.int64, len(pieces)
        )
        counts = np.fromiter(map(len, rows), np.int64, len(rows))
        starts, ends = self._extents(prepared, rows, counts)
        bounds = np.concatenate([[0], np.cumsum(counts)])
        is_kept, begins = self._marks(numbers, bounds)
        first = np.array(self._bounds, np.int64)
        widths = np.diff(first)[numbers] * is_kept
        at = span_indices(first[numbers], widths)
        ids, lengths = np.array(self._ids, np.int32)[at], np.array(self._lengths, np.int64)[at]
        token_starts, token_ends = _within(starts, ends, widths, lengths)
        is_first = np.zeros(len(ids), bool)
        is_first[(np.cumsum(widths) - widths)[widths > 0]] = True
        splits = np.concatenate([[0], np.cumsum(widths)])[bounds]
        for text, places in enumerate(kept):
            if places is not None:
                own = slice(splits[text], splits[text + 1])
                token_starts[own], token_ends[own] = _original(places, token_starts[own], token_ends[own])
        return Encoding(
            ids=ids,
            splits=splits,
            starts=token_starts.astype(np.int32),
            ends=token_ends.astype(np.int32),
            continuation=~(is_first & np.repeat(begins, widths)),
        )

    def _extents(
        self, prepared: Sequence[str], rows: Sequence[list[str]], counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return start and end of every piece in its text, int64 [P]; the '▁' before a piece has no extent."""
        lengths = np.fromiter((len(piece) for row in rows for piece in row), np.int64, int(counts.sum()))
        marks = np.fromiter((piece[:1] == MARK for row in rows for piece in row), bool, int(counts.sum()))
        total = np.cumsum(lengths)
        places = np.concatenate([[0], np.cumsum(counts)])
        before = np.concatenate([[0], total])[places[:-1]]
        ends = total - np.repeat(before, counts) - 1
        starts = ends - lengths + marks
        for number, (text, row) in enumerate(zip(prepared, rows, strict=True)):
            if row and "".join(row) != MARK + text.replace(" ", MARK):
                found = self._processor.encode(text, return_type="offset_mapping")["offsets"]
                for place, (start, end) in enumerate(found, int(places[number])):
                    while start < end and text[start].isspace():
                        start += 1
                    starts[place], ends[place] = start, end
        return starts, ends

    def _marks(self, numbers: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return bool [P] each: whether a piece is kept, and whether it begins a word by a '▁' that is its own.

        One that was dropped counts as that of the piece behind it.
        """
        lone = numbers == self._lone
        marked = np.array(self._is_marked)[numbers]
        is_first, is_last = np.zeros(len(numbers), bool), np.zeros(len(numbers), bool)
        filled = np.diff(bounds) > 0
        is_first[bounds[:-1][filled]] = is_last[bounds[1:][filled] - 1] = True
        behind_is_marked = np.append(marked[1:], True) | is_last
        stays = {
            "never": np.zeros(len(numbers), bool),
            "inside": ~is_first & ~behind_is_marked,
            "always": np.ones(len(numbers), bool),
        }[self._way.lone_mark]
        dropped = lone & ~stays
        return ~dropped, marked | (np.append(False, dropped[:-1]) & ~is_first)

    @property
    def replacement_ids(self) -> np.ndarray:
        """int32, ascending: ids of the parts of the model's pieces; neither special, nor bytes, nor unused."""
        if self._replacement_ids is None:
            of, found = self._processor, set()
            for i in range(of.get_piece_size()):
                if of.is_control(i) or of.is_unknown(i) or of.is_byte(i) or of.is_unused(i):
                    continue
                piece = of.id_to_piece(i)
                alone = [MARK] if self._way.lone_mark != "never" else []
                found |= {*(alone if piece == MARK else self._way.divide(piece, self._cut))}
            ids = (self._text_ids.get(part) for part in found)
            self._replacement_ids = np.array(sorted(i for i in ids if i is not None), np.int32)
        return self._replacement_ids

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the vocabulary's strings, '▁' included."""
        return [self.vocabulary[i] for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Return tokens as readable text; a space that only a dropped '▁' stood for is not there."""
        return "".join(self.tokens(ids)).replace(MARK, " ").strip()

    def save(self, directory: Path) -> list[Path]:
        """Write the model and the vocabulary, a token a line, under ERNIE-M's names; neither holds the segmentation."""
        model, vocabulary = directory / MODEL_NAME, directory / VOCABULARY_NAME
        write_atomically(model, self.model)
        write_atomically(vocabulary, "".join(f"{token}\n" for token in self.vocabulary).encode())
        return [model, vocabulary]


def _within(
    starts: np.ndarray, ends: np.ndarray, widths: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and ends of the parts of pieces: one after the other by their lengths, inside of their piece.

    The last part ends with its piece, also where normalisation has changed the length.
    """
    total = np.cumsum(lengths)
    first = np.cumsum(widths) - widths
    before = np.concatenate([[0], total])[first]
    piece_ends = np.repeat(ends, widths)
    token_ends = np.repeat(starts - before, widths) + total
    token_starts = np.minimum(token_ends - lengths, piece_ends)
    token_ends = np.minimum(token_ends, piece_ends)
    last = (np.cumsum(widths) - 1)[widths > 0]
    token_ends[last] = np.maximum(ends[widths > 0], token_starts[last])
    return token_starts, token_ends


def _original(places: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return offsets in a text for those in what was kept of it; `places` are the positions of the kept characters."""
    known = np.append(places, places[-1] + 1 if len(places) else 0)
    begin = known[starts]
    return begin, np.where(ends > starts, known[np.maximum(ends, 1) - 1] + 1, begin)
