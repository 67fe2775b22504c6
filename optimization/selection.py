"""Per-parameter behaviour as an ordered list of (regular expression, value) over variable names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from absl.app import UsageError

from ground.words import nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Selection(Generic[T]):
    """The value of a name is that of the first rule whose expression is found anywhere in it (`re.search`)."""

    rules: tuple[tuple[str, T], ...]

    @classmethod
    def of(cls, rules: Iterable[tuple[str, T]]) -> Selection[T]:
        """Return the selection of `rules`, first match first."""
        return cls(tuple(rules))

    @classmethod
    def always(cls, value: T) -> Selection[T]:
        """Return the selection that gives every name the same value."""
        return cls((("", value),))

    def resolve(self, names: Iterable[str]) -> dict[str, T]:
        """Return the value of each name; raises `UsageError` for a name that no rule covers."""
        return {name: self._value(name) for name in names}

    def _value(self, name: str) -> T:
        for expression, value in self.rules:
            if re.search(expression, name):
                return value
        tried = ", ".join(repr(expression) for expression, _ in self.rules) or "none"
        raise UsageError(
            f"no rule covers the variable {name!r} (rules: {tried}); end the list with a rule '' for the rest"
        )


def matching(expressions: Sequence[str], names: Sequence[str]) -> frozenset[str]:
    """Return the names in which any of `expressions` is found.

    Raises `UsageError` for an expression that is not one, or is found in no name: a misspelt rule would pass unnoticed.
    """
    found: set[str] = set()
    for expression in expressions:
        try:
            hits = [name for name in names if re.search(expression, name)]
        except re.error as error:
            raise UsageError(f"{expression!r} is not a regular expression: {error}") from None
        if not hits:
            closest = nearest(expression, names)
            raise UsageError(f"{expression!r} matches no variable; the nearest name is {closest!r}")
        found.update(hits)
    return frozenset(found)
