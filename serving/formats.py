"""A loaded model written for other programs, loaded by them in a bare process, asked, compared, and only then kept.

    saved_model         EXPORT/saved_model.pb, variables/   ids -> what the task predicts
    saved_model_text    EXPORT/saved_model.pb, variables/   strings -> the same, and the names of the classes
    onnx                EXPORT/model.onnx (model_int8.onnx) ids -> what the task predicts

Beside each lie the tokenizer's files, labels.json and export.json, as `serving.exporting` writes them. Inputs have
transformers' names, batch and length are free, and numbers are float32. Needs Keras on TensorFlow.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from serving.exporting import (
    SAVED_MODEL,
    asked,
    compare,
    describe_export,
    inputs_of,
    replacing,
    whole,
    write_export,
)
from serving.loading import PRETRAINED
from tasks.inputs import IDS, INPUTS, MASK, TYPES
from tasks.run_file import PRETRAINING, RunFile, TokenizerFile

if TYPE_CHECKING:
    from serving.loading import Loaded

ONNX, INT8 = "model.onnx", "model_int8.onnx"
OPSET = 17
TOLERANCE, INT8_TOLERANCE = 1e-4, 0.3
"""How far an answer may be from the model's, relative to 1 + the answer."""
REPEATS = 5
TEXTS = (
    "今天天气很好，我们去公园散步吧！",
    "Divan answers texts: short ones, and longer ones that fill more of what a model reads.",
    "价格是 1,299.50 元（含税）……真的吗？",
    "café naïve İstanbul ΣΑΣ ﬁne",
    "好",
    "龘靐齉爩 🙂👍🏽 \u200b emoji and rare signs",
    "北京、上海和广州都是人口超过一千万的城市，春天的时候，北京的风很大，上海常常下雨，而广州已经热起来了。" * 3,
    "A sentence of plain words. " * 12,
)
"""What an export is asked where nobody gives texts."""
_ONNX = """
import onnxruntime

session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
names = [each.name for each in session.get_outputs()]


def ask(inputs):
    return dict(zip(names, session.run(None, {name: value.astype(np.int64) for name, value in inputs.items()})))
"""
Samples = list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Written:
    """One model that was written and asked.

    Attributes:
        name: of its file, or of the format.
        num_bytes: of it with its weights.
        rows: by sample, and of each the length.
        seconds: of an answer to each sample.
        difference: from the model's answers, at most, relative to 1 + the answer.
        agreeing: share of the examples whose largest output is the model's; None without outputs to choose from.
    """

    name: str
    num_bytes: int
    rows: tuple[tuple[int, int], ...]
    seconds: tuple[float, ...]
    difference: float
    agreeing: float | None


def export(loaded: Loaded, target: Path, form: str, inputs: Sequence[Any] = (), *, int8: bool = False) -> list[Written]:
    """Write the model in one of `FORMATS` to the folder `target`, once its answers are the model's.

    Args:
        loaded: the model, in float32.
        target: what an earlier export left there is replaced; anything else is refused.
        form: a key of `FORMATS`.
        inputs: what it is asked, as `Loaded.predict` takes it; by default texts of our own.
        int8: with ONNX, also with weights of 8 bits.

    Raises:
        UsageError: the format is not of such a model, a package is missing, or the answers differ; `target` stays as it
            was.
    """
    format_ = FORMATS[form]
    for package in format_.packages:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"--format={form} needs the package {package}: pip install {format_.install}")
    content, samples = content_of(loaded), format_.samples(loaded, list(inputs))
    with replacing(target) as folder:
        found = []
        for name, path, ask, tolerance in format_.write(folder, loaded, content, int8):
            answers = asked(
                ask,
                path,
                [given for given, _ in samples],
                what=f"{name} cannot be used by itself",
                repeats=REPEATS,
                packages=format_.packages,
            )
            found.append(_measured(name, path, samples, answers, tolerance))
    return found


def content_of(loaded: Loaded) -> RunFile:
    """Return what a run would say of the model, for whoever writes an export; it computes in float32."""
    known = TokenizerFile(
        fingerprint=loaded.tokenizer.fingerprint,
        do_lower_case=bool(getattr(loaded.tokenizer, "do_lower_case", False)),
        max_seq_length=loaded.max_seq_length,
        segmentation=getattr(loaded.tokenizer, "segmentation", ""),
    )
    kind = PRETRAINING if loaded.kind == PRETRAINED else loaded.kind
    return RunFile(kind=kind, config=loaded.config, computation={}, tokenizer=known, row=loaded.row)


