"""Sentences that were written once: found by what a text is, whatever is masked of it, or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import pseudo_sentences
from data.forms import FORMS
from data.pseudo_sentences import NOTHING, PSEUDO, BesideWritten, Sentences, keys_of, write_all
from data.spoken import OTHER_LANGUAGE

SIDE = FORMS["one_row"].sides[0]
TEXTS = [[2, 7, 8, 3], [2, 9, 3], [2, 7, 8, 9, 3]]


def batch_of(texts: list[list[int]], masked: int, rows: int = 4) -> dict[str, np.ndarray]:
    """Return texts of which the token at `masked` is hidden, filled up to so many rows."""
    ids, mask, labels = np.zeros((rows, 6), np.int32), np.zeros((rows, 6), np.int32), np.zeros((rows, 1), np.int32)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)], labels[row] = text, 1, text[masked]
        ids[row, masked] = 4
    return {
        "input_ids": ids,
        "input_mask": mask,
        "masked_lm_positions": np.full((rows, 1), masked, np.int32),
        "masked_lm_ids": labels,
        "masked_lm_weights": mask[:, :1].astype(np.float32),
    }


def test_a_text_has_one_key_however_it_is_masked_and_one_a_language():
    one, other = (keys_of(batch_of(TEXTS, masked), SIDE) for masked in (1, 2))
    np.testing.assert_array_equal(one, other)
    assert len({*one[:3].tolist()}) == 3
    asked = [
        keys_of(batch_of(TEXTS, 1) | {OTHER_LANGUAGE: np.full(4, language, np.int32)}, SIDE) for language in (0, 1)
    ]
    assert not ({*one.tolist()} & {*asked[0].tolist()} & {*asked[1].tolist()})
    assert not (asked[0] == asked[1]).any()


def test_sentences_are_rows_by_key():
    found = Sentences.of({8: np.array([9], np.int32), 3: np.array([7, 7], np.int32), 5: np.zeros(0, np.int32)})
    assert (found.keys.tolist(), found.ends.tolist(), found.ids.tolist(), len(found)) == (
        [3, 5, 8],
        [2, 2, 3],
        [7, 7, 9],
        3,
    )
    np.testing.assert_array_equal(found.rows(np.array([8, 3, 5], np.uint64), 3), [[9, 0, 0], [7, 7, 0], [0, 0, 0]])
    empty = Sentences.of({5: np.zeros(0, np.int32)})
    np.testing.assert_array_equal(empty.rows(np.array([5], np.uint64), 2), [[0, 0]])


def writer(seen: list[int]) -> Any:
    """Return a model that writes of each text its number of tokens, as often, and notes the rows that it was given."""

    def write(batches: Iterable[dict[str, np.ndarray]]) -> Any:
        for batch in batches:
            lengths = batch["input_mask"].sum(axis=1)
            seen.append(int((lengths > 0).sum()))
            yield np.where(np.arange(6) < lengths[:, None], lengths[:, None], 0).astype(np.int32), lengths

    return write


def test_only_what_is_new_is_written_and_every_row_gets_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("DIVAN_CACHE", str(tmp_path))
    seen: list[int] = []
    batches = [batch_of(TEXTS[:2], 1), batch_of(TEXTS[1:2], 1), batch_of(TEXTS[1:], 1)]
    sentences, count = write_all(batches, SIDE, NOTHING, writer(seen))
    assert (count, len(sentences), seen) == (3, 3, [2, 2])
    pseudo_sentences.keep("a", sentences)
    former = pseudo_sentences.read("a")
    assert len(former) == 3
    again, count = write_all(batches, SIDE, former, writer(seen))
    assert (again is former, count, seen) == (True, 0, [2, 2])
    more, count = write_all([*batches, batch_of([[2, 5, 3]], 1)], SIDE, former, writer(seen))
    assert (count, len(more), seen) == (1, 4, [2, 2, 1])

    class Rows:
        num_examples = 3

        def batch(self, step: int) -> dict[str, np.ndarray]:
            return batch_of([TEXTS[step], TEXTS[0]], 2 if step != 1 else 1, rows=2)

    beside = BesideWritten(Rows(), side=SIDE, sentences=more, width=5)
    assert beside.num_examples == 3
    for step, length in enumerate(map(len, TEXTS)):
        batch = beside.batch(step)
        expected = [[length] * length + [0] * (5 - length), [4] * 4 + [0]]
        np.testing.assert_array_equal(batch[PSEUDO], expected)
        assert batch.keys() - {PSEUDO} == Rows().batch(step).keys()


@pytest.mark.parametrize("damage", ["cut", "changed", "another key", "a folder"])
def test_what_was_not_written_here_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str):
    monkeypatch.setenv("DIVAN_CACHE", str(tmp_path))
    pseudo_sentences.keep("a", Sentences.of({3: np.array([7, 7], np.int32)}))
    path = tmp_path / "pseudo/a"
    content = path.read_bytes()
    assert len(pseudo_sentences.read("a")) == 1
    assert len(pseudo_sentences.read("b")) == 0
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage == "another key":
        (tmp_path / "pseudo/b").write_bytes(content)
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content[:-1] + b"\1")
    assert len(pseudo_sentences.read("b" if damage == "another key" else "a")) == 0
    monkeypatch.setattr(pseudo_sentences, "MOST_BYTES_OF_ONE", 10)
    pseudo_sentences.keep("c", NOTHING)
    assert not (tmp_path / "pseudo/c").exists()
