"""Text of any encoding makes the same documents and shards; what is no text is refused before anything is written."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

import create_pretraining_data
import train_tokenizer
from commands.flags import parse
from data.corpus import Counts, Span, check_inputs, encodings, find_encoding, limits, plan_spans, read_documents
from data.corpus.look import guess_encoding, look
from data.examples import check_text
from data.tfrecord.frames import frame
from data.tokenizers.training import train_wordpiece
from data.tokenizers.wordpiece import vocabulary_bytes

SAMPLES = Path(__file__).parents[2] / "data/samples"
CHINESE = (SAMPLES / "zh/nature.txt").read_text(encoding="utf-8")
ENGLISH = (SAMPLES / "en/nature.txt").read_text(encoding="utf-8")
TRADITIONAL = CHINESE.translate(
    str.maketrans("这来个国说们为时会着过学对里后么没于“”", "這來個國說們為時會著過學對裡後麼沒於「」")
)
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 9
KOREAN = "학교에서 한국어를 공부하고 있습니다. 오늘은 날씨가 좋아서 공원에 갔다.\n" * 9
FRENCH = "L'été, les élèves préfèrent être à la plage où la lumière est très belle.\n" * 9
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастна по-своему.\n" * 9
ENCODED = [
    *((CHINESE, name, name) for name in ("gb18030", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")),
    *((CHINESE, name, name) for name in ("utf-16", "utf-32")),
    (CHINESE[:40], "gbk", "gb18030"),
    (TRADITIONAL, "big5", "big5"),
    (JAPANESE, "shift_jis", "shift_jis"),
    (JAPANESE, "euc_jp", "euc_jp"),
    (JAPANESE, "iso2022_jp", "iso2022_jp"),
    (KOREAN, "euc_kr", "euc_kr"),
    *((text, "utf-7", "utf-7") for text in (CHINESE, TRADITIONAL, JAPANESE, KOREAN)),
    (ENGLISH, "utf-16-le", "utf-16-le"),
    (FRENCH, "latin-1", "cp1252"),
    (RUSSIAN, "cp1251", "cp1251"),
]


@pytest.mark.parametrize(("text", "encoding", "named"), ENCODED, ids=lambda value: str(value)[:12])
def test_another_encoding_is_named_with_its_flag(tmp_path: Path, text: str, encoding: str, named: str):
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode(encoding, "ignore"))
    with pytest.raises(UsageError, match=rf"text\.txt: .* give --encoding={named}, or --accept_bad_text") as caught:
        check_inputs([path], "utf-8", accept=False)
    assert "\n" not in str(caught.value)
    check_inputs([path], "utf-8", accept=True)
    assert look(path, find_encoding(encoding)) == ""


@pytest.mark.parametrize(
    ("text", "encoding", "asked", "said"),
    [
        (CHINESE, "gb18030", "big5", "gb18030"),
        (CHINESE, "gb18030", "cp1252", "gb18030"),
        (CHINESE, "utf-8", "gb18030", "leave --encoding out"),
        (FRENCH, "utf-8", "cp1252", "leave --encoding out"),
        (CHINESE, "utf-16-le", "utf-16", "--encoding=utf-16-le"),
    ],
)
def test_a_wrong_flag_is_refused_too(tmp_path: Path, text: str, encoding: str, asked: str, said: str):
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode(encoding))
    assert said in look(path, asked)


@pytest.mark.parametrize(
    "text", ["", "a", "短。", CHINESE, ENGLISH, FRENCH, KOREAN, "今天天气。\n" * 99 + "\0", "\ufeff一"]
)
def test_text_in_utf8_is_text(tmp_path: Path, text: str):
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    assert look(path, "utf-8") == ""
    path.write_bytes(gzip.compress(text.encode()))
    assert look(path, "utf-8") == ""


def zipped(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "text " * 99)
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("text.txt"))
    return content.getvalue()


def database(path: Path) -> bytes:
    with sqlite3.connect(path / "x.db") as connection:
        connection.execute("create table t (a)")
    connection.close()
    return (path / "x.db").read_bytes()


def array() -> bytes:
    content = io.BytesIO()
    np.save(content, np.arange(9))
    return content.getvalue()


BINARY = {
    "a PDF document": b"%PDF-1.4\n1 0 obj",
    "a Word document": zipped("word/document.xml"),
    "an Excel workbook": zipped("xl/workbook.xml"),
    "a zip archive": zipped("text.txt"),
    "a tar archive": tarred(),
    "a Parquet file": b"PAR1\x15\x04\x15",
    "gzip data": gzip.compress(gzip.compress(CHINESE.encode())),
    "a PNG image": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "a JPEG image": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "a pickle": pickle.dumps({"text": ["一"]}),
    "a NumPy array": array(),
    "a TFRecord file": frame(b"example"),
    "a program": b"\x7fELF\x02\x01\x01\0",
    "no text": np.random.default_rng(0).bytes(5000),
    "it looks like no text": bytes(5000),
}


@pytest.mark.parametrize("name", [*BINARY, "an SQLite database"])
def test_what_is_no_text_is_named(tmp_path: Path, name: str):
    path = tmp_path / "text.txt"
    path.write_bytes(BINARY[name] if name in BINARY else database(tmp_path))
    for encoding in ("utf-8", "gb18030", "cp1252"):
        with pytest.raises(UsageError, match=rf"text\.txt: .*{name}"):
            check_inputs([path], encoding, accept=False)


def test_damage_in_the_middle_of_a_long_file_is_seen(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_bytes(CHINESE.encode() * 20 + CHINESE.encode("gb18030") * 40)
    assert "--encoding=gb18030" in look(path, "utf-8")


@given(st.binary(max_size=300))
def test_any_bytes_have_an_answer(content: bytes):
    assert isinstance(guess_encoding(content), str)


@pytest.mark.parametrize(
    "name", ["base64", "rot13", "zip", "idna", "unicode_escape", "gb18031", "", "a\0b", "undefined"]
)
def test_what_is_no_encoding_is_refused(name: str):
    with pytest.raises(UsageError, match="not an encoding that Python reads"):
        find_encoding(name)


@pytest.mark.parametrize(
    ("name", "found"), [("UTF8", "utf-8"), ("GB18030", "gb18030"), ("Big5", "big5"), ("latin1", "iso8859-1")]
)
def test_encodings_have_the_names_of_python(name: str, found: str):
    assert find_encoding(name) == found


# -- the same text -----------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    ["\n", "\n\n", "\r\n", "字", "丂", "word ", "。", "一二三四五六七八九十" * 5, "\u3000\n", "😀", "ж"]
)


@settings(max_examples=60)
@given(
    st.lists(PIECES, max_size=60).map("".join),
    st.sampled_from(["gb18030", "utf-16", "utf-16-le", "utf-32-be", "utf-7"]),
    st.integers(1, 90),
    st.sampled_from([8, 64, 1 << 20]),
)
def test_spans_and_documents_are_those_of_utf8(tmp_path_factory, text: str, encoding: str, size: int, read_bytes: int):
    plain, other = (tmp_path_factory.getbasetemp() / name for name in ("plain.txt", "other.txt"))
    plain.write_bytes(text.encode())
    other.write_bytes(text.encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "READ_BYTES", read_bytes)
        patch.setattr("data.corpus.encodings._MARGIN_BYTES", 4)
        expected, found = plan_spans([plain], size), plan_spans([other], size, find_encoding(encoding))
        assert [(span.start, span.end) for span in found] == [(span.start, span.end) for span in expected]
        for one, two in zip(expected, found, strict=True):
            counts, others = Counts(), Counts()
            assert list(read_documents(one, counts)) == list(read_documents(two, others))
            assert counts == others


class Counting(io.BytesIO):
    """Counts what is read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        part = super().read(size)
        self.count += len(part)
        return part