def _measured(name: str, path: Path, samples: Samples, answers: Mapping[str, np.ndarray], tolerance: float) -> Written:
    difference = compare(answers, samples, tolerance, what=name)
    same = []
    for number, (_, wanted) in enumerate(samples):
        for key, value in wanted.items():
            if value.ndim == 2 and value.shape[1] > 1:
                same += (np.argmax(answers[f"{number}/{key}"], axis=1) == np.argmax(value, axis=1)).tolist()
    first = [next(iter(given.values())) for given, _ in samples]
    return Written(
        name,
        sum(each.stat().st_size for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file()),
        tuple((len(each), each.shape[-1] if each.ndim > 1 else 0) for each in first),
        tuple(float(answers[f"{number}/seconds"]) for number in range(len(samples))),
        difference,
        float(np.mean(same)) if same else None,
    )


def given_forms(loaded: Loaded, texts: Sequence[str]) -> list[Any]:
    """Return texts as inputs of the model's kind: each alone, in pairs, or with choices, the first that it takes."""
    pairs = list(zip(texts, [*texts[1:], texts[0]], strict=True))
    for inputs in (list(texts), pairs, [(a, b, [a, b]) for a, b in pairs]):
        try:
            for each in inputs:
                loaded.example(each)
        except UsageError:
            continue
        return inputs
    raise UsageError(f"no text is an input of a model of the kind {loaded.kind}: give --input_file")


def _samples_of_ids(loaded: Loaded, inputs: list[Any]) -> Samples:
    """Return batches of several sizes and lengths by the names of the export's inputs, with the model's answers."""
    names = inputs_of(content_of(loaded))
    batches = loaded.batches([loaded.example(each) for each in inputs or given_forms(loaded, TEXTS)], rows=2)
    chosen = {0: batches[0], len(batches) - 1: batches[-1]}
    alone = {name: value[:1] for name, value in batches[0].items()}
    return [
        ({name: batch[INPUTS[name]] for name in names}, loaded.predictions(batch))
        for batch in (alone, *chosen.values())
    ]


def _samples_of_texts(loaded: Loaded, inputs: list[Any]) -> Samples:
    names = _names_of_texts(loaded)
    examples = [loaded.example(each) for each in inputs or given_forms(loaded, TEXTS)]
    alone = [loaded.predictions(loaded.batches([each], rows=1)[0]) for each in examples[:8]]
    found = []
    for count in (1, len(alone)):
        texts = {
            name: np.array([each if isinstance(each, str) else getattr(each, name) for each in examples[:count]])
            for name in names
        }
        found.append((texts, {name: np.concatenate([each[name] for each in alone[:count]]) for name in alone[0]}))
    return found


def _names_of_texts(loaded: Loaded) -> list[str]:
    rows = getattr(loaded.host, "text_rows", lambda row: [])(loaded.row)
    if not rows:
        raise UsageError(
            f"--format=saved_model_text is for models that read whole texts; one of the kind {loaded.kind} is asked by "
            "the places of its tokens: write --format=saved_model or onnx, and tokenise outside"
        )
    return [name for row in rows for name in row]


Artefact = tuple[str, Path, str, float]
"""What it is called, where it lies, how a bare process asks it, and how far its answers may be from the model's."""


def _write_saved_model(folder: Path, loaded: Loaded, content: RunFile, int8: bool) -> list[Artefact]:
    write_export(folder, loaded.task, loaded.model, loaded.tokenizer, content)
    return [("saved_model", folder, SAVED_MODEL, TOLERANCE)]


