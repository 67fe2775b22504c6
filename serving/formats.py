"""A loaded model written for other programs, loaded by them in a bare process, asked, compared, and only then kept.

    saved_model         EXPORT/saved_model.pb, variables/   ids -> what the task predicts
    saved_model_text    EXPORT/saved_model.pb, variables/   strings -> answers (`serving/strings/`)
    onnx                EXPORT/model.onnx (model_int8.onnx) ids -> what the task predicts

Beside each lie the tokenizer's files, labels.json and export.json, as `serving.exporting` writes them. Inputs have
transformers' names, batch and length are free, and numbers are float32. Needs Keras on TensorFlow.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from absl.app import UsageError

from serving.exporting import (
    SAVED_MODEL,
    add_measured,
    asked,
    compare,
    describe_export,
    inputs_of,
    replacing,
    whole,
    write_export,
)
from serving.loading import PRETRAINED
from serving.strings import compare_answers, form_of, wanted_of
from tasks.inputs import IDS, INPUTS, POSITIONS, TYPES
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
_TEXT = "saved_model_text"
ONE_PASS = "one_pass"
"""How a model is asked whose kind does not say otherwise."""
_SIDE_BY_SIDE = 8
"""So many strings are asked at once."""
_STRINGS = """
import numpy as np
import tensorflow as tf
import tensorflow_text

signature = tf.saved_model.load(path).signatures["serving_default"]


def ask(inputs):
    found = signature(**{name: tf.constant(value) for name, value in inputs.items()})
    found = {name: value.numpy() for name, value in found.items()}
    texts = {name: value.astype("S") for name, value in found.items() if value.dtype == object}
    return found | {name: np.char.decode(value, "utf-8") for name, value in texts.items()}
"""
ASK_ONNX = """
import onnxruntime

session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
names = [each.name for each in session.get_outputs()]


def ask(inputs):
    whole = {name: value.astype(np.int64) if value.dtype == np.int32 else value for name, value in inputs.items()}
    return dict(zip(names, session.run(None, whole)))
"""
Given = dict[str, np.ndarray]
Verdict = tuple[float, float | None]
"""The largest difference, and the share of examples with the model's own answer; None where nothing is chosen."""


@dataclass(frozen=True)
class Artefact:
    """One model that was written.

    Attributes:
        name: of its file, or of the format.
        path: where it lies.
        ask: how a bare process asks it, Python that defines `ask(inputs)`.
        given: what it is asked, arrays by the names of its inputs.
        judge: (answers, as NUMBER/NAME) -> `Verdict`; raises `UsageError` where they are not the model's.
    """

    name: str
    path: Path
    ask: str
    given: Sequence[Given]
    judge: Callable[[Mapping[str, np.ndarray]], Verdict]


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
        score: of it on the development file, by the task's metric; None without one.
    """

    name: str
    num_bytes: int
    rows: tuple[tuple[int, int], ...]
    seconds: tuple[float, ...]
    difference: float
    agreeing: float | None
    score: float | None = None


class Format(Protocol):
    """A row of `FORMATS`: how a model is written.

    Attributes:
        packages: that whoever asks the export needs, or what writes it.
        install: what to install where one of them is missing.
    """

    packages: ClassVar[tuple[str, ...]]
    install: ClassVar[str]

    def write(self, folder: Path, content: RunFile, int8: bool) -> list[Artefact]:
        """Write the model into an empty folder, with all that belongs to it."""
        ...


def export(
    loaded: Loaded,
    target: Path,
    form: str,
    inputs: Sequence[Any] = (),
    *,
    int8: bool = False,
    development: Development | None = None,
) -> list[Written]:
    """Write the model in one of `FORMATS` to the folder `target`, once its answers are the model's.

    Args:
        loaded: the model, in float32.
        target: what an earlier export left there is replaced; anything else is refused.
        form: a key of `FORMATS`.
        inputs: what it is asked, as `Loaded.predict` takes it; by default texts of our own.
        int8: with ONNX, also with weights of 8 bits.
        development: labelled examples that what is written is scored with.

    Raises:
        UsageError: the format is not of such a model, a package is missing, the answers differ, or the score of 8 bits
            is too low; `target` stays as it was.
    """
    if loaded.form != "run":
        raise UsageError("--model is an export itself: give the run that it was made of")
    graphs = getattr(loaded.host, "graphs", ONE_PASS)
    if graphs not in FORMATS[form]:
        raise UsageError(
            f"--format={form} is of no model of the kind {loaded.kind}: write --format=saved_model or onnx"
        )
    if development is not None and graphs != ONE_PASS:
        raise UsageError(f"--dev_file is of kinds that answer in one pass; one of the kind {loaded.kind} writes texts")
    module, _, name = FORMATS[form][graphs].partition(":")
    kind = getattr(importlib.import_module(module), name)
    for package in kind.packages:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"--format={form} needs the package {package}: pip install {kind.install}")
    format_: Format = kind(loaded, list(inputs))
    with replacing(target) as folder:
        found = []
        for each in format_.write(folder, content_of(loaded), int8):
            answers = asked(
                each.ask,
                each.path,
                each.given,
                what=f"{each.name} cannot be used by itself",
                repeats=REPEATS,
                packages=kind.packages,
            )
            found.append(_measured(each, answers, each.judge(answers)))
        if development is not None:
            found = development.judged(loaded, folder, found)
        add_measured(folder, [dataclasses.asdict(each) for each in found])
    return found


@dataclass(frozen=True)
class Development:
    """Labelled examples that show what weights of 8 bits cost.

    Attributes:
        examples: of the model's kind.
        most: by how much the score may fall, in points of 100.
    """

    examples: Sequence[Any]
    most: float

    def judged(self, loaded: Loaded, folder: Path, found: Sequence[Written]) -> list[Written]:
        """Return what was written with its scores, ONNX Runtime's in this process.

        Raises:
            UsageError: the score of weights of 8 bits is lower than the model's by more than is allowed.
        """
        from serving.exported import open_export

        mine = loaded.score(self.examples)
        scored = []
        for each in found:
            score = open_export(folder / each.name).score(self.examples)
            if 100 * (mine - score) > self.most:
                metric = getattr(loaded.row, "metric", "score")
                raise UsageError(
                    f"{each.name} has {metric} {score:.4f} on {len(self.examples):,} development examples, the model "
                    f"{mine:.4f}: {100 * (mine - score):.2f} points less, {self.most:g} are allowed (--max_drop); none "
                    "of it is kept"
                )
            scored.append(dataclasses.replace(each, score=score))
        return scored


def development_of(loaded: Loaded, path: Path, most: float) -> Development:
    """Return the labelled examples of a file of the model's task; raises `UsageError` for a model without a task."""
    if loaded.row is None:
        raise UsageError("--dev_file: a pretrained model has no task to be scored by; leave it out")
    return Development(loaded.host.read(loaded.row, path, need_labels=True), most)


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