@settings(max_examples=60)
@given(
    st.lists(PIECES, min_size=9, max_size=60).map("".join),
    st.sampled_from(["gb18030", "utf-16", "utf-7"]),
    st.floats(0, 1),
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
)
def test_a_stream_is_where_it_was_sought_and_enters_where_it_can(tmp_path_factory, text, encoding, place, shares):
    """Any moves of a stream with any entry: the bytes behind are those of UTF-8, and what lies before is not read."""
    plain, content = text.encode(), text.encode(encoding)
    path = tmp_path_factory.getbasetemp() / "surveyed.txt"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "READ_BYTES", 16)
        # Without its cache: that knows a file by a time, which may be that of the example before.
        entries, size = encodings._survey.__wrapped__(path, len(content), 0, encoding)
        assert size == len(plain)
        entry = entries[round(place * (len(entries) - 1))]
        raw = Counting(content)
        stream = encodings.Utf8Stream(raw, encoding, entry)
        assert stream.seek(entry.text) == entry.text
        assert raw.count == 0, "it was decoded from the beginning"
        for share in shares:
            offset = round(share * size)
            assert stream.seek(offset) == stream.tell() == offset
            part = stream.read(5)
            assert part == plain[offset : offset + len(part)]
            assert part or offset == size
        stream.seek(size // 2)
        assert stream.readall() == plain[size // 2 :]


def test_invalid_sequences_of_an_encoding_are_mended_and_counted(tmp_path: Path):
    path, counts = tmp_path / "text.txt", Counts()
    path.write_bytes("一".encode("gb18030") + b"\x81\x20" + "二\n".encode("gb18030") + b"\x81")
    (document,) = read_documents(Span(path, encoding="gb18030"), counts)
    assert document == ["一\ufffd 二", "\ufffd"]
    assert counts.invalid_sequences == 2


FILES = {
    "corpus.txt": lambda text: text,
    "corpus.jsonl": lambda text: "\n".join(json.dumps({"text": d}, ensure_ascii=False) for d in text.split("\n\n")),
}


def make(folder: Path, *flags: str) -> dict[str, bytes]:
    """Run create_pretraining_data; return the shards that are there then."""
    given = (f"--output_file={folder}/x.tfrecord", f"--vocab_file={folder}/vocab.txt", "--dupe_factor=1")
    options = parse(create_pretraining_data.Options, [*given, *flags])
    create_pretraining_data.main(options)
    return {path.name: path.read_bytes() for path in folder.glob("*.tfrecord")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vocabulary = train_wordpiece([CHINESE], vocab_size=3000, common=False)
    (tmp_path / "vocab.txt").write_bytes(vocabulary_bytes(vocabulary))
    return tmp_path


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_shards_do_not_depend_on_the_encoding(folder: Path, name: str, packed: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("data.examples.SMALLEST_SPAN_BYTES", 4000)
    pack = gzip.compress if packed else bytes
    text, path = FILES[name](CHINESE), folder / name
    path.write_bytes(pack(text.encode()))
    expected = make(folder, f"--input_file={path}", "--num_workers=1")
    for encoding, workers in (("gb18030", 1), ("utf-16", 2)):
        path.write_bytes(pack(text.encode(encoding)))
        found = make(folder, f"--input_file={path}", f"--encoding={encoding}", f"--num_workers={workers}")
        assert found == expected


def test_bad_text_leaves_no_file(folder: Path):
    (folder / "text.txt").write_bytes(CHINESE.encode("gb18030"))
    before = sorted(folder.iterdir())
    with pytest.raises(UsageError, match="give --encoding=gb18030, or --accept_bad_text to read it as it is"):
        make(folder, f"--input_file={folder}/text.txt")
    assert sorted(folder.iterdir()) == before


def test_unknown_tokens_stop_before_anything_has_its_name(folder: Path):
    (folder / "text.txt").write_text(KOREAN * 3, encoding="utf-8")
    with pytest.raises(UsageError, match=r"\d+\.\d% of the tokens are unknown to the vocabulary.*--accept_bad_text"):
        make(folder, f"--input_file={folder}/text.txt", "--num_workers=1")
    assert not [*folder.glob("x*.tfrecord"), *folder.glob("x*.json")]
    assert make(folder, f"--input_file={folder}/text.txt", "--num_workers=1", "--accept_bad_text")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"read_invalid_sequences": 6, "read_bytes": 1000}, r"0\.6% of the bytes are invalid"),
        ({"unknown_tokens": 26, "tokens": 100}, r"26\.0% of the tokens are unknown"),
    ],
)
def test_limits_of_bad_text(counts: dict[str, int], message: str):
    with pytest.raises(UsageError, match=message):
        check_text(counts, accept=False)
    check_text(counts, accept=True)
    check_text({**counts, "read_bytes": 1300, "tokens": 110}, accept=False)
    check_text({}, accept=False)