def _write_text(folder: Path, loaded: Loaded, content: RunFile, int8: bool) -> list[Artefact]:
    """Write a SavedModel with the tokenizer inside, by the in-graph tokenizer, whose ids are the tokenizer's."""
    import tensorflow

    from data.tokenizers.in_graph import InGraphFeatures
    from modeling.fusion import plain

    tf: Any = tensorflow
    rows, names = loaded.host.text_rows(loaded.row), _names_of_texts(loaded)
    labels, chosen_by = list(loaded.labels), getattr(loaded.host, "chosen_by", "")

    class Served(tf.Module):
        """The tokenizer, the model and the function that answers."""

        def __init__(self):
            super().__init__()
            self.features, self.model = InGraphFeatures(loaded.tokenizer, loaded.max_seq_length), loaded.model

        @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.string, name) for name in names])
        def answers(self, *texts: Any) -> dict[str, Any]:
            given = dict(zip(names, texts, strict=True))
            parts = [self.features(*(given[name] for name in row)) for row in rows]
            features = {name: tf.stack([part[name] for part in parts], axis=1) for name in parts[0]}
            longest = tf.reduce_max(tf.reduce_sum(features[MASK], axis=-1))
            features = {name: value[..., :longest] for name, value in features.items()}
            if len(rows) == 1:
                features = {name: value[:, 0] for name, value in features.items()}
            found = dict(loaded.task.predictions(whole(self.model), features))
            if chosen_by:
                found["label"] = tf.gather(labels, tf.argmax(found[chosen_by], axis=-1))
                found["labels"] = tf.tile([labels], [tf.shape(found[chosen_by])[0], 1])
            return found

    served = Served()
    with plain():
        tf.saved_model.save(served, str(folder), signatures=served.answers)
        outputs = served.answers.get_concrete_function().structured_outputs
    describe_export(
        folder,
        content,
        loaded.tokenizer,
        {name: [None] for name in names},
        {name: value.shape.as_list() for name, value in sorted(outputs.items())},
        imports=["tensorflow_text"],
    )
    return [("saved_model_text", folder, f"import tensorflow_text\n{SAVED_MODEL}", TOLERANCE)]


def _write_onnx(folder: Path, loaded: Loaded, content: RunFile, int8: bool) -> list[Artefact]:
    """Write model.onnx, and with `int8` model_int8.onnx, whose products of weights are of 8 bits."""
    import tensorflow

    from modeling.fusion import plain

    tf: Any = tensorflow
    shapes = inputs_of(content)

    def answers(*inputs: Any) -> dict[str, Any]:
        features = {INPUTS[name]: tf.cast(value, tf.int32) for name, value in zip(shapes, inputs, strict=True)}
        features.setdefault(TYPES, tf.zeros_like(features[IDS]))
        return dict(loaded.task.predictions(whole(loaded.model), features))

    signature = [tf.TensorSpec(shapes[name], tf.int64, name) for name in shapes]
    with plain():
        function = tf.function(answers, autograph=False, input_signature=signature)
        outputs = {
            name: value.shape.as_list()
            for name, value in sorted(function.get_concrete_function().structured_outputs.items())
        }
        _converted(function, signature, folder / ONNX)
    found: list[Artefact] = [(ONNX, folder / ONNX, _ONNX, TOLERANCE)]
    if int8:
        _quantised(folder / ONNX, folder / INT8)
        found.append((INT8, folder / INT8, _ONNX, INT8_TOLERANCE))
    describe_export(folder, content, loaded.tokenizer, shapes, outputs, opset=OPSET)
    return found


def _converted(function: Any, signature: Sequence[Any], path: Path) -> None:
    """Write a `tf.function` as ONNX by tf2onnx, whose optimiser of reshapes takes the wrong axes and is left out."""
    import logging
    import warnings
    from unittest import mock

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tf2onnx about NumPy
        import tf2onnx
        from tf2onnx import optimizer

        kept = {name: each for name, each in optimizer._get_optimizers().items() if name != "reshape_optimizer"}
        with mock.patch.object(optimizer, "_get_optimizers", return_value=kept):
            tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET, output_path=str(path))


def _quantised(path: Path, target: Path) -> None:
    """Write the model with weights of 8 bits and products of whole numbers: ONNX Runtime's dynamic quantisation."""
    import logging
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnxruntime.quantization import QuantType, quantize_dynamic

        logging.disable(logging.WARNING)  # it recommends a step before that changes nothing here
        try:
            quantize_dynamic(str(path), str(target), weight_type=QuantType.QInt8)
        finally:
            logging.disable(logging.NOTSET)


@dataclass(frozen=True)
class Format:
    """A row of `FORMATS`.

    Attributes:
        write: writes a model into an empty folder and says how what it wrote is asked.
        samples: what it is asked, and what the model says.
        packages: that whoever asks it needs.
        install: what to install where one of them, or what writes it, is missing.
    """

    write: Callable[[Path, Loaded, RunFile, bool], list[Artefact]]
    samples: Callable[[Loaded, list[Any]], Samples]
    packages: tuple[str, ...]
    install: str


FORMATS: dict[str, Format] = {
    "saved_model": Format(_write_saved_model, _samples_of_ids, ("tensorflow",), "tensorflow"),
    "saved_model_text": Format(
        _write_text, _samples_of_texts, ("tensorflow", "tensorflow_text"), "tensorflow tensorflow-text"
    ),
    "onnx": Format(_write_onnx, _samples_of_ids, ("onnxruntime", "onnx", "tf2onnx"), "onnx onnxruntime tf2onnx"),
}
