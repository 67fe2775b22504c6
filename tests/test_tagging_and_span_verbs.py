"""Tagging and span through run_classifier.py: train, evaluate, predict, open the run; on JAX the same losses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from jax_verbs import call_on_jax

import run_classifier
from commands.flags import parse
from commands.needs import check_needs
from commands.task_files import needs_of_kinds
from modeling import Config

CONFIG = Config(
    family="bert",
    vocab_size=15,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=24,
    initializer_range=0.2,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
WORDS = "abcdefghij"
OF_TAGGER = {"doc_stride": 6, "num_train_steps": 120, "save_checkpoints_steps": 120}


def tagged(rng: np.random.Generator, count: int) -> str:
    """Words of which a and b are a person, c and d a place."""
    tags = {"a": "B-PER", "b": "B-PER", "c": "B-LOC", "d": "B-LOC"}
    sentences = [rng.choice(list(WORDS), int(rng.integers(3, 30))) for _ in range(count)]
    return "\n".join("".join(f"{word}\t{tags.get(word, 'O')}\n" for word in words) for words in sentences)


def questions(rng: np.random.Generator, count: int) -> str:
    """Where is the letter? Every third question has no answer."""
    asked = []
    for number in range(count):
        words = rng.choice(list(WORDS[3:]), int(rng.integers(3, 30)))
        place = int(rng.integers(len(words)))
        words[place] = "a"
        answers = [{"text": "a", "answer_start": 2 * place}]
        if number % 3 == 0:
            words[place], answers = "b", []
        qas = [{"id": str(number), "question": "a", "answers": answers, "is_impossible": not answers}]
        asked.append({"context": " ".join(words), "qas": qas})
    return json.dumps({"data": [{"paragraphs": asked}]})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    (folder / "config.json").write_text(CONFIG.to_json())
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    for split, count in (("train", 40), ("dev", 9), ("test", 7)):
        rng = np.random.default_rng(count)
        (folder / f"{split}.txt").write_text(tagged(rng, count))
        (folder / f"{split}-v2.0.json").write_text(questions(rng, count))
    return folder


def flags(folder: Path, task: str, out: str, **more: Any) -> dict[str, Any]:
    return {
        "task_name": task,
        "data_dir": folder,
        "bert_config_file": folder / "config.json",
        "vocab_file": folder / "vocab.txt",
        "output_dir": folder / out,
        "max_seq_length": 12,
        "train_batch_size": 8,
        "classifier_dropout": 0,
        "do_train": True,
        "do_eval": True,
        "do_predict": True,
        "num_train_steps": 40,
        "save_checkpoints_steps": 40,
        "log_steps": 1,
        "learning_rate": 0.03,
    } | more


def run(**given: Any) -> None:
    run_classifier.main(parse(run_classifier.Options, [f"--{name}={value}" for name, value in given.items()]))


def losses(folder: Path, *names: str) -> list[list[float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[record[name] for name in names] for record in records if names[0] in record]


@pytest.fixture(scope="module")
def trained(world: Path) -> Path:
    run(**flags(world, "conll", "tagger", **OF_TAGGER))
    run(**flags(world, "squad_v2", "span", null_score_diff_threshold=-0.5))
    return world


@pytest.mark.slow
def test_a_tagger_learns_and_tells_its_entities(trained: Path):
    from conversion.beside import labels_of
    from conversion.readers import read_checkpoint
    from serving.run_folder import open_run

    out = trained / "tagger"
    scores = json.loads((out / "eval_results.json").read_text())
    assert scores["f1"] > 0.9
    assert {"macro_f1", "f1_PER", "f1_LOC"} <= scores.keys()
    lines = [json.loads(line) for line in (out / "test_predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 7
    right = [(each["type"], each["begin"]) for each in lines[0]["label"]]
    assert [(each["type"], each["begin"]) for each in lines[0]["entities"]] == right
    opened = open_run(out)
    assert labels_of(read_checkpoint(out)) == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert opened.content.row is not None
    assert opened.content.row.labels == ("LOC", "PER")  # found in the training file
    # Without the training file the labels are those of the run.
    (trained / "alone").mkdir()
    (trained / "alone/dev.txt").write_text((trained / "dev.txt").read_text())
    again = flags(trained, "conll", "tagger", **OF_TAGGER, do_train=False, do_predict=False)
    run(**{**again, "data_dir": trained / "alone"})
    assert json.loads((out / "eval_results.json").read_text())["f1"] == pytest.approx(scores["f1"])
    ids = opened.tokenizer().encode("a e c")
    logits = np.asarray(
        opened.model({"input_ids": np.array([[2, *ids, 3]]), "input_mask": np.ones((1, 5), np.int32)})["tagger_logits"]
    )
    assert logits[0, 1:4].argmax(-1).tolist() == [3, 0, 1]


@pytest.mark.slow
def test_answers_are_learnt_and_written(trained: Path):
    out = trained / "span"
    scores = json.loads((out / "eval_results.json").read_text())
    assert scores["best_f1"] > 0.8
    assert {"exact_match", "has_answer_f1", "no_answer_f1", "best_f1_threshold"} <= scores.keys()
    answers = json.loads((out / "test_predictions.json").read_text())
    assert (
        answers.keys()
        == {str(number) for number in range(7)}
        == json.loads((out / "test_null_odds.json").read_text()).keys()
    )
    assert set(answers.values()) <= {"", *WORDS} | {text for text in answers.values() if " " in text}
    candidates = json.loads((out / "test_nbest_predictions.json").read_text())
    assert all(each[0]["probability"] >= each[-1]["probability"] for each in candidates.values())


@pytest.mark.slow
def test_jax_learns_the_same(trained: Path):
    kinds = {"tagger": ("conll", ["tagging_loss"]), "span": ("squad_v2", ["start_loss", "end_loss"])}
    calls = []
    for name, (task, _) in kinds.items():
        given = flags(trained, task, f"{name}_jax", do_eval=False, do_predict=False, backend="jax")
        calls.append(("run_classifier", given | (OF_TAGGER if name == "tagger" else {})))
    call_on_jax(trained, calls)
    for name, (_, terms) in kinds.items():
        one, other = (losses(trained / f"{name}{suffix}", *terms)[:6] for suffix in ("_jax", ""))
        assert len(one) == 6
        np.testing.assert_allclose(one, other, rtol=1e-3)


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("lcqmc", {"doc_stride": 5}, r"^--doc_stride=5 does nothing without a --task_name of the kind .*; give both"),
        ("conll", {"n_best_size": 5}, r"^--n_best_size=5 does nothing without a --task_name of the kind span; give"),
        ("conll", {"r_drop_weight": 2}, r"^--r_drop_weight=2: it compares one distribution an example"),
        ("squad_v2", {"adversarial_weight": 1}, r"^--adversarial_weight=1: it compares one distribution an example"),
    ],
)
def test_flags_that_the_kind_has_no_use_for_are_one_line(world: Path, task: str, given: dict, message: str):
    with pytest.raises(UsageError, match=message) as caught:
        run(**flags(world, task, "never", **given))
    assert "\n" not in str(caught.value)
    assert not (world / "never").exists()


def test_every_flag_of_a_kind_is_one_of_its_verb_and_refused_elsewhere():
    fields = {field.name for field in dataclasses.fields(run_classifier.Options)}
    needs = needs_of_kinds("run_classifier", "classification")
    assert {name for need in needs for name in need.flags} <= fields
    plain = run_classifier.Options(task_name="x", data_dir="x", bert_config_file="x", output_dir="x")
    check_needs(plain, needs)
    check_needs(dataclasses.replace(plain, max_answer_length=9), needs_of_kinds("run_classifier", "span"))
    with pytest.raises(UsageError, match=r"^--max_answer_length=9 does nothing without a --task_name of the kind span"):
        check_needs(dataclasses.replace(plain, max_answer_length=9), needs)
