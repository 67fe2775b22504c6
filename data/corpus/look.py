"""A look at files before they are read as text: formats that are no text, and text of another encoding.

What is looked at is decompressed: the first LOOK_BYTES, and of files that are not compressed three places further on. A
file is refused in one line that names what it looks like and the flag that reads it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from absl.app import UsageError

from data.corpus import limits
from data.corpus.compression import compression_of, open_bytes
from data.corpus.encodings import INVALID, UTF8
from data.corpus.parallel import files_of
from data.tfrecord.frames import HEADER_BYTES, masked_crc32c

ACCEPT = "--accept_bad_text"
_FORMATS: tuple[tuple[str, bytes], ...] = (
    ("a PDF document", rb"%PDF-"),
    ("a Word document (docx)", rb"PK\x03\x04(?=.{0,4000}word/)"),
    ("an Excel workbook (xlsx)", rb"PK\x03\x04(?=.{0,4000}xl/)"),
    ("an EPUB book", rb"PK\x03\x04(?=.{0,100}epub)"),
    ("a zip archive", rb"PK(?:\x03\x04|\x05\x06)"),
    ("a tar archive", rb".{257}ustar"),
    ("a Parquet file", rb"PAR1"),
    ("an Arrow file", rb"ARROW1\0|FEA1"),
    ("an ORC file", rb"ORC(?=[\x00-\x08])"),
    ("an Avro file", rb"Obj\x01"),
    ("gzip data", rb"\x1f\x8b\x08"),
    ("xz data", rb"\xfd7zXZ\0"),
    ("bzip2 data", rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    ("zstd data", rb"\x28\xb5\x2f\xfd"),
    ("lz4 data", rb"\x04\x22\x4d\x18"),
    ("a 7z archive", rb"7z\xbc\xaf\x27\x1c"),
    ("a rar archive", rb"Rar!\x1a\x07"),
    ("an old Office document", rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    ("an RTF document", rb"\{\\rtf\d"),
    ("a PNG image", rb"\x89PNG\r\n\x1a\n"),
    ("a JPEG image", rb"\xff\xd8\xff"),
    ("a GIF image", rb"GIF8[79]a"),
    ("a TIFF image", rb"II\*\0|MM\0\*"),
    ("a sound or video file", rb"RIFF.{4}(?:WAVE|AVI |WEBP)|ID3[\x02-\x04]|fLaC|OggS\0|.{4}ftyp|\x1aE\xdf\xa3"),
    ("an SQLite database", rb"SQLite format 3\0"),
    ("a NumPy array", rb"\x93NUMPY"),
    ("an HDF5 file", rb"\x89HDF\r\n\x1a\n"),
    ("a pickle", rb"\x80[\x02-\x05](?=[\x80-\xff}\](c\x00-\x08X])"),
    ("a program", rb"\x7fELF|MZ(?=.{0,300}PE\0\0)"),
)
_MAGIC = re.compile(b"|".join(b"(%s)" % pattern for _, pattern in _FORMATS), re.DOTALL)
# What text of a language is full of, whatever it is about; decoded by a wrong encoding it is rare.
_SIMPLIFIED = (
    "的一是不了人我在有他这中大来上个国和说们为子你地出道也时年得就那要下以生会自着去之过家学对可里后小么心多天而能好都"
    "然没日于起，。、：“”"
)
_TRADITIONAL = (
    "的一是不了人我在有他這中大來上個國和說們為子你地出道也時年得就那要下以生會自著去之過家學對可裡後小麼心多天而能好都"
    "然沒日於起，。、：「」"
)
_KANA = "".join(map(chr, (*range(0x3041, 0x3094), *range(0x30A1, 0x30FB)))) + "、。ー「」"
_HANGUL = (
    "이다는의에을를가은한고하지로기도사서나어리자그시대인아수있해니정보과라만들으일전장여면부었것게성주구제원했스오요"
)
_COMMON = {*" \neta,.", *_SIMPLIFIED, *_TRADITIONAL, *_KANA, *_HANGUL}
_CANDIDATES = (
    ("gb18030", _SIMPLIFIED),
    ("big5", _TRADITIONAL),
    ("gb18030", _TRADITIONAL),
    ("shift_jis", _KANA),
    ("euc_jp", _KANA),
    ("euc_kr", _HANGUL),
)
_SHIFTED = ("iso2022_jp", "iso2022_kr", "iso2022_jp_2")
# A run of letters and digits that is two and a half bytes a character, between the marks of UTF-7.
_UTF_7 = re.compile(rb"\+[A-Za-z0-9+/]{6,}(?![A-Za-z0-9+/=])")
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = re.compile("[\0-\x08\x0e-\x1f\x7f]")
# In the middle of these nothing tells how to read on.
_HEAD_ONLY = ("utf-7", "iso2022", "hz")
_PLAUSIBLE = 0.15
_EVIDENT_CHARACTERS = 8
_GUESS_BYTES = 1 << 14


class _Sample(NamedTuple):
    """Bytes of a file; `whole_begin`: they begin where a character does."""

    content: bytes
    whole_begin: bool


def check_inputs(paths: Iterable[Path], encoding: str, *, accept: bool) -> None:
    """Look at every file; `tfds:` names are left out.

    Args:
        paths: of the inputs.
        encoding: that they are to be read in.
        accept: look at nothing.

    Raises:
        UsageError: a file is no text, or is of another encoding.
    """
    for path in (file for each in paths for file in files_of(each)):
        if not accept and path.is_file() and (wrong := look(path, encoding)):
            raise UsageError(f"{path}: {wrong}, or {ACCEPT} to read it as it is")


def look(path: Path, encoding: str) -> str:
    """Return what is wrong with a file as text, and the way out; empty where nothing is."""
    samples = list(_samples(path, encoding))
    if not samples:
        return ""
    head = samples[0].content
    if found := binary_format(head):
        return f"{found} and not text; expected text: give what it holds as text"
    damages = [_damage(sample, encoding) for sample in samples]
    damage = max(damages)
    guess = ""
    if damage > limits.MAX_INVALID or encoding != UTF8:
        worst = samples[0 if damages[0] > limits.MAX_INVALID else damages.index(damage)]
        guess = _by_mark(head) or guess_encoding(worst.content[:_GUESS_BYTES])
    elif _looks_like_utf_7(head[:_GUESS_BYTES]):
        return "it looks like utf-7: give --encoding=utf-7"
    if damage <= limits.MAX_INVALID and not _evidently_other(head, encoding, guess):
        return ""
    said = f"{damage:.1%} of its bytes are not {encoding}" if damage > limits.MAX_INVALID else f"not {encoding}"
    if guess and guess != encoding:
        flag = "leave --encoding out" if guess == UTF8 else f"give --encoding={guess}"
        return f"{said}, it looks like {guess}: {flag}"
    return f"{said} and it looks like no text: give text, with its --encoding"


def binary_format(head: bytes) -> str:
    """Return what format bytes begin, in words; empty for text, as far as the beginning tells."""
    if (match := _MAGIC.match(head)) and match.lastindex:
        return _FORMATS[match.lastindex - 1][0]
    if len(head) > HEADER_BYTES and int.from_bytes(head[8:12], "little") == masked_crc32c(head[:8]):
        return "a TFRecord file"
    return ""


def _samples(path: Path, encoding: str) -> Iterator[_Sample]:
    """Yield the beginning of a file and, where it can be entered, some places further on."""
    with path.open("rb") as file:
        compressed = bool(compression_of(file))
    head_only = compressed or encoding in ("utf-16", "utf-32") or encoding.startswith(_HEAD_ONLY)
    with open_bytes(path) as stream:
        if head := stream.read(limits.LOOK_BYTES):
            yield _Sample(head, whole_begin=True)
        size = path.stat().st_size
        if head_only or size < 8 * limits.LOOK_BYTES:
            return
        for quarter in (1, 2, 3):
            # Units of UTF-16 and UTF-32 begin at multiples of four; other text is entered behind a line end.
            stream.seek(size * quarter // 4 // 4 * 4)
            content = stream.read(limits.LOOK_BYTES // 4)
            wide = encoding.startswith(("utf-16", "utf-32"))
            line_end = -1 if wide else content.find(b"\n")
            yield _Sample(content[line_end + 1 :], whole_begin=wide or line_end >= 0)


def _damage(sample: _Sample, encoding: str) -> float:
    """Return the share of the bytes that are invalid in an encoding, or control characters that no text has."""
    text, invalid = _decoded(sample.content, encoding)
    # A sample that begins inside of a character may lose it.
    invalid = max(0, invalid - (0 if sample.whole_begin else 2))
    return (invalid + len(_CONTROLS.findall(text))) / max(len(sample.content), 1)


def _decoded(content: bytes, encoding: str) -> tuple[str, int]:
    """Return bytes as text, and how many sequences are invalid; a last character that is cut off is left out."""
    try:
        text = codecs.getincrementaldecoder(encoding)(INVALID).decode(content)
    except UnicodeError:  # UTF-16 whose order neither name nor mark tells
        return "", len(content)
    return text, text.count("\udcff")


def _by_mark(head: bytes) -> str:
    """Return the encoding that a byte-order mark tells; empty without one."""
    return next((name for mark, name in _BOMS if head.startswith(mark)), "")


def guess_encoding(content: bytes) -> str:
    """Return the encoding that bytes look like; empty where there is none that they do."""
    for name in _SHIFTED:
        if b"\x1b$" in content and not _decoded(content, name)[1]:
            return name
    for name in _WIDE:
        if _looks_wide(content, name):
            return name
    if _looks_like_utf_7(content):
        return "utf-7"
    text, invalid = _decoded(content, UTF8)
    if invalid + len(_CONTROLS.findall(text)) <= limits.MAX_INVALID * len(content):
        return UTF8
    score, best = max((_score(content, name, marks), name) for name, marks in _CANDIDATES)
    if score >= _PLAUSIBLE:
        return best
    from charset_normalizer import from_bytes

    found = [each.encoding for each in from_bytes(content) if not _CONTROLS.search(str(each))]
    best = next(iter(found), "ascii")
    # Western and Central Europe's differ in few letters: the commoner one comes first.
    best = "cp1252" if best == "cp1250" and "cp1252" in found else best
    return "" if best in ("utf_8", "ascii") else codecs.lookup(best).name


def _looks_like_utf_7(content: bytes) -> bool:
    """Whether ASCII text is for a good part runs of UTF-7, which make text full of what Chinese is full of."""
    if sum(map(len, _UTF_7.findall(content))) < _PLAUSIBLE * len(content) or not content.isascii():
        return False
    return _score(content, "utf-7", _SIMPLIFIED + _TRADITIONAL + _KANA + _HANGUL) >= _PLAUSIBLE


def _looks_wide(content: bytes, encoding: str) -> bool:
    """Whether bytes are text of two or four bytes a character: line ends and spaces, or Chinese, in their places."""
    unit = 4 if "32" in encoding else 2
    text, invalid = _decoded(content[: len(content) // unit * unit], encoding)
    if len(text) < _EVIDENT_CHARACTERS or invalid + len(_CONTROLS.findall(text)) > limits.MAX_INVALID * len(text):
        return False
    return sum(map(_COMMON.__contains__, text)) >= _PLAUSIBLE * len(text)


def _score(content: bytes, encoding: str, marks: str) -> float:
    """Return the share of `marks` among characters beyond ASCII; 0 where too much is invalid."""
    text, invalid = _decoded(content, encoding)
    beyond = [character for character in text if not character.isascii()]
    if not beyond or invalid > 2 * limits.MAX_INVALID * len(text):
        return 0.0
    return sum(map(set(marks).__contains__, beyond)) / len(beyond)


def _evidently_other(head: bytes, encoding: str, guess: str) -> bool:
    """Whether text that an encoding can read is nevertheless of another: many characters that only that one makes."""
    if not guess or guess == encoding or encoding == UTF8:
        return False
    if guess == UTF8:
        return sum(byte >= 0xC0 for byte in head) >= _EVIDENT_CHARACTERS
    head = head[:_GUESS_BYTES]
    own = max(_score(head, encoding, marks) for _, marks in _CANDIDATES)
    other = max(_score(head, guess, marks) for _, marks in _CANDIDATES)
    return other >= _PLAUSIBLE and own < other / 3
