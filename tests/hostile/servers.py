"""Classes of wrong models, addresses and keys of a server, and of wrong exports that are asked or served."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from random import Random

from tests.hostile.case import Case, Content, Expectation, Link, Special, change
from tests.hostile.seeds import BASES, EXPORT, KEY

_TUNED, _BEST = "in/tuned", "in/pretraining/best"
_CHECKPOINTS = {f"{_TUNED}/{name}": None for name in ("best", "checkpoints")}


@dataclasses.dataclass(frozen=True)
class _Way:
    """What is wrong, what a refusal names, and the answer."""

    names: tuple[str, ...]
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Mapping[str, Content | None] = dataclasses.field(default_factory=dict)
    uses: tuple[str, ...] = ()
    expect: Expectation = "refuse"


def _served(model: str, *names: str, uses: tuple[str, ...] = (), **files: Content | None) -> _Way:
    """Return a way whose model is wrong."""
    return _Way(names, {"model": model}, {name.replace("__", "/"): content for name, content in files.items()}, uses)


_WAYS: Mapping[str, _Way] = {
    "a model that is not there": _served("a=missing", "the model a at missing"),
    "a model below a file": _served(f"a={KEY}/below", "the model a at"),
    "an empty folder": _served("a=empty", "the model a at empty", empty=Special("folder")),
    "a folder of records": _served("a=in/records", "the model a at", uses=("in/records",)),
    "a text": _served("a=in/text.txt", "the model a at", uses=("in/text.txt",)),
    "links in a ring": _served("a=ring", "ring", ring=Link("ring")),
    "a pipe": _served("a=pipe", "the model a at pipe", pipe=Special("pipe")),
    "the second of two": _served(f"a={_TUNED},b=missing", "the model b at missing"),
    "two of one name": _served(f"a={_TUNED},a={_TUNED}", "names a twice"),
    "no name": _served(_TUNED, "--model"),
    "a name that is a path": _served(f"../a={_TUNED}", "--model"),
    "a name of 65 letters": _served(f"{'a' * 65}={_TUNED}", "--model"),
    "no path": _served("a=", "--model"),
    "no model": _served("", "--model"),
    "a comma too many": _Way(("--model",), {"model": f"a={_TUNED},"}, expect="either"),
    "no vocabulary": _served(f"a={_BEST}", "copy the vocabulary", uses=(_BEST,)),
    "a version that is none": _served("a=versions", "versions/2", versions__2__x=b"x", versions__1__x=b"x"),
    "no weights": _Way((_TUNED,), files=_CHECKPOINTS),
    "half the weights": _Way(("model.safetensors",), files={f"{_TUNED}/best/model.safetensors": b"half"}),
    "a vocabulary of one line": _Way(("vocab.txt",), files={f"{_TUNED}/vocab.txt": b"one\n"}),
    "no vocabulary in a run": _Way(("holds no vocabulary",), files={f"{_TUNED}/vocab.txt": None}),
    "a run.json that is none": _Way(("run.json",), files={f"{_TUNED}/run.json": b"{"}),
    "no run.json": _Way((_TUNED,), files={f"{_TUNED}/run.json": None}, expect="either"),
    "a port that is none": _Way(("--port",), {"port": "http"}),
    "a port beyond all": _Way(("--port",), {"port": "65536"}),
    "no host": _Way(("--host",), {"host": ""}),
    "a host that is no name": _Way(("--host",), {"host": "x" * 300}),
    "a host that is not ours": _Way(("203.0.113.1",), {"host": "203.0.113.1"}),
    "more texts than places": _Way(("--max_texts",), {"queue_texts": "8"}),
    "threads of nothing": _Way(("--threads",), {"threads": "2"}),
    "no key in a file": _Way(("--api_key_file",), files={KEY: b"\n"}),
    "two lines of a key": _Way(("--api_key_file",), files={KEY: b"secret-key\nof two"}),
    "a key of 100,000 letters": _Way(("--api_key_file",), files={KEY: b"a" * 100_000}),
}
_EXPORTS: Mapping[str, tuple[Mapping[str, Content | None], Expectation]] = {
    "an export.json that is none": ({f"{EXPORT}/export.json": b"{"}, "refuse"),
    "an export.json of a list": ({f"{EXPORT}/export.json": b"[]"}, "refuse"),
    "a file more": ({f"{EXPORT}/notes.txt": b"Mine.\n"}, "refuse"),
    "a file less": ({f"{EXPORT}/vocab.txt": None}, "refuse"),
    "a link in the place of a file": ({f"{EXPORT}/labels.json": Link(KEY)}, "refuse"),
    "another graph": ({}, "refuse"),
    "other weights": ({}, "refuse"),
}
_DAMAGED = {"another graph": "saved_model.pb", "other weights": "variables/variables.index"}


def server(random: Random, seeds: Path) -> Case:
    """A model, an address, a limit or a key of a server is none."""
    text = random.choice(list(_WAYS))
    way = _WAYS[text]
    return change(
        BASES["serve"], "server", text, way.expect, way.names, flags=way.flags, files=way.files, uses=way.uses
    )


def export(random: Random, seeds: Path) -> Case:
    """An export that is served, or asked by predict.py, is not what was written."""
    base = BASES[random.choice(("serve_export", "ask_export"))]
    if random.random() < 0.2:
        given = random.choice((f"{EXPORT}/model.onnx", f"{EXPORT}/saved_model.pb", f"{EXPORT}/variables"))
        model = base.flags["model"].replace(EXPORT, given)
        return change(base, "export", model, "refuse", (Path(given).name, EXPORT), flags={"model": model})
    text = random.choice(list(_EXPORTS))
    files, expect = _EXPORTS[text]
    if text in _DAMAGED:
        name = f"{EXPORT}/{_DAMAGED[text]}"
        # Of the same size, so that only whoever reads it sees.
        files = {name: random.randbytes((seeds / name).stat().st_size)}
    return change(base, "export", text, expect, (EXPORT,), files=files)
