"""Generation with a network: the cache, the table of ancestors, batches, segments, draws, and what a listener hears."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from generation_cases import TOKENS, config_of, generative, sources, teacher_forced
from on_jax import ROOT, environment_on_jax

from generation.chunked import ChunkedGenerator
from generation.decoding import Decoding, search_for
from generation.generator import Generator, Hypothesis
from generation.language_model import Generative
from generation.model import Tokens
from generation.settings import Chunks, Settings
from generation.tensorflow_executor import TensorFlowExecutor
from modeling import ClassifierModel, LanguageModel
from modeling.heads import NextTokenHead

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 12, "min_new_tokens": 2},
    "beams": {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 12, "no_repeat_ngram_size": 2},
    "palm": {"rule": "palm", "num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 12, "length_penalty": 0.6},
    "draws": {"do_sample": True, "num_return_sequences": 3, "top_k": 8, "top_p": 0.9, "max_new_tokens": 12},
}


@pytest.fixture(scope="module")
def model() -> Generative:
    return generative()


@pytest.fixture(scope="module")
def features() -> dict[str, np.ndarray]:
    return sources(6, 12)


_generators: dict[str, Generator] = {}


def generator_of(model: Generative, way: str) -> Generator:
    """The one generator of a way: each costs the trace of its program."""
    if way not in _generators:
        _generators[way] = Generator(model, Settings(**WAYS[way]), batch_size=4, segment=3)
    return _generators[way]


def close(ours: list[list[Hypothesis]], theirs: list[list[Hypothesis]]) -> None:
    for some, others in zip(ours, theirs, strict=True):
        assert [h.tokens for h in some] == [h.tokens for h in others]
        assert [h.ended for h in some] == [h.ended for h in others]
        np.testing.assert_allclose([h.score for h in some], [h.score for h in others], atol=1e-4)


def by_hand(model: Generative, features: dict[str, np.ndarray], settings: Settings) -> list[list[Hypothesis]]:
    """The same search over scores that were computed without a cache, every row a source of its own."""
    generator = Generator(model, settings)
    search, count = generator.search, len(features["input_ids"])
    least, most = np.full(count, settings.min_new_tokens), np.full(count, settings.max_new_tokens)
    state = search.start(least, most, generator._keys(features, np.arange(count)))
    repeated = {name: np.repeat(value, search.rows, axis=0) for name, value in features.items()}
    for step in range(settings.max_new_tokens):
        if not np.asarray(state["open"]).any():
            break
        tokens = np.asarray(state["tokens"])[:, :, : step + 1].reshape(-1, step + 1)
        scores = teacher_forced(model, repeated, tokens)[:, -1].reshape(count, search.rows, -1)
        state = search.advance(state, step, scores)
    found = dict(generator._hypotheses(state, np.arange(count), np.arange(count)))
    return [found[i] for i in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["beams", "draws"])
def test_cached_and_with_ancestors_equals_uncached_and_reordered(
    model: Generative, features: dict[str, np.ndarray], way: str
):
    close(generator_of(model, way)(features), by_hand(model, features, Settings(**WAYS[way])))


@pytest.mark.slow
@pytest.mark.parametrize("copy", ["additive", "attention"])
def test_copying_models_generate_as_they_are_trained(features: dict[str, np.ndarray], copy: str):
    model = generative(config_of(copy=copy))
    some = {name: value[:2] for name, value in features.items()}
    settings = Settings(num_beams=3, max_new_tokens=4)
    close(Generator(model, settings)(some), by_hand(model, some, settings))


@pytest.mark.slow
def test_a_source_may_fill_positions_that_are_no_power_of_two():
    model = generative(config_of(max_position_embeddings=20))
    settings = Settings(max_new_tokens=2)
    whole = sources(1, 20)
    close(Generator(model, settings)(whole), by_hand(model, whole, settings))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["beams"])
def test_eager_steps_equal_compiled_ones_in_a_cache_of_two_sizes(
    model: Generative, features: dict[str, np.ndarray], way: str, monkeypatch: pytest.MonkeyPatch
):
    generator = generator_of(model, way)
    search, count = search_for(model, generator.settings), len(features["input_ids"])
    decoding = Decoding(model, search)
    bounds = np.full(count, generator.settings.min_new_tokens), np.full(count, generator.settings.max_new_tokens)
    state: Any = search.start(*bounds, generator._keys(features, np.arange(count)))
    step, cache, memory, prepared = 0, decoding.empty_cache(count), model.start(features), model.prepare()
    while np.asarray(state["open"]).any():
        step, state, cache = decoding.step(step, state, cache, memory, prepared)
    eager = dict(generator._hypotheses(state, np.arange(count), np.arange(count)))
    # The cache has room for the first segment alone, and grows by one column at the second.
    rows = search.rows
    monkeypatch.setattr(Decoding, "slots_until", lambda _, stop: rows * min(max(stop, 5), search.length))
    found = Generator(model, generator.settings, segment=5)(features)
    close(found, [eager[i] for i in range(count)])


@pytest.mark.parametrize("way", ["greedy", "beams", "draws"])
def test_batches_and_segments_change_nothing_and_order_is_kept(
    model: Generative, features: dict[str, np.ndarray], way: str
):
    generator = generator_of(model, way)
    found = generator(features)
    order = [3, 0, 5]
    close([found[i] for i in order], generator({name: value[order] for name, value in features.items()}))
    longer = {name: np.pad(value, ((0, 0), (0, 7))) for name, value in features.items()}
    traces = generator.executor.traces  # pyright: ignore[reportAttributeAccessIssue]
    close(found, generator(longer))
    assert generator.executor.traces == traces  # pyright: ignore[reportAttributeAccessIssue]


def test_scores_are_those_of_the_model(model: Generative, features: dict[str, np.ndarray]):
    for i, (best, _) in enumerate(generator_of(model, "palm")(features)):
        tokens = [*best.tokens, *([TOKENS.end] if best.ended else [])]
        one = {name: value[i : i + 1] for name, value in features.items()}
        log_probs = teacher_forced(model, one, np.array([[TOKENS.start, *tokens[:-1]]], np.int32))[0]
        total = log_probs[np.arange(len(tokens)), tokens].sum()
        assert best.log_probability == pytest.approx(total, abs=1e-3)
        assert best.score == pytest.approx(total / ((5 + len(tokens)) / 6) ** 0.6, abs=1e-3)


@pytest.mark.slow
def test_finished_sources_leave_the_batch(model: Generative, features: dict[str, np.ndarray]):
    settings = Settings(**WAYS["greedy"])
    sizes = []

    def watched(model: Any, search: Any) -> TensorFlowExecutor:
        executor = TensorFlowExecutor(model, search)
        begin = executor.begin

        def begun(*arguments: Any) -> Any:
            batch = begin(*arguments)
            segment = batch.segment

            def measured(steps: int) -> Any:
                sizes.append(int(batch.state["open"].shape[0]))
                return segment(steps)

            batch.segment = measured
            return batch

        executor.begin = begun  # pyright: ignore[reportAttributeAccessIssue]
        return executor

    limit = np.array([2, 12, 2, 2, 5, 2])
    found = Generator(model, settings, segment=2, executor=watched)(features, limit=limit)
    # Powers of two, the six sources filled up to eight.
    assert sizes == [8, 2, 2, 1, 1, 1]
    whole = generator_of(model, "greedy")(features)
    for some, all_of_it, most in zip(found, whole, limit, strict=True):
        assert some[0].tokens == all_of_it[0].tokens[:most]


@pytest.mark.slow
def test_seeds_decide_draws(model: Generative, features: dict[str, np.ndarray]):
    settings = Settings(**WAYS["draws"])
    first = generator_of(model, "draws")(features)
    other = Generator(model, settings.changed(seed=1))(features)
    assert [h.tokens for h in first[0]] != [h.tokens for h in other[0]]
    assert len({h.tokens for h in first[0]}) == 3


def test_a_listener_hears_growing_texts_and_the_last_are_final(model: Generative, features: dict[str, np.ndarray]):
    heard: dict[int, list[tuple[tuple[int, ...], bool]]] = {}

    def listener(source: int, tokens: np.ndarray, final: bool) -> None:
        heard.setdefault(source, []).append((tuple(tokens.tolist()), final))

    found = generator_of(model, "greedy")(features, listener)
    for source, hypotheses in enumerate(found):
        texts = heard[source]
        assert texts[-1] == (hypotheses[0].tokens, True)
        assert all(later[: len(text)] == text for (text, _), (later, _) in itertools.pairwise(texts))
        assert not any(final for _, final in texts[:-1])


def test_an_empty_source_has_no_text(model: Generative, features: dict[str, np.ndarray]):
    some = {name: value.copy() for name, value in features.items()}
    some["input_mask"][2] = 0
    found = generator_of(model, "greedy")(some)
    assert found[2] == []
    assert all(found[i] for i in (0, 1, 3, 4, 5))


def test_what_does_not_fit_the_model_is_refused(model: Generative):
    with pytest.raises(UsageError, match="max_new_tokens is 65, but the decoder has 64 positions"):
        Generator(model, Settings(max_new_tokens=65))
    with pytest.raises(UsageError, match="num_beams 30 is too wide for a vocabulary of 61: at most 29"):
        Generator(model, Settings(num_beams=30))
    with pytest.raises(UsageError, match='family "palm" without a decoder generates no text'):
        Generative(ClassifierModel(config_of(num_decoder_layers=0), 2), TOKENS)


# -- long texts in chunks ----------------------------------------------------------------------------------------------


def encoded(texts: Any) -> dict[str, np.ndarray]:
    width = max(len(text) for text in texts) + 2
    rows = [[1, *text, 2] + [0] * (width - len(text) - 2) for text in texts]
    ids = np.array(rows, np.int32)
    return {"input_ids": ids, "input_mask": (ids > 0).astype(np.int32)}


@pytest.mark.slow
def test_chunks_join_the_source_and_the_end_has_to_wait():
    # The end token is likely, so that the least length is what holds it back.
    model = Generative(LanguageModel(config_of(initializer_range=0.05), [NextTokenHead]), Tokens(1, 2, 0))
    settings = Settings(do_sample=True, max_new_tokens=30, seed=3)
    seen: list[list[list[int]]] = []

    def encode(texts: Any) -> dict[str, np.ndarray]:
        seen.append([list(text) for text in texts])
        return encoded(texts)

    texts = [[5, 6, 7], [], [9, 10, 11, 12, 13, 14, 15, 16]]
    heard = []
    generator = ChunkedGenerator(model, settings, Chunks(chunk_tokens=8, min_fraction=0.8), encode, 10, segment=4)
    found = generator(texts, lambda source, tokens, final: heard.append((source, len(tokens), final)))
    assert found[1] == []
    for i in (0, 2):
        (text,) = found[i]
        assert 24 <= len(text.tokens) <= 30
        assert text.ended == (len(text.tokens) < 30)
        whole = [*texts[i], *text.tokens]
        for turn, chunk in enumerate(seen):
            place = {0: 0, 2: len(chunk) - 1}[i]
            if turn < 3 or len(chunk) == 2:
                assert chunk[place] == whole[: len(texts[i]) + 8 * turn][-10:]
    assert len(seen) == 4
    assert max(length for source, length, _ in heard if source == 0) == len(found[0][0].tokens)


def test_chunks_refuse_what_has_no_meaning_for_them(model: Generative):
    with pytest.raises(UsageError, match="a text in chunks is one sequence"):
        ChunkedGenerator(model, Settings(forced_eos_token_id=2), Chunks(), encoded, 10)


# -- the other backend -------------------------------------------------------------------------------------------------

ON_JAX = """
import sys, json
sys.path[:0] = ["tests", "tests/generation"]
from generation_cases import generative, sources
from generation.generator import Generator
from generation.settings import Settings
out = {}
for way, values in json.loads(sys.argv[1]).items():
    generator = Generator(generative(), Settings(**values), segment=5, batch_size=4)
    found = generator(sources(6, 12))
    # Two buckets of sources at most, and one of lengths.
    assert generator.executor.traces <= 3, generator.executor.traces
    out[way] = [[[h.tokens, h.score] for h in hypotheses] for hypotheses in found]
print("found" + json.dumps(out))
"""


@pytest.mark.slow
def test_jax_equals_tensorflow(model: Generative, features: dict[str, np.ndarray]):
    ways = {way: WAYS[way] for way in ("greedy", "beams", "draws")}
    command = [sys.executable, "-c", ON_JAX, json.dumps(ways)]
    environment = {**environment_on_jax(), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    on_jax = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("found"))[5:])
    for way in ways:
        for ours, theirs in zip(generator_of(model, way)(features), on_jax[way], strict=True):
            assert [list(h.tokens) for h in ours] == [tokens for tokens, _ in theirs]
            np.testing.assert_allclose([h.score for h in ours], [score for _, score in theirs], atol=1e-4)
