"""Mining of translations: BUCC's files, pairs against brute force, the threshold of best F1, what is handed in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given
from hypothesis import strategies as st

from tasks import retrieval
from tasks.datasets import find_row
from tasks.kinds import mining
from tasks.splits import Splits

FILES = {
    "de-en.dev.de": "de-1\tHallo\nde-2\tein Hund\nde-3\tniemand\n",
    "de-en.dev.en": "en-1\ta dog\nen-2\thello\n",
    "de-en.dev.gold": "de-1\ten-2\nde-2\ten-1\n",
}


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder / "de-en.dev.de"


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_sentences_and_their_pairs_are_read(tmp_path: Path):
    row, path = find_row("xtreme_bucc_de"), write(tmp_path, FILES)
    found = mining.read(row, path, need_labels=True)
    assert [(each.id, each.side, each.label) for each in found] == [
        ("de-1", "a", "en-2"),
        ("de-2", "a", "en-1"),
        ("de-3", "a", ""),
        ("en-1", "b", "de-2"),
        ("en-2", "b", "de-1"),
    ]
    (tmp_path / "de-en.dev.gold").unlink()
    assert {each.label for each in mining.read(row, path, need_labels=False)} == {None}
    with pytest.raises(UsageError, match=r"de-en\.dev\.de has no de-en\.dev\.gold beside it"):
        mining.read(row, path, need_labels=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("de-en.dev.gold", "de-1\ten-9\n", r"gold:1: en-9 is not in de-en\.dev\.en"),
        ("de-en.dev.gold", "de-1\ten-1\nde-1\ten-2\n", r"gold:2: de-1 is paired twice"),
        ("de-en.dev.de", "de-1\ta\nde-1\tb\n", r"de:2: the id de-1 comes twice"),
        ("de-en.dev.en", "en-1 a dog\n", r"en:1: got 'en-1 a dog'; expected an id, a TAB"),
    ],
)
def test_wrong_files_are_one_line(tmp_path: Path, name: str, content: str, message: str):
    path = write(tmp_path, {**FILES, name: content})
    with pytest.raises(UsageError, match=message):
        mining.read(find_row("xtreme_bucc_de"), path, need_labels=True)


@given(st.integers(0, 2**32 - 1))
def test_pairs_are_those_of_the_whole_matrix(seed: int):
    generator = np.random.default_rng(seed)
    a, b = (unit(np.abs(generator.normal(size=(int(generator.integers(1, 12)), 4)))) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "BLOCK_ELEMENTS", 2 * len(b))
        pairs = retrieval.mined_pairs(a, b, retrieval.Margin())
    whole = a @ b.T
    best = {(i, int(whole[i].argmax())) for i in range(len(a))} | {
        (int(whole[:, j].argmax()), j) for j in range(len(b))
    }
    taken: list[tuple[int, int]] = []
    for i, j in sorted(best, key=lambda pair: -whole[pair]):
        if all(i != one and j != other for one, other in taken):
            taken.append((i, j))
    assert [(i, j) for i, j, _ in pairs] == taken
    np.testing.assert_allclose([score for *_, score in pairs], [whole[pair] for pair in taken], rtol=1e-5)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=12), st.integers(0, 5))
def test_no_threshold_has_a_better_f1(pairs: list[tuple[int, bool]], missed: int):
    given_pairs = [(score / 4, right) for score, right in pairs]
    total = sum(right for _, right in pairs) + missed

    def f1(threshold: float) -> float:
        kept = [right for score, right in given_pairs if score >= threshold]
        return 2 * sum(kept) / max(len(kept) + total, 1)

    found = retrieval.best_f1_threshold(given_pairs, total)
    candidates = [score for score, _ in given_pairs]
    assert f1(found) == pytest.approx(max([f1(each) for each in candidates], default=f1(found)))


def test_the_threshold_of_dev_decides_what_is_handed_in(tmp_path: Path):
    row = find_row("xtreme_bucc_de")
    write(tmp_path, FILES)
    tested = {name.replace("dev", "test"): content for name, content in FILES.items() if not name.endswith("gold")}
    write(tmp_path, tested)
    files = {"dev": (tmp_path / "de-en.dev.de",), "test": (tmp_path / "de-en.test.de",)}
    splits = Splits(row, files)
    # Hallo and hello are one, as are the dogs; niemand is a little like a dog. Two sentences a row.
    vectors = unit(np.array([[1, 0, 0], [0, 1, 0], [0.5, 1, 1], [0, 1, 0.1], [1, 0.1, 0], [0, 0, 0.0001]]))
    predictions = [{"embedding_a": vectors[n], "embedding_b": vectors[n + 1]} for n in range(0, 6, 2)]
    answers = mining.answers(row, predictions, splits.examples["dev"])
    assert [answers[n].partner for n in range(3)] == [4, 3, -1]
    scores = splits.scores("dev", answers)
    assert (scores["f1"], scores["precision"], scores["recall"]) == (1, 1, 1)
    assert splits.row.threshold == scores["threshold"]
    assert splits.labelled("test") == []
    splits.submit(tmp_path, "test", answers)
    handed_in = (tmp_path / "submission/bucc2018/test-de.tsv").read_text()
    assert handed_in == "de-1\ten-2\nde-2\ten-1\n"
    told = [json.loads(line) for line in mining.lines(splits.row, answers, splits.examples["test"])]
    assert {(each["id_a"], each["id_b"]) for each in told} == {("de-1", "en-2"), ("de-2", "en-1")}
