"""Reading labelled files: with and without header lines, JSON lines, and one clear line for every mistake."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
from absl.app import UsageError

from tasks.datasets import Example, find_file, find_row, load_rows, read_examples
from tasks.kinds import find_kind
from tasks.span_scores import SCORINGS

PAIR = find_row("lcqmc_pair")


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_every_row_is_complete():
    for row in load_rows().values():
        assert row.metric in find_kind(row.kind).metrics
        # A diagnostic set has nothing but a test file; an encoder mines without training.
        wanted = {"dev", "test"} if row.kind == "mining" else {"train", "dev", "test"}
        assert wanted <= set(row.files) or set(row.files) == {"test"}
        if row.kind == "classification":
            assert {"text_a", "label"} <= set(row.columns)
            assert row.find_labels or len(set(row.labels)) == len(row.labels) >= 2
        elif row.kind == "generation":
            assert {"text_a", "target"} <= set(row.columns)
        elif row.kind == "tagging":
            assert {"text_a", "label"} == set(row.columns)
        elif row.kind == "span":
            assert row.scoring in SCORINGS


@pytest.mark.parametrize(
    "head", ["", "sentence1\tsentence2\tlabel\n", "text_a\ttext_b\tlabel\n", "\ufefftext_a\ttext_b\tlabel\r\n"]
)
def test_a_header_line_is_seen_as_what_it_is(tmp_path: Path, head: str):
    path = write(tmp_path / "train.txt", head + "甲\t乙\t1\n丙\t丁\t0")
    assert read_examples(PAIR, path, need_labels=True) == [Example("甲", "乙", "1"), Example("丙", "丁", "0")]


def test_header_names_decide_over_the_order_of_the_row(tmp_path: Path):
    path = write(tmp_path / "train.tsv", "id\tlabel\tquestion1\tquestion2\n7\t1\t甲\t乙\n")
    assert read_examples(PAIR, path, need_labels=True) == [Example("甲", "乙", "1")]


def test_a_first_line_with_a_mistyped_label_is_no_header(tmp_path: Path):
    path = write(tmp_path / "train.txt", "甲\t乙\t7\n丙\t丁\t0\n")
    with pytest.raises(UsageError, match=r"train\.txt:1: .*7"):
        read_examples(PAIR, path, need_labels=True)


def test_a_label_that_is_called_label_is_no_header(tmp_path: Path):
    row = replace(PAIR, labels=("label_0", "label_1"), label_names={})
    path = write(tmp_path / "train.txt", "甲\t乙\tlabel_1\n丙\t丁\tlabel_0\n")
    assert [example.label for example in read_examples(row, path, need_labels=True)] == ["label_1", "label_0"]


def test_sentence_pair_has_its_label_first(tmp_path: Path):
    path = write(tmp_path / "train.tsv", "1\t甲\t乙\n")
    assert read_examples(find_row("sentence_pair"), path, need_labels=True) == [Example("甲", "乙", "1")]


def test_json_lines_and_ignored_labels(tmp_path: Path):
    kept = '{"sentence1": "甲", "sentence2": "乙", "label": "neutral"}\n'
    ignored = '{"sentence1": "丙", "sentence2": "丁", "label": "-"}\n'
    path = write(tmp_path / "dev.json", kept + ignored)
    assert read_examples(find_row("ocnli"), path, need_labels=True) == [Example("甲", "乙", "neutral")]


def test_a_test_file_may_lack_labels_but_a_training_file_may_not(tmp_path: Path):
    path = write(tmp_path / "test.txt", "甲\t乙\n丙\t丁\n")
    assert [example.label for example in read_examples(PAIR, path, need_labels=False)] == [None, None]
    with pytest.raises(UsageError, match=r"test\.txt:1: no label"):
        read_examples(PAIR, path, need_labels=True)


def test_a_line_separator_inside_a_text_does_not_end_it(tmp_path: Path):
    path = write(tmp_path / "train.txt", "甲\u2028甲\t乙\t1\n")
    assert read_examples(PAIR, path, need_labels=True)[0].text_a == "甲\u2028甲"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("甲\t乙\t1\n甲乙\t1\t2\t3\n", r"train\.txt:2: got 4 TAB separated columns, expected text_a, text_b, label"),
        ("甲\t乙\t1\n甲\t乙\t7\n", r"train\.txt:2: label '7' is not a label of lcqmc_pair; expected one of 0, 1"),
        ("甲\t乙\t1\n\t乙\t1\n", r"train\.txt:2: text_a is missing or empty"),
        ("", r"holds no example"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path: Path, content: str, message: str):
    with pytest.raises(UsageError, match=message):
        read_examples(PAIR, write(tmp_path / "train.txt", content), need_labels=True)


def test_text_that_is_no_utf8_or_no_json_is_named(tmp_path: Path):
    (tmp_path / "gbk.txt").write_bytes("甲乙".encode("gbk"))
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_examples(PAIR, tmp_path / "gbk.txt", need_labels=True)
    with pytest.raises(UsageError, match=r"x\.json:1: not a JSON object"):
        read_examples(PAIR, write(tmp_path / "x.json", "{oops\n"), need_labels=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (("甲\t乙\t1\n甲\0\t乙\t1\n" + "甲\t乙\t1\n" * 99).encode(), r"x\.txt:2: a NUL character"),
        (
            "甲\t乙\t1\n".encode() * 99 + b"\xff\t\xe4\xb9\x99\t1\n",
            r"x\.txt:100 is not UTF-8 text \(byte 0 of",
        ),
        ("甲\t乙\t1\n".encode() + b"a" * 2_000_000, r"x\.txt:2: longer than 1,048,576 bytes"),
        ("甲\t乙\t1\n".encode("utf-16-le") * 9, r"x\.txt is not UTF-8 text: .* give --encoding=utf-16-le"),
        ("甲乙的我了是不\t乙\t1\n".encode("gb18030"), r"x\.txt is not UTF-8 text: .* give --encoding=gb18030"),
        (b"%PDF-1.4 \n", r"x\.txt is not UTF-8 text: a PDF document"),
        (b"PK\x03\x04\x14", r"x\.txt is not UTF-8 text: a zip archive"),
    ],
)
def test_files_that_are_no_text_are_one_line(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_examples(PAIR, tmp_path / "x.txt", need_labels=True)
    assert "\n" not in str(caught.value)


def test_files_of_another_encoding(tmp_path: Path):
    lines = "甲\t乙\t1\n丙\t丁\t0\n" * 9
    expected = read_examples(PAIR, write(tmp_path / "x.txt", lines), need_labels=True)
    for encoding in ("gb18030", "utf-16", "utf-8-sig"):
        (tmp_path / "x.txt").write_bytes(lines.encode(encoding))
        row = dataclasses.replace(PAIR, encoding=encoding)
        assert read_examples(row, tmp_path / "x.txt", need_labels=True) == expected


def test_unknown_task_missing_folder_and_missing_file_name_what_was_expected(tmp_path: Path):
    with pytest.raises(UsageError, match="did you mean 'lcqmc_pair'"):
        find_row("lcqmc_pairs")
    with pytest.raises(UsageError, match="is not a folder"):
        find_file(PAIR, tmp_path / "nowhere", "train")
    with pytest.raises(UsageError, match=r"holds none of train\.txt, train\.tsv for train"):
        find_file(PAIR, tmp_path, "train")
    with pytest.raises(UsageError, match="names no file for test: add test to the files of its row"):
        find_file(dataclasses.replace(PAIR, files={"train": ("x",)}), tmp_path, "test")


def test_a_row_of_the_user_s_own(tmp_path: Path):
    row = (
        '[mood]\ncolumns = ["text_a", "label"]\nlabels = ["bad", "good"]\nmetric = "f1"\nfiles = {train = ["t.tsv"]}\n'
    )
    assert find_row("mood", write(tmp_path / "rows.toml", row)).labels == ("bad", "good")
    with pytest.raises(UsageError, match="unknown field 'colums'; did you mean 'columns'"):
        find_row("mood", write(tmp_path / "rows.toml", row.replace("columns", "colums")))


ROW = '[mood]\ncolumns = ["text_a", "label"]\nlabels = ["bad", "good"]\nmetric = "f1"\nfiles = {train = ["t.tsv"]}\n'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('labels = ["bad", "good"]', 'labels = "bad"', r"\$.labels is 'bad': expected a list"),
        ('labels = ["bad", "good"]', "labels = [0, 1]", r"\$.labels\[0\] is 0: expected text"),
        ('"bad", "good"', '"bad", "bad"', "has the label 'bad' twice"),
        ("{train =", "{tarin =", "names files for 'tarin'; known: train, dev, test"),
        ('"text_a", "label"', '"text_a", "text_a"', "has the column 'text_a' twice"),
        ('{train = ["t.tsv"]}', '{train = "t.tsv"}', r"is 't.tsv': expected a list|expected a list"),
        ('{train = ["t.tsv"]}', '["t.tsv"]', r"\$.files is a list: expected an object"),
        ('metric = "f1"', "metric = 1", r"\$.metric is 1: expected text"),
        ('metric = "f1"', 'metric = "f1"\nlabel_names = {x = "y"}', "calls 'x' the label 'y', which is none"),
        ("[mood]", "mood = 1\n[other]", "mood is not a table"),
        ("[mood]", "[mood", "not a TOML file of task rows"),
        ("[mood]", "[mood]\n" + "a." * 100_000 + "a = 1", "a key has more than 64 parts"),
        ("[mood]", "[mood" + ".a" * 100_000 + "]", "a key has more than 64 parts"),
        ("[mood]", "x = " + "[" * 5000, "nested too deeply"),
        ("[mood]", "x = " + "9" * 5000 + "\n[mood]", "thousands of digits"),
    ],
)
def test_a_wrong_row_is_one_line(tmp_path: Path, old: str, new: str, message: str):
    path = write(tmp_path / "rows.toml", ROW.replace(old, new))
    with pytest.raises(UsageError, match=message) as error:
        find_row("mood", path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [ROW.encode("utf-16"), b"\0\1\2" * 50, "x = '甲'".encode("gbk")])
def test_rows_that_are_no_utf8_text_are_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "rows.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"rows.toml: not a TOML file of task rows \(.*UTF-8"):
        find_row("mood", tmp_path / "rows.toml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"sentence1": null, "sentence2": "b", "label": 1}', "text_a is missing or empty"),
        ('{"sentence1": "a", "sentence2": "b", "label": null}', "no label"),
        ('{"sentence1": ["a"], "sentence2": "b", "label": 1}', "sentence1 is .*; expected text or a number"),
        ('{"sentence1": "a", "sentence2": "b", "label": true}', "label is True; expected text or a number"),
        ('{"sentence1": "a", "sentence2": "b", "label": {}}', "label is {}; expected text or a number"),
        ('{"sentence1": ' + "[" * 100_000, "nested too deeply"),
        ('{"sentence1": ' + "9" * 5_000 + "}", "thousands of digits"),
        ("7", "not a JSON object but int"),
        (r'{"sentence1": "a", "sentence2": "b\ud800", "label": 1}', r"sentence2 has \\ud800, half of a character"),
    ],
)
def test_a_wrong_json_line_is_named(tmp_path: Path, line: str, message: str):
    path = write(tmp_path / "train.json", '{"sentence1": "a", "sentence2": "b", "label": 1}\n' + line + "\n")
    with pytest.raises(UsageError, match=rf"train\.json:2: .*{message}") as error:
        read_examples(PAIR, path, need_labels=True)
    assert "\n" not in str(error.value)


def test_a_header_that_names_a_column_twice_is_refused(tmp_path: Path):
    path = write(tmp_path / "train.tsv", "text_a\ttext_a\ttext_b\tlabel\na\tb\tc\t1\n")
    with pytest.raises(UsageError, match="the header names text_a twice"):
        read_examples(PAIR, path, need_labels=True)
