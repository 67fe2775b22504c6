import itertools
import re
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from training.report import _tick_text, ticks, write_report

finite = st.floats(-1e9, 1e9, allow_nan=False)


@example(0.0, 5e-324, 3)
@example(-1e-323, 5e-324, 3)
@given(finite, finite, st.integers(3, 8))
def test_ticks_cover_the_range_with_few_even_round_numbers(one, two, count):
    low, high = sorted((one, two))
    if 0 < high - low < 1e-9 * max(abs(low), abs(high)):
        return
    values = ticks(low, high, count)
    slack = 1e-6 * (values[1] - values[0])
    assert values[0] <= low + slack
    assert values[-1] >= high - slack
    assert 2 <= len(values) <= 2 * count + 2
    steps = {round((after - before) / (values[1] - values[0]), 6) for before, after in itertools.pairwise(values)}
    assert steps == {1.0}


@settings(max_examples=40, deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1), st.integers(3, 8))
def test_texts_of_ticks_are_their_values_in_few_characters(low, span, count):
    span *= max(1.0, abs(low))
    values = ticks(low, low + span, count)
    texts = [_tick_text(value, values) for value in values]
    units = {"k": 1e3, "M": 1e6, "G": 1e9}
    for value, text in zip(values, texts, strict=True):
        read = float(text.rstrip("kMG").replace(",", "")) * units.get(text[-1], 1.0)
        assert read == pytest.approx(value, abs=0.02 * (values[1] - values[0]))
        assert not re.search(r"\.\d*0$|\.$", text.rstrip("kMG"))
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0, 100, 200], ["0", "100", "200"]),
        ([0, 0.25, 0.5], ["0", "0.25", "0.5"]),
        ([9.5, 10, 10.5], ["9.5", "10", "10.5"]),
        ([0, 2e-5, 4e-5], ["0", "2e-05", "4e-05"]),
        ([5000, 10000], ["5k", "10k"]),
        ([0, 2.5e6], ["0", "2.5M"]),
        ([0, 5e8, 1e9], ["0", "0.5G", "1G"]),
    ],
)
def test_known_ticks(values, texts):
    assert [_tick_text(value, values) for value in values] == texts


RECORDS = [
    {
        "step": step,
        "phase": phase,
        "time": 0.0,
        "loss": 3.0 / step,
        "tokens_per_second": 1e4,
        "a<b": None if step == 2 else 1.0,
    }
    for step in range(1, 2000)
    for phase in ("train", "eval")
    if phase == "train" or step % 500 == 0
]


@pytest.mark.parametrize("records", [[], RECORDS[:1], RECORDS], ids=len)
def test_page_is_well_formed_stands_alone_and_stays_small(tmp_path, records):
    write_report(tmp_path / "report.html", "run <1>", {"model": "a & b"}, records)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    root = ElementTree.fromstring(re.sub(r"<meta ([^>]*)>", r"<meta \1/>", page).replace("<!doctype html>", ""))
    assert len(root.findall(".//svg")) == (3 if records else 0)
    assert not re.search(r"https?://|<script|src=|@import|url\(", page)
    assert len(page) < 60_000
    assert "nan" not in page
    for line in root.findall(".//svg/path"):
        for number in re.findall(r"[\d.-]+", line.get("d") or ""):
            assert 0 <= float(number) <= 460


def test_panels_begin_with_the_loss_and_end_with_how_the_training_went(tmp_path):
    names = ["tokens_per_second", "accuracy", "b_loss", "learning_rate", "loss", "a_loss", "flop_utilization", "zeal"]
    records = [{"phase": "train", "step": step, **dict.fromkeys(names, 1.0)} for step in (1, 2)]
    write_report(tmp_path / "report.html", "run", {}, records)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    titles = re.findall(r">([a-z ]+?)<", re.sub(r'<span class="\w+">.*?</span>', "", page))
    found = [title.replace(" ", "_") for title in dict.fromkeys(titles) if title.replace(" ", "_") in names]
    last = ["flop_utilization", "learning_rate", "tokens_per_second"]
    assert found == ["loss", "a_loss", "b_loss", "accuracy", "zeal", *last]
