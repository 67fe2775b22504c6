"""What says the language of a token: nothing by default, else a vector that the token alone carries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_across import CONFIG, KEY, NUMBERS, PSEUDO, B, P, alone, gradients_of, make_batch, mean, prepared, scores
from test_across import LANGUAGES as CODES

from data.mixture import marked
from data.spoken import OTHER_LANGUAGE, OWN_LANGUAGE, Languages, Spoken
from modeling import named_variables
from tasks.across import Across
from tasks.mixing import MixedTask
from tasks.pretraining import PretrainingTask


def across(**choices: Any) -> PretrainingTask:
    return PretrainingTask(CONFIG, "camlm", across=Across(languages=CODES, **choices))


@pytest.fixture(scope="module")
def silent() -> Any:
    """A model without vectors."""
    return PretrainingTask(CONFIG, "camlm").build_model()


@pytest.fixture(scope="module")
def model(silent: Any) -> Any:
    """The same weights, with vectors that say something."""
    found = across().build_model()
    random = np.random.default_rng(5)
    for name, variable in named_variables(found).items():
        known = named_variables(silent).get(name)
        assert (known is None) == name.startswith("languages/")
        variable.assign(random.normal(0, 0.5, variable.shape) if known is None else known)
    return found


def test_vectors_are_one_a_language_and_begin_at_zero(silent: Any):
    built = across().build_model()
    extra = named_variables(built).keys() - named_variables(silent).keys()
    assert extra == {f"languages/{code}" for code in CODES}
    assert not any(np.asarray(named_variables(built)[name]).any() for name in extra)
    readings: list[dict[str, Any]] = [{}, {"computation": "dense"}]
    for choices in readings:
        plain = PretrainingTask(CONFIG, "camlm", across=Across(**choices))
        said = across(**choices)
        # Weights are a function of their names, so that both models have the same.
        assert float(mean(said, built, make_batch() | NUMBERS)) == float(mean(plain, silent, make_batch()))


@pytest.mark.parametrize("positions", ["continued", "restarted"])
def test_split_and_dense_are_one_result_and_gradients_reach_the_vectors(model: Any, silent: Any, positions: str):
    batch = make_batch() | NUMBERS
    tasks = [across(computation=computation, positions=positions) for computation in ("split", "dense")]
    losses = [float(mean(task, model, batch)) for task in tasks]
    assert abs(losses[0] - losses[1]) < 1e-6
    plain = PretrainingTask(CONFIG, "camlm", across=Across(positions=positions))
    assert abs(losses[0] - float(mean(plain, silent, make_batch()))) > 1e-3
    split, dense = (gradients_of(task, model, batch) for task in tasks)
    size = np.sqrt(sum(np.square(value).sum() for value in split.values()))
    for code in CODES:
        assert np.abs(split[f"languages/{code}"]).max() > 1e-4
    for name, value in split.items():
        np.testing.assert_allclose(value, dense[name], atol=1e-6 * size, err_msg=name)


@pytest.mark.parametrize("computation", ["split", "dense"])
def test_a_language_is_read_by_the_masked_tokens_that_are_to_be_of_it_alone(model: Any, computation: str):
    """No other token reads them, so that what they say reaches nobody else."""
    batch = make_batch() | NUMBERS

    def found(given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        (loss,) = across(computation=computation).losses
        logits = np.asarray(model(dict(loss.prepare(model, given, None)))["masked_lm_logits"])
        return (logits[:, :P], logits[:, P:]) if computation == "dense" else (logits[1::2], logits[::2])

    before = found(batch)
    for side, name in enumerate((OWN_LANGUAGE, OTHER_LANGUAGE)):
        after = found(batch | {name: np.full(B, 2, np.int32)})
        changed = batch[name] != 2
        np.testing.assert_array_equal(after[1 - side], before[1 - side])
        prefix = ("", "other_")[side]
        real = batch[f"{prefix}masked_lm_weights"] > 0
        moved = np.abs(after[side] - before[side]).max(axis=-1)
        assert (moved[changed][real[changed]] > 1e-4).all()
        np.testing.assert_array_equal(moved[~changed][real[~changed]], 0)
    # Without vectors there is nothing to say.
    assert not np.array_equal(scores(model, make_batch(), computation)[0], before[0])


def test_placeholders_ask_for_a_language_and_what_was_written_teaches_no_vector(model: Any):
    pseudo, batch = dataclasses.replace(PSEUDO, languages=CODES), alone() | NUMBERS
    written = {}
    for number in range(len(CODES)):
        asked = batch | {OTHER_LANGUAGE: np.full(B, number, np.int32)}
        written[number] = prepared(model, asked, pseudo)["pseudo_ids"]
        # What language the text is of says nothing.
        of_another = asked | {OWN_LANGUAGE: np.full(B, 2, np.int32)}
        np.testing.assert_array_equal(prepared(model, of_another, pseudo)["pseudo_ids"], written[number])
    assert not np.array_equal(written[0], written[1])
    assert not np.array_equal(written[1], written[2])
    task = PretrainingTask(CONFIG, "btmlm", pseudo=pseudo)
    signal: Any = task.build_model().heads[1]
    assert signal.vectors.languages == CODES
    assert not any(name.startswith("languages/") for name in gradients_of(task, model, batch, "btmlm"))
    # The text of the second pass carries nothing: its rows are those of a model without vectors.
    assert "query_vectors" not in prepared(model, batch, pseudo)
    assert "word_vectors" not in prepared(model, batch, pseudo)


def test_objectives_of_one_model_share_the_vectors():
    pseudo = dataclasses.replace(PSEUDO, languages=CODES)
    members = {"camlm": across(), "btmlm": PretrainingTask(CONFIG, "btmlm", pseudo=pseudo)}
    task = MixedTask({"masked_lm": PretrainingTask(CONFIG, "masked_lm"), **members})
    built = task.build_model()
    expected = named_variables(members["camlm"].build_model())
    assert named_variables(built).keys() == expected.keys()
    for name, member in members.items():
        batch = (alone() if name == "btmlm" else make_batch()) | NUMBERS
        losses, _ = task.terms(built, marked(batch, name), seed=KEY, training=True)
        assert float(losses[name][0]) == float(member.terms(built, batch, seed=KEY, training=True)[0][name][0])


class _Rows:
    """A data set of ten examples that are their own numbers."""

    num_examples, seed = 10, 7

    def __init__(self, batch_size: int, shard: tuple[int, int] = (0, 1)):
        self.batch_size, self.shard = batch_size, shard

    def batch(self, step: int) -> dict[str, np.ndarray]:
        begin = (step * self.shard[1] + self.shard[0]) * self.batch_size
        return {"number": np.arange(begin, begin + self.batch_size)}

    def evaluation_batches(self, batch_size: int) -> Any:
        for begin in range(0, self.num_examples, batch_size):
            yield {"number": np.arange(begin, begin + batch_size)}


def spoken(languages: Languages, *arguments: Any) -> Spoken:
    dataset: Any = _Rows(*arguments)
    return Spoken(dataset, languages)


def told(batches: Any) -> Mapping[int, int]:
    return {
        int(number): int(language)
        for batch in batches
        for number, language in zip(batch["number"], batch[OTHER_LANGUAGE], strict=True)
    }


def test_a_language_is_drawn_by_the_place_of_the_example_whoever_reads_it():
    languages = Languages(1, (0, 2, 3))
    whole = spoken(languages, 12)
    assert whole.num_examples == 10
    drawn = told(whole.batch(step) for step in range(50))
    counts = np.bincount([*drawn.values()], minlength=4)
    assert counts[1] == 0
    assert (np.abs(counts[[0, 2, 3]] - 200) < 60).all()
    assert whole.batch(3)[OWN_LANGUAGE].tolist() == [1] * 12
    # Two processes that share a batch draw what one does; an evaluation does not depend on the size of its batches.
    parts = [spoken(languages, 6, (index, 2)) for index in (0, 1)]
    assert told(part.batch(step) for step in range(50) for part in parts) == drawn
    one, other = (told(whole.evaluation_batches(size)) for size in (4, 3))
    assert {number: one[number] for number in range(10)} == {number: other[number] for number in range(10)}
    fixed = told([spoken(Languages(0, (2,)), 5).batch(0)])
    assert set(fixed.values()) == {2}


@pytest.mark.slow
def test_the_vector_decides_the_language_of_what_is_written():
    """Three languages of ten words, each said twice; nothing else tells the second language from the third."""
    words, width = 10, 32
    shape = {"vocab_size": 5 + 3 * words, "hidden_size": width, "embedding_size": width, "intermediate_size": width}
    config = dataclasses.replace(CONFIG, **shape, num_hidden_layers=1, initializer_range=0.1)
    task = PretrainingTask(config, "camlm", across=Across(languages=("a", "b", "c")))
    model, random, optimizer = task.build_model(), np.random.default_rng(0), keras.optimizers.Adam(3e-3)

    def text(language: np.ndarray, meaning: np.ndarray) -> np.ndarray:
        inner = np.tile((5 + words * language + meaning)[:, None], (1, 2))
        ends = np.ones((len(inner), 1), np.int32)
        return np.concatenate([0 * ends, inner, 2 * ends], axis=1).astype(np.int32)

    def pairs(size: int = 48) -> dict[str, np.ndarray]:
        meaning = random.integers(0, words, size)
        own, other = np.zeros(size, np.int32), np.resize([1, 2], size).astype(np.int32)
        batch = {OWN_LANGUAGE: own, OTHER_LANGUAGE: other}
        for prefix, language in (("", own), ("other_", other)):
            ids = text(language, meaning)
            places = random.integers(1, 3, (size, 1)).astype(np.int32)
            labels = np.take_along_axis(ids, places, axis=1)
            np.put_along_axis(ids, places, 4, axis=1)
            batch |= {
                f"{prefix}input_ids": ids,
                f"{prefix}input_mask": np.ones_like(ids),
                f"{prefix}masked_lm_positions": places,
                f"{prefix}masked_lm_ids": labels,
                f"{prefix}masked_lm_weights": np.ones(places.shape, np.float32),
            }
        return batch

    weights = [weight for weight in model.trainable_variables if "pooler" not in weight.path]

    @tf.function
    def step(batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = mean(task, model, batch)
        optimizer.apply(tape.gradient(loss, [weight.value for weight in weights]), weights)
        return loss

    optimizer.build(weights)
    loss = np.inf
    for _ in range(300):
        loss = step({name: tf.constant(value) for name, value in pairs().items()})
    assert float(loss) < 0.3
    meaning = np.repeat(np.arange(words), 2)
    batch = {
        "input_ids": text(np.zeros(20, np.int32), meaning),
        "input_mask": np.ones((20, 4), np.int32),
        "masked_lm_positions": np.zeros((20, 1), np.int32),
        "masked_lm_ids": np.zeros((20, 1), np.int32),
        "masked_lm_weights": np.zeros((20, 1), np.float32),
    }
    pseudo = dataclasses.replace(PSEUDO, languages=("a", "b", "c"))
    for language in (1, 2):
        numbers = {OWN_LANGUAGE: np.zeros(20, np.int32), OTHER_LANGUAGE: np.full(20, language, np.int32)}
        written = prepared(model, batch | numbers, pseudo)["pseudo_ids"][:, 1:-1]
        assert (written == 5 + words * language + meaning[:, None]).mean() > 0.95
