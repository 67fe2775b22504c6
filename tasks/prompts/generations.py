"""iPET (Schick and Schütze 2021, section 3.4): models of a generation label texts for those of the next, ever more.

    {"text_a": "...", "text_b": "...", "label": "0"}

A model learns from its examples and from texts that some of the other patterns' models labelled together; labels stand
in them as often as in the examples, and the surer these models are of a text, the likelier it is drawn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from ground.documents import check_shape, json_line
from ground.files import write_atomically
from tasks.datasets import DatasetRow, Example, read_examples
from tasks.prompts.soft_labels import softened

NAME = "train_generation.jsonl"
GROWTH, SHARE_OF_OTHERS = 5, 0.25
"""The paper's d, by which the training set of a model grows from generation to generation, and lambda."""


class _LineShape(TypedDict):
    text_a: str
    text_b: NotRequired[str]
    label: str


def drawn(
    chances_PTC: np.ndarray, pattern: int, wanted_C: Sequence[int], random: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Yield (text, label) of what the model of a pattern learns next, label by label.

    Args:
        chances_PTC: what the models of P patterns say of T texts.
        pattern: whose model it is; the others' answer, or its own where there are none.
        wanted_C: texts of each label.
        random: of the draws.
    """
    others = [other for other in range(len(chances_PTC)) if other != pattern] or [pattern]
    some = random.permutation(others)[: max(1, round(SHARE_OF_OTHERS * len(others)))]
    joint_TC = np.stack([softened(each, temperature=1.0) for each in chances_PTC[some].swapaxes(0, 1)])
    free_T, said_T = np.ones(len(joint_TC), bool), joint_TC.argmax(axis=1)
    for label, wanted in enumerate(wanted_C):
        of_label = np.flatnonzero(free_T & (said_T == label))
        if len(of_label) > wanted:
            weights = joint_TC[of_label, label]
            found = random.choice(of_label, wanted, replace=False, p=weights / weights.sum())
        else:
            # Where too few are of a label, those that are nearest to it.
            free = np.flatnonzero(free_T)
            found = free[np.argsort(-joint_TC[free, label], kind="stable")][:wanted]
        free_T[found] = False
        yield from ((int(text), label) for text in sorted(found.tolist()))


def write_next(
    predictions: Sequence[Path],
    pattern: int,
    row: DatasetRow,
    counts_C: Sequence[int],
    generation: int,
    seed: int,
    target: Path,
) -> int:
    """Write what the model of a pattern learns in a generation beside its examples; return how many texts that are.

    Args:
        predictions: files of the former generation's answers to the same texts, by pattern.
        pattern: from 0.
        row: of the task.
        counts_C: examples of each label.
        generation: from 1.
        seed: of the draws.
        target: to be written.
    """
    files = [[json_line(line) for line in path.read_text("utf-8").split("\n") if line] for path in predictions]
    chances_PTC = np.array(
        [[[each["probabilities"][label] for label in row.labels] for each in answers] for answers in files]
    )
    wanted = [(GROWTH**generation - 1) * count for count in counts_C]
    random = np.random.default_rng([seed, generation, pattern])
    lines = []
    for text, label in drawn(chances_PTC, pattern, wanted, random):
        content = {name: files[0][text][name] for name in ("text_a", "text_b") if name in files[0][text]}
        lines.append(json.dumps({**content, "label": row.labels[label]}, ensure_ascii=False) + "\n")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, "".join(lines))
    return len(lines)


def read(row: DatasetRow, path: Path, *, need_labels: bool) -> Sequence[Example]:
    """Return the examples of a file, also of one that `write_next` wrote."""
    if path.name != NAME:
        return read_examples(row, path, need_labels=need_labels)
    found = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), start=1):
        if line:
            content = check_shape(json_line(line), _LineShape, where=f"{path}:{number}", fix="make the file anew")
            found.append(Example(content["text_a"], content.get("text_b"), content["label"]))
    return found
