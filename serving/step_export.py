"""A model that generates written as two graphs, encoder and decoder's step (`serving/steps.py`): SavedModel and ONNX.

Both are asked by a bare process, and then the loop writes texts with them, which have to be the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tensorflow

from generation.language_model import Generative
from generation.model import Tokens
from modeling import masks
from modeling.fusion import plain
from serving.exported import open_export
from serving.exporting import SAVED_MODEL, compare, describe_export
from serving.formats import (
    ASK_ONNX,
    INT8_TOLERANCE,
    OPSET,
    TOLERANCE,
    Artefact,
    Given,
    Verdict,
    converted,
    examples_of,
    quantised,
)
from serving.steps import DECODER, ENCODER, MEMORY, PAST, PRESENT, SCORES, TOKENS
from serving.strings import compare_answers
from tasks.inputs import IDS, INPUTS, POSITIONS, TYPES

if TYPE_CHECKING:
    from serving.loading import Loaded
    from tasks.run_file import RunFile

tf: Any = tensorflow
_SHOWN = 4
"""So many of the texts are written by the loop, as generation on a CPU takes its time."""
_SCORE_TOLERANCE = 1e-3
"""Of the score of a whole text, a sum over its tokens."""


class Graphs:
    """The functions of a model with a decoder, as exports have them, and the shapes of what they read.

    Args:
        loaded: the model.
        whole: type of ids.
    """

    def __init__(self, loaded: Loaded, whole: Any):
        template = loaded.tokenizer.template
        tokens = Tokens(template.first[-1], template.last[0], loaded.tokenizer.pad_id)
        self.decodable, self.whole = Generative(loaded.model, tokens), whole
        has_types = loaded.config.type_vocab_size > 1
        names = [name for name, ours in INPUTS.items() if ours != POSITIONS and (has_types or ours != TYPES)]
        decoder = self.decodable.decoder
        blocks, attention = len(decoder.order), decoder.attentions[0]
        self.cache = [None, attention.heads, None, attention.head_size]
        self.copies = self.decodable.copying is not None
        self.inputs = {name: tf.TensorSpec([None, None], whole, name) for name in names}
        self.functions = {ENCODER: _traced(self.encode, self.inputs)}
        self.encoded = self.functions[ENCODER].get_concrete_function().structured_outputs
        self.blocks = blocks
        read = ["attention_mask", *([IDS] if self.copies else [])]
        self.decoder_inputs = {
            TOKENS: tf.TensorSpec([None], whole, TOKENS),
            **{name: self.inputs[name] for name in read},
            **{name: tf.TensorSpec(each.shape, tf.float32, name) for name, each in self.encoded.items()},
            **{f"{PAST}_{n}": tf.TensorSpec(self.cache, tf.float32, f"{PAST}_{n}") for n in range(2 * blocks)},
        }
        self.functions[DECODER] = _traced(self.decode, self.decoder_inputs)

    def ask(self, graph: str, given: Given) -> Given:
        """Return what the model says in one of the graphs."""
        inputs = {ENCODER: self.inputs, DECODER: self.decoder_inputs}[graph]
        found = self.functions[graph](*(tf.cast(given[name], each.dtype) for name, each in inputs.items()))
        return {name: each.numpy() for name, each in found.items()}

    def encode(self, *inputs: Any) -> dict[str, Any]:
        """Return the memory of sources by numbered names: keys and values of each block, and what is copied from."""
        features = {INPUTS[name]: tf.cast(x, tf.int32) for name, x in zip(self.inputs, inputs, strict=True)}
        features.setdefault(TYPES, tf.zeros_like(features[IDS]))
        memory = self.decodable.start(features)
        flat = [each for pair in memory["cross"] for each in pair]
        source = memory.get("source", {})
        flat += [source[name] for name in ("states", "projected") if name in source]
        return {f"{MEMORY}_{n}": each for n, each in enumerate(flat)}

    def decode(self, *inputs: Any) -> dict[str, Any]:
        """Return the scores after the newest token of each row, and the cache with its keys and values."""
        given = dict(zip(self.decoder_inputs, inputs, strict=True))
        mask = tf.cast(given["attention_mask"], tf.int32)
        held = [given[f"{MEMORY}_{n}"] for n in range(len(self.encoded))]
        memory: dict[str, Any] = {"cross": _pairs(held[: 2 * self.blocks]), "mask": masks.padding_mask(mask)}
        if self.copies:
            names = ("states", "projected")[: len(held) - 2 * self.blocks]
            source = dict(zip(names, held[2 * self.blocks :], strict=True))
            memory["source"] = {"ids": tf.cast(given[IDS], tf.int32), "mask": mask, **source}
        cache = _pairs([given[f"{PAST}_{n}"] for n in range(2 * self.blocks)])
        position = tf.shape(cache[0][0])[2]
        scores, cache = self.decodable.step(
            tf.cast(given[TOKENS], tf.int32)[:, None],
            position,
            memory,
            cache,
            tf.ones([1, 1, 1, position + 1], tf.bool),
            None,
            self.decodable.prepare(),
        )
        flat = [each for pair in cache for each in pair]
        return {SCORES: scores[:, 0]} | {f"{PRESENT}_{n}": each for n, each in enumerate(flat)}


def _traced(function: Any, inputs: Mapping[str, Any]) -> Any:
    """Return a function of tensors in the order of the inputs."""
    return tf.function(function, autograph=False, input_signature=list(inputs.values()))


def _pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


class OfSteps:
    """What both formats share: the graphs, what they are asked, and whether they write the model's texts."""

    packages: ClassVar[tuple[str, ...]] = ("tensorflow",)
    install: ClassVar[str] = "tensorflow"
    whole: ClassVar[Any] = tf.int32

    def __init__(self, loaded: Loaded, inputs: list[Any]):
        self.loaded, self.examples = loaded, examples_of(loaded, inputs)
        with plain():
            self.graphs = Graphs(loaded, self.whole)
            self.given = {ENCODER: self._sources()}
            self.wanted = {ENCODER: [self.graphs.ask(ENCODER, each) for each in self.given[ENCODER]]}
            self.given[DECODER], self.wanted[DECODER] = self._steps()

    def _sources(self) -> list[Given]:
        """Return batches of sources, of one and of all."""
        loaded = self.loaded
        batches = [loaded.batches(some, rows=len(some))[0] for some in (self.examples[:1], self.examples[:_SHOWN])]
        return [{name: batch[INPUTS[name]].astype(np.int32) for name in self.graphs.inputs} for batch in batches]

    def _steps(self) -> tuple[list[Given], list[Given]]:
        """Return what the decoder is asked at its first and at its second step, and what it says."""
        source, memory = self.given[ENCODER][-1], self.wanted[ENCODER][-1]
        rows, (_, heads, _, size) = len(source[IDS]), self.graphs.cache
        template, given, wanted = self.loaded.tokenizer.template, [], []
        token, cache = np.full(rows, template.first[-1], np.int32), [np.zeros((rows, heads, 0, size), np.float32)]
        cache *= 2 * self.graphs.blocks
        for _ in range(2):
            known = {TOKENS: token, **source, **memory, **{f"{PAST}_{n}": each for n, each in enumerate(cache)}}
            given.append({name: known[name] for name in self.graphs.decoder_inputs})
            wanted.append(self.graphs.ask(DECODER, given[-1]))
            token = wanted[-1][SCORES].argmax(axis=1).astype(np.int32)
            cache = [wanted[-1][f"{PRESENT}_{n}"] for n in range(2 * self.graphs.blocks)]
        return given, wanted

    def artefacts(self, folder: Path, ends: Mapping[str, tuple[str, float]], ask: Mapping[str, str]) -> list[Artefact]:
        """Return both graphs for each end of a file's name, which goes with what it is called and how near it is."""
        found = []
        for end, (shown, tolerance) in ends.items():
            for graph in (ENCODER, DECODER):
                path = folder / f"{graph}{end}" if end else folder
                judge = partial(self.judge, graph, path, f"{graph}{shown}", tolerance)
                found.append(Artefact(f"{graph}{shown}", path, ask[graph], self.given[graph], judge))
        return found

    def judge(self, graph: str, path: Path, name: str, tolerance: float, found: Mapping[str, np.ndarray]) -> Verdict:
        """Return how near a graph's arrays are to the model's and, of the second graph, how many texts are the same.

        Raises:
            UsageError: they are too far, or in full precision a text is another one.
        """
        pairs = list(zip(self.given[graph], self.wanted[graph], strict=True))
        difference = compare(found, pairs, tolerance, what=name)
        if graph == ENCODER:
            return difference, None
        examples = self.examples[:_SHOWN]
        mine, texts = self.loaded.answers(examples), open_export(path, **self.loaded.settings).answers(examples)
        if tolerance <= TOLERANCE:
            compare_answers(texts, mine, _SCORE_TOLERANCE, what=name)
        same = [one["generated"] == other["generated"] for one, other in zip(texts, mine, strict=True)]
        return difference, float(np.mean(same))

    def describe(self, folder: Path, content: RunFile, **further: Any) -> None:
        """Write what belongs to the graphs."""
        graphs = {
            ENCODER: {name: each.shape.as_list() for name, each in self.graphs.inputs.items()},
            DECODER: {name: each.shape.as_list() for name, each in self.graphs.decoder_inputs.items()},
        }
        outputs = {name: each.shape.as_list() for name, each in self.graphs.encoded.items()}
        tokenizer, settings = self.loaded.tokenizer, self.loaded.settings
        describe_export(folder, content, tokenizer, graphs[ENCODER], outputs, settings, graphs=graphs, **further)


