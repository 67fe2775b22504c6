"""Every kind tells answers that show nothing was learnt from answers that are right, and shows what went wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tasks.datasets import Example, find_row
from tasks.entity_scores import Entity
from tasks.evaluation_page import write_page
from tasks.kinds import KINDS, find_kind
from tasks.kinds.choice import ChoiceExample
from tasks.kinds.generation import SourceTarget
from tasks.kinds.matching import TextPair
from tasks.kinds.mining import Mined, Sentence
from tasks.kinds.multilabel import LabelledText
from tasks.kinds.span import Answered, Question
from tasks.kinds.tagging import Tagged, TaggedText

HOSTILE = "<script>alert(1)</script>"
NUMBER = 12


def one_hot(place: int, count: int) -> np.ndarray:
    return np.where(np.arange(count) == place, 0.9, 0.1 / (count - 1)).astype(np.float32)


def unit(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


def answered(text: str) -> Answered:
    found = {"text": text, "probability": 0.8, "begin": 0, "end": len(text)}
    return Answered(text, text, (found,) if text else (), -1.0)


def tagged(kind: str, begin: int) -> Tagged:
    return Tagged((Entity(kind, begin, begin + 2),), (0.7,))


def classes(count: int) -> list[Example]:
    return [Example(f"{HOSTILE} {n}", None, str(n % count)) for n in range(NUMBER)]


def characters(text: str) -> np.ndarray:
    return np.stack([np.arange(len(text)), np.arange(len(text)) + 1], axis=1)


TEXT = f"ab{HOSTILE}"
ROWS: dict[str, Any] = {
    "classification": find_row("chnsenticorp"),
    "regression": find_row("sts_b"),
    "multilabel": SimpleNamespace(name="m", labels=("0", "1", HOSTILE), threshold=0.5, label_separator="|"),
    "choice": find_row("c3"),
    "matching": dataclasses.replace(find_row("lcqmc_pair"), kind="matching", threshold=0.5),
    "mining": find_row("xtreme_bucc_de"),
    "tagging": find_row("cluener"),
    "span": find_row("cmrc2018"),
    "generation": SimpleNamespace(name="g", units="characters"),
}
Maker = tuple[list[Any], Callable[[Any], Any], Sequence[Any]]
KIND: dict[str, Maker] = {
    # examples, the right answer to one, and answers that show nothing is learnt where all examples have them
    "classification": (classes(2), lambda e: one_hot(int(e.label), 2), [one_hot(0, 2), one_hot(1, 2)]),
    "regression": (
        [Example(f"{HOSTILE} {n}", "b", str(n % 5)) for n in range(NUMBER)],
        lambda e: float(e.label),
        [0.0, 2.5],
    ),
    "multilabel": (
        [LabelledText(f"{HOSTILE} {n}", None, ("0", "1")[: n % 3]) for n in range(NUMBER)],
        lambda e: np.array([label in e.label for label in ("0", "1", HOSTILE)], np.float32),
        [np.zeros(3, np.float32), np.ones(3, np.float32)],
    ),
    "choice": (
        [ChoiceExample(HOSTILE, f"q{n}", ("x", "y", HOSTILE), n % 3) for n in range(NUMBER)],
        lambda e: one_hot(e.label, 3),
        [one_hot(2, 3)],
    ),
    "matching": (
        [TextPair(f"{HOSTILE} {n}", "b", float(n % 2)) for n in range(NUMBER)],
        lambda e: np.stack([unit(0.0), unit(0.0 if e.label else np.pi / 2)]),
        [np.stack([unit(0.3), unit(0.3)])],
    ),
    "mining": (
        # n of one side and n + 1 of the other belong together.
        [Sentence(f"{HOSTILE} {n}", str(n), "ab"[n % 2], str(n + 1 - n % 2 * 2)) for n in range(NUMBER)],
        lambda e: Mined(int(e.label), 0.8 + int(e.id) // 2 / 100),
        [Mined(3, 0.9)],
    ),
    "tagging": (
        [TaggedText(TEXT, characters(TEXT), (Entity("name", n % 3, n % 3 + 2),)) for n in range(NUMBER)],
        lambda e: Tagged(e.entities, (0.9,)),
        [Tagged((), ()), tagged("name", 9), tagged("company", 0)],
    ),
    "span": (
        [Question(f"q{n}", HOSTILE, TEXT, ((TEXT[: n % 3 + 1], 0),)) for n in range(NUMBER)],
        lambda e: answered(e.texts[0]),
        [answered(""), answered("z"), answered("ab")],
    ),
    "generation": (
        [SourceTarget(HOSTILE, None, f"target {n}") for n in range(NUMBER)],
        lambda e: {"hypotheses": [{"text": e.target}], "target_loss": 1.0, "target_tokens": 2.0},
        [{"hypotheses": [{"text": HOSTILE}], "target_loss": 3.0, "target_tokens": 2.0}],
    ),
}


def test_every_kind_tells_and_shows():
    assert set(KIND) == set(KINDS)
    for name in KINDS:
        assert callable(getattr(find_kind(name), "degenerate", None)), name
        assert callable(getattr(find_kind(name), "inspected", None)), name


@pytest.mark.parametrize("name", KINDS)
def test_right_answers_are_not_degenerate_and_show_no_mistake(name: str):
    examples, right, _ = KIND[name]
    answers, kind = [right(example) for example in examples], find_kind(name)
    assert kind.degenerate(ROWS[name], answers, examples) == ""  # pyright: ignore[reportAttributeAccessIssue]
    assert not kind.inspected(ROWS[name], answers, examples).examples  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", KINDS)
def test_answers_that_are_all_alike_are_said_and_shown(name: str, tmp_path: Path):
    examples, _, constants = KIND[name]
    for constant in constants:
        answers, kind = [constant] * len(examples), find_kind(name)
        why = kind.degenerate(ROWS[name], answers, examples)  # pyright: ignore[reportAttributeAccessIssue]
        assert why
        assert "\n" not in why
        found = kind.inspected(ROWS[name], answers, examples)  # pyright: ignore[reportAttributeAccessIssue]
        assert found.examples
        write_page(tmp_path / "page.html", name, {}, found)
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert "<script" not in page
        assert name in ("span",) or "&lt;script" in page.replace("</mark><mark>", "").replace("<mark>", "")


@pytest.mark.parametrize("name", KINDS)
def test_one_example_tells_nothing(name: str):
    """Of one example all answers are alike; a kind that calls them wrong has another reason."""
    examples, right, _ = KIND[name]
    kind = find_kind(name)
    assert kind.degenerate(ROWS[name], [right(examples[1])], examples[1:2]) == ""  # pyright: ignore[reportAttributeAccessIssue]


def test_the_floor_of_a_class_is_its_share():
    examples = [Example("x", None, str(int(n >= 9))) for n in range(12)]
    kind, row = find_kind("classification"), ROWS["classification"]
    some = [one_hot(1, 2), *[one_hot(0, 2)] * 9, *[one_hot(1, 2)] * 2]
    assert kind.degenerate(row, some, examples) == ""  # pyright: ignore[reportAttributeAccessIssue]
    worse = [one_hot(1, 2), *[one_hot(0, 2)] * 11]
    assert "is not above 0.7500, which '0' everywhere" in kind.degenerate(row, worse, examples)  # pyright: ignore[reportAttributeAccessIssue]
    # By Matthews' correlation, as of CoLA, as many right as that can be more than nothing.
    few = [*[one_hot(1, 2)] * 2, *[one_hot(0, 2)] * 8, *[one_hot(1, 2)] * 2]
    assert kind.degenerate(row, few, examples)  # pyright: ignore[reportAttributeAccessIssue]
    by_correlation = dataclasses.replace(row, metric="matthews_correlation")
    assert kind.degenerate(by_correlation, few, examples) == ""  # pyright: ignore[reportAttributeAccessIssue]
    assert kind.degenerate(row, [one_hot(0, 2)] * 12, [examples[0]] * 12) == ""  # pyright: ignore[reportAttributeAccessIssue]
