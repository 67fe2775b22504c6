"""An export opened like the model that it was made of: ONNX Runtime or TensorFlow answers in the place of Keras.

    serving.load("my_onnx")                     EXPORT/model.onnx
    serving.load("my_onnx/model_int8.onnx")     its weights of 8 bits
    serving.load("my_saved_model")              EXPORT/saved_model.pb

Of an ONNX model that answers in one pass nothing imports TensorFlow, JAX or Keras.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np
from absl.app import UsageError

from ground.documents import read_json
from modeling.config import Config
from serving.exporting import FORMAT, NAME, is_export
from tasks.inputs import IDS, INPUTS, POSITIONS
from tasks.run_file import PRETRAINING, TokenizerFile

if TYPE_CHECKING:
    from serving.loading import Loaded

Arrays = Mapping[str, np.ndarray]
ONNX, SAVED_MODEL = "model.onnx", "saved_model.pb"
DECODER = "decoder"
"""What the file of the second graph of a model of two begins with; the first graph's begins with "encoder"."""
_ANEW = "export the model anew"


class _TokenizerShape(TypedDict):
    fingerprint: str
    do_lower_case: bool
    segmentation: str
    files: list[str]


class _OpenShape(TypedDict):
    format: str
    kind: str
    row: NotRequired[dict[str, Any] | None]
    config: NotRequired[dict[str, Any]]
    settings: NotRequired[dict[str, Any]]
    max_seq_length: int
    tokenizer: _TokenizerShape
    inputs: dict[str, list[int | None]]
    imports: NotRequired[list[str]]


class OnnxPrograms:
    """Features -> what an ONNX model predicts, by ONNX Runtime on the CPU.

    Args:
        path: of the model.
        threads: of one answer; by default as many as there are cores.
    """

    def __init__(self, path: Path, threads: int = 0):
        self._session = session_of(path, threads)
        self.inputs = tuple(each.name for each in self._session.get_inputs())
        self._outputs = [each.name for each in self._session.get_outputs()]
        self.count = 1

    def predict(self, batches: Iterable[Arrays]) -> Iterator[dict[str, np.ndarray]]:
        """Yield what the model says of each batch."""
        for batch in batches:
            given = {name: value.astype(np.int64) for name, value in asked_of(batch, self.inputs).items()}
            yield dict(zip(self._outputs, self._session.run(None, given), strict=True))


class SavedModelPrograms:
    """Features -> what a SavedModel on ids predicts, by TensorFlow."""

    def __init__(self, folder: Path):
        import tensorflow

        tf: Any = tensorflow
        self._tf, self._held = tf, tf.saved_model.load(str(folder))
        self._signature = self._held.signatures["serving_default"]
        self.inputs = tuple(self._signature.structured_input_signature[1])
        self.count = 1

    def predict(self, batches: Iterable[Arrays]) -> Iterator[dict[str, np.ndarray]]:
        """Yield what the model says of each batch."""
        for batch in batches:
            given = asked_of(batch, self.inputs)
            found = self._signature(**{name: self._tf.constant(value) for name, value in given.items()})
            yield {name: value.numpy() for name, value in found.items()}


def asked_of(batch: Arrays, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the features of a batch by the names of an export's inputs; texts without masks have one at place 0.

    Raises:
        UsageError: masks are to be filled, and the export fills none.
    """
    if POSITIONS in batch and POSITIONS not in names:
        raise UsageError("the export fills no masks: leave them out of the texts")
    nowhere = {POSITIONS: np.zeros((len(batch[IDS]), 1), np.int32)}
    return {name: {**nowhere, **batch}[INPUTS[name]] for name in names}


def session_of(path: Path, threads: int = 0) -> Any:
    """Return an inference session of ONNX Runtime; raises `UsageError` where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise UsageError(f"{path} is asked by ONNX Runtime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def found_at(source: str | Path) -> Path | None:
    """Return the path where an export of ours lies, a folder or an .onnx file in one; None for anything else."""
    path = Path(source)
    folder = path.parent if path.suffix == ".onnx" else path
    if not (folder / NAME).is_file() or not path.exists():
        return None
    return path


def open_export(path: Path, **settings: Any) -> Loaded:
    """Open an export on ids; `settings` are those of `serving.load`.

    Raises:
        UsageError: it is damaged, of an earlier version, or on strings; or a setting is unknown.
    """
    from serving.loading import PRETRAINED, Loaded, checked_settings, host_of
    from tasks import pretrained
    from tasks.datasets import parse_row

    folder = path.parent if path.suffix == ".onnx" else path
    where = folder / NAME
    content = read_json(where, _OpenShape, what="an export.json", fix=_ANEW)
    if content["format"] != FORMAT or not is_export(folder):
        raise UsageError(f"{folder} is no export, or a damaged one: {NAME} does not list what it holds; {_ANEW}")
    if "row" not in content or "config" not in content:
        raise UsageError(f"{where} is of an earlier version, which says too little to ask the export: {_ANEW}")
    if "tensorflow_text" in content.get("imports", ()):
        raise UsageError(f"{folder} reads strings, so TensorFlow alone asks it: load the run, or an export on ids")
    row = content["row"]
    parsed = None if row is None else parse_row(row.pop("name"), row, where)
    host: Any = pretrained if parsed is None else host_of(parsed)
    known = content["tokenizer"]
    file, vocabulary, *_ = [*known["files"], "", ""]
    tokenizer = TokenizerFile(
        file=file,
        vocabulary=vocabulary,
        **{name: known[name] for name in ("fingerprint", "do_lower_case", "segmentation")},
        max_seq_length=content["max_seq_length"],
    ).load(folder)
    config = Config.from_json(content["config"])
    model, programs = _asked_at(path, folder, content, config)
    kept = {name: value for name, value in content.get("settings", {}).items() if value is not None}
    return Loaded(
        PRETRAINED if content["kind"] == PRETRAINING else content["kind"],
        () if parsed is None else parsed.labels,
        tokenizer,
        model,
        config,
        parsed,
        content["max_seq_length"],
        None,
        None,
        host,
        {**kept, **checked_settings(host, settings)},
        programs,
    )


def _asked_at(path: Path, folder: Path, content: _OpenShape, config: Config) -> tuple[Any, Any]:
    """Return what answers in the place of a model: itself for one that is asked step by step, else its programs."""
    steps = sorted(folder.glob(f"{DECODER}*.onnx"))
    if steps or content["kind"] == "generation":
        from serving.steps import OnnxGraphs, SavedModelGraphs, Steps

        graphs = OnnxGraphs(path if path.suffix == ".onnx" else steps[0]) if steps else SavedModelGraphs(folder)
        return Steps(graphs, config), graphs
    if path.suffix == ".onnx" or (folder / ONNX).is_file():
        return None, OnnxPrograms(path if path.suffix == ".onnx" else folder / ONNX)
    return None, SavedModelPrograms(folder)
