"""Scores of a teacher on disk: what was written is read, nothing else is believed, the oldest files go first."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from data import teacher_scores
from data.teacher_scores import read, write

KEY, OTHER = "a" * 64, "b" * 64
SCORES = {
    bytes(range(16)): np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4),
    bytes(16): np.arange(12, dtype=np.float32).reshape(1, 2, 3, 2) / 7,
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIVAN_CACHE", str(tmp_path))
    return tmp_path / "teachers"


def same(found: dict[bytes, np.ndarray], wanted: dict[bytes, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(
        np.array_equal(found[key], value) and found[key].shape == value.shape for key, value in wanted.items()
    )


def test_what_was_written_is_read_under_its_key_alone(folder: Path):
    assert read(KEY) == {}
    write(KEY, SCORES, {})
    assert same(read(KEY), SCORES)
    assert read(OTHER) == {}
    (folder / KEY).replace(folder / OTHER)
    assert read(OTHER) == {}


@pytest.mark.parametrize("change", ["a byte", "shorter", "longer", "empty", "a folder"])
def test_a_damaged_file_is_not_believed(change: str, folder: Path):
    write(KEY, SCORES, {})
    content = bytearray((folder / KEY).read_bytes())
    if change == "a folder":
        (folder / KEY).unlink()
        (folder / KEY).mkdir()
    else:
        content[-3] ^= change == "a byte"
        kept = {"shorter": content[:-4], "longer": content + bytes(4), "empty": b""}.get(change, content)
        (folder / KEY).write_bytes(kept)
    assert read(KEY) == {}


def test_other_examples_stay_while_there_is_room(monkeypatch: pytest.MonkeyPatch):
    (first, one), (second, two) = SCORES.items()
    write(KEY, {first: one}, {second: two})
    assert same(read(KEY), SCORES)
    write(KEY, {first: one + 1}, read(KEY))
    assert same(read(KEY), {first: one + 1, second: two})
    monkeypatch.setattr(teacher_scores, "MOST_BYTES_OF_ONE", 100)
    write(KEY, {first: one}, {second: two})
    monkeypatch.undo()


def test_the_least_recently_used_teacher_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(teacher_scores, "MOST_FILES", 2)
    keys = [letter * 64 for letter in "abc"]
    for place, key in enumerate(keys[:2]):
        write(key, SCORES, {})
        os.utime(folder / key, ns=(place, place))
    assert read(keys[0])  # used now
    write(keys[2], SCORES, {})
    assert sorted(path.name for path in folder.iterdir()) == [keys[0], keys[2]]


def test_a_disk_that_refuses_is_done_without(folder: Path):
    folder.write_text("in the way")
    write(KEY, SCORES, {})
    assert read(KEY) == {}
