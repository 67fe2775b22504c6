"""The front of generation: features of any number of sources -> their hypotheses, best first.

Sources are sorted by length, generated in batches and segments of some steps, and returned in their own order. Between
two segments the finished ones leave the batch, and whoever listens hears what was written so far.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from absl.app import UsageError

from generation.decoding import Batch, Executor, Search, executor_for, search_for
from generation.model import Decodable, Features
from generation.search import RULES, State
from generation.settings import Settings

Listener = Callable[[int, np.ndarray, bool], None]
"""Called with the number of a source, its best tokens so far without the end token, and whether they are final."""


@dataclass(frozen=True)
class Hypothesis:
    """A text.

    Attributes:
        tokens: without start and end token.
        score: what hypotheses are compared by, `log_probability` under the length penalty.
        log_probability: the sum over the tokens and the end token.
        ended: by the end token; otherwise by the greatest length.
    """

    tokens: tuple[int, ...]
    score: float
    log_probability: float
    ended: bool


class Generator:
    """Generates with one model and one way of searching; compiled programs are kept between calls.

    Args:
        model: what generates.
        settings: how it is searched.
        batch_size: most sources side by side.
        segment: steps between two looks of the host.
        executor: runs the steps; by default that of Keras's backend.

    Raises:
        UsageError: the settings do not fit the model.
    """

    def __init__(
        self,
        model: Decodable,
        settings: Settings,
        *,
        batch_size: int = 16,
        segment: int = 16,
        executor: Callable[[Decodable, Search], Executor] = executor_for,
    ) -> None:
        if settings.max_new_tokens > model.max_new_tokens:
            raise UsageError(
                f"max_new_tokens is {settings.max_new_tokens}, but the decoder has {model.max_new_tokens} positions: "
                "lower it"
            )
        if model.vocab_size < 2 * settings.rows + 2:
            raise UsageError(
                f"num_beams {settings.num_beams} is too wide for a vocabulary of {model.vocab_size}: at most "
                f"{model.vocab_size // 2 - 1}"
            )
        self.model = model
        self.settings = settings
        self.batch_size = batch_size
        self.segment = segment
        self.search = search_for(model, settings)
        self.executor = executor(model, self.search)

    def __call__(
        self,
        features: Features,
        listener: Listener | None = None,
        *,
        minimum: np.ndarray | None = None,
        limit: np.ndarray | None = None,
        segment: int | None = None,
    ) -> list[list[Hypothesis]]:
        """Return `num_return_sequences` hypotheses of every source, best first; of an empty source none.

        Args:
            features: of the sources, each [N, S].
            listener: called for every source after every segment.
            minimum: least tokens of each source, int [N], instead of the settings', which must ask for some.
            limit: most tokens of each source, int [N], up to the settings'.
            segment: steps between two looks of the host, instead of the generator's.
        """
        assert minimum is None or self.settings.min_new_tokens, "the compiled program knows of no least length"
        lengths = np.asarray(self.model.lengths(features))
        least = np.full(len(lengths), self.settings.min_new_tokens) if minimum is None else minimum
        most = np.full(len(lengths), self.settings.max_new_tokens) if limit is None else limit
        found: list[list[Hypothesis]] = [[] for _ in lengths]
        order = np.argsort(-lengths, kind="stable")
        order = order[lengths[order] > 0]
        for begin in range(0, len(order), self.batch_size):
            places = order[begin : begin + self.batch_size]
            size = self.executor.batch_for(len(places))
            padded = np.concatenate([places, np.repeat(places[:1], size - len(places))])
            real = np.arange(size) < len(places)
            rows = self._rows(features, padded, int(lengths[places].max()))
            state = self.search.start(least[padded], np.where(real, most[padded], 0), self._keys(features, padded))
            batch = self.executor.begin(rows, state)
            for source, hypotheses in self._finished(
                batch, np.where(real, padded, -1), listener, segment or self.segment
            ):
                found[source] = hypotheses
        return found

    def _rows(self, features: Features, places: np.ndarray, longest: int) -> dict[str, np.ndarray]:
        """Return the features of these sources, cut behind the longest or filled up to the executor's length."""
        # A model whose positions are no power of two has none for the rest of the last bucket.
        length = min(self.executor.length_for(longest), self.model.max_source_tokens)
        rows = {name: np.asarray(value)[places, :length] for name, value in features.items()}
        return {name: np.pad(value, ((0, 0), (0, length - value.shape[1]))) for name, value in rows.items()}

    def _keys(self, features: Features, places: np.ndarray) -> np.ndarray:
        """Return a random key of every source, uint32 [B, 2], from the seed and its own tokens alone."""
        lengths = np.asarray(self.model.lengths(features))
        keys = np.zeros((len(places), 2), np.uint32)
        for row, place in enumerate(places if self.settings.do_sample else ()):
            digest = hashlib.sha256(str(self.settings.seed).encode())
            for name in sorted(features):
                digest.update(np.asarray(features[name])[place, : lengths[place]].astype("<i8").tobytes())
            keys[row] = np.frombuffer(digest.digest()[:8], "<u4")
        return keys

    def _finished(
        self, batch: Batch, sources: np.ndarray, listener: Listener | None, segment: int
    ) -> Iterator[tuple[int, list[Hypothesis]]]:
        """Run the batch; yield each source when it is finished. `sources` holds the number of each row's, or -1."""
        for _ in range(0, self.settings.max_new_tokens, segment):
            state = batch.segment(segment)
            goes_on = np.asarray(state["open"])
            if listener is not None:
                self._tell(listener, state, sources)
            closed = np.flatnonzero((sources >= 0) & ~goes_on)
            yield from self._hypotheses(state, closed, sources)
            sources = np.where(goes_on, sources, -1)
            left = np.flatnonzero(sources >= 0)
            if not len(left):
                return
            size = self.executor.batch_for(len(left))
            # Moving the memory of all others costs something too.
            if size <= 0.75 * len(sources):
                padded = np.concatenate([left, np.repeat(left[:1], size - len(left))])
                real = np.arange(size) < len(left)
                batch.keep(padded, real)
                sources = np.where(real, sources[padded], -1)

    def _hypotheses(
        self, state: State, rows: np.ndarray, sources: np.ndarray
    ) -> Iterator[tuple[int, list[Hypothesis]]]:
        if not len(rows):
            return
        tokens, lengths, scores = self.search.hypotheses(state)
        penalty = np.asarray(RULES[self.settings.rule].penalty(np.maximum(lengths, 1), self.settings.length_penalty))
        for row in rows:
            texts = []
            for k in range(self.settings.num_return_sequences):
                if lengths[row, k]:
                    ids = tokens[row, k, : lengths[row, k]].tolist()
                    ended = ids[-1] == self.model.tokens.end
                    score = float(scores[row, k])
                    text = tuple(ids[:-1] if ended else ids)
                    texts.append(Hypothesis(text, score, score * float(penalty[row, k]), ended))
            yield int(sources[row]), texts

    def _tell(self, listener: Listener, state: State, sources: np.ndarray) -> None:
        tokens, final = self.search.growing(state)
        special = (self.model.tokens.end, self.model.tokens.padding)
        for row in np.flatnonzero(sources >= 0):
            text = tokens[row]
            stop = np.flatnonzero(np.isin(text, special))
            listener(int(sources[row]), text[: stop[0]] if len(stop) else text, bool(final[row]))
