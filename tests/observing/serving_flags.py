"""The flags of the verbs that answer with a trained model; the model is a recorder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from observing.plain import digest
from observing.rows import DIFFERENT, Notes, Row, Verb

import predict
import serving

PRINTED = {"printed": DIFFERENT}
FILE = {"text": "", "input_file": "{world}/pairs/train.txt"}


class Echo:
    """Stands for a model; its answer is what it was asked."""

    def __init__(self, notes: Notes):
        self.notes = notes

    def predict(self, given: Any) -> dict[str, Any]:
        return {"given": given}

    def example(self, given: Any) -> Any:
        return given

    def answers(self, examples: list[Any], batch_size: int) -> list[dict[str, Any]]:
        self.notes.add("batch size", batch_size)
        return [{"given": each} for each in examples]


def without_model(patch: pytest.MonkeyPatch, notes: Notes, machine: str) -> None:
    """Note what would be loaded."""

    def load(source: str, **settings: Any) -> Echo:
        notes.add("loaded", {"source": source, **settings})
        return Echo(notes)

    patch.setattr(serving, "load", load, raising=False)
    patch.setenv("KERAS_BACKEND", "")


PREDICT = Verb(
    predict,
    {"model": "{world}/pretrained", "text": "one"},
    (
        Row("model", "{world}/shared", {"loaded/source": DIFFERENT}),
        Row("text", "two", {"printed": ('{"given": "two"}',)}),
        Row("text_pair", "two", {"printed": ('{"given": ["one", "two"]}',)}),
        Row("input_file", "{world}/pairs/dev.txt", PRINTED, FILE),
        Row("input_format", "tsv", PRINTED, FILE),
        Row("output_file", "out.jsonl", {"files": DIFFERENT, "printed": ()}),
        Row("vocab_file", "{world}/reversed.txt", {"loaded/vocab_file": DIFFERENT}),
        Row("predict_batch_size", "4", {"batch size": 4}, FILE),
        Row("mask_tokens", "2", {"loaded/mask_tokens": 2}),
    ),
    without_model,
    lambda path: digest(Path(path).read_bytes()),
    prints=True,
)