def _measured(each: Artefact, answers: Mapping[str, np.ndarray], verdict: Verdict) -> Written:
    first, path = [next(iter(given.values())) for given in each.given], each.path
    return Written(
        each.name,
        sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()),
        tuple((len(array), array.shape[-1] if array.ndim > 1 else 0) for array in first),
        tuple(float(answers[f"{number}/seconds"]) for number in range(len(each.given))),
        *verdict,
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


def examples_of(loaded: Loaded, inputs: Sequence[Any]) -> list[Any]:
    """Return inputs as examples; of none texts of our own, with masks where the model fills some."""
    if not inputs:
        inputs = [*given_forms(loaded, TEXTS), *(getattr(loaded.host, "tried", ()) if loaded.fills_masks else ())]
    return [loaded.example(each) for each in inputs]


class OnIds:
    """Ids in, predictions out; asked batches of several sizes and lengths."""

    packages: ClassVar[tuple[str, ...]] = ("tensorflow",)
    install: ClassVar[str] = "tensorflow"

    def __init__(self, loaded: Loaded, inputs: list[Any]):
        self.loaded = loaded
        self.shapes: dict[str, list[int | None]] = inputs_of(content_of(loaded))
        if loaded.fills_masks:
            self.shapes[POSITIONS] = [None, None]
        batches = loaded.batches(examples_of(loaded, inputs), rows=2)
        masked = next((number for number, batch in enumerate(batches) if POSITIONS in batch), 0)
        chosen = {number: batches[number] for number in (0, masked, len(batches) - 1)}
        alone = {name: value[:1] for name, value in batches[0].items()}
        asked_of = (alone, *chosen.values())
        self.given = [
            {name: batch.get(INPUTS[name], np.zeros((len(batch[IDS]), 1), np.int32)) for name in self.shapes}
            for batch in asked_of
        ]
        self.wanted = [loaded.predictions(batch) for batch in asked_of]

    def artefact(self, name: str, path: Path, ask: str, tolerance: float = TOLERANCE) -> Artefact:
        """Return what was written there, asked the batches."""
        return Artefact(name, path, ask, self.given, lambda found: self.judge(name, found, tolerance))

    def judge(self, name: str, found: Mapping[str, np.ndarray], tolerance: float) -> Verdict:
        """Return how near answers are to the model's; whole numbers have to be the same in full precision."""
        exact = tolerance <= TOLERANCE
        numbers = [{key: x for key, x in each.items() if exact or x.dtype.kind == "f"} for each in self.wanted]
        difference = compare(found, list(zip(self.given, numbers, strict=True)), tolerance, what=name)
        same = []
        for number, wanted in enumerate(self.wanted):
            for key, value in wanted.items():
                if value.dtype.kind != "f":
                    same += (found[f"{number}/{key}"] == value).ravel().tolist()
                elif value.ndim == 2 and value.shape[1] > 1:
                    same += (np.argmax(found[f"{number}/{key}"], axis=1) == np.argmax(value, axis=1)).tolist()
        return difference, float(np.mean(same)) if same else None