class SavedModelOfSteps(OfSteps):
    """A SavedModel with the signatures `encoder` and `decoder`, which share their weights."""

    def write(self, folder: Path, content: RunFile, int8: bool) -> list[Artefact]:
        """See `serving.formats.Format`."""

        class Served(tf.Module):
            """The model and its functions."""

        served, functions = Served(), self.graphs.functions
        served.model = self.loaded.model
        with plain():
            tf.saved_model.save(served, str(folder), signatures=functions)
        self.describe(folder, content)
        ask = {name: SAVED_MODEL.replace("serving_default", name) for name in functions}
        return self.artefacts(folder, {"": ("", TOLERANCE)}, ask)


class OnnxOfSteps(OfSteps):
    """encoder.onnx and decoder.onnx, and with `int8` both with weights of 8 bits."""

    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx", "tf2onnx")
    install: ClassVar[str] = "onnx onnxruntime tf2onnx"
    whole: ClassVar[Any] = tf.int64

    def write(self, folder: Path, content: RunFile, int8: bool) -> list[Artefact]:
        """See `serving.formats.Format`."""
        ends = {".onnx": (".onnx", TOLERANCE)}
        inputs = {ENCODER: self.graphs.inputs, DECODER: self.graphs.decoder_inputs}
        with plain():
            for name, function in self.graphs.functions.items():
                converted(function, list(inputs[name].values()), folder / f"{name}.onnx")
        if int8:
            for name in inputs:
                quantised(folder / f"{name}.onnx", folder / f"{name}_int8.onnx")
            ends["_int8.onnx"] = ("_int8.onnx", INT8_TOLERANCE)
        self.describe(folder, content, opset=OPSET)
        return self.artefacts(folder, ends, dict.fromkeys(inputs, ASK_ONNX))
