"""Classes of wrong contents: text that is no text, vocabularies, rows of tasks, and bytes that changed on the way."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

from tests.hostile.case import Case, Expectation, change
from tests.hostile.seeds import BASES, NUMBERED, PIECES, TEXT, VOCABULARY

MIB = 2**20


def damaged(random: Random, content: bytes) -> tuple[str, bytes]:
    """Return content of which some bytes were flipped, lost, added or moved."""
    size = len(content)
    begin = int(random.random() * size)
    length = min(random.choice((1, 1, 1, 4, 16, 200)), size - begin)
    end = begin + length
    other = bytes(byte ^ (1 << random.randrange(8)) for byte in content[begin:end])
    noise = random.randbytes(length)
    ways: dict[str, bytes] = {
        "flipped": content[:begin] + other + content[end:],
        "replaced": content[:begin] + noise + content[end:],
        "set to 0": content[:begin] + bytes(length) + content[end:],
        "set to 255": content[:begin] + b"\xff" * length + content[end:],
        "lost": content[:begin] + content[end:],
        "added": content[:begin] + noise + content[begin:],
        "repeated": content[:end] + content[begin:],
    }
    if random.random() < 0.3:
        way, other = random.choice(
            (("cut after", content[:begin]), ("cut before", content[begin:]), ("twice", content * 2), ("emptied", b""))
        )
        return f"{way} ({begin} of {size})", other
    way = random.choice(list(ways))
    return f"{length} bytes at {begin} of {size} {way}", ways[way]


# Files, the calls that read them.
FILES: dict[str, tuple[str, ...]] = {
    "in/records/zh.tfrecord": ("inspect_show_records", "inspect_stats_records", "inspect_verify_records", "pretrain"),
    "in/records/zh.held_out.tfrecord": ("pretrain", "pretrain_from"),
    "in/bare/zh.tfrecord": ("inspect_show_bare", "inspect_stats_bare", "inspect_verify_bare", "pretrain_bare"),
    "in/dynamic/zh.tfrecord": ("pretrain_dynamic", "inspect_stats_dynamic"),
    "in/packed/zh.tfrecord": ("inspect_show_packed",),
    "in/shared/model.safetensors": ("convert_ours", "convert_tf1", "pretrain_from", "convert_from_file"),
    "in/transformers/model.safetensors": ("convert_from_transformers", "list"),
    "in/torch/pytorch_model.bin": ("convert_from_bin",),
    "in/tf1/model.ckpt.index": ("convert_from_tf1", "convert_albert", "classify_from"),
    "in/tf1/model.ckpt.data-00000-of-00001": ("convert_from_tf1", "convert_albert", "classify_from"),
    "in/tf1/checkpoint": ("convert_from_tf1", "convert_albert", "classify_from"),
    "in/shared/state.json": ("convert_ours", "pretrain_from"),
    "in/records/zh.manifest.json": ("pretrain", "inspect_show_records", "inspect_verify_records"),
    "in/vocab.txt": ("create", "classify", "inspect_show_records"),
    "in/spiece.model": ("create_pieces",),
    "in/pieces.txt": ("create_numbered",),
    "in/pieces.model": ("create_numbered",),
    "in/text.txt": ("create", "train_wordpiece", "train_unigram"),
    "in/text.jsonl": ("create_json",),
    "in/pairs/train.txt": ("classify",),
    "in/pairs_json/train.json": ("classify_json",),
    "in/languages/train-en.tsv": ("classify_languages",),
    "in/languages/dev-fr.tsv": ("classify_languages",),
    "in/translations/dev.deu-eng.deu": ("match",),
    "in/table/train.csv": ("classify_table",),
    "in/shared.json": ("plan", "classify"),
    "in/tuned/best/model.safetensors": ("predict", "classify_resumed", "serve"),
    "in/tuned/vocab.txt": ("convert_run", "classify_resumed", "serve"),
    "in/tuned/metrics.jsonl": ("classify_resumed",),
    "in/pretraining/metrics.jsonl": ("pretrain_resumed",),
    "in/pretraining/checkpoints/step_00000002/model.safetensors": ("pretrain_resumed",),
    "in/pretraining/checkpoints/step_00000002/optimizer.safetensors": ("pretrain_resumed",),
}
_REPAIRED = ("in/records/zh.tfrecord", "in/records/zh.held_out.tfrecord")


def bytes_changed(random: Random, seeds: Path) -> Case:
    """A file was damaged."""
    name = random.choice(list(FILES))
    base = BASES[random.choice(FILES[name])]
    if name in _REPAIRED and random.random() < 0.4:
        base = BASES["inspect_repair_records"]
    text, content = damaged(random, (seeds / name).read_bytes())
    return _other_file("bytes", base.name, name, text, content, "either")


def _other_file(
    kind: str, base: str, name: str, text: str, content: bytes | None, expect: Expectation, *names: str
) -> Case:
    path = Path(name)
    also = (path.name, path.parent.name, "records", "--output_dir", "vocab_size", *names)
    return change(BASES[base], kind, f"{name}: {text}", expect, also, files={name: content})


def other_kind(random: Random, seeds: Path) -> Case:
    """In the place of a file lies one of another kind, a folder's, or nothing."""
    name = random.choice(list(FILES))
    base = random.choice(FILES[name])
    other = random.choice([each for each in FILES if Path(each).suffix != Path(name).suffix])
    text, content = random.choice(
        ((f"is {other}", (seeds / other).read_bytes()), ("is gone", None), ("random", random.randbytes(3000)))
    )
    return _other_file("other kind", base, name, text, content, "either", Path(other).name)


