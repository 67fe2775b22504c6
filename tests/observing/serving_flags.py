"""The flags of the verbs that answer with a trained model; the model is a recorder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from observing.plain import digest
from observing.rows import DIFFERENT, Notes, Row, Verb

import export_model
import predict
import serve
import serving
import serving.formats
import serving.loading
import serving.models
import serving.server

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


class Listening:
    """Stands for a socket."""

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 1


def without_server(patch: pytest.MonkeyPatch, notes: Notes, machine: str) -> None:
    """Note what would be served, where and to whom."""

    def listen(host: str, port: int) -> Listening:
        notes.add("listening", {"host": host, "port": port})
        return Listening()

    def open_model(path: str, threads: int) -> None:
        notes.add("opened", {"path": path, "threads": threads})

    class Serving:
        def __init__(
            self, models: Any, limits: Any, metrics: Any, *, key: Any, hosts: Any, reload_seconds: Any, say: Any
        ):
            notes.add("limits", limits.as_json())
            notes.add("to", {"key": key, "hosts": list(hosts)})
            notes.add("models", {"names": list(models.names), "sizes": list(models._sizes), "reload": reload_seconds})
            self._models = models

        def run(self, listening: Any) -> None:
            for path in self._models._paths.values():
                self._models._open(path)

    patch.setattr(serving.server, "listen", listen)
    patch.setattr(serving.server, "Serving", Serving)
    patch.setattr(serving.models, "open_model", open_model)
    patch.setenv("KERAS_BACKEND", "")
    patch.delenv(serve.KEY_VARIABLE, raising=False)


SERVE = Verb(
    serve,
    {"model": "m={world}/pretrained"},
    (
        Row("model", "n={world}/shared", {"opened/path": DIFFERENT, "models/names": ("n",)}),
        Row("warm_up", "false", {"models/sizes": ()}),
        Row("reload_seconds", "0", {"models/reload": 0.0}),
        Row("host", "0.0.0.0", {"listening/host": "0.0.0.0", "to/hosts": ()}),
        Row("port", "80", {"listening/port": 80}),
        Row("allowed_hosts", "divan.example", {"to/hosts": DIFFERENT}),
        Row("api_key_file", "{world}/vocab.txt", {"error": DIFFERENT}),
        Row("max_body_bytes", "2000", {"limits/body_bytes": 2000}),
        Row("max_texts", "4", {"limits/texts": 4}),
        Row("max_text_characters", "50", {"limits/text_characters": 50}),
        Row("queue_texts", "64", {"limits/queue_texts": 64}),
        Row("deadline_seconds", "3", {"limits/deadline_seconds": 3.0}),
        Row("grace_seconds", "3", {"limits/grace_seconds": 3.0}),
        Row("batch_tokens", "512", {"limits/batch_tokens": 512}),
        Row("batch_rows", "8", {"limits/batch_rows": 8, "models/sizes": DIFFERENT}),
        Row("threads", "2", {"opened/threads": 2}, {"model": "m={world}/export/model.onnx"}),
    ),
    without_server,
    lambda path: digest(Path(path).read_bytes()),
)
