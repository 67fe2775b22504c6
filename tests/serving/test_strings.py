"""What a graph on strings answers is what `Loaded.predict` answers, for every kind of task, on texts that are hard."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from absl.app import UsageError
from kind_files import CONFIG, SPECIALS, TAGS, WORDS, write
from test_exporting import run_of
from test_rows import answered as in_batches

from conversion.writers import write_ours
from data.tokenizers.sentencepiece import SentencePieceTokenizer
from data.tokenizers.training import train_sentencepiece
from data.tokenizers.wordpiece import WordPieceTokenizer
from ground.tensors import named_variables
from modeling import PretrainingModel
from modeling.config import Config
from serving.exported import Session
from serving.loading import load
from serving.strings import FORMS, TOLD, compare_answers, form_of, told_of, wanted_of
from tasks.datasets import DatasetRow, find_row
from tasks.kinds import KINDS, METHODS, find_kind

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="graphs on strings are TensorFlow's"),
]
SAMPLES = Path(__file__).resolve().parents[2] / "data/samples"
# Of a word more than a row holds, of words with marks, of nothing that a vocabulary knows.
LONG = " ".join(np.random.default_rng(0).choice(list(WORDS), 60))
HARD = ["a", "j i\u0301 h  g", "A\u0301b", "一 a 二", LONG, "👍🏽 a\u200bb", "d e f g h i j a b c d e f"]
PAIRS = list(zip(HARD, reversed(HARD), strict=True))
GIVEN: dict[str, list[Any]] = {
    "chnsenticorp": HARD,
    "lcqmc": PAIRS,
    "tags": HARD,
    "sts_b": PAIRS,
    "lcqmc_matching": [*PAIRS, "a b"],
    "copa": [("a b", "c", ["d", "e f", "d"]), {"context": "g", "choices": ["h", LONG]}, (LONG, "a __ b", ["i", "j"])],
    "cluener": HARD,
    "conll": HARD,
    "squad": [(b[:20], a) for a, b in PAIRS],
    "squad_v2": [("a b", LONG), ("c", "一")],
    "pet": PAIRS,
    "p_tuning": PAIRS,
    "cp_tuning": PAIRS,
}


def row_of(name: str, folder: Path) -> DatasetRow:
    """Return the row of a task, or of a method on LCQMC's."""
    if name == "tags":
        return find_row(name, write(folder / "rows.toml", TAGS))
    if name == "conll":
        return dataclasses.replace(find_row("cluener"), units="words")
    if name not in METHODS:
        return find_row(name)
    words = {"pattern": "{text_a}[MASK]e{text_b}f", "verbalizer": ("0=a|b c", "1=d")}
    row = dataclasses.replace(find_row("lcqmc"), kind=name, **({} if name == "cp_tuning" else words))
    kind: Any = find_kind(name)
    return kind.settled(row, WordPieceTokenizer([*SPECIALS, *WORDS]), {})


