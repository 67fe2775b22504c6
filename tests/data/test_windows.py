"""Windows over long texts: every token is in one, none has more than there is room for, rows are in the template."""

from __future__ import annotations

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenizers.template import Template
from data.tokenizers.wordpiece import WordPieceTokenizer
from data.windows import WindowedDataset, cut, encode_windows, labels_in_rows

TOKENIZER = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"])


def test_windows_of_an_example_by_hand():
    which, first, count = cut(np.array([5, 2, 0]), np.array([3, 3, 3]), 1)
    assert which.tolist() == [0, 0, 0, 1, 2]
    assert first.tolist() == [0, 1, 2, 0, 0]
    assert count.tolist() == [3, 3, 3, 2, 0]
    # As BERT's script: the last window is what is left.
    assert [x.tolist() for x in cut(np.array([10]), np.array([4]), 3)] == [[0, 0, 0], [0, 3, 6], [4, 4, 4]]
    assert [x.tolist() for x in cut(np.array([9]), np.array([4]), 3)] == [[0, 0, 0], [0, 3, 6], [4, 4, 3]]


def windows_step_by_step(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    found, begin = [], 0
    while True:
        found.append((begin, min(room, length - begin)))
        if begin + room >= length:
            return found
        begin += min(stride, room)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=5), st.integers(1, 30))
def test_windows_are_those_of_the_loop(texts: list[tuple[int, int]], stride: int):
    lengths, rooms = (np.array(column) for column in zip(*texts, strict=True))
    which, first, count = cut(lengths, rooms, stride)
    expected = [
        (number, *window) for number, (n, room) in enumerate(texts) for window in windows_step_by_step(n, room, stride)
    ]
    assert list(zip(which.tolist(), first.tolist(), count.tolist(), strict=True)) == expected


def test_the_step_is_at_most_half_of_a_window_and_at_most_that_of_bert():
    assert cut(np.array([40]), np.array([20]), None)[1].tolist() == [0, 10, 20]
    assert cut(np.array([700]), np.array([381]), None)[1].tolist() == [0, 128, 256, 384]
    assert cut(np.array([40]), np.array([20]), 50)[1].tolist() == [0, 20]  # no token is passed over


@pytest.mark.parametrize(
    ("template", "first", "second"),
    [
        (TOKENIZER.template, [2, 5, 6, 3, 7, 8, 3], [0, 0, 0, 0, 1, 1, 1]),
        (Template.of_roberta(2, 3), [2, 5, 3, 3, 7, 8, 3], [0] * 7),
    ],
)
def test_rows_are_in_the_template(template: Template, first: list[int], second: list[int], monkeypatch):
    monkeypatch.setattr(TOKENIZER, "template", template)
    windows = encode_windows(["a b"], ["c d e"], TOKENIZER, 7, stride=1)
    assert windows.rows.ids[: len(first)].tolist() == first
    assert windows.rows.segments[: len(second)].tolist() == second
    assert {int(windows.rows.ids[row * 7 + windows.offset[row]]) for row in range(2)} == {7, 8}
    window = windows.window(1)
    assert (window.example, window.first, window.total) == (0, 1, 3)
    assert window.starts.tolist() == [2, 4]


def test_a_row_without_room_is_one_line():
    with pytest.raises(UsageError, match=r"^--max_seq_length=3: the special tokens alone are 3; expected at least 5"):
        encode_windows(["a"], ["b"], TOKENIZER, 3)
    assert encode_windows(["a b c"], ["d e"], TOKENIZER, 4).rows.ids.tolist() == [2, 3, 8, 3, 2, 3, 9, 3]


@settings(max_examples=50)
@given(st.lists(st.text("abcdefghij ", max_size=40), min_size=1, max_size=4), st.integers(3, 12), st.integers(1, 9))
def test_labels_of_tokens_are_where_the_tokens_are(texts: list[str], length: int, stride: int):
    windows = encode_windows(None, texts, TOKENIZER, length, stride=stride)
    assert windows.rows.lengths_tokens.max() <= length
    labels = [np.array(TOKENIZER.encode(text), np.int32) for text in texts]
    found = labels_in_rows(windows, labels)
    real = ~np.isin(windows.rows.ids, [2, 3])
    np.testing.assert_array_equal(found, np.where(real, windows.rows.ids, -1))
    dataset = WindowedDataset(windows.rows, 3, length, windows=windows, token_labels=found)
    for batch in (*dataset.evaluation_batches(4), dataset.batch(0)):
        real = (batch["input_mask"] == 1) & ~np.isin(batch["input_ids"], [2, 3])
        np.testing.assert_array_equal(batch["label_weights"], real)
        np.testing.assert_array_equal(batch["label_ids"], np.where(real, batch["input_ids"], 0))
