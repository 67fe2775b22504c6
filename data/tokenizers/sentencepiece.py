"""SentencePiece (Kudo & Richardson 2018), unigram or BPE, with the id layouts of ALBERT and of XLM-R.

ALBERT's models carry [CLS], [SEP] and [MASK] as pieces, and text is prepared as google-research/albert does before it
reaches the model (white space collapsed, NFKD, accents dropped, lower case). XLM-R's begin with <unk>, <s>, </s> and
are renumbered as fairseq does (<s> 0, <pad> 1, </s> 2, <unk> 3, pieces one up, <mask> last); their text is left as it
is. Unlike the model itself, text that spells a special piece ('[MASK]') does not become one.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl.app import UsageError

from data.tokenizers import Encoding
from data.tokenizers.template import Template
from ground.files import check_plain, write_atomically
from ground.pieces import MARK
from ground.ragged import span_indices

_ALBERT_SPECIALS = ("[CLS]", "[SEP]", "[MASK]")
_XLMR_FIRST = ("<unk>", "<s>", "</s>")
NOT_TEXT = re.compile(r"\[(?:PAD|UNK|CLS|SEP|MASK|unused\d+)\]|<(?:pad|unk|s|/s|mask|cls|sep)>")
_PREPARED_SPACE = 255


def load_processor(model: bytes) -> Any:
    """Return sentencepiece's own processor of the content of a `.model` file; raises `UsageError` for another."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise UsageError("not a SentencePiece model") from error
    return processor


def prepare(text: str, *, do_lower_case: bool) -> str:
    """Return text as ALBERT's models expect it: white space collapsed, NFKD, no combining marks, lower case."""
    text = " ".join(text.split())
    if not text.isascii():
        text = "".join([c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)])
    return text.lower() if do_lower_case else text


class _Layout(NamedTuple):
    """From the model's own ids to those of the published models."""

    pieces: list[str]
    id_of: np.ndarray  # int32, by the model's id
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int