def answered(loaded: Any, given: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return the answers of the graph on strings, and those of the model.

    Where the graph answers by itself, they are also those of whoever opens it, from Python and in a server.
    """
    import tensorflow as tf

    form: Any = form_of(loaded)
    examples = [loaded.example(each) for each in given]
    strings = form.given(examples)
    assert list(strings) == list(form.inputs)
    found = {name: value.numpy() for name, value in form(*map(tf.constant, strings.values())).items()}
    texts = {name: np.char.decode(x.astype("S"), "utf-8") for name, x in found.items() if x.dtype == object}
    answers = form.answers(found | texts, examples)
    if (told := told_of(loaded.host.on_strings, loaded.tokenizer)) is not None:
        session = Session(graph_of(form), form.inputs, form.inputs, told, fills="tokens" in found)
        opened = dataclasses.replace(loaded, programs=session, form="saved_model_text")
        for again in (opened.predict(given, batch_size=4), in_batches(opened, given)):
            assert compare_answers(again, answers, 1e-4, what="opened") < 1e-4
    return answers, wanted_of(form, loaded.answers(examples))


def graph_of(form: Any) -> Any:
    """Return what asks a graph that was not written, as `serving.exported` asks a SavedModel."""
    import tensorflow as tf

    def ask(inputs: Any) -> dict[str, np.ndarray]:
        found = {name: x.numpy() for name, x in form(*(tf.constant(inputs[name]) for name in form.inputs)).items()}
        return {n: np.char.decode(x.astype("S"), "utf-8") if x.dtype == object else x for n, x in found.items()}

    return ask


@pytest.mark.parametrize("name", GIVEN)
def test_strings_are_answered_as_by_the_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("test_exporting.find_row", lambda name: row_of(name, tmp_path))
    run_of(name, tmp_path / "run")
    found, wanted = answered(load(tmp_path / "run", dtype="float32"), GIVEN[name])
    assert compare_answers(found, wanted, 1e-4, what=name) < 1e-4
    # Without training texts every label is as near as the other.
    assert len({json.dumps(each) for each in wanted}) > 1 or name == "cp_tuning"


@pytest.fixture(scope="module")
def pieces() -> SentencePieceTokenizer:
    files = [SAMPLES / "zh/nature.txt", *sorted((SAMPLES / "en").glob("*.txt"))]
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    return SentencePieceTokenizer(train_sentencepiece(lines, vocab_size=900, character_coverage=0.98))


@pytest.mark.parametrize("name", ["cluener", "conll", "squad"])
def test_places_in_texts_are_told_by_a_sentencepiece_graph(
    name: str, pieces: SentencePieceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("test_exporting.find_row", lambda name: row_of(name, tmp_path))
    run_of(name, tmp_path / "run", vocab_size=pieces.vocab_size)
    loaded = dataclasses.replace(load(tmp_path / "run", dtype="float32"), tokenizer=pieces)
    given = [
        "In 1999, the naïve café served 2,000 guests.",
        "今天天气很好，我们去公园散步。 ﬁne ½",
        "龘\u3000 龘 1,9",
        *HARD,
    ]
    pairs = [(b[:9], a) for a, b in zip(given, reversed(given), strict=True)]
    found, wanted = answered(loaded, pairs if name == "squad" else given)
    assert compare_answers(found, wanted, 1e-4, what=name) < 1e-4
    assert len({json.dumps(each) for each in wanted}) > 3


def test_masks_are_filled_and_texts_embedded(tmp_path: Path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, *WORDS]) + "\n")
    config = Config(**{**CONFIG, "vocab_size": 15})
    tensors = {name: np.asarray(value) for name, value in named_variables(PretrainingModel(config)).items()}
    write_ours(tmp_path / "model", config, tensors, [tmp_path / "vocab.txt"])
    loaded = load(tmp_path / "model", dtype="float32", mask_tokens=3)
    found, wanted = answered(loaded, ["a [MASK] b", "c d", "[MASK][MASK]e", "[MASK]"])
    assert compare_answers(found, wanted, 1e-4, what="masks") < 1e-4
    assert [len(each.get("masks", ())) for each in wanted] == [1, 0, 2, 1]
    import tensorflow as tf

    form: Any = form_of(loaded)
    session = Session(graph_of(form), form.inputs, form.inputs, told_of("masks", loaded.tokenizer), fills=True)
    opened = dataclasses.replace(loaded, programs=session, form="saved_model_text")
    assert opened.fills_masks
    np.testing.assert_allclose(opened.embed(["c d", "a"]), loaded.embed(["c d", "a"]), atol=1e-5)
    with pytest.raises(UsageError, match="stands behind 40 tokens"):
        opened.predict(["a", "a " * 40 + "[MASK]"])
    with pytest.raises(tf.errors.InvalidArgumentError, match="stands behind the 30 tokens"):
        form(tf.constant(["a " * 40 + "[MASK]"]))


def test_another_answer_is_told():
    one = {"entities": [{"text": "a", "begin": 0, "probability": 0.5}]}
    other = {"entities": [{"text": "a", "begin": 0, "probability": 0.6}]}
    assert compare_answers([one], [one], 0.0, what="x") == 0
    assert compare_answers([one], [other], 0.1, what="x") == pytest.approx(0.1 / 1.6)
    with pytest.raises(UsageError, match=r"x answers .*0\.5.* to input 0, the model .*0\.6.*: none of it is kept"):
        compare_answers([one], [other], 0.01, what="x")
    for wrong in ({"entities": []}, {"answer": ""}, {"entities": [{"text": "b", "begin": 0, "probability": 0.5}]}):
        with pytest.raises(UsageError, match="none of it is kept"):
            compare_answers([wrong], [one], 1.0, what="x")


def test_every_kind_but_generation_has_a_form():
    named = {name: getattr(find_kind(name), "on_strings", "") for name in (*KINDS, *METHODS)}
    served = {name for name in KINDS if not hasattr(find_kind(name), "served_as")}
    assert {name for name in served if not named[name]} == {"generation"}
    assert {each for each in named.values() if each} | {"masks"} == set(FORMS)
    # A graph tells the answers of the others as predictions of the task, by which the kind answers.
    assert set(FORMS) - {"classes", "label_sets", "scores", "vectors", "prompts"} == set(TOLD)
