"""Names with numbers in a flag: `masked_lm:0.5,tlm:0.5`, or a name alone. Only the standard library and absl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from absl.app import UsageError

from ground.words import nearest

BETWEEN = ":"
_LONGEST = 40
_MOST = 1e6
_LEAST_PART = 1e-3


def shares_of(text: str, known: Iterable[str], flag: str) -> dict[str, float]:
    """Return the share of every name, in the order of `known`; the sum is 1.

    Example:
        "tlm"                     tlm 1
        "masked_lm,tlm"           masked_lm 0.5, tlm 0.5
        "tlm:1,masked_lm:3"       masked_lm 0.75, tlm 0.25

    Args:
        text: as it was typed.
        known: the names that there are.
        flag: that gives it, for messages.

    Raises:
        UsageError: a name is unknown or comes twice, a share is no number above 0, or some names have none.
    """
    known = tuple(known)
    given = _pairs(text, known, flag)
    without = [name for name, share in given.items() if share is None]
    if without and len(without) < len(given):
        other = next(name for name in given if name not in without)
        raise UsageError(
            f"--{flag}={_shown(text)}: {without[0]} has no share but {other} has {given[other]:g}: give each a share, "
            f"as {_example(given)}, or none for equal ones"
        )
    whole = sum(share or 1.0 for share in given.values())
    shares = {name: (given[name] or 1.0) / whole for name in known if name in given}
    if tiny := [name for name, share in shares.items() if share < _LEAST_PART]:
        raise UsageError(
            f"--{flag}={_shown(text)}: {tiny[0]} has {shares[tiny[0]]:.2g} of the steps; expected at least "
            f"{_LEAST_PART:g}, or leave {tiny[0]} out"
        )
    return shares


def numbers_of(text: str, known: Iterable[str], flag: str) -> dict[str, float]:
    """Return the number of every name that has one; raises `UsageError` as `shares_of`, and for a name without."""
    given = _pairs(text, tuple(known), flag)
    if without := [name for name, number in given.items() if number is None]:
        raise UsageError(
            f"--{flag}={_shown(text)}: {without[0]} has no number; expected NAME:NUMBER, as {without[0]}:2"
        )
    return {name: number for name, number in given.items() if number is not None}


def as_text(numbers: Mapping[str, float]) -> str:
    """Return names and numbers as the flag has them; one name stands alone."""
    if len(numbers) == 1:
        return next(iter(numbers))
    return ",".join(f"{name}{BETWEEN}{number:g}" for name, number in numbers.items())


def _pairs(text: str, known: tuple[str, ...], flag: str) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for part in text.split(","):
        name, colon, number = (piece.strip() for piece in part.partition(BETWEEN))
        if name not in known:
            raise UsageError(
                f"--{flag}={_shown(text)}: {name[:_LONGEST]!r} is unknown; the nearest is "
                f"{nearest(name[:_LONGEST], known)}; expected one of {', '.join(known)}"
            )
        if name in found:
            raise UsageError(f"--{flag}={_shown(text)}: {name} is named twice; name each once")
        found[name] = _number(number, f"--{flag}={_shown(text)}", name) if colon else None
    return found


def _number(text: str, where: str, name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= _MOST:
        raise UsageError(f"{where}: {name}{BETWEEN}{text[:_LONGEST]}; expected a number above 0, at most {_MOST:g}")
    return number


def _example(names: Iterable[str]) -> str:
    return ",".join(f"{name}{BETWEEN}1" for name in names)


def _shown(text: str) -> str:
    return text if len(text) <= 5 * _LONGEST else text[: 5 * _LONGEST] + "..."
