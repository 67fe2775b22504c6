"""What there is to see of answers: tables are the scores' own counts, and a page shows any text and runs none."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.evaluation_page import marked, write_page
from tasks.inspection import (
    MOST_EXAMPLES,
    Inspection,
    Mark,
    MostWrong,
    Seen,
    Table,
    Text,
    calibration_table,
    class_tables,
    excerpt,
)
from tasks.metrics import calibration, classification_scores, f1_scores

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;"
marks_of = st.lists(st.builds(Mark, st.integers(0, 40), st.integers(0, 45), st.sampled_from("ab<"), st.booleans()))


class Tags(HTMLParser):
    """Collects the elements and attributes of a page, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= set(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(max_size=40), marks_of)
def test_marks_leave_the_text_as_it_is(text: str, marks: list[Mark]):
    found = marked(text, marks)
    plain = re.sub(r"</?mark[^>]*>", "", re.sub(r"<sub>.*?</sub>", "", found, flags=re.DOTALL))
    assert html.unescape(plain) == html.unescape(html.escape(text))
    assert "<" not in plain
    inside = "".join(re.findall(r"<mark[^>]*>(.*?)</mark>", re.sub(r"<sub>.*?</sub>", "", found), re.DOTALL))
    covered = "".join(c for place, c in enumerate(text) if any(mark.begin <= place < mark.end for mark in marks))
    assert inside == html.escape(covered)


@given(
    st.integers(0, 3000), st.lists(st.tuples(st.integers(0, 2990), st.integers(1, 40)), max_size=4), st.integers(0, 9)
)
def test_an_excerpt_is_short_and_its_marks_are_over_the_same_text(length: int, places: list, shift: int):
    text = "".join(chr(ord("a") + (place * 7 + shift) % 26) for place in range(length))
    marks = [Mark(begin, min(begin + size, length), "x") for begin, size in places if begin < length]
    shown, moved = excerpt(text, marks)
    assert len(shown) <= 1210
    for mark in moved:
        assert shown[mark.begin : mark.end] in text
    if len(marks) == 1:
        assert [shown[m.begin : m.end] for m in moved] == [text[m.begin : m.end] for m in marks]


def page(tmp_path: Path, inspection: Inspection, title: str = "title") -> str:
    write_page(tmp_path / "dev_report.html", title, {"accuracy": 0.5}, inspection)
    return (tmp_path / "dev_report.html").read_text(encoding="utf-8")


def test_nothing_of_a_text_is_run_and_nothing_is_loaded(tmp_path: Path):
    table = Table(HOSTILE, [HOSTILE, "n"], [[HOSTILE, "1"]], HOSTILE, is_matrix=True)
    texts = [Text(HOSTILE, HOSTILE, [Mark(0, 9, HOSTILE)]), Text("lone surrogate", "\ud800")]
    found = page(tmp_path, Inspection([table], [Seen(1.0, {HOSTILE: HOSTILE}, texts)], HOSTILE), HOSTILE)
    tags = Tags(found)
    assert not tags.tags & {"script", "img", "link", "iframe", "object"}
    assert "@import" not in found
    assert {name for name, _ in tags.attributes} <= {"lang", "charset", "name", "content", "class"}
    assert "http" not in re.sub(r"<style>.*?</style>", "", found, flags=re.DOTALL)
    assert tags.text.count(HOSTILE) >= 6


def test_the_page_is_of_modest_size_and_names_the_curves(tmp_path: Path):
    rng = np.random.default_rng(0)
    labels, given_ = rng.integers(0, 3, 5000), rng.integers(0, 3, 5000)
    worst = MostWrong(rng.random(5000), labels == given_).seen(lambda n: ({"index": str(n)}, [Text("a", "字" * 600)]))
    (tmp_path / "report.html").touch()
    found = page(tmp_path, Inspection(class_tables(labels, given_, "abc"), worst, "by chance"))
    assert len(found.encode()) < 150_000
    assert found.count("<article>") == MOST_EXAMPLES
    assert 'href="report.html"' in found


@given(st.lists(st.tuples(st.floats(allow_infinity=False), st.booleans()), max_size=120))
def test_the_worst_come_first_and_none_is_right(each: list[tuple[float, bool]]):
    values, right = [value for value, _ in each], [is_right for _, is_right in each]
    kept = MostWrong(values, right).kept
    assert not any(right[number] for number in kept)
    assert len(kept) == min(right.count(False), MOST_EXAMPLES)
    order = [float("inf") if values[n] != values[n] else values[n] for n in kept]
    assert order == sorted(order, reverse=True)
    left = [values[n] for n in range(len(each)) if not right[n] and n not in kept]
    assert not left or all(value <= order[-1] for value in left)


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_tables_of_classes_are_the_counts_of_the_scores(classes: int):
    rng = np.random.default_rng(classes)
    labels, given_ = rng.integers(0, classes, 300), rng.integers(0, classes, 300)
    names = [f"c{n}" for n in range(classes)]
    confusions, rates = class_tables(labels, given_, names)
    assert [float(row[3]) for row in rates.rows] == pytest.approx(f1_scores(labels, given_, classes), abs=1e-4)
    assert [int(row[4]) for row in rates.rows] == np.bincount(labels, minlength=classes).tolist()
    assert [int(row[5]) for row in rates.rows] == np.bincount(given_, minlength=classes).tolist()
    if classes <= 20:
        counts = np.array([[int(cell) for cell in row[1:]] for row in confusions.rows])
        scores = classification_scores(labels, given_, classes)
        assert np.trace(counts) / counts.sum() == pytest.approx(scores["accuracy"])
    else:
        true, predicted, count = confusions.rows[0]
        most = sum(a == names.index(true) and b == names.index(predicted) for a, b in zip(labels, given_, strict=True))
        assert int(count) == most
        assert len(confusions.rows) <= 20


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 12))
def test_the_calibration_error_is_its_definition(each: list[tuple[float, bool]], bins: int):
    confidences, right = np.array([c for c, _ in each]), np.array([r for _, r in each])
    error, found = calibration(confidences, right, bins)
    assert sum(count for _, _, count, _, _ in found) == len(each)
    expected = 0.0
    for low, high, count, mean, share in found:
        inside = [
            (c, r) for c, r in each if low - 1e-12 < c <= high + 1e-12 and (c > low or low == 0 or np.isclose(c, high))
        ]
        assert abs(len(inside) - count) <= sum(np.isclose(c, [low, high]).any() for c, _ in each)
        assert low - 1e-9 <= mean <= high + 1e-9
        expected += count * abs(mean - share)
    assert error == pytest.approx(expected / len(each))
    assert 0 <= error <= 1


def test_answers_as_certain_as_they_are_right_have_no_error():
    confidences = np.repeat([0.25, 0.75], 400)
    right = np.concatenate([np.arange(400) % 4 == 0, np.arange(400) % 4 != 0])
    assert calibration(confidences, right)[0] == 0
    assert calibration(np.ones(4), np.zeros(4))[0] == 1
    assert "error 0.0000" in calibration_table(confidences, right).note


def test_the_page_of_a_json_escape_is_written(tmp_path: Path):
    text: Any = json.loads('"\\ud800 x"')
    assert "x" in page(tmp_path, Inspection((), [Seen(1, {}, [Text("a", text)])]))
