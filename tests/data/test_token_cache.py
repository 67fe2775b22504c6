"""Laws of kept tokens: those made anew, whatever lies on the disk; nothing that decides them is left out of the key."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

from data import token_cache
from data.labelled import encode_examples
from data.token_cache import encoding_of, ids_of, key_of, told
from data.tokenizers import Encoding
from data.tokenizers.sentencepiece import SentencePieceTokenizer
from data.tokenizers.training import train_sentencepiece
from data.tokenizers.wordpiece import WordPieceTokenizer
from data.windows import encode_windows

ROOT = Path(__file__).resolve().parents[2]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*"今天气很好中国ab", "the", "##re", "year"]
WORDPIECE = WordPieceTokenizer([*SPECIALS, *WORDS])
TEXTS = ["今天 the year", "", "There中国", "\ud83d b"]
texts = st.lists(st.text(st.sampled_from("今天中国 abTthery\ud83d\ude00\U0001f600\u0301")), max_size=6)


@pytest.fixture(scope="module")
def sentencepiece() -> SentencePieceTokenizer:
    lines = (ROOT / "data/samples/zh/nature.txt").read_text(encoding="utf-8").splitlines()[:60]
    return SentencePieceTokenizer(
        train_sentencepiece(lines, vocab_size=900, model_type="bpe", layout="albert", character_coverage=0.98)
    )


@pytest.fixture(autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of a cache that keeps whatever it is given."""
    root = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIVAN_CACHE", str(root))
        patch.delenv("DIVAN_TOKEN_CACHE", raising=False)
        patch.setattr(token_cache, "LEAST_CHARACTERS", 0)
        patch.setattr(token_cache, "LEAST_SECONDS", 0.0)
        told()
        yield root / "tokens"


class Counting:
    """A tokenizer that counts how often it is called."""

    def __init__(self, tokenizer: Any = WORDPIECE, fingerprint: str | None = None, vocab_size: int | None = None):
        self.tokenizer, self.calls = tokenizer, 0
        self.template = tokenizer.template
        self.fingerprint = fingerprint or tokenizer.fingerprint
        self.vocab_size = vocab_size or tokenizer.vocab_size

    def encode_batch(self, texts) -> Encoding:
        self.calls += 1
        return self.tokenizer.encode_batch(texts)


def counting(*args: Any, **further: Any) -> Any:
    return Counting(*args, **further)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def check_equal(found: Encoding, expected: Encoding) -> None:
    for field in fields(Encoding):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        assert a.dtype == b.dtype, field.name
        assert np.array_equal(a, b), field.name
        assert a.flags.writeable


@given(texts)
@settings(max_examples=60)
def test_tokens_are_those_made_anew(given_texts):
    tokenizer = counting()
    expected = WORDPIECE.encode_batch(given_texts)
    for _ in range(2):
        ids, splits = ids_of(given_texts, tokenizer)
        assert (ids.dtype, splits.dtype) == (np.int32, np.int64)
        assert (ids.tolist(), splits.tolist()) == (expected.ids.tolist(), expected.splits.tolist())
        check_equal(encoding_of(given_texts, tokenizer), expected)
    assert tokenizer.calls <= 2  # once for ids, once with offsets, and not at all for texts of a former example


def test_sentencepiece_is_asked_once(sentencepiece: SentencePieceTokenizer):
    tokenizer = counting(sentencepiece)
    lines = (ROOT / "data/samples/zh/nature.txt").read_text(encoding="utf-8").splitlines()[:50]
    expected = sentencepiece.encode_batch(lines)
    for _ in range(3):
        check_equal(encoding_of(lines, tokenizer), expected)
    assert tokenizer.calls == 1


def test_examples_and_windows_are_the_same_from_the_cache(folder: Path):
    def made(tokenizer: Any):
        pairs = encode_examples(TEXTS, TEXTS[::-1], [0] * 4, tokenizer, 9)
        windows = encode_windows(TEXTS, [text * 9 for text in TEXTS], tokenizer, 12)
        arrays = [pairs.ids, pairs.segments, pairs.splits, windows.rows.ids, windows.rows.splits, windows.first]
        return [array.tolist() for array in [*arrays, windows.encoding.starts, windows.encoding.ends]]

    first, second, bare = counting(), counting(), made(WORDPIECE)
    assert told() == f"tokens of 4 texts from the cache {folder}"  # the questions are the first texts of the pairs
    shutil.rmtree(folder)
    assert made(first) == made(second) == bare
    assert (first.calls, second.calls) == (3, 0)
    assert told() == f"tokens of 20 texts from the cache {folder}"
    assert told() == ""


@given(texts, texts)
def test_other_texts_have_another_key(one, other):
    assert (key_of(one, WORDPIECE) == key_of(other, WORDPIECE)) == (one == other)


