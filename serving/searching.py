"""What a request may say of how text is generated: which numbers, within which bounds, and the search that they mean.

Every search of a compiled model is a program of its own, and no request waits for a compiler: there only the greatest
length may be given. An export of `serving/steps.py` compiles nothing, and takes beams, or a temperature and a share of
probability (`top_p`), by which text is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from serving.refusals import RefusalError
from serving.rows import Search

if TYPE_CHECKING:
    from serving.loading import Loaded
    from serving.served import Served

NEW_TOKENS, BEAMS = "max_new_tokens", "num_beams"
MOST_BEAMS = 8
DRAWN = {"temperature": (0.1, 2.0), "top_p": (0.05, 1.0)}
"""Numbers by which text is drawn, with their bounds."""


def parameters_of(loaded: Loaded) -> dict[str, dict[str, float | None]]:
    """Return the numbers of generation that a request may give, each `{"minimum", "maximum", "value"}`.

    `value` is what the model does by itself, None for what its search has not.
    """
    generate: Any = loaded.generates()
    bounds = getattr(generate, "new_tokens", None)
    if bounds is None:
        return {}
    least, most = bounds
    found: dict[str, dict[str, float | None]] = {NEW_TOKENS: {"minimum": least, "maximum": most, "value": most}}
    if not loaded.free:
        return found
    own = generate.settings
    widest = min(MOST_BEAMS, loaded.config.vocab_size // 2 - 1)
    found[BEAMS] = {"minimum": 1, "maximum": widest, "value": None if own.do_sample else own.num_beams}
    for name, (low, high) in DRAWN.items():
        found[name] = {"minimum": low, "maximum": high, "value": getattr(own, name) if own.do_sample else None}
    return found


def check_parameters(served: Served, asked: Mapping[str, float]) -> None:
    """Raise `RefusalError` for a number that means nothing to a model, or is beyond its bounds."""
    known = served.parameters
    for name, value in asked.items():
        place = f"parameters.{name}"
        if name not in known:
            why = "whose text has no limit" if name == NEW_TOKENS else "which has no such choice"
            message = f"{name} means nothing to {served.name}, {why}; leave it out"
            raise RefusalError(422, "wrong_input", message, place)
        least, most = known[name]["minimum"], known[name]["maximum"]
        assert least is not None
        assert most is not None
        if not least <= value <= most:
            unit = " tokens" if name == NEW_TOKENS else ""
            message = f"{name} is {value:,}; expected {least:,} to {most:,}{unit}"
            raise RefusalError(422, "wrong_input", message, place)


def search_of(loaded: Loaded, wanted: Mapping[str, float]) -> Search:
    """Return the settings of a search in the place of the model's own; none where it would be the same.

    Raises `RefusalError` for beams beside what text is drawn by.
    """
    generate: Any = loaded.generates()
    own = generate.settings
    draws = sorted(wanted.keys() & DRAWN)
    beams = int(wanted.get(BEAMS, 1 if draws or own.do_sample else own.num_beams))
    if draws and beams > 1:
        message = f"{BEAMS} is {beams} beside {draws[0]}: text is drawn, or searched with beams; leave one of them out"
        raise RefusalError(422, "wrong_input", message, f"parameters.{BEAMS}")
    found: dict[str, Any] = {BEAMS: beams, "do_sample": bool(draws), "num_return_sequences": 1}
    if not draws:
        found |= {"num_return_sequences": min(own.num_return_sequences, beams), "top_k": 0}
    elif own.do_sample:
        found["num_return_sequences"] = own.num_return_sequences
    for name in DRAWN:
        found[name] = float(wanted.get(name, getattr(own, name) if draws else 1.0))
    return () if own.changed(**found) == own else tuple(sorted(found.items()))
