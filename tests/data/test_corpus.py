"""Reading raw text: every sentence once however files are divided, packed or damaged; all that is mended is counted."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest
import zstandard
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

from data.corpus import Counts, Span, expand_inputs, limits, plan_spans, read_documents, split_sentences
from data.corpus.compression import open_bytes

DOCUMENTS = [["第一句。", "第二句。"], ["Another document."], ["最后", "一篇"]]
PLAIN = "\n\n".join("\n".join(document) for document in DOCUMENTS).encode()
COMPRESSIONS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_lines(documents: list[list[str]]) -> str:
    return "".join(
        json.dumps({"id": i, "text": "\n".join(d)}, ensure_ascii=False) + "\n" for i, d in enumerate(documents)
    )


def test_plain_text(tmp_path: Path):
    counts = Counts()
    path = write(tmp_path / "a.txt", PLAIN)
    assert list(read_documents(path, counts)) == DOCUMENTS
    characters = sum(len(s) for d in DOCUMENTS for s in d)
    assert counts == Counts(bytes=len(PLAIN), documents=3, sentences=5, characters=characters)
    assert counts.mended() == ""


def test_every_file_begins_a_document(tmp_path: Path):
    first, second = write(tmp_path / "a.txt", PLAIN), write(tmp_path / "b.txt", b"\n\n\xe4\xba\x8c\n")
    assert list(read_documents([first, second])) == [*DOCUMENTS, ["二"]]


def test_line_separators_of_unicode_do_not_end_lines(tmp_path: Path):
    path = write(tmp_path / "a.txt", "一\u2028二\x0b三\x85四\r五\n六")
    assert list(read_documents(path)) == [["一\u2028二\x0b三\x85四\r五", "六"]]


def test_what_is_mended_is_counted(tmp_path: Path):
    path = write(
        tmp_path / "a.txt", b"\xef\xbb\xbf\xe4\xb8\x80\r\n\0\xe4\xba\x8c\0\r\n\0\r\n\xff\xe4\xb8\xef\xbf\xbd\n"
    )
    counts = Counts()
    assert list(read_documents(path, counts)) == [["一", "二"], ["\ufffd\ufffd\ufffd"]]
    assert counts.mended() == "1 byte order marks, 3 crlf lines, 3 nul characters, 2 invalid sequences"


pieces = st.sampled_from(
    ["\n", "\n", "\n\n", "\r\n", " \n", "\u3000\n", "\0\n", "字", "word ", "。", "\ufeff", "b" * 70, "\u3000" * 40]
)
contents = (
    st.lists(pieces | st.binary(max_size=3), max_size=40)
    .map(lambda parts: b"".join(p.encode() if isinstance(p, str) else p for p in parts))
    .filter(lambda content: not content.startswith((b"\x1f\x8b\x08", b"\xff\xfe", b"\xfe\xff")))  # gzip, UTF-16
)


@settings(max_examples=200)
@given(contents, st.integers(1, 60), st.sampled_from([8, 64, 1 << 20]))
def test_any_division_into_spans_yields_the_same(tmp_path_factory, content: bytes, size: int, read_bytes: int):
    path = write(tmp_path_factory.getbasetemp() / "divided.txt", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "READ_BYTES", read_bytes)
        patch.setattr(limits, "MAX_LINE_CHARACTERS", 50)
        patch.setattr(limits, "MAX_DOCUMENT_CHARACTERS", 120)
        whole_counts, sum_of_counts, in_spans = Counts(), Counts(), []
        whole = list(read_documents(path, whole_counts))
        for span in plan_spans([path], size):
            counts = Counts()
            in_spans += read_documents(span, counts)
            sum_of_counts += counts
    assert in_spans == whole
    assert all(sentence == sentence.strip() and 0 < len(sentence) <= 50 for d in whole for sentence in d)
    leading_blank_lines = whole_counts.bytes - sum_of_counts.bytes
    assert leading_blank_lines >= 0
    assert (sum_of_counts.documents, sum_of_counts.characters) == (whole_counts.documents, whole_counts.characters)


@settings(max_examples=100)
@given(st.lists(st.lists(st.text("字a。. ", min_size=1).filter(str.strip), min_size=1), max_size=6), st.integers(1, 80))
def test_any_division_of_json_lines_yields_the_same(tmp_path_factory, documents: list[list[str]], size: int):
    path = write(tmp_path_factory.getbasetemp() / "divided.jsonl", json_lines(documents))
    whole = list(read_documents(path))
    assert [d for span in plan_spans([path], size) for d in read_documents(span)] == whole
    assert [("".join(d)).replace(" ", "") for d in whole] == ["".join(d).replace(" ", "") for d in documents]


def test_spans_depend_on_the_input_only(tmp_path: Path):
    path, packed = write(tmp_path / "a.txt", b"x" * 25), write(tmp_path / "a.gz", gzip.compress(b"x" * 25))
    assert plan_spans([path, packed], 10) == [Span(path, 0, 10), Span(path, 10, 20), Span(path, 20, 25), Span(packed)]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("named", [True, False])
def test_compressed_files_are_told_by_content(tmp_path: Path, suffix: str, named: bool):
    path = tmp_path / ("a.txt" + suffix if named else "a.txt")
    write(path, COMPRESSIONS[suffix](PLAIN) + COMPRESSIONS[suffix]("\n\n末篇".encode()))  # as `cat` joins them
    assert list(read_documents(path)) == [*DOCUMENTS, ["末篇"]]
    rows = write(
        tmp_path / ("a.jsonl" + suffix if named else "rows"), COMPRESSIONS[suffix](json_lines(DOCUMENTS).encode())
    )
    assert list(read_documents(rows)) == DOCUMENTS


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_compressed_files_are_an_error_not_a_short_corpus(tmp_path: Path, suffix: str, damage: str):
    content = "\n".join(str(i * 2654435761 % 2**32) for i in range(5000)).encode()
    packed = bytearray(COMPRESSIONS[suffix](content))
    if damage == "cut":
        del packed[len(packed) // 2 :]
    else:
        packed[len(packed) // 2] ^= 0xFF
        if suffix == ".zst":
            packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(content))
            packed[len(packed) // 2] ^= 0xFF
    path = write(tmp_path / f"a.txt{suffix}", bytes(packed))
    with pytest.raises(UsageError, match=r"a\.txt\.\w+: the compressed file is damaged or cut short"):
        list(read_documents(path))


def test_json_rows_are_split_into_sentences(tmp_path: Path):
    rows = [{"body": '一。二！\nMr. A said: "Go." Then left.'}, {"body": " \n"}, {"body": "\ud83d三\0"}]
    path = write(tmp_path / "rows", "\ufeff" + "\n".join(map(json.dumps, rows)) + "\n\n")
    counts = Counts()
    documents = list(read_documents(path, counts, text_field="body"))
    assert documents == [["一。", "二！", 'Mr. A said: "Go."', "Then left."], ["\ufffd三"]]
    assert counts.mended() == "1 byte order marks, 1 nul characters, 1 invalid sequences, 1 empty documents"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"rows\.jsonl, line 3: not JSON \(.*\); expected one object a line"),
        ("[1]", r"rows\.jsonl, line 3: a JSON list; expected one object a line"),
        (
            '{"txt": 1}',
            r"rows\.jsonl, line 3: no text under 'text' among \['txt'\]; set the field's name with --text_field",
        ),
    ],
)
def test_malformed_rows_are_named_by_line(tmp_path: Path, row: str, message: str):
    path = write(tmp_path / "rows.jsonl", f'{{"text": "一"}}\n{{"text": "二"}}\n{row}\n')
    with pytest.raises(UsageError, match=message):
        list(read_documents(plan_spans([path], 16)))


def test_overlong_lines_and_documents_are_split_and_counted(tmp_path: Path):
    line = "字" * 4000 + "。" + "字" * 5000 + "。" + "word " * 2000
    counts = Counts()
    ((*sentences,),) = read_documents(write(tmp_path / "a.txt", line), counts)
    assert "".join(sentences).replace(" ", "") == line.replace(" ", "")
    assert [len(s) for s in sentences] == [4001, 4096, 905, 4094, 4094, 1809]
    assert counts.mended() == "1 split lines"
    counts = Counts()
    documents = list(read_documents(write(tmp_path / "b.txt", ("字" * 999 + "\n") * 2500), counts))
    assert [len(d) for d in documents] == [1049, 1049, 402]
    assert counts.mended() == "2 split documents"


def test_a_line_of_many_megabytes_is_read_in_bounded_parts(tmp_path: Path):
    line = "字句。" * 500_000
    counts = Counts()
    documents = list(read_documents(write(tmp_path / "a.txt", line + "\n下\n\n末"), counts))
    assert "".join(s for d in documents[:-1] for s in d) == line + "下"
    assert documents[-1] == ["末"]
    assert counts.split_lines == 1
    assert counts.invalid_sequences == 0


@pytest.mark.slow
@given(st.text())
def test_sentence_splitting_loses_only_white_space(text: str):
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("今天好。“你好！”他说。真的？！好", ["今天好。", "“你好！”", "他说。", "真的？！", "好"]),
        ("什么?真的!好……他走了。", ["什么?", "真的!", "好……他走了。"]),
        ("Dr. Smith paid $3.50 to J. K. Lee. Really? Yes!", ["Dr. Smith paid $3.50 to J. K. Lee.", "Really?", "Yes!"]),
        ("It is v. 2.0, i.e. new. See a.b/c?d=1 now.", ["It is v. 2.0, i.e. new.", "See a.b/c?d=1 now."]),
        ("他用Python 3.11。It works. 好。", ["他用Python 3.11。", "It works.", "好。"]),
        ("一\n二。\n\n三", ["一", "二。", "三"]),
    ],
)
def test_sentence_splitting(text: str, sentences: list[str]):
    assert split_sentences(text) == sentences


def test_inputs_expand_to_sorted_files_without_repetition(tmp_path: Path):
    names = ["b.txt", "a.txt", "c.json", ".a.txt.123"]
    b, a, c, _ = [write(tmp_path / name, b"x") for name in names]
    assert expand_inputs(f"{tmp_path}/*.txt, {c},{a}") == [a, b, c]
    assert expand_inputs([f"{tmp_path}/*"]) == [a, b, c]
    bracket = write(tmp_path / "x[1].txt", b"x")
    assert expand_inputs(str(bracket)) == [bracket]
    assert expand_inputs("tfds:wikipedia/20230601.zh") == [Path("tfds:wikipedia/20230601.zh")]


def test_usage_errors_of_inputs(tmp_path: Path):
    with pytest.raises(UsageError, match=r"--input_file=.*/\*\.txt: no file matches; check the path"):
        expand_inputs(f"{tmp_path}/*.txt")
    with pytest.raises(UsageError, match=r"--input_file=.*: a folder; did you mean .*/\*"):
        expand_inputs(str(tmp_path))
    with pytest.raises(UsageError, match=r"--input_file=\.: a folder; did you mean \*"):
        expand_inputs(".")
    with pytest.raises(UsageError, match="no input given; expected files or glob patterns"):
        expand_inputs(" , ")
    path = write(tmp_path / "a.txt", "文".encode("utf-16"))
    with pytest.raises(UsageError, match=r"a\.txt: UTF-16 text; give --encoding=utf-16"):
        list(read_documents(path))
    with pytest.raises(FileNotFoundError):
        list(read_documents(tmp_path / "absent"))


def read_pairs(inputs, counts=None):
    return list(read_documents(inputs, counts, text="pairs"))


def test_parallel_text_is_documents_of_two_sentences(tmp_path: Path):
    counts = Counts()
    lines = "\ufeffone\t一\n\ntwo\t\nthree\t 三\r\n\t四\nfive\t五"
    assert read_pairs(write(tmp_path / "both", lines), counts) == [["one", "一"], ["three", "三"], ["five", "五"]]
    assert (counts.documents, counts.sentences, counts.characters) == (3, 6, 3 + 5 + 4 + 3)
    assert (counts.empty_documents, counts.crlf_lines, counts.byte_order_marks) == (2, 1, 1)
    assert counts.bytes == len(lines.encode())
    packed = write(tmp_path / "both.gz", gzip.compress(lines.encode()))
    assert read_pairs(packed) == read_pairs(tmp_path / "both")


@given(st.lists(st.tuples(st.text("ab文", min_size=1), st.text("cd字", min_size=1))), st.integers(1, 40))
def test_any_division_of_parallel_text_yields_every_pair_once(tmp_path_factory, pairs, span_bytes):
    path = write(tmp_path_factory.mktemp("pairs") / "both", "".join(f"{a}\t{b}\n" for a, b in pairs))
    assert read_pairs(plan_spans([path], span_bytes)) == [[a, b] for a, b in pairs]


@pytest.mark.parametrize(("line", "columns"), [("one", 1), ("a\tb\tc", 3)])
def test_another_number_of_columns_names_file_and_line(tmp_path: Path, line, columns):
    path = write(tmp_path / "both", f"one\t一\ntwo\t二\n{line}\n")
    with pytest.raises(UsageError, match=rf"both, line 3: {columns} column\(s\); expected two, .* with a TAB between"):
        read_pairs(Span(path, 5))


class FakeBuilder:
    """Stands in for a tfds builder: ten articles, the even ones empty."""

    class info:  # noqa: N801
        features = {"text": None, "title": None}  # noqa: RUF012

        class Split:
            num_examples = 10

        splits = {"train": Split, "test": Split}  # noqa: RUF012

    def download_and_prepare(self): ...

    def as_dataset(self, split, shuffle_files):
        assert not shuffle_files
        return [{"text": f"文{i}。终。".encode() if i % 2 else b" "} for i in range(split.start, split.stop)]


def test_tfds_is_read_by_ranges_of_examples(monkeypatch):
    import sys
    import types

    names = []
    instruction = types.SimpleNamespace(ReadInstruction=lambda split, from_, to, unit: slice(from_, to))
    module = types.SimpleNamespace(
        builder=lambda name: names.append(name) or FakeBuilder(), as_numpy=iter, core=instruction
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    path = Path("tfds:wiki/1.zh@test")
    counts = Counts()
    spans = plan_spans([path], 4096)
    assert [(s.start, s.end) for s in spans] == [(0, 4), (4, 8), (8, 10)]
    assert list(read_documents(spans, counts)) == [[f"文{i}。", "终。"] for i in (1, 3, 5, 7, 9)]
    assert counts.empty_documents == 5
    assert set(names) == {"wiki/1.zh"}
    with pytest.raises(UsageError, match="no split 'dev'; choose one of test, train"):
        plan_spans([Path("tfds:wiki@dev")])
    with pytest.raises(UsageError, match="no feature 'body'; set one of text, title with --text_field"):
        list(read_documents(spans, text_field="body"))

    class DatasetNotFoundError(ValueError): ...

    def not_found(name):
        raise DatasetNotFoundError("a thousand names")

    module.builder, module.list_builders = not_found, lambda: ["wikipedia", "imdb"]
    for name, hint in (("wikipedai", "did you mean 'tfds:wikipedia'"), ("qqq", "see tensorflow.org/datasets/catalog")):
        with pytest.raises(UsageError, match=f"tfds:{name}: tensorflow-datasets has no set of this name; {hint}"):
            plan_spans([Path(f"tfds:{name}")])
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UsageError, match="@test needs tensorflow_datasets; pip install tensorflow-datasets"):
        plan_spans([path])


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_what_is_read_of_a_file_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack):
    monkeypatch.setattr(limits, "READ_BYTES", 64)
    text = "\n".join(f"第{number}行 {number * 7919}" for number in range(4000)).encode()
    path, told = write(tmp_path / "text", pack(text)), []
    with open_bytes(path, told.append) as stream:
        assert stream.read() == text
    assert sum(told) == path.stat().st_size
    assert min(told) >= 0