class SavedModelOnIds(OnIds):
    """A SavedModel on ids."""

    def write(self, folder: Path, content: RunFile, int8: bool) -> list[Artefact]:
        """See `Format`."""
        write_export(
            folder,
            self.loaded.task,
            self.loaded.model,
            self.loaded.tokenizer,
            content,
            self.shapes,
            self.loaded.settings,
        )
        return [self.artefact("saved_model", folder, SAVED_MODEL)]


class SavedModelOnStrings:
    """A SavedModel with the tokenizer inside, by the in-graph tokenizer; asked for the answers of `Loaded.predict`."""

    packages: ClassVar[tuple[str, ...]] = ("tensorflow", "tensorflow_text")
    install: ClassVar[str] = "tensorflow tensorflow-text"

    def __init__(self, loaded: Loaded, inputs: list[Any]):
        self.loaded, self.form = loaded, form_of(loaded)
        examples = examples_of(loaded, inputs)
        parts = [examples[begin : begin + _SIDE_BY_SIDE] for begin in range(0, len(examples), _SIDE_BY_SIDE)]
        self.examples = [examples[:1], *parts]
        self.given = [self.form.given(each) for each in self.examples]
        self.wanted = [wanted_of(self.form, loaded.answers(each)) for each in self.examples]

    def judge(self, found: Mapping[str, np.ndarray]) -> Verdict:
        """Return how near answers are to the model's; another label, text or place is refused."""
        worst = 0.0
        for number, (examples, wanted) in enumerate(zip(self.examples, self.wanted, strict=True)):
            mine = {key.partition("/")[2]: value for key, value in found.items() if key.startswith(f"{number}/")}
            worst = max(worst, compare_answers(self.form.answers(mine, examples), wanted, TOLERANCE, what=_TEXT))
        return worst, 1.0

    def write(self, folder: Path, content: RunFile, int8: bool) -> list[Artefact]:
        """See `Format`."""
        import tensorflow

        from modeling.fusion import plain

        tf: Any = tensorflow
        form: Any = self.form
        signature = [tf.TensorSpec(shape, tf.string, name) for name, shape in form.inputs.items()]
        form.served = tf.function(form.__call__, autograph=False, input_signature=signature)
        with plain():
            concrete = form.served.get_concrete_function()
            tf.saved_model.save(form, str(folder), signatures=form.served)
        describe_export(
            folder,
            content,
            self.loaded.tokenizer,
            form.inputs,
            {name: value.shape.as_list() for name, value in sorted(concrete.structured_outputs.items())},
            self.loaded.settings,
            strings=self.loaded.host.on_strings,
            imports=["tensorflow_text"],
        )
        return [Artefact(_TEXT, folder, _STRINGS, self.given, self.judge)]


class OnnxOnIds(OnIds):
    """model.onnx, and with `int8` model_int8.onnx, whose products of weights are of 8 bits."""

    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx", "tf2onnx")
    install: ClassVar[str] = "onnx onnxruntime tf2onnx"

    def write(self, folder: Path, content: RunFile, int8: bool) -> list[Artefact]:
        """See `Format`."""
        import tensorflow

        from modeling.fusion import plain

        tf: Any = tensorflow
        shapes, loaded = self.shapes, self.loaded

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
            converted(function, signature, folder / ONNX)
        found = [self.artefact(ONNX, folder / ONNX, ASK_ONNX)]
        if int8:
            quantised(folder / ONNX, folder / INT8)
            found.append(self.artefact(INT8, folder / INT8, ASK_ONNX, INT8_TOLERANCE))
        describe_export(folder, content, loaded.tokenizer, shapes, outputs, loaded.settings, opset=OPSET)
        return found


def converted(function: Any, signature: Sequence[Any], path: Path) -> None:
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
            tf2onnx.convert.from_function(
                function,
                input_signature=signature,
                opset=OPSET,
                output_path=str(path),
                custom_op_handlers={"Log1p": (_log1p, [])},
            )


def _log1p(graph: Any, node: Any, name: str, arguments: Any) -> None:
    """Write log(1 + x), which ONNX has no operation for, as a sum and a logarithm."""
    one = graph.make_const(f"{name}_one", np.array(1, np.float32))
    total = graph.make_node("Add", [node.input[0], one.output[0]], name=f"{name}_sum")
    node.type = "Log"
    graph.replace_inputs(node, [total.output[0]])


def quantised(path: Path, target: Path) -> None:
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


FORMATS: dict[str, dict[str, str]] = {
    "saved_model": {
        ONE_PASS: "serving.formats:SavedModelOnIds",
        "encoder_decoder": "serving.step_export:SavedModelOfSteps",
    },
    "saved_model_text": {ONE_PASS: "serving.formats:SavedModelOnStrings"},
    "onnx": {ONE_PASS: "serving.formats:OnnxOnIds", "encoder_decoder": "serving.step_export:OnnxOfSteps"},
}
"""format -> how a kind's models are asked (`Kind.graphs`) -> module and class of what writes them, a `Format`."""
