"""A model that generates as two graphs, an encoder and a step of a decoder with a cache, and the loop that asks them.

    encoder    input_ids, attention_mask (token_type_ids) [B, S] -> memory_0, memory_1 ...
    decoder    tokens [R], attention_mask [R, S] (input_ids where words are copied), memory_*, past_* [R, N, T, H]
               -> scores float32 [R, V], present_* [R, N, T + 1, H]

R rows are hypotheses: the first step has a cache of no position (T 0), and a beam that comes from another one takes its
row of the cache. Search, finishing rules and draws are those of `generation/`, on arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from generation.model import Features, SelfCache, Tensors, Tokens, lengths_of
from tasks.inputs import IDS, INPUTS, MASK

if TYPE_CHECKING:
    from generation.decoding import Search
    from modeling.config import Config

Arrays = dict[str, np.ndarray]
ENCODER, DECODER = "encoder", "decoder"
MEMORY, PAST, PRESENT, SCORES, TOKENS = "memory", "past", "present", "scores", "tokens"
_READ = {IDS: IDS, "attention_mask": MASK}


class Graphs(Protocol):
    """The two graphs, however they are asked.

    Attributes:
        free: nothing is compiled for a shape.
        inputs: names of the encoder's.
        decoder_inputs: names of the decoder's.
        cache: shape of one of `past_*`, [N, H].
    """

    free: bool
    inputs: tuple[str, ...]
    decoder_inputs: tuple[str, ...]
    cache: tuple[int, int]

    def encode(self, given: Mapping[str, np.ndarray]) -> Arrays: ...

    def decode(self, given: Mapping[str, np.ndarray]) -> Arrays: ...


class OnnxGraphs:
    """Two ONNX files, by ONNX Runtime on the CPU.

    Args:
        path: of either file, `encoder*.onnx` or `decoder*.onnx`.
        threads: that ONNX Runtime computes with; 0: as many as cores.
    """

    free = True

    def __init__(self, path: Path, threads: int = 0):
        from serving.exported import onnx_session

        kind = path.name.removeprefix(ENCODER).removeprefix(DECODER)
        self._encoder, self._decoder = (
            onnx_session(path.with_name(f"{name}{kind}"), threads) for name in (ENCODER, DECODER)
        )
        self.inputs, self.decoder_inputs = (
            tuple(each.name for each in session.get_inputs()) for session in (self._encoder, self._decoder)
        )
        shape = next(each.shape for each in self._decoder.get_inputs() if each.name.startswith(PAST))
        self.cache = (int(shape[1]), int(shape[3]))

    def encode(self, given: Mapping[str, np.ndarray]) -> Arrays:
        """Return the memory of sources."""
        return _run(self._encoder, given)

    def decode(self, given: Mapping[str, np.ndarray]) -> Arrays:
        """Return the scores after a token of each row, and the cache."""
        return _run(self._decoder, given)


def _run(session: Any, given: Mapping[str, np.ndarray]) -> Arrays:
    whole = {name: x.astype(np.int64) if x.dtype.kind in "iu" else x for name, x in given.items()}
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, whole), strict=True))


class SavedModelGraphs:
    """Two signatures of a SavedModel, by TensorFlow."""

    free = True

    def __init__(self, folder: Path):
        import tensorflow

        from serving.exported import opening

        tf: Any = tensorflow
        with opening(folder):
            self._tf, self._held = tf, tf.saved_model.load(str(folder))
            self._encoder, self._decoder = (self._held.signatures[name] for name in (ENCODER, DECODER))
        found = [each.structured_input_signature[1] for each in (self._encoder, self._decoder)]
        self.inputs, self.decoder_inputs = (tuple(each) for each in found)
        shape = found[1][f"{PAST}_0"].shape
        self.cache = (int(shape[1]), int(shape[3]))

    def encode(self, given: Mapping[str, np.ndarray]) -> Arrays:
        """Return the memory of sources."""
        return self._asked(self._encoder, given)

    def decode(self, given: Mapping[str, np.ndarray]) -> Arrays:
        """Return the scores after a token of each row, and the cache."""
        return self._asked(self._decoder, given)

    def _asked(self, signature: Any, given: Mapping[str, np.ndarray]) -> Arrays:
        found = signature(**{name: self._tf.constant(value) for name, value in given.items()})
        return {name: value.numpy() for name, value in found.items()}


class Steps:
    """What stands in the place of the Keras model: makes a `Decodable` of the graphs, with an executor of its own."""

    def __init__(self, graphs: Graphs, config: Config):
        self.graphs, self.config = graphs, config

    def decodable(self, tokens: Tokens) -> Exported:
        """Return the graphs as `generation` asks them."""
        return Exported(self.graphs, self.config, tokens)


class Exported:
    """See `generation.model.Decodable`; of its functions the executor asks none but `lengths`."""

    variables: Sequence[Any] = ()

    def __init__(self, graphs: Graphs, config: Config, tokens: Tokens):
        self.graphs, self.tokens = graphs, tokens
        self.vocab_size, self.max_new_tokens = config.vocab_size, config.max_target_length
        self.max_source_tokens = config.max_sequence_length

    def lengths(self, features: Features) -> np.ndarray:
        """Return the tokens of each source."""
        return lengths_of(features)

    def executor(self, search: Search) -> StepExecutor:
        """Return what runs the steps."""
        return StepExecutor(self, search)

    def prepare(self) -> Tensors:
        """Return nothing: the graphs hold their weights."""
        return {}

    def start(self, features: Mapping[str, Any]) -> Tensors:
        """Return the memory of sources, with what the decoder reads of their features."""
        names = {name: INPUTS[name] for name in self.graphs.inputs}
        memory = self.graphs.encode({name: np.asarray(features[ours]) for name, ours in names.items()})
        read = {name: ours for name, ours in _READ.items() if name in self.graphs.decoder_inputs}
        return memory | {name: np.asarray(features[ours]) for name, ours in read.items()}

    def empty_cache(self, batch: int, slots: int) -> SelfCache:
        """Raise: a cache of graphs grows."""
        raise NotImplementedError

    def step(self, *arguments: Any) -> tuple[Any, SelfCache]:
        """Raise: `StepExecutor` asks the graphs."""
        raise NotImplementedError


class StepExecutor:
    """See `generation.decoding.Executor`: each step asks the decoder once, for all hypotheses."""

    def __init__(self, model: Exported, search: Search):
        self.model, self.search = model, search

    def batch_for(self, sources: int) -> int:
        """Return as many rows: no program is compiled."""
        return sources

    def length_for(self, tokens: int) -> int:
        """Return the same length."""
        return tokens

    def begin(self, features: Features, state: Mapping[str, np.ndarray]) -> StepBatch:
        """Encode the sources."""
        return StepBatch(self, dict(state), self.model.start(features))


class StepBatch:
    """See `generation.decoding.Batch`; the cache of a hypothesis is a row of its own."""

    def __init__(self, executor: StepExecutor, state: Arrays, memory: Tensors):
        self.executor, self.state, self.steps = executor, state, 0
        graphs, rows = executor.model.graphs, executor.search.rows
        self.memory = {name: np.repeat(value, rows, axis=0) for name, value in memory.items()}
        heads, size = graphs.cache
        empty = np.zeros((len(state["open"]) * rows, heads, 0, size), np.float32)
        self.cache = {name: empty for name in graphs.decoder_inputs if name.startswith(PAST)}

    def segment(self, steps: int) -> Any:
        """Generate at most so many tokens; return the state."""
        for _ in range(steps):
            if not self.state["open"].any():
                break
            self._step()
        return self.state

    def _step(self) -> None:
        from ground.tensors import ops

        search, step = self.executor.search, self.steps
        batch, rows = len(self.state["open"]), search.rows
        token = self.state["tokens"][:, :, step].reshape(-1)
        found = self.executor.model.graphs.decode({TOKENS: token, **self.memory, **self.cache})
        scores = found[SCORES].reshape(batch, rows, -1)
        given = {name: ops.convert_to_tensor(value) for name, value in self.state.items()}
        state = search.advance(given, ops.convert_to_tensor(step, "int32"), ops.convert_to_tensor(scores))
        self.state = {name: np.array(ops.convert_to_numpy(value)) for name, value in state.items()}
        self.cache = {name: found[name.replace(PAST, PRESENT)] for name in self.cache}
        if "ancestors" in self.state:
            # In whose slot the newest position of each beam lies: the beam that it came from.
            parent = self.state["ancestors"][:, :, step] + rows * np.arange(batch)[:, None]
            self.cache = {name: value[parent.reshape(-1)] for name, value in self.cache.items()}
        self.steps += 1

    def keep(self, places: np.ndarray, real: np.ndarray) -> None:
        """Leave the sources at these places alone; those that are not `real` only fill the batch and are closed."""
        rows = self.executor.search.rows
        flat = (places[:, None] * rows + np.arange(rows)).reshape(-1)
        self.memory, self.cache = ({name: x[flat] for name, x in each.items()} for each in (self.memory, self.cache))
        state = {name: value[places] for name, value in self.state.items()}
        self.state = {**state, "open": state["open"] & real}
