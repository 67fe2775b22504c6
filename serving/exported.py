"""An export of export_model.py opened and asked as `serving.load` opens a run: the same answers by another program.

open_export("my_export")                    saved_model, saved_model_text or onnx, whichever it is
open_export("my_export/model_int8.onnx")    of ONNX the twin of 8 bits
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np
from absl.app import UsageError

from ground.documents import read_json
from ground.words import one_line
from modeling.config import Config
from serving.exporting import NAME, is_export
from serving.loading import PRETRAINED, Loaded, checked_settings, host_of
from serving.strings import told_of
from tasks import pretrained
from tasks.datasets import parse_row
from tasks.inputs import IDS, INPUTS, POSITIONS
from tasks.run_file import PRETRAINING, TokenizerFile

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from serving.strings.told import Told

Arrays = Mapping[str, np.ndarray]
ONNX, INT8 = "model.onnx", "model_int8.onnx"
DECODER = "decoder"
"""What the file of the second graph of a model of two begins with."""
_AGAIN = "write it again with export_model.py"


class _TokenizerShape(TypedDict):
    fingerprint: str
    do_lower_case: bool
    segmentation: str
    files: list[str]


class _ExportShape(TypedDict):
    kind: str
    max_seq_length: int
    tokenizer: _TokenizerShape
    inputs: dict[str, list[int | None]]
    outputs: dict[str, list[int | None]]
    row: dict[str, Any] | None
    config: NotRequired[dict[str, Any]]
    settings: NotRequired[dict[str, Any]]
    strings: NotRequired[str]


class Session:
    """What predicts batches of features by an export; stands for `serving.programs.Programs`.

    Attributes:
        free: nothing is compiled for a shape.
        names: of the inputs.
        texts: the same, where they are strings.
        told: tells the answers of an export on strings that answers by itself; None of any other.
        fills: whether it says which tokens masks hide.
    """

    free = True

    def __init__(
        self,
        ask: Callable[[Arrays], Arrays],
        names: Iterable[str],
        texts: Iterable[str] = (),
        told: Told | None = None,
        fills: bool = False,
    ):
        self._ask, self.names, self.texts, self.told = ask, tuple(names), tuple(texts), told
        self.fills = fills or POSITIONS in self.names

    def predict(self, batches: Iterable[Arrays]) -> Iterator[dict[str, np.ndarray]]:
        """Yield what the export says of each batch, by the names of its outputs; without masks place 0 is one."""
        for batch in batches:
            given: dict[str, np.ndarray] = dict(batch)
            if POSITIONS in self.names and POSITIONS not in given:
                given[POSITIONS] = np.zeros((len(given[IDS]), 1), np.int32)
            yield dict(self._ask({name: given[name if self.texts else INPUTS[name]] for name in self.names}))


class _VectorsAlone:
    """The host half of a pretrained model whose export has no scores of masks."""

    def __getattr__(self, name: str) -> Any:
        return getattr(pretrained, name)

    def example_of(self, row: None, given: Any) -> str:
        """Return a text as an example."""
        text = pretrained.example_of(row, given)
        if pretrained.MASK in text:
            raise UsageError(f"the export gives vectors and fills no {pretrained.MASK}: serve the model it was made of")
        return text


def is_exported(path: Path) -> bool:
    """Return whether a path names an export, or a model of one."""
    return (path / NAME).is_file() or (path.suffix == ".onnx" and (path.parent / NAME).is_file())


def open_export(path: str | Path, threads: int = 0, **settings: Any) -> Loaded:
    """Open an export, or one of the models of it.

    Args:
        path: the folder, or a file `.onnx` in it.
        threads: that ONNX Runtime computes with; 0: as many as cores.
        **settings: what decides answers beside the weights, in the place of what the export was made with.

    Raises:
        UsageError: its files are not those that it was written with, or a package is missing.
        OSError: a file cannot be read.
    """
    path = Path(path)
    folder = path.parent if path.suffix == ".onnx" else path
    if not is_export(folder):
        raise UsageError(f"{folder} does not hold the files that its {NAME} lists, and no others: {_AGAIN}")
    known = read_json(folder / NAME, dict[str, Any], what="an export.json")
    if "row" not in known:
        raise UsageError(f"{folder / NAME} is of an earlier version: {_AGAIN}")
    known = read_json(folder / NAME, _ExportShape, what="an export.json", fix=_AGAIN)
    row = None if known["row"] is None else dict(known["row"])
    row = None if row is None else parse_row(str(row.pop("name", "")), row, folder / NAME)
    config = Config.from_json(known["config"]) if "config" in known else None
    vocabulary, *further = known["tokenizer"]["files"]
    for name in (vocabulary, *further):
        if Path(name).name != name:
            raise UsageError(f"{folder / NAME} names the tokenizer's file {name!r}, expected the plain name of a file")
    tokenizer = TokenizerFile(
        file=vocabulary,
        vocabulary="".join(further),
        fingerprint=known["tokenizer"]["fingerprint"],
        do_lower_case=known["tokenizer"]["do_lower_case"],
        segmentation=known["tokenizer"]["segmentation"],
    ).load(folder)
    model, form, session = _session(folder, path, known, threads, config, tokenizer)
    if settings and getattr(session, "told", None) is not None:
        raise UsageError(f"{folder} reads strings and answers as it was made: leave {', '.join(settings)} out")
    nothing: Any = None
    host: Any = host_of(row) if row is not None else pretrained if session.fills else _VectorsAlone()
    kept = {name: value for name, value in known.get("settings", {}).items() if value is not None}
    return Loaded(
        PRETRAINED if known["kind"] == PRETRAINING else known["kind"],
        () if row is None else row.labels,
        tokenizer,
        model,
        config or nothing,
        row,
        known["max_seq_length"],
        nothing,
        nothing,
        host,
        {**kept, **checked_settings(host, settings)},
        session,
        form,
        "int8" if path.name.endswith(INT8.removeprefix("model")) else "float32",
    )


def _session(
    folder: Path, path: Path, known: _ExportShape, threads: int, config: Config | None, tokenizer: Tokenizer
) -> tuple[Any, str, Any]:
    """Return what stands in the place of the model, for one that is asked step by step, the form, and the session."""
    names, file = list(known["inputs"]), path
    graphs = sorted(folder.glob(f"{DECODER}*.onnx"))
    if path.suffix != ".onnx" and ((folder / ONNX).is_file() or graphs):
        file = graphs[0] if graphs else folder / ONNX
    if file.suffix == ".onnx" and not file.is_file():
        raise UsageError(f"{file} does not exist: write it with export_model.py --format=onnx --int8")
    if file.suffix != ".onnx" and not (folder / "saved_model.pb").is_file():
        raise UsageError(f"{folder} holds neither {ONNX} nor saved_model.pb: {_AGAIN}")
    if known["kind"] == "generation":
        from serving.steps import OnnxGraphs, SavedModelGraphs, Steps

        assert config is not None
        asked = OnnxGraphs(file, threads) if file.suffix == ".onnx" else SavedModelGraphs(folder)
        return Steps(asked, config), "onnx" if file.suffix == ".onnx" else "saved_model", asked
    if file.suffix == ".onnx":
        return None, "onnx", Session(_onnx(file, threads), names)
    texts = [] if set(names) <= INPUTS.keys() else names
    told = told_of(known.get("strings", ""), tokenizer)
    ask = _saved_model(folder, bool(texts), told is not None)
    session = Session(ask, names, texts, told, "tokens" in known["outputs"])
    return None, "saved_model_text" if texts else "saved_model", session


@contextlib.contextmanager
def opening(path: Path) -> Iterator[None]:
    """Let what another program says of a file that it cannot read be one line: their errors have no common class."""
    try:
        yield
    except Exception as error:
        raise UsageError(f"{path} cannot be opened, {one_line(str(error))[:300]}: {_AGAIN}") from None


def onnx_session(path: Path, threads: int) -> Any:
    """Return a session of ONNX Runtime on the CPU; raises `UsageError` where it is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise UsageError(f"{path} needs the package onnxruntime: pip install onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Between two batches its threads would take the cores from those that read, tokenise and write.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with opening(path):
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _onnx(path: Path, threads: int) -> Callable[[Arrays], Arrays]:
    session = onnx_session(path, threads)
    outputs = [each.name for each in session.get_outputs()]

    def ask(inputs: Arrays) -> Arrays:
        found = session.run(None, {name: value.astype(np.int64) for name, value in inputs.items()})
        return {name: np.asarray(value) for name, value in zip(outputs, found, strict=True)}

    return ask


def _saved_model(folder: Path, texts: bool, strings: bool) -> Callable[[Arrays], Arrays]:
    """Return what asks a SavedModel, of `texts` or of ids, with or without the `strings` among its outputs."""
    if texts:
        if importlib.util.find_spec("tensorflow_text") is None:
            raise UsageError(f"{folder} needs the package tensorflow_text: pip install tensorflow-text")
        import tensorflow_text  # noqa: F401 (its operations)
    import tensorflow

    tf: Any = tensorflow
    with opening(folder):
        model = tf.saved_model.load(str(folder))
        signature = model.signatures["serving_default"]

    def ask(inputs: Arrays) -> Arrays:
        found = signature(**{name: tf.constant(value) for name, value in inputs.items()})
        # `model` holds the variables, which the signature refers to weakly.
        kept = {name: value.numpy() for name, value in found.items() if value.dtype != tf.string and model is not None}
        decoded = {name: value.numpy().astype("S") for name, value in found.items() if strings and name not in kept}
        return kept | {name: np.char.decode(value, "utf-8") for name, value in decoded.items()}

    return ask