@given(st.lists(st.text(), min_size=1), st.data())
def test_texts_that_are_cut_elsewhere_have_another_key(given_texts, data):
    joined = "".join(given_texts)
    place = data.draw(st.integers(0, len(joined)))
    other = [joined[:place], joined[place:]]
    assert (key_of(given_texts, WORDPIECE) == key_of(other, WORDPIECE)) == (given_texts == other)


def test_many_texts_are_hashed_in_blocks_that_do_not_look_alike(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_cache, "_BLOCK_TEXTS", 2)
    lists = [
        ["a", "b", "c"],
        ["a", "b", "c", ""],
        ["a", "bc", ""],
        ["a", "b", "", "c"],
        ["", "a", "b", "c"],
        ["ab", "c"],
    ]
    assert len({key_of(each, WORDPIECE) for each in lists}) == len(lists)


def test_whatever_decides_tokens_changes_the_key(sentencepiece: SentencePieceTokenizer, monkeypatch):
    tokenizers = [
        WORDPIECE,
        WordPieceTokenizer(WORDPIECE.vocabulary, do_lower_case=False),
        WordPieceTokenizer([*WORDPIECE.vocabulary, "x"]),
        WordPieceTokenizer([*SPECIALS, *reversed(WORDS)]),
        sentencepiece,
        SentencePieceTokenizer(sentencepiece.model, do_lower_case=False),
        counting(fingerprint="another version"),
        counting(vocab_size=99),
        counting(fingerprint="version 1", vocab_size=23),
        counting(fingerprint="version 12", vocab_size=3),
    ]
    keys = {key_of(TEXTS, tokenizer) for tokenizer in tokenizers}
    keys.add(key_of(TEXTS, WORDPIECE, ("splits", "ids", "starts")))
    assert len(keys) == len(tokenizers) + 1
    assert key_of(TEXTS, WordPieceTokenizer(WORDPIECE.vocabulary)) in keys
    monkeypatch.setattr(token_cache, "_SURROUNDINGS", b"another library")
    assert key_of(TEXTS, WORDPIECE) not in keys


def test_code_library_and_tables_are_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "tokenizer.py"
    source.write_text("a = 1")
    seen = {token_cache._surroundings([source])}
    source.write_text("a = 2")
    seen.add(token_cache._surroundings([source]))
    source = source.rename(tmp_path / "other.py")
    seen.add(token_cache._surroundings([source]))
    assert len(seen) == 3
    assert token_cache._surroundings([source]) in seen
    for owner, name, value in (
        (token_cache, "FORMAT", "next"),
        (token_cache.importlib.metadata, "version", lambda name: "99"),
        (token_cache, "unicodedata", SimpleNamespace(unidata_version="99")),
        (token_cache, "sys", SimpleNamespace(byteorder="middle")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert token_cache._surroundings([source]) not in seen, name


@given(st.data())
@settings(max_examples=60)
def test_bytes_that_are_not_what_was_written_are_never_believed(data):
    tokenizer = counting()
    expected = WORDPIECE.encode_batch(TEXTS)
    encoding_of(TEXTS, tokenizer)
    path = token_cache._folder() / key_of(TEXTS, WORDPIECE, tuple(token_cache._TYPES))  # pyright: ignore
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    damage = data.draw(st.sampled_from(["flip", "cut", "drop", "add", "random"]))
    damaged = {
        "flip": content[:place] + bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))]) + content[place + 1 :],
        "cut": content[:place],
        "drop": content[:place] + content[place + 1 :],
        "add": content + data.draw(st.binary(min_size=1, max_size=40)),
        "random": data.draw(st.binary(max_size=2 * len(content)).filter(lambda other: other != content)),
    }[damage]
    path.write_bytes(damaged)
    before = tokenizer.calls
    check_equal(encoding_of(TEXTS, tokenizer), expected)
    assert tokenizer.calls == before + 1
    assert path.read_bytes() == content  # and it is mended
    check_equal(encoding_of(TEXTS, tokenizer), expected)
    assert tokenizer.calls == before + 1


def test_tokens_of_other_texts_under_this_name_are_not_believed(folder: Path):
    one, other = ["今天", "中国"], ["中国", "今天"]
    ids_of(other, WORDPIECE)
    files(folder)[0].rename(folder / key_of(one, WORDPIECE))
    assert ids_of(one, WORDPIECE)[0].tolist() == WORDPIECE.encode_batch(one).ids.tolist()


WRONG = {
    "ids": [("ids", 0, -1), ("ids", 0, WORDPIECE.vocab_size)],
    "splits": [("splits", 0, 1), ("splits", 1, 99), ("splits", 1, -1), ("splits", -1, 2), ("splits", -1, 2**40)],
    "offsets": [("starts", 0, -1), ("starts", 0, 9), ("ends", 0, -3)],
}