class SentencePieceTokenizer:
    """A SentencePiece model behind the interface of `data.tokenizers.Tokenizer`.

    Attributes:
        model: the content of its file.
        prepares: whether text is prepared before the model sees it (ALBERT's layout).
        id_of: int32, by the model's own id.
        parts: pieces that are never emitted whole -> (model's id, characters) of the parts in their place.
    """

    def __init__(self, model: bytes, *, do_lower_case: bool = True):
        self.model = model
        self._processor = load_processor(model)
        self._own_pieces = [self._processor.id_to_piece(i) for i in range(self._processor.get_piece_size())]
        self.prepares = "[CLS]" in self._own_pieces
        layout = self._albert_layout() if self.prepares else self._xlmr_layout()
        self.vocabulary = tuple(layout.pieces)
        self.vocab_size = len(self.vocabulary)
        _, self.id_of, self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = layout
        template = Template.of_bert if self.prepares else Template.of_roberta
        self.template = template(self.cls_id, self.sep_id)
        self.do_lower_case = do_lower_case
        named = {self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id}
        self.special_ids = frozenset(named | {i for i, p in enumerate(self.vocabulary) if NOT_TEXT.fullmatch(p)})
        settings = f"sentencepiece 1 lower={do_lower_case if self.prepares else 'by the model'}\n"
        self.fingerprint = hashlib.sha256(settings.encode() + model).hexdigest()

        self._is_continuation = np.array([not piece.startswith(MARK) for piece in self.vocabulary])
        self._piece_codes, self._piece_bounds = _concatenate(self._own_pieces)
        self.parts = self._parts_of_pieces()
        self._has_parts = np.zeros(len(self._own_pieces), bool)
        self._has_parts[list(self.parts)] = True
        # By code point, 0 until it is met: 1 + the characters that preparation makes of it, or _PREPARED_SPACE.
        self._prepared_length = np.zeros(0x110000, np.uint8)

    @classmethod
    def load(cls, model_file: Path, *, do_lower_case: bool = True) -> SentencePieceTokenizer:
        """Load a `.model` file; do_lower_case acts on ALBERT's layout only."""
        try:
            return cls(check_plain(model_file).read_bytes(), do_lower_case=do_lower_case)
        except UsageError as error:
            raise UsageError(f"{model_file}: {error}") from None

    def _albert_layout(self) -> _Layout:
        pieces = self._own_pieces
        pad = next((name for name in ("<pad>", "[PAD]") if name in pieces), None)
        missing = [name for name in _ALBERT_SPECIALS if name not in pieces] + ([] if pad else ["<pad>"])
        if missing or pad is None:
            raise UsageError(f"the SentencePiece model lacks {', '.join(missing)}, which ALBERT's layout needs")
        unk = self._processor.unk_id()
        id_of = np.arange(len(pieces), dtype=np.int32)
        return _Layout(pieces, id_of, pieces.index(pad), unk, *map(pieces.index, _ALBERT_SPECIALS))

    def _xlmr_layout(self) -> _Layout:
        if tuple(self._own_pieces[:3]) != _XLMR_FIRST:
            raise UsageError(
                f"the SentencePiece model begins with {', '.join(self._own_pieces[:3])}; expected [CLS], [SEP], [MASK] "
                "among its pieces (ALBERT) or <unk>, <s>, </s> as its first (XLM-R)"
            )
        pieces = ["<s>", "<pad>", "</s>", "<unk>", *self._own_pieces[3:], "<mask>"]
        id_of = np.arange(1, len(self._own_pieces) + 1, dtype=np.int32)
        id_of[:3] = 3, 0, 2
        return _Layout(pieces, id_of, pad_id=1, unk_id=3, cls_id=0, sep_id=2, mask_id=len(pieces) - 1)

    def _parts_of_pieces(self) -> dict[int, list[tuple[int, int]]]:
        """Return the pieces that are never emitted whole -> (model's id, characters) of the parts in their place.

        ALBERT splits the comma off a piece that ends in a digit and a comma; special names are cut after the bracket.
        """
        parts: dict[int, list[tuple[int, int]]] = {}
        for i, piece in enumerate(self._own_pieces):
            if NOT_TEXT.fullmatch(piece) and i != self._processor.unk_id():
                strings = [*self._unmarked(piece[0]), *self._unmarked(piece[1:])]
            elif self.prepares and piece.endswith(",") and piece[-2:-1].isdigit():
                number = piece[:-1].removeprefix(MARK)
                marked = piece.startswith(MARK)
                strings = [
                    *(self._processor.encode(number, return_type=str) if marked else self._unmarked(number)),
                    ",",
                ]
            else:
                continue
            parts[i] = [(self._processor.piece_to_id(string), len(string.removeprefix(MARK))) for string in strings]
        return parts

    def _unmarked(self, text: str) -> list[str]:
        """Return the pieces of a text that begins inside a word."""
        pieces = self._processor.encode(text, return_type=str)
        first = pieces[0].removeprefix(MARK)
        return [first, *pieces[1:]] if first else pieces[1:]

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text, without [CLS] and [SEP]."""
        return self.encode_batch([text]).ids.tolist()

    def encode_batch(self, texts: Sequence[str]) -> Encoding:
        """Encode many texts at once.

        Offsets are counted from the pieces' own lengths where these spell the text, which is nearly everywhere; texts
        that the model's normalisation changes or that hold unknown characters are encoded again with its offsets.
        """
        prepared = [prepare(text, do_lower_case=self.do_lower_case) for text in texts] if self.prepares else list(texts)
        rows = self._processor.encode(prepared, return_type="numpy", num_threads=1)
        counts = np.fromiter(map(len, rows), np.int64, len(rows))
        own_ids = np.concatenate([np.zeros(0, np.int32), *rows])
        starts, ends = self._spelt_offsets(prepared, own_ids, counts)
        if self._has_parts[own_ids].any():
            own_ids, starts, ends, counts = self._divided(own_ids, starts, ends, counts)
        starts, ends = self._original_offsets(texts, prepared, counts, starts, ends)
        ids = self.id_of[own_ids]
        return Encoding(
            ids=ids,
            splits=np.concatenate([[0], np.cumsum(counts)]),
            starts=starts.astype(np.int32),
            ends=ends.astype(np.int32),
            continuation=self._is_continuation[ids],
        )

    def _spelt_offsets(
        self, prepared: list[str], own_ids: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return starts and ends, int64 [N], in characters of the prepared texts; a piece's mark has no extent."""
        marked = [MARK + text.replace(" ", MARK) if text else "" for text in prepared]
        codes, bounds = _concatenate(marked)
        lengths = np.diff(self._piece_bounds)[own_ids]
        splits = np.concatenate([[0], np.cumsum(counts)])
        spelt_ends = np.concatenate([[0], np.cumsum(lengths)])
        matches = np.diff(spelt_ends[splits]) == np.diff(bounds)
        ends = spelt_ends[1:] - np.repeat(spelt_ends[splits[:-1]], counts)
        starts = ends - lengths
        candidate = np.repeat(matches, counts)
        differs = self._piece_codes[span_indices(self._piece_bounds[own_ids[candidate]], lengths[candidate])]
        differs = differs != codes[np.repeat(matches, np.diff(bounds))]
        places = np.repeat(np.flatnonzero(matches), np.diff(bounds)[matches])[differs]
        matches[places] = False
        starts += ~self._is_continuation[self.id_of[own_ids]] - 1
        ends = ends - 1
        for t in np.flatnonzero(~matches).tolist():
            text, a, b = prepared[t], splits[t], splits[t + 1]
            mapping = self._processor.encode(text, return_type="offset_mapping")
            for place, (start, end) in zip(range(a, b), mapping["offsets"], strict=True):
                # In texts whose pieces spell them a mark has no extent either.
                while start < end and (text[start].isspace() or text[start] == MARK):
                    start += 1
                starts[place], ends[place] = start, end
        return starts, ends

    def _divided(
        self, own_ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Replace the pieces that are never emitted whole by their parts."""
        places = np.flatnonzero(self._has_parts[own_ids]).tolist()
        widths = np.ones(len(own_ids), np.int64)
        widths[places] = [len(self.parts[own_ids[place]]) for place in places]
        new_places = np.cumsum(widths) - widths
        new_counts = np.diff(np.concatenate([[0], np.cumsum(widths)])[np.concatenate([[0], np.cumsum(counts)])])
        own_ids, starts, ends, old_ids = *(np.repeat(a, widths) for a in (own_ids, starts, ends)), own_ids
        for place in places:
            new = new_places[place]
            position, end = starts[new], ends[new]
            for part, length in self.parts[old_ids[place]]:
                own_ids[new], starts[new] = part, position
                position = min(position + length, end)
                ends[new] = position
                new += 1
        return own_ids, starts, ends, new_counts

    def _original_offsets(
        self, texts: Sequence[str], prepared: list[str], counts: np.ndarray, starts: np.ndarray, ends: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return offsets in the original texts for offsets in the prepared ones."""
        if not self.prepares:
            return starts, ends
        origins, bases = self._origins(texts)
        token_bases = np.repeat(bases, counts)
        empty = starts >= ends
        origin_of_end = origins[token_bases + np.maximum(ends, 1) - 1] + 1
        text_ends = np.repeat(np.fromiter(map(len, texts), np.int64, len(texts)), counts)
        inside = starts < np.repeat(np.fromiter(map(len, prepared), np.int64, len(prepared)), counts)
        origin_of_start = np.where(inside, origins[np.where(inside, token_bases + starts, 0)], text_ends)
        return origin_of_start, np.where(empty, origin_of_start, origin_of_end)

    def _origins(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the origin of every character of the prepared texts in its text, and the first character of each."""
        codes, bounds = _concatenate(texts)
        lengths = self._prepared_length[codes]
        if not lengths.all():
            for code in np.unique(codes[lengths == 0]).tolist():
                character = chr(code)
                made = prepare(character, do_lower_case=self.do_lower_case)
                self._prepared_length[code] = _PREPARED_SPACE if character.isspace() else 1 + len(made)
            lengths = self._prepared_length[codes]
        text_of = np.repeat(np.arange(len(texts)), np.diff(bounds))
        letters = np.flatnonzero(lengths != _PREPARED_SPACE)
        gaps = (np.diff(letters) > 1) & (text_of[letters[1:]] == text_of[letters[:-1]])
        kept = np.sort(np.concatenate([letters, letters[:-1][gaps] + 1]))
        widths = np.where(lengths[kept] == _PREPARED_SPACE, 1, lengths[kept].astype(np.int64) - 1)
        origins = np.repeat(kept - bounds[text_of[kept]], widths)
        bases = np.concatenate([[0], np.cumsum(widths)])[np.searchsorted(kept, bounds[:-1])]
        return origins, bases

    @property
    def replacement_ids(self) -> np.ndarray:
        """int32, ascending: pieces of text that the model can yield; neither special, nor bytes, nor unused."""
        own = [
            i
            for i in range(len(self._own_pieces))
            if i not in self.parts
            and not (self._processor.is_control(i) or self._processor.is_unknown(i))
            and not (self._processor.is_byte(i) or self._processor.is_unused(i))
        ]
        return np.sort(self.id_of[own])

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the pieces, '▁' included."""
        return [self.vocabulary[i] for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Return pieces as readable text."""
        return "".join(self.tokens(ids)).replace(MARK, " ").strip()

    def save(self, directory: Path) -> list[Path]:
        """Write the model as `spiece.model`, ALBERT's name, which does not hold the casing."""
        path = directory / "spiece.model"
        write_atomically(path, self.model)
        return [path]


def _concatenate(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the code points of all texts, uint32 [N], and where each begins, int64 [T + 1]."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    return codes, np.concatenate([[0], np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))])