# -- text --------------------------------------------------------------------------------------------------------------


def _tar(content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo("text.txt")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def _zip(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        # A date of its own, and not the present one.
        archive.writestr(zipfile.ZipInfo("text.txt"), content, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


@cache
def _bomb() -> bytes:
    """Return 1 GiB of zeros as gzip."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0, compresslevel=9) as packed:
        for _ in range(1024):
            packed.write(bytes(MIB))
    return stream.getvalue()


def _encoded(encoding: str) -> Callable[[str, Random], bytes]:
    return lambda text, random: text.encode(encoding, "ignore")


# Name -> file name, content, what has to be answered.
_TEXTS: dict[str, tuple[str, Callable[[str, Random], bytes], Expectation]] = {
    **{
        encoding: ("text.txt", _encoded(encoding), "refuse")
        for encoding in ("gb18030", "big5", "utf-16-le", "utf-16-be", "utf-32-le", "shift_jis", "euc_kr", "utf-7")
    },
    "utf-16": ("text.txt", _encoded("utf-16"), "either"),
    "utf-8 with a mark": ("text.txt", _encoded("utf-8-sig"), "succeed"),
    "random bytes": ("text.txt", lambda text, random: random.randbytes(20_000), "refuse"),
    "random bytes in lines": ("text.txt", lambda t, r: b"\n".join(r.randbytes(40) for _ in range(500)), "refuse"),
    "a PDF": (
        "text.txt",
        lambda t, r: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<</Filter/FlateDecode>>\nstream\n" + r.randbytes(9000),
        "refuse",
    ),
    "a PNG": ("text.txt", lambda t, r: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + r.randbytes(9000), "refuse"),
    "Parquet": ("text.txt", lambda t, r: b"PAR1" + r.randbytes(9000) + b"PAR1", "refuse"),
    "an ELF file": ("text.txt", lambda t, r: b"\x7fELF\2\1\1" + bytes(9) + r.randbytes(9000), "refuse"),
    "a tar": ("text.txt", lambda t, r: _tar(t.encode()), "refuse"),
    "a tar.gz": ("text.tar.gz", lambda t, r: _gzip(_tar(t.encode())), "refuse"),
    "a zip": ("text.zip", lambda t, r: _zip(t.encode()), "refuse"),
    "a zip called text": ("text.txt", lambda t, r: _zip(t.encode()), "refuse"),
    "gzip": ("text.txt.gz", lambda t, r: _gzip(t.encode()), "succeed"),
    "gzip called text": ("text.txt", lambda t, r: _gzip(t.encode()), "either"),
    "text called gzip": ("text.txt.gz", lambda t, r: t.encode(), "either"),
    "gzip in gzip": ("text.txt.gz", lambda t, r: _gzip(_gzip(t.encode())), "refuse"),
    "gzip cut short": ("text.txt.gz", lambda t, r: _gzip(t.encode())[:-200], "refuse"),
    "gzip and more": ("text.txt.gz", lambda t, r: _gzip(t.encode()) + r.randbytes(99), "either"),
    "a gzip bomb": ("text.txt.gz", lambda t, r: _bomb(), "refuse"),
    "xz cut short": ("text.txt.xz", lambda t, r: lzma.compress(t.encode())[:-200], "refuse"),
    "bz2 cut short": ("text.txt.bz2", lambda t, r: bz2.compress(t.encode())[:-200], "refuse"),
    "zstd that is none": ("text.txt.zst", lambda t, r: t.encode(), "either"),
    "zeros": ("text.txt", lambda t, r: bytes(20_000), "refuse"),
    "one line without a space": ("text.txt", lambda t, r: b"a" * (3 * MIB), "either"),
    "one line of ideographs": ("text.txt", lambda t, r: "好".encode() * MIB, "either"),
    "a line of 60,000 marks": ("text.txt", lambda t, r: t.encode() + b"!" * 60_000 + b"\n", "either"),
    "a line of 300,000 marks": ("text.txt", lambda t, r: t.encode() + "。".encode() * 300_000 + b"\n", "either"),
    "a line of brackets": ("text.txt", lambda t, r: t.encode() + "「」".encode() * 50_000 + b"\n", "either"),
    "a line of accents": ("text.txt", lambda t, r: t.encode() + ("e" + "\u0301" * 100_000).encode(), "either"),
    "CR alone": ("text.txt", lambda t, r: t.replace("\n", "\r").encode(), "either"),
    "CR LF": ("text.txt", lambda t, r: t.replace("\n", "\r\n").encode(), "succeed"),
    "NUL in words": ("text.txt", lambda t, r: t.replace("a", "a\0").encode(), "either"),
    "surrogates": ("text.txt", lambda t, r: t.encode() + b"\xed\xa0\x80" * 50, "either"),
    "spaces": ("text.txt", lambda t, r: b" \t\n" * 5000, "refuse"),
    "emoji": ("text.txt", lambda t, r: "🙂🙃\n\n".encode() * 500, "either"),
    "one word": ("text.txt", lambda t, r: b"word", "either"),
    "latin-1": ("text.txt", lambda t, r: ("Café déjà vu, élève naïf.\n" * 300).encode("latin-1"), "refuse"),
    "a few bytes of latin-1": ("text.txt", lambda t, r: t.encode() + "café\n".encode("latin-1"), "either"),
    "half gb18030": ("text.txt", lambda t, r: t.encode() + t.encode("gb18030"), "refuse"),
    "bytes lost in UTF-8": ("text.txt", lambda t, r: bytes(b for b in t.encode() if r.random() > 0.03), "either"),
}


def text(random: Random, seeds: Path) -> Case:
    """The text is in another encoding, packed otherwise, no text, or of a shape that no text has."""
    base = BASES[
        random.choice(("create", "create", "create_pieces", "create_words", "train_wordpiece", "train_unigram"))
    ]
    name = random.choice(list(_TEXTS))
    file, make, expect = _TEXTS[name]
    content = make((seeds / TEXT).read_text(encoding="utf-8"), random)
    if base.verb == "train_tokenizer" and name in ("emoji", "one word"):
        expect = "either"
    names = (file, "input_file", "text.txt", "UTF", "unknown", "vocab", "objective")
    return change(base, "text", name, expect, names, flags={"input_file": f"in/{file}"}, files={f"in/{file}": content})


_LINES: tuple[tuple[str, str, Expectation], ...] = (
    ("null", "null", "either"),
    ("a number", "3", "either"),
    ("a list", "[]", "either"),
    ("text: null", '{"text": null}', "either"),
    ("text: 3", '{"text": 3}', "either"),
    ("text: a list", '{"text": ["a"]}', "either"),
    ("text: an object", '{"text": {"a": 1}}', "either"),
    ("no text", '{"other": "x"}', "either"),
    ("text twice", '{"text": "a", "text": "b"}', "either"),
    ("not closed", '{"text": "a', "either"),
    ("no JSON", "plain words", "either"),
    ("nested", '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "either"),
    ("nested beside", '{"text": "a b c.", "b": ' + '{"a":' * 100_000 + "1" + "}" * 100_001, "either"),
    ("5,000 digits", '{"text": ' + "9" * 5000 + "}", "either"),
    ("5,000 digits beside", '{"text": "a b c.", "n": ' + "9" * 5000 + "}", "either"),
    ("half a surrogate", '{"text": "a \\ud800 b"}', "either"),
    ("NUL", '{"text": "a \\u0000 b"}', "either"),
    ("NaN", '{"text": NaN}', "either"),
    ("a long text", '{"text": "' + "word " * 400_000 + '"}', "either"),
    ("a BOM", '\ufeff{"text": "a b c."}', "either"),
)


def json_lines(random: Random, seeds: Path) -> Case:
    """Lines of JSON text are of other types, nested, or no JSON."""
    base = BASES["create_json"]
    name, line, expect = random.choice(_LINES)
    lines = (seeds / "in/text.jsonl").read_text(encoding="utf-8").splitlines()
    where = random.choice(("alone", "first", "last", "all"))
    place = {"alone": [line], "first": [line, *lines], "last": [*lines, line], "all": [line] * 20}[where]
    content = "\n".join(place).encode("utf-8", "surrogatepass") + b"\n"
    names = ("text.jsonl", "input_file", "text_field", "line", "documents", "text")
    return change(base, "json lines", f"{name}, {where}", expect, names, files={"in/text.jsonl": content})


# -- vocabularies ------------------------------------------------------------------------------------------------------

_VOCABULARIES: dict[str, tuple[Callable[[list[str], Random], bytes], Expectation]] = {
    "a token twice": (lambda v, r: _lines_of([*v[:200], v[300], *v[201:]]), "refuse"),
    "a special token twice": (lambda v, r: _lines_of([*v[:-1], "[MASK]"]), "refuse"),
    "a blank line inside": (lambda v, r: _lines_of([*v[:200], "", *v[201:]]), "refuse"),
    "blank lines at its end": (lambda v, r: _lines_of([*v, "", "", ""]), "either"),
    "spaces": (lambda v, r: _lines_of([*v[:200], "  ", *v[201:]]), "refuse"),
    "CR at ends": (lambda v, r: "\r\n".join(v).encode() + b"\r\n", "either"),
    "CR alone": (lambda v, r: "\r".join(v).encode(), "either"),
    "tabs with scores": (lambda v, r: _lines_of([f"{t}\t{-i / 10}" for i, t in enumerate(v)]), "refuse"),
    "specials alone": (lambda v, r: _lines_of(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]), "refuse"),
    "no [MASK]": (lambda v, r: _lines_of([t for t in v if t != "[MASK]"]), "refuse"),
    "no [UNK]": (lambda v, r: _lines_of([t for t in v if t != "[UNK]"]), "refuse"),
    "no [CLS]": (lambda v, r: _lines_of([t for t in v if t != "[CLS]"]), "refuse"),
    "no [SEP]": (lambda v, r: _lines_of([t for t in v if t != "[SEP]"]), "refuse"),
    "no [PAD]": (lambda v, r: _lines_of([t for t in v if t != "[PAD]"]), "either"),
    "reversed": (lambda v, r: _lines_of(v[::-1]), "either"),
    "one token fewer": (lambda v, r: _lines_of(v[:-1]), "either"),
    "a BOM": (lambda v, r: b"\xef\xbb\xbf" + _lines_of(v), "either"),
    "UTF-16": (lambda v, r: "\n".join(v).encode("utf-16"), "refuse"),
    "GB 18030": (lambda v, r: "\n".join(v).encode("gb18030"), "refuse"),
    "NUL": (lambda v, r: _lines_of([*v[:200], "a\0", *v[201:]]), "either"),
    "empty": (lambda v, r: b"", "refuse"),
    "one line": (lambda v, r: " ".join(v).encode(), "refuse"),
    "a JSON object": (lambda v, r: json.dumps({t: i for i, t in enumerate(v)}).encode(), "refuse"),
    "JSON lines": (lambda v, r: json.dumps({t: i for i, t in enumerate(v)}, indent=1).encode(), "refuse"),
    "random bytes": (lambda v, r: r.randbytes(5000), "refuse"),
    "a very long token": (lambda v, r: _lines_of([*v[:-1], "x" * 2_000_000]), "either"),
    "sorted": (lambda v, r: _lines_of(sorted(v)), "either"),
    "shouted": (lambda v, r: _lines_of([t.upper() if t.isascii() else t for t in v]), "either"),
}


def _lines_of(tokens: list[str]) -> bytes:
    return "\n".join(tokens).encode() + b"\n"


def vocabulary(random: Random, seeds: Path) -> Case:
    """The vocabulary has tokens twice, blank ones, lacks what is needed, or is none."""
    name = random.choice(list(_VOCABULARIES))
    make, expect = _VOCABULARIES[name]
    tokens = (seeds / VOCABULARY).read_text(encoding="utf-8").split("\n")[:-1]
    base = BASES[random.choice(("create", "create_words", "classify", "inspect_show_records", "convert_from_bin"))]
    content = make(tokens, random)
    if base.verb in ("inspect_records", "convert_checkpoint"):
        expect = "either"
    if base.name == "classify" and expect == "refuse" and name in ("no [MASK]",):
        expect = "either"
    names = ("vocab", "entries", "[UNK]", "unknown", "tokens")
    return change(base, "vocabulary", name, expect, names, files={VOCABULARY: content})


_NUMBERS: dict[str, Callable[[list[str]], list[str]]] = {
    "ids beside": lambda v: [f"{token}\t{i}" for i, token in enumerate(v)],
    "ids backwards": lambda v: [f"{token}\t{len(v) - 1 - i}" for i, token in enumerate(v)],
    "an id twice": lambda v: [f"{token}\t{i // 2 * 2}" for i, token in enumerate(v)],
    "ids from one": lambda v: [f"{token}\t{i + 1}" for i, token in enumerate(v)],
    "an id of twenty digits": lambda v: [f"{v[0]}\t{'9' * 20}", *v[1:]],
    "an id below 0": lambda v: [f"{v[0]}\t-1", *v[1:]],
    "scores": lambda v: [f"{token}\t{-i / 10}" for i, token in enumerate(v)],
    "three columns": lambda v: [f"{token}\t{i}\t0" for i, token in enumerate(v)],
    "a token twice": lambda v: [*v, v[9]],
    "no [MASK]": lambda v: v[:-1],
    "specials alone": lambda v: [*v[:4], v[-1]],
    "one token fewer": lambda v: [*v[:-2], v[-1]],
}


def pieces(random: Random, seeds: Path) -> Case:
    """The SentencePiece model is damaged, or another file; or the list of its pieces has other ids."""
    if random.random() < 0.4:
        way = random.choice(list(_NUMBERS))
        tokens = (seeds / NUMBERED[0]).read_text(encoding="utf-8").split("\n")[:-1]
        names = ("pieces.txt", "vocab_file", "vocab", "text.txt", "entries")
        files = {NUMBERED[0]: _lines_of(_NUMBERS[way](tokens))}
        return change(BASES["create_numbered"], "pieces", f"the list has {way}", "either", names, files=files)
    base = BASES["create_pieces"]
    content = (seeds / PIECES).read_bytes()
    way, other = random.choice(
        (
            damaged(random, content),
            ("a vocabulary", (seeds / VOCABULARY).read_bytes()),
            ("empty", b""),
            ("NUL", bytes(99)),
        )
    )
    names = ("spiece.model", "spm_model_file", "text.txt", "vocab")
    return change(base, "pieces", way, "either", names, files={PIECES: other})


# -- rows of tasks -----------------------------------------------------------------------------------------------------

_CELLS = (
    "",
    " ",
    "2",
    "-1",
    "label",
    "nan",
    "\0",
    '"',
    "é中🙂",
    "x" * 100_000,
    "0.5",
    "None",
    "01",
    "1 ",
    "０",
    "\u202e",
    "\x1b[31m",
)


def rows(random: Random, seeds: Path) -> Case:
    """Rows of a table have other cells, more or fewer of them, other ends, or no shape at all."""
    split = random.choice(("train", "train", "dev", "test"))
    base = BASES[random.choice(("classify", "classify", "classify_from"))]
    name = f"in/pairs/{split}.txt"
    content = (seeds / name).read_bytes()
    lines = content.decode().splitlines()
    number = random.randrange(len(lines))
    cells = lines[number].split("\t")
    choice = random.random()
    expect: Expectation = "either"
    if choice < 0.5:
        column = random.randrange(3)
        cell = random.choice(_CELLS)
        cells[column] = cell
        # With another label than those of the row nothing can be learnt; the label of a test file may be missing.
        if column == 2 and split != "test" and number > 0 and cell not in ("01", "1 ", "label"):
            expect = "refuse"
        way, lines[number] = f"cell {column} of line {number} is {cell[:20]!r}", "\t".join(cells)
    elif choice < 0.75:
        ways: dict[str, str] = {
            "without tabs": " ".join(cells),
            "a column too many": "\t".join([*cells, "x"]),
            "a column too few": "\t".join(cells[:2]),
            "blank": "",
            "tabs alone": "\t\t",
            "quoted": "\t".join(f'"{cell}"' for cell in cells),
            "commas": ",".join(cells),
            "a header": "text_a\ttext_b\tlabel",
            "a header of two names": "text_a\ttext_a\tlabel",
            "an unknown header": "foo\tbar\tbaz",
        }
        way = random.choice(list(ways))
        lines[number if "header" not in way else 0] = ways[way]
        way = f"line {number}: {way}"
    else:
        whole: dict[str, bytes] = {
            "empty": b"",
            "blank": b"\n\n\n",
            "one row": lines[0].encode(),
            "UTF-16": content.decode().encode("utf-16"),
            "GB 18030": content.decode().encode("gb18030"),
            "a BOM": b"\xef\xbb\xbf" + content,
            "CR alone": content.replace(b"\n", b"\r"),
            "random bytes": random.randbytes(3000),
            "gzip": _gzip(content),
            "JSON": b'[{"text_a": "x"}]',
            "no labels": "\n".join("\t".join(line.split("\t")[:2]) for line in lines).encode(),
            "one label": "\n".join("\t".join([*line.split("\t")[:2], "1"]) for line in lines).encode(),
        }
        way = random.choice(list(whole))
        # What is compressed is decompressed.
        if way in ("empty", "blank", "UTF-16", "GB 18030", "random bytes"):
            expect = "refuse" if split == "train" else "either"
        names = (f"{split}.txt", "data_dir", "label")
        return change(base, "rows", f"{name}: {way}", expect, names, files={name: whole[way]})
    names = (f"{split}.txt", "data_dir", "label")
    if split == "test" and "do_predict" not in base.flags:
        expect = "either"
    if split == "dev" and expect == "refuse" and base.name != "classify":
        expect = "either"
    return change(base, "rows", f"{name}: {way}", expect, names, files={name: ("\n".join(lines) + "\n").encode()})


_RECORDS: tuple[tuple[str, str], ...] = (
    ("null", "null"),
    ("a list", "[]"),
    ("a number", "3"),
    ("no label", '{"sentence1": "a", "sentence2": "b"}'),
    ("label null", '{"sentence1": "a", "sentence2": "b", "label": null}'),
    ("label true", '{"sentence1": "a", "sentence2": "b", "label": true}'),
    ("label 1", '{"sentence1": "a", "sentence2": "b", "label": 1}'),
    ("label 1.0", '{"sentence1": "a", "sentence2": "b", "label": 1.0}'),
    ("label 2", '{"sentence1": "a", "sentence2": "b", "label": "2"}'),
    ("label a list", '{"sentence1": "a", "sentence2": "b", "label": ["1"]}'),
    ("text null", '{"sentence1": null, "sentence2": "b", "label": "1"}'),
    ("text a number", '{"sentence1": 3, "sentence2": "b", "label": "1"}'),
    ("text a list", '{"sentence1": ["a"], "sentence2": "b", "label": "1"}'),
    ("text empty", '{"sentence1": "", "sentence2": "", "label": "1"}'),
    ("text missing", '{"sentence2": "b", "label": "1"}'),
    ("unknown keys", '{"a": 1}'),
    ("nested", '{"sentence1": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    ("nested objects", '{"a":' * 100_000 + "1" + "}" * 100_000),
    ("5,000 digits", '{"sentence1": "a", "sentence2": "b", "label": ' + "9" * 5000 + "}"),
    ("half a surrogate", '{"sentence1": "\\ud800", "sentence2": "b", "label": "1"}'),
    ("not closed", '{"sentence1": "a"'),
    ("words", "a\tb\t1"),
    ("NaN", '{"sentence1": "a", "sentence2": "b", "label": NaN}'),
    ("a key twice", '{"sentence1": "a", "sentence1": "c", "sentence2": "b", "label": "1"}'),
)


def json_rows(random: Random, seeds: Path) -> Case:
    """Rows of JSON have values of other types, other keys, or no shape."""
    base = BASES["classify_json"]
    split = random.choice(("train", "dev"))
    name = f"in/pairs_json/{split}.json"
    lines = (seeds / name).read_text(encoding="utf-8").splitlines()
    way, line = random.choice(_RECORDS)
    where = random.choice(("first", "last", "all"))
    lines = {"first": [line, *lines], "last": [*lines, line], "all": [line] * 4}[where]
    wrong = ("null", "a list", "a number", "label 2", "label a list", "text null", "text a list", "text missing")
    also = ("unknown keys", "nested", "nested objects", "5,000 digits", "not closed", "words", "label null", "no label")
    expect: Expectation = "refuse" if way in (*wrong, *also) else "either"
    if split == "dev" and way in ("no label", "label null"):
        expect = "either"
    names = (f"{split}.json", "data_dir", "label")
    content = ("\n".join(lines) + "\n").encode()
    return change(base, "json rows", f"{name}: {way}, {where}", expect, names, files={name: content})
