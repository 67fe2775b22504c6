"""Prompts, the host half: patterns and verbalizers, hidden tokens, balanced batches; one line for every mistake."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from kind_files import SPECIALS, WORDS

from data.tokenizers.wordpiece import WordPieceTokenizer
from tasks.datasets import DatasetRow, Example, find_row, load_rows
from tasks.kinds import METHODS, find_kind
from tasks.prompts import cp_tuning, generations, p_tuning, pet, soft_labels
from tasks.prompts.pattern import encode_prompts, parse, slots_of, with_soft_literals
from tasks.prompts.prompt import pieces_of_row, settled_with_words
from tasks.prompts.verbalizer import words_of

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = [*SPECIALS, *WORDS, "it", "is"]
ID = {token: place for place, token in enumerate(VOCABULARY)}
PAIR = dataclasses.replace(
    find_row("lcqmc"), pattern="{text_a}[P2=it][MASK]{text_b}[P1]", verbalizer=("0=a", "1=b|c d")
)
EXAMPLES = [Example("a b", "c", str(int(n < 3))) for n in range(8)]
TRAINED = {"train": EXAMPLES}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WordPieceTokenizer:
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n")
    return WordPieceTokenizer.load(path, do_lower_case=True)


def tokens(ids: Any) -> str:
    return " ".join(VOCABULARY[i] if i < len(VOCABULARY) else f"P{i - len(VOCABULARY)}" for i in ids)


def rows_of(pattern: str, tokenizer: Any, *texts: str, masks: int = 1, length: int = 16) -> list[str]:
    columns = ["text_a", "text_b"][: len(texts)]
    encoded = encode_prompts(
        parse(pattern, columns),
        {column: [text] for column, text in zip(columns, texts, strict=True)},
        [0],
        tokenizer,
        num_masks=masks,
        max_seq_length=length,
    )
    shown = tokens(encoded.ids).split()
    return [" ".join(shown), " ".join(t for t, own in zip(shown, encoded.is_text, strict=True) if own)]


def test_a_text_stands_in_its_pattern_and_is_known_there(tokenizer: Any):
    assert rows_of("{text} it is [MASK], b", tokenizer, "a, c") == [
        "[CLS] a [UNK] c it is [MASK] [UNK] b [SEP]",
        "a [UNK] c",
    ]
    assert rows_of("{text_b}[SEP][MASK]{text_a}[P7][P3]", tokenizer, "a", "b")[0] == (
        "[CLS] b [SEP] [MASK] a P1 P0 [SEP]"
    )


def test_one_mask_stands_for_as_many_as_a_word_needs_and_several_for_themselves(tokenizer: Any):
    assert rows_of("{text}[MASK]", tokenizer, "a", masks=3)[0] == "[CLS] a [MASK] [MASK] [MASK] [SEP]"
    assert rows_of("[MASK]{text}[MASK]", tokenizer, "a", masks=2)[0] == "[CLS] [MASK] a [MASK] [SEP]"


def test_what_is_too_long_loses_tokens_of_its_texts_alone(tokenizer: Any):
    assert rows_of("{text}it[MASK]", tokenizer, "a b c d e", length=6)[0] == "[CLS] a b it [MASK] [SEP]"
    assert rows_of("{text_a}[MASK]{text_b}", tokenizer, "a b c d", "e", length=6)[0] == "[CLS] a b [MASK] e [SEP]"
    with pytest.raises(UsageError, match=r"^--max_seq_length=4: the pattern alone takes 4 tokens; give more"):
        rows_of("{text}it[MASK]", tokenizer, "a", length=4)


def test_literal_text_becomes_soft_slots_that_begin_as_its_tokens(tokenizer: Any):
    soft = with_soft_literals(parse("{text}it is[MASK]b", ["text_a"]), tokenizer)
    assert slots_of(soft, tokenizer, "") == [ID["it"], ID["is"], ID["b"]]
    given = parse("{text}it[P1][MASK][P2=b][P1]", ["text_a"])
    assert with_soft_literals(given, tokenizer) == given
    assert slots_of(given, tokenizer, "") == [-1, ID["b"]]


@pytest.mark.parametrize(
    ("pattern", "columns", "message"),
    [
        ("{text} it", ["text_a"], r"^--pattern=\{text\} it has no mask; write \[MASK\] where the word"),
        ("{txt}[MASK]", ["text_a"], r"\{txt\} is no text of the task; did you mean 'text'\?; it has"),
        ("{text_b}{text}[MASK]", ["text_a"], r"\{text_b\} is no text of the task"),
        ("{text}[MASK]", ["text_a", "text_b"], r"lacks the text \{text_b\}; write it where the text is to stand"),
        ("[MASK]", ["text_a"], r"lacks the text \{text_a\}"),
    ],
)
def test_a_wrong_pattern_is_one_line(pattern: str, columns: list[str], message: str):
    with pytest.raises(UsageError, match=message) as error:
        parse(pattern, columns)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{text}[P1=z][MASK]", "begins as one token of the vocabulary, but 'z' is not in the vocabulary"),
        ("{text}[P1=a b][MASK]", "but 'a b' has 2 tokens there"),
        ("{text}[P1=a][P1=b][MASK]", r"\[P1\] is to begin as two words; name one"),
    ],
)
def test_a_slot_that_begins_as_no_word_is_one_line(tokenizer: Any, pattern: str, message: str):
    with pytest.raises(UsageError, match=message):
        slots_of(parse(pattern, ["text_a"]), tokenizer, f"--pattern={pattern}")


def test_words_of_any_length_stand_for_labels(tokenizer: Any):
    assert words_of(["0=a", "1=b|c d"], ["0", "1"], tokenizer, "t") == [[[ID["a"]]], [[ID["b"]], [ID["c"], ID["d"]]]]


@pytest.mark.parametrize(
    ("verbalizer", "message"),
    [
        ([], "^--task_name=t has no words for its labels; give them: --verbalizer=0=WORD,1=WORD$"),
        (["0=a"], "no word for the label '1'; add 1=WORD"),
        (["0=a", "1=b|a"], "the labels '0' and '1' share the word 'a'"),
        (["0=a", "1=z"], "^--verbalizer: the vocabulary lacks the word 'z' of the label '1'; give another word$"),
        (["0=a", "2=b"], "'2' is no label of --task_name=t; expected one of 0, 1"),
        (["0=a", "0=b", "1=c"], "names the label '0' twice"),
        (["0", "1=a"], "'0' is no LABEL=WORD"),
        (["0=a|", "1=b"], r"'0=a\|' is no LABEL=WORD"),
        (["0=a|a", "1=b"], "has the word 'a' twice"),
    ],
)
def test_a_wrong_verbalizer_is_one_line(tokenizer: Any, verbalizer: list[str], message: str):
    with pytest.raises(UsageError, match=message) as error:
        words_of(verbalizer, ["0", "1"], tokenizer, "t")
    assert "\n" not in str(error.value)


def test_a_word_of_more_tokens_than_masks_and_a_row_without_a_pattern_are_one_line(tokenizer: Any):
    row = dataclasses.replace(find_row("csv"), labels=("0", "1"), pattern="[MASK]{text}[MASK]")
    with pytest.raises(UsageError, match="has 2 masks, but a word of --verbalizer has 3 tokens; write"):
        settled_with_words(dataclasses.replace(row, verbalizer=("0=a", "1=b c d")), tokenizer)
    with pytest.raises(UsageError, match=r"^--task_name=csv has no pattern; give one: --pattern with \{text\}, \[MASK"):
        pieces_of_row(dataclasses.replace(row, pattern=""), tokenizer)
    with pytest.raises(UsageError, match="has neither a soft slot nor text that could become some"):
        p_tuning.settled(
            dataclasses.replace(row, pattern="{text}[MASK]", verbalizer=("0=a", "1=b")), tokenizer, TRAINED
        )


def test_shipped_patterns_and_words_fit_the_vocabularies_of_their_language():
    """English words are in any BERT vocabulary; what is Chinese is of the one that is shipped."""
    chinese = WordPieceTokenizer.load(ROOT / "albert_config/vocab.txt", do_lower_case=True)
    asked = [row for row in load_rows().values() if row.pattern or row.verbalizer]
    assert {"tnews", "fewclue_eprstmt_0", "fewclue_bustm_all", "fewclue_csl_4", "fewclue_cluewsc_all"} <= {
        row.name for row in asked
    }
    for row in asked:
        parse(row.pattern, row.columns)
        if row.name not in ("sst_2", "mrpc", "rte"):
            assert len(settled_with_words(row, chinese).prompt["words"]) == len(row.labels), row.name


def test_what_is_hidden_are_tokens_of_the_texts_in_training_alone(tokenizer: Any):
    row = pet.settled(PAIR, tokenizer, TRAINED)
    assert row.prompt == {"mask_id": 4, "masks": 2, "slots": [-1, ID["it"]], "words": [[[5]], [[6], [7, 8]]]}
    dataset = pet.dataset(row, EXAMPLES, tokenizer, max_seq_length=16, batch_size=3, seed=1, auxiliary_rate=0.2)
    batch = dataset.batch(2)  # 8 examples in three batches: one row of the last is empty
    assert tokens(batch["input_ids"][0]).startswith("[CLS] a b P1 [MASK] [MASK] c P0 [SEP]")
    real = batch["hidden_masked_lm_weights"] > 0
    assert real[0].sum() == 2
    assert real.sum() == 2 * (batch["input_mask"][:, 0] > 0).sum()
    assert set(batch["hidden_masked_lm_positions"][real].tolist()) <= {1, 2, 6}
    rows = np.arange(3)[:, None]
    originals = batch["input_ids"][rows, batch["hidden_masked_lm_positions"]]
    assert (originals == batch["hidden_masked_lm_ids"])[real].all()
    assert (batch["hidden_ids"] == 4).sum() > (batch["input_ids"] == 4).sum()
    assert all((dataset.batch(2)[name] == value).all() for name, value in batch.items())
    assert set(next(iter(dataset.evaluation_batches(4)))) == {"input_ids", "input_mask", "segment_ids", "label_ids"}
    plain = pet.dataset(row, EXAMPLES, tokenizer, max_seq_length=16, batch_size=3, seed=1, auxiliary_weight=0.0)
    assert "hidden_ids" not in plain.batch(0)


def contrastive(tokenizer: Any, examples: list[Example], **more: Any) -> cp_tuning.BalancedDataset:
    row = cp_tuning.settled(PAIR, tokenizer, {"train": examples})
    return cp_tuning.dataset(row, examples, tokenizer, max_seq_length=16, seed=1, **more)


def test_the_common_prompt_needs_no_words_and_hides_within_the_row(tokenizer: Any):
    row = cp_tuning.settled(PAIR, tokenizer, TRAINED)
    assert row.prompt == {"mask_id": 4, "masks": 1, "slots": [ID["it"], ID["is"]], "anchors": 5}
    batch = contrastive(tokenizer, EXAMPLES, batch_size=4, auxiliary_rate=0.3).batch(0)
    assert set(batch["prompt_positions"].ravel().tolist()) == {7}
    assert (batch["input_ids"][:, 7] == 4).all()
    hidden = batch["masked_lm_positions"][batch["masked_lm_weights"] > 0]
    assert set(hidden.tolist()) <= {1, 2, 4}


@pytest.mark.parametrize(("batch_size", "parts"), [(4, 1), (5, 1), (8, 2), (32, 4)])
def test_every_batch_and_every_part_of_it_has_two_examples_of_two_labels(tokenizer: Any, batch_size: int, parts: int):
    dataset = contrastive(tokenizer, EXAMPLES, batch_size=batch_size, gradient_accumulation_steps=parts)
    for step in range(6):
        labels = dataset.examples.labels[dataset.members(step)].reshape(parts, -1)
        assert all(min(Counter(part.tolist()).values()) >= 2 for part in labels)
        assert all(len(set(part.tolist())) == 2 for part in labels)
        assert (dataset.members(step) == dataset.members(step)).all()


def test_examples_of_a_label_come_equally_often_and_labels_take_turns(tokenizer: Any):
    dataset = contrastive(tokenizer, EXAMPLES, batch_size=4)
    seen = Counter(np.concatenate([dataset.members(step) for step in range(15)]).tolist())
    # 30 draws of each label: three examples of label 1, five of label 0
    assert seen == {n: 10 if n < 3 else 6 for n in range(8)}
    row = dataclasses.replace(PAIR, labels=tuple("01234"))
    examples = [Example("a", "b", str(n % 5)) for n in range(20)]
    row = cp_tuning.settled(row, tokenizer, {"train": examples})
    many = cp_tuning.dataset(row, examples, tokenizer, max_seq_length=16, batch_size=6, seed=1)
    of_steps = [many.examples.labels[many.members(step)] for step in range(5)]
    assert all(sorted(Counter(labels.tolist()).values()) == [2, 2, 2] for labels in of_steps)
    assert set(Counter(np.concatenate(of_steps).tolist()).values()) == {6}


@pytest.mark.parametrize("given", [{"batch_size": 3}, {"batch_size": 8, "gradient_accumulation_steps": 4}])
def test_a_batch_that_cannot_hold_two_classes_is_one_line(tokenizer: Any, given: dict[str, int]):
    with pytest.raises(UsageError, match=r"^--train_batch_size=\d: --method=cp_tuning needs two examples of two") as e:
        contrastive(tokenizer, EXAMPLES, **given)
    assert "\n" not in str(e.value)


def test_training_examples_of_one_label_are_one_line(tokenizer: Any):
    with pytest.raises(UsageError, match="but all 3 training examples have the label '1'; give examples of another"):
        contrastive(tokenizer, EXAMPLES[:3], batch_size=8)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "soft_labels"])
def test_a_method_is_a_kind_of_its_own_and_else_classification(method: str):
    kind: Any = find_kind(method)
    classification = find_kind("classification")
    assert kind.verb == "run_classifier"
    assert kind.metrics is classification.metrics
    # What iPET's generations wrote is read by PET too.
    assert kind.read is (generations.read if method == "pet" else classification.read)
    assert not hasattr(kind, "tuned")
    for name in ("settled", "dataset", "task"):
        assert name in vars(kind)


def test_a_toy_method_is_a_row_and_a_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(METHODS, "toy", "tasks.kinds.multilabel")
    assert find_kind("toy") is find_kind("multilabel")
    assert isinstance(dataclasses.replace(PAIR, kind="toy"), DatasetRow)


def test_joint_answers_are_the_softened_mean_of_scores_and_are_learnt_as_they_are(tokenizer: Any, tmp_path: Path):
    chances = np.array([[0.8, 0.2], [0.5, 0.5]])
    np.testing.assert_allclose(soft_labels.softened(chances), np.array([2**0.5, 1]) / (2**0.5 + 1))
    np.testing.assert_allclose(soft_labels.softened(chances[:1], 1.0), chances[0], rtol=1e-6)
    files = []
    for number, of_model in enumerate(([0.8, 0.3], [0.5, 0.1])):
        lines = [{"text_a": "a b", "text_b": t, "probabilities": {"0": p, "1": 1 - p}} for t, p in zip("cd", of_model)]  # noqa: B905
        files.append(tmp_path / f"{number}.jsonl")
        files[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    target = tmp_path / soft_labels.NAME
    assert soft_labels.write_soft_labels(files, ("0", "1"), target) == 2
    row = dataclasses.replace(PAIR, kind="soft_labels")
    examples = soft_labels.read(row, target, need_labels=True)
    assert [(each.text_b, each.label) for each in examples] == [("c", "0"), ("d", "1")]
    batch = soft_labels.dataset(row, examples, tokenizer, max_seq_length=16, batch_size=4).batch(0)
    assert batch["label_ids"].dtype == np.float32
    found = {round(float(x), 4) for x in batch["label_ids"][:, 0]}
    wanted = soft_labels.softened(np.array([[0.3, 0.7], [0.1, 0.9]]))[0]
    assert found == {round(2**0.5 / (2**0.5 + 1), 4), round(float(wanted), 4), 0.0}
    target.write_text('{"text_a": "a", "probabilities": {"0": 2}}\n')
    with pytest.raises(UsageError, match=r"train_soft_labels.jsonl:1: .*make the file anew"):
        soft_labels.read(row, target, need_labels=True)


def test_a_generation_learns_what_the_others_said_with_labels_as_often_as_in_the_examples():
    chances = np.zeros((3, 8, 2))
    chances[0] = [[0.9, 0.1]] * 8  # the model's own answers are of no account
    said = np.array([0.1, 0.2, 0.4, 0.45, 0.6, 0.7, 0.95, 0.99])
    chances[1] = chances[2] = np.stack([said, 1 - said], axis=1)
    found = list(generations.drawn(chances, 0, [2, 3], np.random.default_rng(0)))
    assert [label for _, label in found] == [0, 0, 1, 1, 1]
    assert len({text for text, _ in found}) == 5
    assert all((said[text] > 0.5) == (label == 0) for text, label in found)
    # Of a label that too few texts have, the nearest others are taken too, each text once.
    found = dict(generations.drawn(chances, 0, [6, 4], np.random.default_rng(0)))
    assert found == {**dict.fromkeys(range(2, 8), 0), 0: 1, 1: 1}


def test_texts_are_drawn_the_likelier_the_surer_the_others_are():
    chances = np.zeros((2, 4, 2))
    chances[1] = [[0.99, 0.01], [0.55, 0.45], [0.55, 0.45], [0.55, 0.45]]
    random = np.random.default_rng(1)
    times = sum(0 in dict(generations.drawn(chances, 0, [1, 0], random)) for _ in range(2000))
    assert abs(times / 2000 - 0.99 / 2.64) < 0.05  # four deviations