@pytest.mark.parametrize("what", WRONG)
def test_values_that_no_tokenizer_gives_are_not_believed_with_a_right_digest(what: str, folder: Path):
    for name, place, value in WRONG[what]:
        encoding = WORDPIECE.encode_batch(TEXTS)
        expected = WORDPIECE.encode_batch(TEXTS)
        getattr(encoding, name)[place] = value
        path = folder / key_of(TEXTS, WORDPIECE, tuple(token_cache._TYPES))
        token_cache._write(path, {name: getattr(encoding, name) for name in token_cache._TYPES})
        written = path.read_bytes()
        check_equal(encoding_of(TEXTS, WORDPIECE), expected)
        assert path.read_bytes() != written, (name, place, value)


def test_a_byte_that_is_no_truth_value_is_not_believed(folder: Path):
    tokenizer = counting()
    encoding_of(TEXTS, tokenizer)
    path = files(folder)[0]
    content = path.read_bytes()[32:-1] + b"\x02"
    path.write_bytes(hashlib.sha256(path.name.encode() + content).digest() + content)
    check_equal(encoding_of(TEXTS, tokenizer), WORDPIECE.encode_batch(TEXTS))
    assert tokenizer.calls == 2


@pytest.mark.parametrize("what", ["folder", "pipe", "link", "link_to_nothing"])
def test_what_is_no_file_is_neither_read_nor_waited_for(what: str, folder: Path, tmp_path: Path):
    expected = WORDPIECE.encode_batch(TEXTS)
    ids_of(TEXTS, WORDPIECE)
    path = files(folder)[0]
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    content = elsewhere.read_bytes()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(elsewhere if what == "link" else tmp_path / "nothing")
    tokenizer = counting()
    assert ids_of(TEXTS, tokenizer)[0].tolist() == expected.ids.tolist()
    assert tokenizer.calls == 1
    assert elsewhere.read_bytes() == content


def full(*args: object, **further: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("trouble", ["file in the way", "root in the way", "no home", "full", "almost full", "no room"])
def test_a_disk_that_refuses_means_no_cache_and_no_error(
    trouble: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    if trouble == "file in the way":
        folder.write_text("")
    elif trouble == "root in the way":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("DIVAN_CACHE", str(tmp_path / "file"))
    elif trouble == "no home":

        def refuse() -> None:
            raise UsageError("no home folder")

        monkeypatch.setattr(token_cache.cache, "root", refuse)
    elif trouble == "full":
        monkeypatch.setattr(token_cache, "write_atomically", full)
    elif trouble == "almost full":
        monkeypatch.setattr(token_cache.cache, "room", lambda folder: 50)
    else:
        monkeypatch.setattr(token_cache, "MOST_BYTES", 50)
    tokenizer = counting()
    for _ in range(2):
        assert ids_of(TEXTS, tokenizer)[0].tolist() == WORDPIECE.encode_batch(TEXTS).ids.tolist()
    assert tokenizer.calls == 2
    assert not files(folder)
    assert told() == ""


def test_a_file_that_may_not_be_read_or_touched_is_done_without(folder: Path, monkeypatch: pytest.MonkeyPatch):
    ids_of(TEXTS, WORDPIECE)
    tokenizer = counting()
    with monkeypatch.context() as patch:
        patch.setattr(token_cache.os, "utime", full)
        ids_of(TEXTS, tokenizer)
        assert tokenizer.calls == 0
        patch.setattr(token_cache.Path, "open", full)
        ids_of(TEXTS, tokenizer)
        assert tokenizer.calls == 1


def test_small_sets_and_quick_ones_leave_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_cache, "LEAST_SECONDS", 3600)
    ids_of(TEXTS, WORDPIECE)
    assert not folder.exists()
    monkeypatch.setattr(token_cache, "LEAST_SECONDS", 0)
    characters = sum(map(len, TEXTS))
    monkeypatch.setattr(token_cache, "LEAST_CHARACTERS", characters + 1)
    monkeypatch.setattr(token_cache, "_read", full)
    ids_of(TEXTS, WORDPIECE)
    assert not folder.exists()


def test_too_large_a_set_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch):
    ids_of(TEXTS, WORDPIECE)
    size = files(folder)[0].stat().st_size
    files(folder)[0].unlink()
    monkeypatch.setattr(token_cache, "MOST_BYTES_OF_ONE", size - 1)
    ids_of(TEXTS, WORDPIECE)
    assert not files(folder)
    monkeypatch.setattr(token_cache, "MOST_BYTES_OF_ONE", size)
    tokenizer = counting()
    for _ in range(2):
        ids_of(TEXTS, tokenizer)
    assert len(files(folder)) == tokenizer.calls == 1


