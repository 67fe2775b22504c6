"""The reader of JSON and TOML: its bounds are met exactly, and a message names the place and shows little of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError

from ground.documents import MAX_BYTES, MAX_DEPTH, as_json, check_shape, json_line, parse_json, read_json, read_toml
from ground.words import did_you_mean, nearest


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_files_of_a_run_are_far_below_the_bounds_and_attacks_above():
    """Published bounds: a change lets other files in, or shuts files out that were written before."""
    assert (MAX_BYTES, MAX_DEPTH) == (64 * 2**20, 64)


@pytest.mark.parametrize("read", [parse_json, lambda text, **names: check_shape(json.loads(text), Any, where="x")])
def test_values_may_be_so_deep_and_no_deeper(read: Any):
    read(nested(MAX_DEPTH), where="x", what="a value")
    with pytest.raises(UsageError, match=f"^x: values lie more than {MAX_DEPTH} deep, expected a few$"):
        read(nested(MAX_DEPTH + 1), where="x", what="a value")


def test_a_file_may_be_so_large_and_no_larger(tmp_path: Path):
    path = tmp_path / "x.json"
    path.write_text('"' + "a" * 98 + '"')
    assert read_json(path, str, what="a text", max_bytes=100) == "a" * 98
    with pytest.raises(UsageError, match=r"x\.json: larger than 0 MiB, the most that a text can have; mend it$"):
        read_json(path, str, what="a text", fix="mend it", max_bytes=99)


@pytest.mark.parametrize("where", ["", "--flag"])
def test_a_message_names_the_file_or_what_stands_for_it(tmp_path: Path, where: str):
    for content in (b"[", b"{}", b"\xff\xfe\0", b"\xff"):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(UsageError) as error:
            read_json(tmp_path / "x.json", list[int], what="a list", where=where)
        assert str(error.value).startswith(f"{where or tmp_path / 'x.json'}: ")
    (tmp_path / "x.toml").write_text("a = 'b'")
    assert read_toml(tmp_path / "x.toml", dict[str, str], what="rows") == {"a": "b"}
    with pytest.raises(UsageError, match=r"x\.toml: \$.* is 'b': expected a whole number|x\.toml: \$"):
        read_toml(tmp_path / "x.toml", dict[str, int], what="rows")


@pytest.mark.parametrize("length", [0, 1, 37, 38, 39, 200])
def test_of_a_wrong_value_little_is_shown(length: int):
    text = ("ab `.[]0" * 25)[:length]
    with pytest.raises(UsageError) as error:
        check_shape([1, text], list[int], where="x")
    shown = repr(text) if len(repr(text)) <= 40 else repr(text)[:40] + "..."
    assert str(error.value) == f"x: $[1] is {shown}: expected a whole number"


@pytest.mark.parametrize("value", [None, True, -(2**53), 2.5, '国"\n', [], [[1], "a"], {"a": {"b": [None]}}], ids=str)
def test_what_is_written_is_read(value: Any):
    text = json.dumps(value)
    assert parse_json(text, where="x", what="a value") == json_line(text) == as_json(value) == value


def test_what_json_does_not_know_is_read_only_where_it_is_asked_for():
    for text, value in (("[Infinity]", [float("inf")]), ("[-Infinity]", [float("-inf")])):
        assert parse_json(text, where="x", what="a list", nonfinite=True) == json_line(text) == value
        with pytest.raises(UsageError, match=r"^x: not a list \("):
            parse_json(text, where="x", what="a list")


def test_a_damaged_text_is_found_by_line_and_column():
    for text in ('{"a": 1,\n "b": x}', b'{"a": 1,\n "b": x}'):
        with pytest.raises(UsageError, match=r"at line 2, column 7\)$"):
            parse_json(text, where="x", what="a value")


def test_half_a_surrogate_pair_is_no_number_and_no_text():
    with pytest.raises(UsageError, match="x: a text is no Unicode"):
        check_shape({"a": "\ud800"}, dict[str, float], where="x")


def test_the_nearest_word_is_the_one_with_the_most_letters_in_common():
    known = ["learning_rate", "train_batch_size", "eval_batch_size"]
    assert nearest("train_batchsize", known) == nearest("train_batchsize", known[::-1]) == "train_batch_size"
    assert nearest("zzz", known) in known
    assert did_you_mean("eval_batch_sise", known) == "; did you mean 'eval_batch_size'?"
    assert did_you_mean("zzz", known) == ""