def test_a_tokenizer_is_learnt_from_any_encoding(tmp_path: Path):
    found = []
    for encoding in ("utf-8", "gb18030"):
        (tmp_path / "text.txt").write_bytes(CHINESE.encode(encoding))
        given = (f"--input_file={tmp_path}/text.txt", f"--output_file={tmp_path}/v.txt", "--vocab_size=3000")
        options = parse(train_tokenizer.Options, [*given, f"--encoding={encoding}", "--common_characters=false"])
        train_tokenizer.main(options)
        found.append((tmp_path / "v.txt").read_bytes())
    assert found[0] == found[1]
    with pytest.raises(UsageError, match="give --encoding=gb18030"):
        train_tokenizer.main(parse(train_tokenizer.Options, list(given)))


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["documents", "pairs"])
def test_a_row_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setattr(limits, "MAX_ROW_BYTES", 100)
    rows = {"documents": '{"text": "%s"}\n', "pairs": "a\t%s\n"}[text]
    path = tmp_path / "rows.jsonl"
    path.write_text(rows % "short" + rows % ("long" * 30))
    with pytest.raises(UsageError, match=r"rows\.jsonl, line 2: longer than 100 bytes"):
        list(read_documents(path, text=text))


@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2", "xz"])
def test_a_bomb_is_told_from_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str):
    import bz2
    import lzma

    import zstandard

    pack = {"gz": gzip.compress, "zst": zstandard.compress, "bz2": bz2.compress, "xz": lzma.compress}[suffix]
    path = tmp_path / f"text.{suffix}"
    path.write_bytes(pack((b"a" * 1000 + b"\n") * 3000))
    assert sum(map(len, read_documents(path))) == 3000
    monkeypatch.setattr(limits, "MIN_BOMB_BYTES", 1 << 20)
    with pytest.raises(UsageError, match=r"compressed bytes made over .*; text shrinks to no less than 1/200"):
        list(read_documents(path))
    path.write_bytes(pack(CHINESE.encode() * 40))
    assert list(read_documents(path))


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_is_told_inside_of_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int):
    """One compressed file is one span: without progress inside of it nothing would move until it ends."""
    from data.writing import local
    from data.writing import workers as of_workers
    from data.writing.output import Output

    monkeypatch.setattr(limits, "READ_BYTES", 1 << 12)
    monkeypatch.setattr(of_workers, "HEARD_SECONDS", 0.001)
    monkeypatch.setattr("data.examples.BLOCK_CHARACTERS", 1000)
    path = folder / "text.txt.gz"
    path.write_bytes(
        gzip.compress("\n\n".join(path.read_text(encoding="utf-8") for path in SAMPLES.glob("*/*.txt")).encode())
    )
    told: list[tuple[str, float, float]] = []
    options = parse(create_pretraining_data.Options, [f"--input_file={path}", "--output_file=x", "--dupe_factor=1"])
    local.create_examples(
        [path],
        Output((folder / "x.tfrecord",)),
        create_pretraining_data.recipe_of(options),
        create_pretraining_data_tokenizer(folder),
        num_workers=workers,
        report=lambda stage, done, total: told.append((stage, done, total)),
        accept_bad_text=True,
    )
    done = [share for stage, share, _ in told if stage == "reading"]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(path.stat().st_size)
    assert len({share for share in done if 0 < share < done[-1]}) >= 2


def create_pretraining_data_tokenizer(folder: Path):
    from data.tokenizers import load_tokenizer

    return load_tokenizer(vocab_file=folder / "vocab.txt")