def test_the_folders_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIVAN_CACHE", str(tmp_path / "home" / ".cache" / "divan"))
    ids_of(TEXTS, WORDPIECE)
    assert len(files(tmp_path / "home" / ".cache" / "divan" / "tokens")) == 1


def test_ids_of_another_type_are_not_kept(folder: Path):
    wide = SimpleNamespace(ids=np.array([5], np.int64), splits=np.array([0, 1]))
    tokenizer: Any = SimpleNamespace(fingerprint="wide", vocab_size=9, encode_batch=lambda texts: wide)
    for _ in range(2):
        assert ids_of(["a"], tokenizer)[0].dtype == np.int64
    assert not folder.exists()


@pytest.mark.parametrize("value", ["0", "off", " No ", "false"])
def test_a_variable_turns_it_off(value: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = counting()
    ids_of(TEXTS, tokenizer)
    monkeypatch.setenv("DIVAN_TOKEN_CACHE", value)
    ids_of(TEXTS, tokenizer)
    ids_of(TEXTS[:1], tokenizer)
    assert tokenizer.calls == 3
    assert len(files(folder)) == 1


def kept(folder: Path, *numbers: int) -> list[bool]:
    return [(folder / key_of([str(number)], WORDPIECE)).exists() for number in numbers]


def aged(folder: Path, number: int, seconds: int) -> None:
    os.utime(folder / key_of([str(number)], WORDPIECE), (seconds, seconds))


@pytest.mark.parametrize("bound", ["bytes", "files"])
def test_the_least_recently_used_go_first(bound: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(4):
        ids_of([str(number)], WORDPIECE)
        aged(folder, number, 1000 + number)
    size = files(folder)[0].stat().st_size
    monkeypatch.setattr(token_cache, *(("MOST_BYTES", 4 * size) if bound == "bytes" else ("MOST_FILES", 4)))
    foreign = folder / "notes.txt"
    foreign.write_text("x" * 10 * size)
    os.utime(foreign, (1, 1))
    (folder / ("f" * 64)).symlink_to(foreign)
    (folder / ("e" * 64)).mkdir()
    ids_of(["0"], WORDPIECE)  # used again
    ids_of(["4"], WORDPIECE)
    assert kept(folder, 0, 1, 2, 3, 4) == [True, False, True, True, True]
    ids_of(["5"], WORDPIECE)
    assert kept(folder, 0, 1, 2, 3, 4, 5) == [True, False, False, True, True, True]
    assert foreign.exists()
    assert (folder / ("f" * 64)).is_symlink()


def test_what_a_killed_process_left_goes_too(folder: Path, monkeypatch: pytest.MonkeyPatch):
    ids_of(["0"], WORDPIECE)
    size = files(folder)[0].stat().st_size
    left = folder / f".{key_of(['1'], WORDPIECE)}.77.tmp"
    left.write_bytes(b"x" * size)
    os.utime(left, (1, 1))
    monkeypatch.setattr(token_cache, "MOST_BYTES", 2 * size)
    ids_of(["2"], WORDPIECE)
    assert kept(folder, 0, 2) == [True, True]
    assert not left.exists()


def test_several_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_cache, "MOST_FILES", 3)
    wanted = [[str(number % 7) * 50] for number in range(140)]
    expected = [WORDPIECE.encode_batch(each).ids.tolist() for each in wanted]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda each: ids_of(each, WORDPIECE)[0].tolist(), wanted))
    assert found == expected


def test_a_run_says_once_what_it_found(folder: Path, tmp_path: Path):
    from commands.fine_tuning import encode
    from tasks.datasets import find_row
    from tasks.splits import Splits

    path = tmp_path / "dev.tsv"
    path.write_text("a\tthe year\t1\n今天\t中国\t0\n", encoding="utf-8")
    said: list[str] = []
    session: Any = SimpleNamespace(say=said.append)
    options: Any = SimpleNamespace(max_seq_length=16, train_batch_size=2, seed=1)
    for _ in range(2):
        encode(session, options, Splits(find_row("lcqmc_pair", None), {"dev": [path]}), WORDPIECE)
    assert said == [f"tokens of 4 texts from the cache {folder}"]


def test_another_process_finds_what_this_one_kept(folder: Path):
    ids_of(TEXTS, WORDPIECE)
    script = f"""
from data import token_cache
from data.tokenizers.wordpiece import WordPieceTokenizer
token_cache.LEAST_CHARACTERS = 0
tokenizer = WordPieceTokenizer({WORDPIECE.vocabulary!r})
tokenizer.encode_batch = None
print(token_cache.ids_of({TEXTS!r}, tokenizer)[0].tolist(), token_cache.told())
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == f"{WORDPIECE.encode_batch(TEXTS).ids.tolist()} tokens of 4 texts from the cache {folder}\n"
