"""A vocabulary as the tokenizer.json that stock transformers and `tokenizers` read: WordPiece, and two Unigram forms.

WordPiece is BERT's; SentencePiece unigram models are ALBERT's, whose ids are the model's, and XLM-R's, shifted by one.
ERNIE-M's two files have no such form, because no fast tokenizer cuts text as theirs do; they are written as they are.

Written because transformers' own readers lose U+2028, entry 343 of BERT's Chinese vocabulary, and cannot open a
SentencePiece model beside TensorFlow, whose protobuf is older than the one that they expect.
"""

import dataclasses
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from absl.app import UsageError

from ground.documents import check_shape
from ground.files import check_plain

_GIVE = "give --vocab_file"
_VARINT, _BYTES, _FIXED32, _FIXED64 = 0, 2, 5, 1
_UNKNOWN_PIECE = 2
SEGMENTATION = "segmentation"
"""The key of tokenizer_config.json that names the way in which ERNIE-M's tokenizer cuts text."""

_XLMR_FIRST = ("<unk>", "<s>", "</s>")


class _AddedShape(TypedDict):
    content: str
    id: int


class _TokenizerShape(TypedDict):
    model: dict[str, Any]
    added_tokens: NotRequired[list[_AddedShape]]


@dataclasses.dataclass(frozen=True)
class VocabularyForm:
    """A kind of vocabulary file as transformers knows it.

    Args:
        is_sentencepiece: a `.model` file, rather than lines of text.
        file_name: that transformers looks for.
        tokenizer_class: of transformers.
        count: number of ids, from the file's content.
        tokenizer_json: the fast tokenizer, from the content and whether input is lowered.
    """

    is_sentencepiece: bool
    file_name: str
    tokenizer_class: str
    count: Callable[[bytes], int]
    tokenizer_json: Callable[[bytes, bool], str]


@dataclasses.dataclass(frozen=True)
class VocabularyFile:
    """A vocabulary as it was found.

    Args:
        path: where, for messages.
        name: file name, whose suffix tells the kind: `.txt` for WordPiece, `.model` for SentencePiece.
        content: bytes.
        ids: the vocab.txt that decides the ids of a SentencePiece model, where one does (ERNIE-M).
        segmentation: how that tokenizer cuts text, a key of `data.tokenizers.ernie_m.SEGMENTATIONS`.
    """

    path: Path
    name: str
    content: bytes
    ids: "VocabularyFile | None" = None
    segmentation: str = ""

    @classmethod
    def read(cls, path: Path) -> "VocabularyFile":
        """Return the file at `path`."""
        return cls(path, path.name, check_plain(path).read_bytes())

    @property
    def paths(self) -> list[Path]:
        """The file, and the one that decides its ids."""
        return [self.path, *(self.ids.paths if self.ids else ())]


def wordpiece_of_json(tokenizer: Mapping[str, Any], path: Path) -> bytes:
    """Return the vocab.txt of a WordPiece tokenizer.json; raise `UsageError` for another kind, or ids with gaps."""
    shape = check_shape(tokenizer, _TokenizerShape, where=str(path), fix=_GIVE)
    model = shape["model"]
    if model["type"] != "WordPiece":
        raise UsageError(f"{path} is a tokenizer of the kind {model['type']}, whose file cannot be made of it; {_GIVE}")
    vocabulary = check_shape(model.get("vocab"), dict[str, int], where=f"model.vocab of {path}", fix=_GIVE)
    ids = vocabulary | {token["content"]: token["id"] for token in shape.get("added_tokens", [])}
    entries = sorted(ids, key=lambda entry: ids[entry])
    if sorted(ids.values()) != list(range(len(ids))) or any("\n" in entry for entry in entries):
        raise UsageError(f"{path} has ids with gaps, or entries of several lines: no vocab.txt says the same; {_GIVE}")
    return "".join(f"{entry}\n" for entry in entries).encode()


