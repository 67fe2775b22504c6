"""Laws of the batcher: each work has its own result, budgets hold, the oldest goes first, nothing is done in vain."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.batching import BATCH_TOKENS, Batcher, LateError, Work, chosen

FAR = 1e9


@dataclass(eq=False)
class Squares:
    """Squares numbers; None fails; computes nothing before it is opened."""

    batches: list[list[Any]] = field(default_factory=list)
    opened: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    rounds: bool = True

    def compute(self, given: Sequence[Any], /) -> list[Any]:
        self.entered.set()
        assert self.opened.wait(20)
        self.batches.append(list(given))
        return [row * row for row in given]

    def size_of(self, count: int) -> int:
        return 1 << (count - 1).bit_length() if self.rounds else count


def works_of(group: Any, tokens: Sequence[int], deadline: float = FAR) -> list[Work]:
    return [Work(group, number, cost, deadline) for number, cost in enumerate(tokens)]


WAITING = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([16, 32, 64, 128])), min_size=1, max_size=40)


@given(WAITING, st.integers(16, 512), st.integers(1, 16), st.booleans())
def test_a_batch_is_of_the_oldest_and_holds_its_limits(
    waiting: list[tuple[int, int]], budget: int, most: int, rounds: bool
):
    groups = [Squares(rounds=rounds) for _ in range(3)]
    works = [Work(groups[group], number, tokens, FAR) for number, (group, tokens) in enumerate(waiting)]
    batch = chosen(works, budget, most)
    oldest = works[0]
    assert batch[0] is oldest
    assert len(set(map(id, batch))) == len(batch) <= most
    assert all(work.group is oldest.group for work in batch)
    assert len(batch) == 1 or len(batch) * max(work.tokens for work in batch) <= budget
    for tokens in {work.tokens for work in batch}:
        alike = [work.row for work in works if work.group is oldest.group and work.tokens == tokens]
        taken = [work.row for work in batch if work.tokens == tokens]
        assert taken == alike[: len(taken)]  # the oldest of a size come first


@given(st.lists(st.integers(1, 128), min_size=1, max_size=7), st.integers(16, 512), st.integers(1, 7), st.booleans())
@example([32, 16, 32, 64, 32], 128, 32, True)
def test_no_other_batch_of_the_oldest_computes_more_of_what_was_asked(
    tokens: list[int], budget: int, most: int, rounds: bool
):
    group = Squares(rounds=rounds)

    def share(rows: Sequence[int]) -> float:
        return sum(rows) / (group.size_of(len(rows)) * max(rows) + BATCH_TOKENS)

    every = [
        (tokens[0], *others)
        for count in range(min(most, len(tokens)))
        for others in itertools.combinations(tokens[1:], count)
        if not count or (count + 1) * max(tokens[0], *others) <= budget
    ]
    found = [work.tokens for work in chosen(works_of(group, tokens), budget, most)]
    assert share(found) == pytest.approx(max(map(share, every)))


def test_places_that_rounding_leaves_empty_go_to_smaller_works():
    group = Squares()
    assert [work.row for work in chosen(works_of(group, [32, 16, 32, 64, 32]), 128, 32)] == [0, 2, 4, 1]
    assert [work.row for work in chosen(works_of(Squares(rounds=False), [32, 16, 32, 64, 32]), 128, 32)] == [0, 2, 4]
    (work, *others) = works_of(group, [32] * 5)
    work.most_rows = 2
    assert chosen([work, *others], 4096, 32) == [work, others[0]]


TWO_GROUPS = st.lists(st.tuples(st.integers(0, 1), st.sampled_from([16, 32, 64])), min_size=1, max_size=30)


@given(TWO_GROUPS, st.integers(1, 8))
@settings(max_examples=30)
def test_every_work_has_its_own_result_and_none_is_overtaken_for_ever(waiting: list[tuple[int, int]], most: int):
    groups = [Squares(), Squares()]
    batcher = Batcher(128, most)
    works = [Work(groups[group], number, tokens, FAR) for number, (group, tokens) in enumerate(waiting)]
    batcher.submit(works)
    for group in groups:
        group.opened.set()
    assert [work.future.result(20) for work in works] == [number**2 for number in range(len(works))]
    batcher.stop(20)
    assert not batcher.alive
    # Each batch has the oldest of what waits: so a work waits for no more batches than works were before it.
    done = sorted([*groups[0].batches, *groups[1].batches], key=min)
    assert sum(map(len, done)) == len(works)
    assert all(work.submitted <= work.begun <= work.ended for work in works)


def gated(most: int = 8, **further: Any) -> tuple[Batcher, Squares, Work]:
    """Return a batcher whose thread is busy with a first work until its group is opened."""
    group = Squares()
    batcher, first = Batcher(1024, most, **further), Work(group, 0, 16, FAR)
    batcher.submit([first])
    assert group.entered.wait(20)
    return batcher, group, first


def test_what_is_late_or_abandoned_is_never_computed():
    now = [0.0]
    batcher, group, first = gated(clock=lambda: now[0])
    late, abandoned, good = (Work(group, number, 16, deadline) for number, deadline in ((1, 5.0), (2, 90.0), (3, 90.0)))
    batcher.submit([late, abandoned, good])
    assert batcher.waiting == 3
    assert abandoned.future.cancel()
    now[0] = 10.0
    group.opened.set()
    assert good.future.result(20) == 9
    assert first.future.result(20) == 0
    with pytest.raises(LateError):
        late.future.result(20)
    with pytest.raises(CancelledError):
        abandoned.future.result(20)
    assert [row for batch in group.batches for row in batch] == [0, 3]
    batcher.stop(20)


def test_what_fails_alone_fails_alone_and_the_thread_goes_on():
    failures: list[Exception] = []
    batcher, group, _ = gated(failed=failures.append)
    bad = Work(group, None, 16, FAR)
    works = [Work(group, 2, 16, FAR), bad, Work(group, 3, 16, FAR)]
    batcher.submit(works)
    group.opened.set()
    assert [works[0].future.result(20), works[2].future.result(20)] == [4, 9]
    with pytest.raises(TypeError):
        bad.future.result(20)
    assert [type(each) for each in failures] == [TypeError]
    assert batcher.alive
    batcher.stop(20)


def test_a_group_that_loses_results_is_an_error_and_not_a_hang():
    class Loses(Squares):
        def compute(self, given: Sequence[Any], /) -> list[Any]:
            return []

    batcher = Batcher(1024, 8)
    work = Work(Loses(), 1, 16, FAR)
    batcher.submit([work])
    with pytest.raises(RuntimeError, match="0 results of 1 rows"):
        work.future.result(20)
    batcher.stop(20)


def test_stopping_computes_all_that_waits_and_takes_nothing_more():
    batcher, group, first = gated(most=2)
    works = [Work(group, number, 16, FAR) for number in range(1, 8)]
    batcher.submit(works)
    stopping = threading.Thread(target=batcher.stop)
    stopping.start()
    time.sleep(0.01)
    group.opened.set()
    stopping.join(20)
    assert [work.future.result(0) for work in (first, *works)] == [number**2 for number in range(8)]
    assert [len(batch) for batch in group.batches] == [1, 2, 2, 2, 1]
    with pytest.raises(RuntimeError, match="stopped"):
        batcher.submit([Work(group, 1, 16, FAR)])


def test_works_of_many_threads_all_have_their_results():
    group = Squares()
    group.opened.set()
    batcher, results = Batcher(1024, 8), dict[int, int]()

    def ask(number: int) -> None:
        work = Work(group, number, 16 << number % 3, FAR)
        batcher.submit([work])
        results[number] = work.future.result(20)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    batcher.stop(20)
    assert results == {number: number**2 for number in range(40)}
    assert isinstance(Work(group, 1, 1, FAR).future, Future)
