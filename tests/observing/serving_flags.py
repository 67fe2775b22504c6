"""The flags of the verbs that answer with a trained model; the model is a recorder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from observing.plain import digest
from observing.rows import DIFFERENT, Notes, Row, Verb

import export_model
import predict
import serving
import serving.formats
import serving.loading

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


def without_export(patch: pytest.MonkeyPatch, notes: Notes, machine: str) -> None:
    """Note what would be loaded and written."""

    def load(source: str, **settings: Any) -> Echo:
        notes.add("loaded", {"source": source, **settings})
        return Echo(notes)

    def export(loaded: Echo, target: Path, form: str, inputs: list[Any], **further: Any) -> list[Any]:
        notes.add("exported", {"target": target, "format": form, "inputs": inputs, **further})
        return []

    patch.setattr(serving.loading, "load", load)
    patch.setattr(serving.formats, "export", export)
    patch.setattr(serving.formats, "development_of", lambda loaded, path, most: {"file": str(path), "most": most})
    patch.setenv("KERAS_BACKEND", "tensorflow")


PAIRS = {"input_file": "{world}/pairs/train.txt"}
EXPORT = Verb(
    export_model,
    {"model": "{world}/pretrained", "output": "out"},
    (
        Row("model", "{world}/shared", {"loaded/source": DIFFERENT}),
        Row("output", "elsewhere", {"exported/target": "elsewhere", "printed": DIFFERENT}),
        Row("format", "onnx", {"exported/format": "onnx"}),
        Row("int8", "true", {"exported/int8": True}, {"format": "onnx"}),
        Row("input_file", "{world}/pairs/dev.txt", {"exported/inputs": DIFFERENT}, PAIRS),
        Row("input_format", "tsv", {"exported/inputs": DIFFERENT}, PAIRS),
        Row("dev_file", "{world}/pairs/dev.txt", {"exported/development": DIFFERENT}, {"format": "onnx"}),
        Row(
            "max_drop", "2", {"exported/development/most": 2.0}, {"format": "onnx", "dev_file": "{world}/pairs/dev.txt"}
        ),
        Row("vocab_file", "{world}/reversed.txt", {"loaded/vocab_file": DIFFERENT}),
    ),
    without_export,
    lambda path: digest(Path(path).read_bytes()),
    prints=True,
)