def wordpiece_json(vocabulary: bytes, do_lower_case: bool) -> str:
    """Return tokenizer.json of a WordPiece file, split on line feeds; raise `UsageError` for a double entry."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece

    entries = wordpiece_entries(vocabulary)
    ids = {entry: i for i, entry in enumerate(entries)}
    if len(ids) != len(entries):
        double = next(entry for i, entry in enumerate(entries) if ids[entry] != i)
        raise UsageError(f"the vocabulary has {double!r} twice; every entry needs an id of its own")
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=200))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=do_lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return _with_specials(tokenizer, ids, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))


def wordpiece_entries(vocabulary: bytes) -> list[str]:
    """Return entries by id; only line feeds separate them. Raises `UsageError` for bytes that are no UTF-8."""
    try:
        return vocabulary.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"vocab.txt is no UTF-8 text (byte {error.start:,}): take the file that the model was trained with"
        ) from None


def unigram_json(model: bytes, do_lower_case: bool) -> str:
    """Return tokenizer.json of a unigram model with ALBERT's normalisation; raise `UsageError` for another."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import Unigram

    pieces, charsmap = sentencepiece_pieces(model)
    unknown = [i for i, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN_PIECE]
    if len(unknown) != 1:
        raise UsageError(f"not a SentencePiece model with one unknown piece: {len(unknown)} among {len(pieces)} pieces")
    tokenizer = Tokenizer(Unigram([(piece, score) for piece, score, _ in pieces], unk_id=unknown[0]))
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    steps += [normalizers.NFKD(), normalizers.StripAccents()]
    steps += [normalizers.Lowercase()] if do_lower_case else []
    steps += [normalizers.Precompiled(charsmap)] if charsmap else []
    tokenizer.normalizer = normalizers.Sequence(steps)
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    ids = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    return _with_specials(tokenizer, ids, ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"))


def xlmr_json(model: bytes, do_lower_case: bool) -> str:
    """Return tokenizer.json of XLM-R's unigram model; raise `UsageError` for another.

    Ids are <s> 0, <pad> 1, </s> 2, <unk> 3, then the model's pieces after its first three, and <mask> the last. Input
    is never lowered.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import Unigram

    pieces, charsmap = sentencepiece_pieces(model)
    if tuple(piece for piece, _, _ in pieces[:3]) != _XLMR_FIRST:
        raise UsageError(f"not XLM-R's SentencePiece model, whose first pieces are {', '.join(_XLMR_FIRST)}")
    entries = [(special, 0.0) for special in ("<s>", "<pad>", "</s>", "<unk>")]
    entries += [(piece, score) for piece, score, _ in pieces[3:]] + [("<mask>", 0.0)]
    tokenizer = Tokenizer(Unigram(entries, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap)] if charsmap else [])
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    ids = {piece: i for i, (piece, _) in enumerate(entries)}
    return _with_specials(
        tokenizer, ids, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<s>:0 $A:0 </s>:0", "</s>:0 $B:0 </s>:0"
    )


def sentencepiece_pieces(model: bytes) -> tuple[list[tuple[str, float, int]], bytes]:
    """Return (piece, score, type) by id and the compiled normalisation of a serialised SentencePiece ModelProto."""
    pieces, charsmap = [], b""
    try:
        for field, value in _fields(model):
            if field == 1:
                piece = dict(_fields(value))
                pieces.append((piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0], piece.get(3, 1)))
            elif field == 3:
                charsmap = dict(_fields(value)).get(2, b"")
    except (IndexError, KeyError, ValueError, struct.error, TypeError) as error:
        raise UsageError("not a SentencePiece model; expected the .model file that its trainer wrote") from error
    return pieces, charsmap


def _with_specials(
    tokenizer: Any,
    ids: dict[str, int],
    specials: tuple[str, ...],
    single: str = "[CLS]:0 $A:0 [SEP]:0",
    second: str = "$B:1 [SEP]:1",
) -> str:
    """Return the tokenizer as JSON, with the templates of one text and of the `second` one behind it."""
    from tokenizers import AddedToken, processors

    around = [special for special in specials if f"{special}:" in single]
    absent = [special for special in around if special not in ids]
    if absent:
        raise UsageError(f"the vocabulary lacks {' and '.join(absent)}, which every input begins and ends with")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} {second}", special_tokens=[(special, ids[special]) for special in around]
    )
    tokenizer.add_special_tokens([AddedToken(special, special=True) for special in specials if special in ids])
    return tokenizer.to_str(pretty=False)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a protobuf message: an int for varints, else bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == _VARINT:
            value, position = _varint(message, position)
        elif kind in (_BYTES, _FIXED32, _FIXED64):
            size = {_FIXED32: 4, _FIXED64: 8}.get(kind)
            if size is None:
                size, position = _varint(message, position)
            value, position = message[position : position + size], position + size
            if position > len(message):
                raise ValueError("truncated")
        else:
            raise ValueError(f"wire type {kind}")
        yield key >> 3, value


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _pieces_count(model: bytes) -> int:
    return len(sentencepiece_pieces(model)[0])


def ernie_m_files(file: VocabularyFile, vocab_size: int) -> dict[str, bytes]:
    """Return contents by file name of ERNIE-M's tokenizer; raise `UsageError` for another number of tokens.

    transformers 4 opens them; its class is named, so that one without it says so rather than cut text in another way.
    """
    assert file.ids is not None
    sentencepiece_pieces(file.content)
    if (count := len(wordpiece_entries(file.ids.content))) != vocab_size:
        raise UsageError(f"{count} entries, the config says {vocab_size}")
    described = {"tokenizer_class": "ErnieMTokenizer", "do_lower_case": False, SEGMENTATION: file.segmentation}
    return {
        "sentencepiece.bpe.model": file.content,
        "vocab.txt": file.ids.content,
        "tokenizer_config.json": (json.dumps(described, indent=2) + "\n").encode(),
    }


WORDPIECE = VocabularyForm(
    False, "vocab.txt", "BertTokenizer", lambda text: len(wordpiece_entries(text)), wordpiece_json
)
ALBERT_PIECES = VocabularyForm(True, "spiece.model", "AlbertTokenizer", _pieces_count, unigram_json)
XLMR_PIECES = VocabularyForm(
    True, "sentencepiece.bpe.model", "XLMRobertaTokenizer", lambda model: _pieces_count(model) + 2, xlmr_json
)
