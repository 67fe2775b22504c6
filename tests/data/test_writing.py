"""The phases of writing, each alone: rows of segments tell where their tokens are, and workers end with their pool."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.examples import PairedBlock
from data.pairing import Pairs
from data.writing import spans, workers
from data.writing.spans import PAIR_COLUMNS, _SegmentWriter
from data.writing.workers import Call, Pool


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.sampled_from([4, 9, 1 << 25]))
def test_rows_of_segments_point_to_their_tokens_and_are_numbered_through_the_span(tmp_path_factory, sizes, most):
    """The number of an example in its span decides its masks: two of one number would be masked alike."""
    folder = Path(tmp_path_factory.mktemp("work"))
    job: Any = SimpleNamespace(work_path=folder, recipe=SimpleNamespace(seed=3))
    expected, begin = [], 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "SEGMENT_TOKENS", most)
        writer = _SegmentWriter(job, 7)
        for size in sizes:
            # An example i of a block is the token 2 i and the token 2 i + 1.
            tokens = np.arange(begin, begin + 2 * size, dtype=np.uint16)
            starts, ones = 2 * np.arange(size), np.ones(size, np.int64)
            pairs = Pairs(starts, ones, starts + 1, ones, np.arange(size) % 2)
            writer.write(PairedBlock(tokens, pairs, Counter()))
            expected += [(first, first + 1) for first in range(begin, begin + 2 * size, 2)]
            begin += 2 * size
        writer.close()
    found = {}
    for segment, examples in enumerate(writer.examples):
        name = spans.span_name(7, segment)
        tokens = np.fromfile(folder / f"{name}.tokens", np.uint16)
        rows = np.fromfile(folder / f"{name}.pairs", np.uint32).reshape(-1, len(PAIR_COLUMNS))
        assert len(rows) == examples
        for row in rows:
            values = dict(zip(PAIR_COLUMNS, map(int, row), strict=True))
            assert values["sequence"] not in found
            assert (values["first_length"], values["second_length"]) == (1, 1)
            found[values["sequence"]] = (tokens[values["first_start"]], tokens[values["second_start"]])
    assert [found[number] for number in range(len(found))] == expected
    sizes_of_files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes_of_files == writer.files


def sleeping(job: Any, seconds: float, number: int) -> Any:
    time.sleep(seconds)
    if number < 0:
        raise ValueError("a mistake")
    return {"files": {}, "seconds": {"work": seconds}, "number": (job, number), "process": os.getpid()}


def silent(stage: str, done: float, total: float) -> None:
    pass


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_error_ends_the_workers_at_once_whatever_they_do():
    begin, processes = time.monotonic(), []

    def work() -> None:
        with Pool(2, "job") as pool:  # pyright: ignore
            processes.append(pool.run("one", [Call(sleeping, (0.0, 1))], silent)[0]["process"])
            pool.run("two", [Call(sleeping, (60.0, 1)), Call(sleeping, (0.0, -1))], silent)

    with pytest.raises(ValueError, match="a mistake"):
        work()
    assert time.monotonic() - begin < 30
    assert not any(map(is_alive, processes))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_outcomes_come_in_order_with_the_seconds_of_all(num_workers: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "HEARD_SECONDS", 0.01)
    told: list[tuple[str, float, float]] = []
    with Pool(num_workers, "job") as pool:  # pyright: ignore
        calls = [Call(sleeping, (0.02 * (number % 2 == 0), number), size=2.0) for number in range(5)]
        found: list[Any] = pool.run("work", calls, lambda stage, done, total: told.append((stage, done, total)))
    assert [each["number"] for each in found] == [("job", number) for number in range(5)]
    assert pool.seconds == {"work": pytest.approx(0.06)}
    assert {each["process"] == os.getpid() for each in found} == {num_workers == 1}
    assert told[0] == ("work", 0, 10)
    assert told[-1] == ("work", 10, 10)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert not any(is_alive(each["process"]) for each in found if num_workers > 1)
