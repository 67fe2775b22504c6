"""Several datasets in fixed shares, one of them at a step: monolingual and parallel text, or several tasks.

A step learns from one dataset, because all rows of a batch have the same features. Shares are kept as closely as whole
batches allow: no dataset is ever a whole batch ahead or behind (Tijdeman 1980, "The chairman assignment problem").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from absl.app import UsageError

from data.randomness import keys, stream_number

_TURNS = stream_number("turns of datasets")
# The order repeats after this many steps at most; shares with a larger common denominator are rounded to it.
MAX_CYCLE_STEPS = 1 << 13


class Dataset(Protocol):
    """Batches that are functions of the step, as `training.engine` expects them."""

    @property
    def num_examples(self) -> int: ...
    def batch(self, step: int) -> Mapping[str, Any]: ...


_MARK = "member:"


def marked(batch: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a batch that says of which member it is, by the name of one more feature.

    What is compiled for a batch depends on the names and shapes of its features. So two members whose batches are alike
    have programs of their own, each of which knows its member.
    """
    return {**batch, mark_name(name): np.zeros(len(next(iter(batch.values()))), np.int32)}


def mark_name(name: str) -> str:
    """Return the feature by which a batch says that it is of the member of that name; int32 [B]."""
    return _MARK + name


def mark_of(batch: Mapping[str, Any]) -> str:
    """Return the member that `marked` noted; empty for any other batch."""
    return next((name.removeprefix(_MARK) for name in batch if name.startswith(_MARK)), "")


def unmarked(batch: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the member of a batch, as `mark_of`, and the batch as it was before `marked`."""
    name = mark_of(batch)
    return name, {feature: value for feature, value in batch.items() if feature != _MARK + name} if name else batch


class Marked:
    """A dataset whose batches say of which member they are."""

    def __init__(self, dataset: Dataset, name: str):
        self._dataset, self._name = dataset, name

    @property
    def num_examples(self) -> int:
        """Examples of one epoch."""
        return self._dataset.num_examples

    def batch(self, step: int) -> Mapping[str, Any]:
        """Return the batch of optimizer step `step` (from 0)."""
        return marked(self._dataset.batch(step), self._name)


class Mixture:
    """A dataset whose batches are those of its members, each member's in order and without gaps.

    The member of a step and the number of its earlier batches are looked up in one cycle of the order, which is
    computed from the shares alone: `batch(step)` is a pure function, and nothing else is stored.

    Attributes:
        shares: of the members, by name, as they are kept; their sum is 1.
    """

    def __init__(self, members: Mapping[str, tuple[Dataset, float]], seed: int = 0):
        """Compute the order of one cycle.

        Args:
            members: dataset and share by name; shares count relative to their sum.
            seed: decides which of two members with equal claims comes first.

        Raises:
            UsageError: there is no member, or a share is not a number above 0.
        """
        wrong = {name: share for name, (_, share) in members.items() if not 0 < share < math.inf}
        if wrong or not members:
            raise UsageError(f"a mixture needs datasets with shares above 0, not {wrong or 'none at all'}")
        self._names = sorted(members, key=lambda name: int(keys(seed, _TURNS, stream_number(name))[0]))
        self._members = {name: dataset for name, (dataset, _) in members.items()}
        quotas, cycle = _quotas([members[name][1] for name in self._names])
        self.shares = {name: Fraction(quota, cycle) for name, quota in zip(self._names, quotas, strict=True)}
        self._turns = _turns(quotas)
        taken = self._turns[:, None] == np.arange(len(quotas))
        self._before = np.cumsum(taken, axis=0) - taken
        self._quotas = quotas

    @property
    def num_examples(self) -> int:
        """Examples of all members."""
        return sum(dataset.num_examples for dataset in self._members.values())

    @property
    def longest_turn(self) -> int:
        """The most steps that one member has in a row."""
        changes = np.flatnonzero(self._turns != np.roll(self._turns, 1))
        # The first turn of a cycle may go on from the last one of the cycle before.
        return len(self._turns) if not len(changes) else int(np.diff([*changes, changes[0] + len(self._turns)]).max())

    def at(self, step: int) -> tuple[str, int]:
        """Return the member of a step, and how many batches it gave in the steps before.

        Example:
            shares 1/2 "a", 1/4 "b", 1/4 "c"       turns a b c a, before 0 0 0 1
            step 7     cycle 1, within 3           "a", 1 * 2 + 1 = 3
        """
        cycle, within = divmod(step, len(self._turns))
        member = int(self._turns[within])
        return self._names[member], cycle * self._quotas[member] + int(self._before[within, member])

    def batch(self, step: int) -> Mapping[str, Any]:
        """Return the batch of optimizer step `step` (from 0)."""
        name, number = self.at(step)
        return self._members[name].batch(number)


def _quotas(shares: list[float]) -> tuple[list[int], int]:
    """Return how many steps of a cycle each member gets, and the length of the cycle."""
    exact = [Fraction(share).limit_denominator(MAX_CYCLE_STEPS) for share in shares]
    total = sum(exact)
    cycle = math.lcm(*[(share / total).denominator for share in exact]) if total and all(exact) else math.inf
    if cycle <= MAX_CYCLE_STEPS:
        return [int(share / total * int(cycle)) for share in exact], int(cycle)
    whole = sum(map(Fraction, shares))
    quotas = [max(1, round(Fraction(share) / whole * MAX_CYCLE_STEPS)) for share in shares]
    return quotas, sum(quotas)


def _turns(quotas: list[int]) -> np.ndarray:
    """Return the member of every step of a cycle; int64 [sum of quotas].

    A member may come when it is nearly due, and of those that may the one comes that would first be overdue. By
    Tijdeman's theorem every member has then had at every step its share of the steps to within 1 - 1 / (2n - 2).
    """
    cycle, n = sum(quotas), len(quotas)
    if n == 1:
        return np.zeros(cycle, np.int64)
    scale = 2 * n - 2
    turns, taken = np.empty(cycle, np.int64), [0] * n
    for step in range(1, cycle + 1):
        # In units of 1 / (cycle * scale) batches: how much each member is behind its share after this step.
        behind = [scale * (quota * step - cycle * count) for quota, count in zip(quotas, taken, strict=True)]
        due = [i for i in range(n) if behind[i] >= cycle]
        chosen = min(due, key=lambda i: Fraction(cycle * (scale - 1) - behind[i], quotas[i]))
        turns[step - 1] = chosen
        taken[chosen] += 1
    return turns
