"""Strings in, answers out: what a SavedModel with the tokenizer inside reads and says, one form of inputs a file.

A kind names its form (`Kind.on_strings`). A form is a class, made of a loaded model:

    inputs                  names of the strings, each with its shape; None is free
    __call__(*strings)      -> tensors by name, in the graph
    given(examples)         -> the strings of examples, as arrays by name
    answers(found, examples) -> what `serving.load(...).predict` says, from these tensors as arrays
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from absl.app import UsageError

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from serving.loading import Loaded
    from serving.strings.told import Told

FORMS: dict[str, str] = {
    "classes": "serving.strings.texts:Classes",
    "label_sets": "serving.strings.texts:LabelSets",
    "scores": "serving.strings.texts:Scores",
    "vectors": "serving.strings.texts:Vectors",
    "prompts": "serving.strings.prompts:Prompts",
    "choices": "serving.strings.choices:Choices",
    "entities": "serving.strings.entities:Entities",
    "spans": "serving.strings.spans:Spans",
    "masks": "serving.strings.masks:Masks",
}
"""form -> module and class."""
TOLD: dict[str, str] = {
    "choices": "serving.strings.told:ToldChoices",
    "entities": "serving.strings.told:ToldEntities",
    "spans": "serving.strings.told:ToldSpans",
    "masks": "serving.strings.told:ToldMasks",
}
"""form -> module and class of what tells its answers; the outputs of the other forms are the task's predictions."""
_SHOWN = 300


class OnStrings(Protocol):
    """See the head of this file."""

    inputs: Mapping[str, list[int | None]]

    def __call__(self, *strings: Any) -> dict[str, Any]: ...

    def given(self, examples: Sequence[Any]) -> dict[str, np.ndarray]: ...

    def answers(self, found: Mapping[str, np.ndarray], examples: Sequence[Any]) -> list[dict[str, Any]]: ...


def form_of(loaded: Loaded) -> OnStrings:
    """Return the form of a model's inputs and answers; raises `UsageError` where its kind has none."""
    name = getattr(loaded.host, "on_strings", "")
    if not name or (loaded.row is not None and loaded.row.plug_in):
        what = f"the kind {loaded.kind}" if not name else "two languages side by side (plug_in)"
        raise UsageError(
            f"--format=saved_model_text: no graph makes the inputs of {what}: write --format=saved_model or onnx, and "
            "tokenise outside"
        )
    module, _, kind = FORMS[name].partition(":")
    return getattr(importlib.import_module(module), kind)(loaded)


def told_of(name: str, tokenizer: Tokenizer) -> Told | None:
    """Return what tells the answers of a form by its outputs; None where these are the task's predictions."""
    if name not in TOLD:
        return None
    module, _, kind = TOLD[name].partition(":")
    return getattr(importlib.import_module(module), kind)(tokenizer)


def wanted_of(form: OnStrings, answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the model's answers without what the form leaves `untold`, such as the candidates of a span."""
    untold = getattr(form, "untold", ())
    return [{name: value for name, value in answer.items() if name not in untold} for answer in answers]


def compare_answers(
    found: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]], tolerance: float, *, what: str
) -> float:
    """Return how far the numbers of answers are from those wanted, at most, relative to 1 + the number.

    Raises:
        UsageError: a number is farther away than `tolerance`, or another text, place or label is answered.
    """
    worst = 0.0
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        apart = _apart(one, other)
        if not apart <= tolerance:
            raise UsageError(
                f"{what} answers {str(one)[:_SHOWN]} to input {number}, the model {str(other)[:_SHOWN]}: none of it is "
                "kept"
            )
        worst = max(worst, apart)
    return worst


def _apart(one: Any, other: Any) -> float:
    """Return the largest distance of two answers' numbers; infinite where anything else differs."""
    if isinstance(other, dict):
        if not isinstance(one, dict) or one.keys() != other.keys():
            return float("inf")
        return max((_apart(one[key], other[key]) for key in other), default=0.0)
    if isinstance(other, list):
        if not isinstance(one, list) or len(one) != len(other):
            return float("inf")
        return max((_apart(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(other, float):
        return abs(one - other) / (1 + abs(other)) if isinstance(one, float) else float("inf")
    return 0.0 if one == other else float("inf")
