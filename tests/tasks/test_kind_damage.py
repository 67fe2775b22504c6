"""Damaged files of the kinds regression, multilabel, choice and matching: one line that says what is wrong, or answers.

Bytes and values of files in the published forms are changed at random, thousands of times; what can still be read is
encoded too.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from kind_files import write_world

from data.tokenizers import load_tokenizer
from tasks.datasets import find_row
from tasks.kinds import find_kind
from tasks.readers.choices import index_of

FILES = {
    "sts_b": "sts_b/train.tsv",
    "tags": "tags/dev.jsonl",
    "c3": "c3/d-train.json",
    "chid": "chid/train.json",
    "copa": "copa/train.json",
    "race": "race/train/high/1.txt",
    "lcqmc_matching": "lcqmc/train.tsv",
    "tatoeba": "tatoeba/train.deu-eng.eng",
}
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 10**30, 0.5, "", " ", "a", "\u2028", "\ud800", "a\nb", "_", "#idiom01#", [], {}, [[]], ["a"],
    ["a", "a"], ["a", "b"], {"a": 1},
)  # fmt: skip
CASES = 100


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    write_world(folder)
    return folder


def with_other_bytes(content: bytes, generator: np.random.Generator) -> bytes:
    place, end = sorted(generator.integers(0, len(content) + 1, 2))
    other = bytes(generator.integers(0, 256, 2, np.uint8))
    return [
        content[:place],
        content[:place] + content[end:],
        content[:place] + other + content[place + 2 :],
        content[:end] + content[place:],
        content.replace(b"\n", b"\r\n"),
        content[:place] + b"\n" + content[place:],
        content[:place] + b"\t" + content[place:],
    ][generator.integers(7)]


def with_another_value(value: Any, generator: np.random.Generator) -> Any:
    """Return JSON in which one node, somewhere, is another value or is missing."""
    if not isinstance(value, list | dict) or not value or generator.random() < 0.15:
        return VALUES[generator.integers(len(VALUES))]
    key = list(value)[generator.integers(len(value))] if isinstance(value, dict) else generator.integers(len(value))
    changed = dict(value) if isinstance(value, dict) else list(value)
    if generator.random() < 0.15:
        del changed[key]
    else:
        changed[key] = with_another_value(value[key], generator)
    return changed


def damaged(content: bytes, generator: np.random.Generator) -> bytes:
    lines = content.decode().split("\n")
    number = int(generator.integers(len(lines)))
    if lines[number][:1] in ("{", "[") and generator.random() < 0.8:
        lines[number] = json.dumps(with_another_value(json.loads(lines[number]), generator))
        return "\n".join(lines).encode()
    return with_other_bytes(content, generator)


@pytest.mark.parametrize("task", FILES)
def test_a_damaged_file_is_one_line_or_is_read(task: str, world: Path, tmp_path: Path):
    row, generator = find_row(task, world / "rows.toml"), np.random.default_rng(len(task))
    tokenizer = load_tokenizer(vocab_file=world / "vocab.txt")
    kind, source = find_kind(row.kind), world / FILES[task]
    beside = [each for each in source.parent.iterdir() if each.name.startswith(source.stem) and each != source]
    for each in beside:
        (tmp_path / each.name).write_bytes(each.read_bytes())
    refused = []
    for _ in range(CASES):
        path = tmp_path / source.name
        path.write_bytes(damaged(source.read_bytes(), generator))
        try:
            examples = kind.read(row, path, need_labels=bool(generator.integers(2)))
        except UsageError as error:
            refused.append(str(error))
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dataset = kind.dataset(row, examples, tokenizer, max_seq_length=16, batch_size=3, seed=0)
            assert sum(len(next(iter(batch.values()))) for batch in dataset.evaluation_batches(3)) >= len(examples)
    assert 0 < len(refused) < CASES
    assert not [message for message in refused if "\n" in message]


def test_choices_of_several_lines_are_shown_in_one():
    with pytest.raises(UsageError, match=r"x:1: the answer 'e' is none of the choices \(d, a b\), 0 to 1$"):
        index_of("x:1", "e", ["d", "a\nb"])
