"""Files of the kinds regression, multilabel, choice and matching: the published forms, and one line for a wrong one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from kind_files import C3, CHID, CHID_ANSWERS, COPA, TAGS, json_lines, race, write, write_world

from data.tokenizers import load_tokenizer
from tasks.datasets import DatasetRow, find_file, find_row, find_split, load_rows
from tasks.kinds import choice, find_kind, matching, multilabel, regression
from tasks.splits import Splits


def read(row: DatasetRow, path: Path, *, need_labels: bool = True) -> list[Any]:
    return find_kind(row.kind).read(row, path, need_labels=need_labels)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    write_world(folder)
    return folder


def splits_of(world: Path, name: str, folder: str = "") -> Splits:
    row = find_row(name, world / "rows.toml")
    splits = ("train", "dev", "test")
    return Splits(row, {split: find_split(row, world / (folder or name), split) for split in splits})


def test_several_files_are_read_as_one_split(world: Path):
    found = splits_of(world, "c3").examples
    assert [example.name for example in found["train"]] == ["1-1-0", "1-2-0", "1-2-1", "2-1-0"]
    assert [example.label for example in found["train"]] == [1, 1, 0, 1]
    assert found["train"][0].context == "a b c d e"
    row = find_row("c3")
    assert [path.name for path in find_split(row, world / "c3", "dev")] == ["d-dev.json", "m-dev.json"]
    with pytest.raises(UsageError, match=r"dev of --task_name=c3 is several files, d-dev\.json, m-dev\.json"):
        find_file(row, world / "c3", "dev")


def test_a_candidate_counts_only_if_all_of_its_files_are_there(tmp_path: Path):
    write(tmp_path / "d-train.json", "[]")
    write(tmp_path / "train.json", "[]")
    assert [path.name for path in find_split(find_row("c3"), tmp_path, "train")] == ["train.json"]
    with pytest.raises(UsageError, match=r"'\*\*a' is no pattern|holds none of"):
        find_split(dataclasses.replace(find_row("c3"), files={"train": ("**a",)}), tmp_path, "train")


def test_race_is_a_folder_of_articles_by_school(world: Path):
    examples = splits_of(world, "race").examples["dev"]
    assert [example.group for example in examples] == ["middle"] * 4 + ["high"] * 4
    assert [example.label for example in examples[:2]] == [1, 3]
    assert choice.texts_of(examples[0], "b\\1", 99) == ("a b c d e f", "g b\\1 h")
    assert choice.texts_of(examples[1], "h", 99) == ("a b c d e f", "i j h")


def test_every_blank_of_chid_is_an_example_with_its_text(world: Path):
    found = splits_of(world, "chid").examples
    assert [example.label for example in found["train"]] == [1, 0, 3, 2]
    assert [example.label for example in found["test"]] == [None] * 4
    one = found["train"][1]
    assert (one.name, one.context, one.after) == ("#idiom02#", "a b ＿ c d ", " e")
    assert [example.record and example.record[1] for example in found["train"]] == [0, 0, 0, 1]


def test_chid_of_fewclue_has_its_answer_in_the_line(tmp_path: Path):
    path = write(
        tmp_path / "dev_0.json",
        json_lines([{"id": 7, "content": "甲#idiom#乙", "candidates": ["丙", "丁"], "answer": 1}]),
    )
    (example,) = read(find_row("chid"), path)
    assert (example.context, example.after, example.label) == ("甲", "乙", 1)


@pytest.mark.parametrize(("before", "after"), [(0, 40), (40, 0), (40, 40), (3, 40), (40, 3), (2, 2)])
def test_the_window_around_a_blank_is_full_and_holds_the_choice(before: int, after: int):
    example = choice.ChoiceExample("甲" * before, "", ("丙丁", "戊"), 0, after="乙" * after)
    text, behind = choice.texts_of(example, "丙丁", 20)
    assert behind == "丙丁"
    assert len(text) == min(20, before + after + 2)
    kept_before, kept_after = text.split("丙丁")
    assert len(kept_before) >= min(before, 9)
    assert len(kept_after) >= min(after, 9)


def test_copa_and_a_plain_file(world: Path, tmp_path: Path):
    copa = splits_of(world, "copa").examples["train"]
    assert [(example.context, example.question, example.choices, example.label) for example in copa] == [
        ("a b", "cause", ("c", "d e"), 1),
        ("f", "effect", ("g h", "i"), 0),
    ]
    plain = [
        {"context": "a", "question": "b", "choices": ["c", "d"], "answer": 1},
        {"passage": "a", "options": ["c", "d"], "label": "A"},
        {"question": "b", "choices": ["2", "1", "0"], "answer": "0"},
        {"question": "b", "choices": [3, 4], "answer": 0},
    ]
    path = write(tmp_path / "train.jsonl", json_lines(plain))
    assert [example.label for example in read(find_row("multiple_choice"), path)] == [1, 0, 2, 0]


def test_a_text_that_is_a_choice_twice_is_one_choice(tmp_path: Path):
    fields = {"question": "q", "choices": ["a", "b", "a", "c"], "answer": 2}
    (example,) = read(find_row("multiple_choice"), write(tmp_path / "train.jsonl", json_lines([fields])))
    assert (example.label, example.distinct) == (0, [0, 1, 3])
    (answer,) = choice.answers(find_row("c3"), [{"probabilities": np.array([0.1, 0.2, 0.7, 0.0])}], [example])
    np.testing.assert_allclose(answer, [0.1, 0.2, 0, 0.7], rtol=1e-6)


WRONG_CHOICES = [
    (
        '{"question": "q", "choices": ["a", "b"], "answer": "c"}',
        r":1: the answer 'c' is none of the choices \(a, b\), 0 to 1",
    ),
    ('{"question": "q", "choices": ["a", "b"], "answer": 2}', r":1: the answer '2' is none of the choices"),
    ('{"question": "q", "choices": ["a", "b"], "answer": "C"}', r"none of the choices"),
    ('{"question": "q", "choices": ["a", "b"], "answer": true}', r":1: answer: "),
    ('{"question": "q", "choices": ["a", ""], "answer": 0}', r":1: choice 1 is empty; leave it out"),
    ('{"question": "q", "choices": ["a", "a"], "answer": 0}', r":1: all choices are 'a'"),
    ('{"question": "q", "choices": ["a"], "answer": 0}', r":1: 1 choices; expected 2 to 64"),
    ('{"question": "q", "answer": 0}', r":1: 0 choices"),
    ('{"question": "q", "choices": "ab", "answer": 0}', r":1: choices: .*expected a list"),
    ('{"question": "q", "choices": [["a"], "b"], "answer": 0}', r":1: choices"),
    ('{"question": "q", "choices": ["a\\ud800", "b"], "answer": 0}', r":1: a text has .ud800, half of a character"),
    ('{"question": {}, "choices": ["a", "b"], "answer": 0}', r":1: question: "),
    ('{"choices": ["a", "b"], "answer": 0}', r":1: neither a context nor a question"),
    ('{"question": "q", "choices": ["a", "b"]}', r":1: no answer; training and evaluation need one"),
    ("[1]", r":1: not a JSON object but list"),
    ("{oops", r":1: not a JSON object"),
]


@pytest.mark.parametrize(("line", "message"), WRONG_CHOICES)
def test_a_wrong_question_is_named_with_its_line(tmp_path: Path, line: str, message: str):
    with pytest.raises(UsageError, match=message):
        read(find_row("multiple_choice"), write(tmp_path / "train.jsonl", line + "\n"))


def broken_race(**changed: Any) -> str:
    return json.dumps(race("1.txt") | changed)


UNKNOWN_ANSWER = json.dumps([[["a"], [{"question": "q", "choice": ["a", "b"], "answer": "c"}], "1"]])
NO_CANDIDATE = json_lines([{"content": ["#idiom1#"], "candidates": ["b", "c"], "answer": 2}])
WRONG_FILES = [
    ("c3", "d.json", UNKNOWN_ANSWER, r"\$\[0\]\[1\]\[0\]: the answer 'c'"),
    ("c3", "d.json", json.dumps({"a": 1}), r"expected a list"),
    ("c3", "d.json", json.dumps(C3)[:-3], r"d\.json"),
    ("race", "1.txt", broken_race(answers=["B"]), r"2 questions, 2 lists of options and 1 answers; expected as many"),
    ("race", "1.txt", broken_race(answers=["B", "E"]), r"\$\.questions\[1\]: the answer 'E' is none"),
    ("race", "1.txt", "", r"1\.txt"),
    ("chid", "x.json", json_lines([{"content": ["a"], "candidates": ["b", "c"]}]), r":1: no blank as #idiom"),
    ("chid", "x.json", NO_CANDIDATE, r":1: the answer '?2'? "),
    ("chid", "x.json", json_lines([{"content": 1, "candidates": ["b", "c"]}]), r":1: "),
    ("chid", "x.json", json_lines(CHID), r":1: no answer"),
    ("copa", "x.json", json_lines([{**COPA[0], "choice1": ""}]), r":1: choice 1 is empty"),
]


@pytest.mark.parametrize(("task", "name", "content", "message"), WRONG_FILES)
def test_a_wrong_file_is_named_with_its_place(tmp_path: Path, task: str, name: str, content: str, message: str):
    with pytest.raises(UsageError, match=message):
        read(find_row(task), write(tmp_path / name, content))


def test_answers_of_chid_that_are_no_answers(tmp_path: Path):
    path = write(tmp_path / "train.json", json_lines(CHID))
    write(tmp_path / "train_answer.json", json.dumps({**CHID_ANSWERS, "#idiom03#": "1"}))
    with pytest.raises(UsageError, match=r"train_answer\.json: .*expected a whole number"):
        read(find_row("chid"), path)


def test_scores_are_read_by_the_names_of_the_header(world: Path):
    found = splits_of(world, "sts_b").examples
    assert [float(example.label) for example in found["train"][:6]] == [0, 1.1, 2.2, 3.3, 4.4, 5]
    assert found["test"][0].label is None
    assert all(example.text_b for example in found["test"])


@pytest.mark.parametrize("label", ["x", "nan", "inf", "1e999", "1_0", "0x1", "5.01", "-0.1"])
def test_a_label_that_is_no_score_is_named(tmp_path: Path, label: str):
    path = write(tmp_path / "train.tsv", f"sentence1\tsentence2\tscore\na\tb\t5\na\tb\t{label}\n")
    with pytest.raises(UsageError, match=r"train\.tsv:3: label .*(is not a number|is outside of 0 to 5)"):
        read(find_row("sts_b"), path)


def test_labels_of_a_text_are_separated_or_a_list(world: Path, tmp_path: Path):
    found = splits_of(world, "tags").examples
    assert [example.label for example in found["train"]] == [("early",), ("late", "both"), (), ("both",)]
    assert [example.label for example in found["dev"]] == [("early",), (), ("late", "both")]
    row = find_row("tags", world / "rows.toml")
    with pytest.raises(UsageError, match=r"train\.tsv:1: label 'lat' is not a label of tags; did you mean 'late'"):
        read(row, write(tmp_path / "train.tsv", "a\tearly|lat\n"))
    with pytest.raises(UsageError, match=r":1: no label"):
        read(row, write(tmp_path / "train.jsonl", '{"text": "a"}\n'))
    unseparated = dataclasses.replace(row, label_separator="")
    with pytest.raises(UsageError, match=r":1: labels is "):
        read(unseparated, write(tmp_path / "y.jsonl", '{"text": "a", "labels": ["late"]}\n'))


def test_aligned_files_pair_from_either_side(world: Path, tmp_path: Path):
    (path,) = find_split(find_row("tatoeba"), world / "tatoeba", "test")
    examples = read(find_row("tatoeba"), path)
    assert examples == read(find_row("tatoeba"), path.with_suffix(".deu"))
    assert {example.group for example in examples} == {"deu"}
    assert examples[0].text_b == path.read_text().splitlines()[0]
    row = find_row("tatoeba")
    with pytest.raises(UsageError, match=r"x\.fr has no x\.en or x\.eng beside it"):
        read(row, write(tmp_path / "x.fr", "a\n"))
    with pytest.raises(UsageError, match=r"x\.fr has 1 lines with text and x\.en has 2"):
        read(row, write(tmp_path / "x.en", "a\nb\n"))
    write(tmp_path / "x.de", "a\nb\n")
    with pytest.raises(UsageError, match=r"x\.en needs one file .* got x\.de, x\.fr; name that one"):
        read(row, tmp_path / "x.en")


def test_pairs_of_matching_have_labels_scores_or_none(world: Path, tmp_path: Path):
    assert [example.label for example in splits_of(world, "lcqmc_matching", "lcqmc").examples["dev"]] == [0, 1, 0, 1, 0]
    with pytest.raises(UsageError, match=r":1: label '2' is not a label of lcqmc_matching"):
        read(find_row("lcqmc_matching"), write(tmp_path / "a.tsv", "a\tb\t2\n"))
    with pytest.raises(UsageError, match=r":2: label 6 is outside"):
        read(find_row("sts_b_matching"), write(tmp_path / "b.tsv", "sentence1\tsentence2\tscore\na\tb\t6\n"))
    assert read(find_row("matching_pairs"), write(tmp_path / "c.tsv", "a\tb\n"))[0].label == 1


def test_rows_of_an_example_lie_together_and_what_it_lacks_is_zeros(world: Path):
    splits = splits_of(world, "c3")
    tokenizer = load_tokenizer(vocab_file=world / "vocab.txt")
    splits.encode(tokenizer, max_seq_length=16, batch_size=5, seed=0)
    dataset = splits.datasets["train"]
    assert dataset.num_examples == 4
    (batch,) = dataset.evaluation_batches(5)
    assert batch["input_ids"].shape == (5, 4, 12)
    assert dataset.rows_per_example == 4  # pyright: ignore[reportAttributeAccessIssue]
    real = batch["input_mask"][:, :, 0]
    order = dataset.evaluation_order().tolist()
    assert [real[order.index(n)].sum() for n in range(4)] == [3, 2, 3, 4]
    assert not batch["input_mask"][4].any()
    first = batch["input_ids"][order.index(0), 1]
    text = [splits.tokenizer.vocabulary[token] for token in first if token]  # pyright: ignore[reportAttributeAccessIssue]
    assert text == ["[CLS]", *"abcde", "[SEP]", "f", "g", "b", "[SEP]"]
    assert [int(batch["label_ids"][order.index(n)]) for n in range(4)] == [1, 1, 0, 1]
    trained = [dataset.batch(step) for step in range(3)]
    assert all(each["input_ids"].shape[:2] == (5, 4) for each in trained)


WRONG_ROWS = [
    ("threshold = 0.4", "threshold = 1.0", r"\[tags\] has the threshold 1; expected a probability"),
    ("threshold = 0.4", "threshold = nan", r"\[tags\] has the threshold nan"),
    ('label_separator = "|"', 'label_separator = "a"', r"has the label_separator 'a' in its label 'early'"),
    ('label_separator = "|"', "", r"\[tags\] lacks label_separator"),
    ("threshold = 0.4", "score_range = [5, 0]", r"has the score_range \[5, 0\]; expected the lowest and the highest"),
    ("threshold = 0.4", "score_range = [0, inf]", r"has the score_range"),
    ("threshold = 0.4", "score_range = [0]", r"has the score_range"),
    ("threshold = 0.4", "temperature = 0", r"has the temperature 0; expected a number above 0"),
    ("threshold = 0.4", 'pooling = "max"', r"pooling"),
    ('kind = "multilabel"', 'kind = "matching"', r"\[tags\] has the unknown metric|needs text_a and text_b"),
]


@pytest.mark.parametrize(("before", "after", "message"), WRONG_ROWS)
def test_a_wrong_row_is_one_line(tmp_path: Path, before: str, after: str, message: str):
    with pytest.raises(UsageError, match=message):
        load_rows(write(tmp_path / "rows.toml", TAGS.replace(before, after)))


@pytest.mark.parametrize(
    ("columns", "labels", "score_range", "metric", "complaint"),
    [
        (("text_a",), (), (), "mrr", "needs text_a and text_b"),
        (("text_a", "text_b", "label"), (), (), "spearman", "has a label; matching needs labels"),
        (("text_a", "text_b", "label"), ("0", "1"), (0, 5), "spearman", "has a label; matching needs labels"),
        (("text_a", "text_b"), ("0", "1"), (), "mrr", "no column label"),
        (("text_a", "text_b"), (), (), "accuracy", "has the metric accuracy"),
        (("text_a", "text_b", "label"), (), (0, 5), "accuracy", "has the metric accuracy"),
        (("text_a", "text_b", "label"), ("0", "1"), (), "mrr", "has the metric mrr"),
        (("text_a", "text_b", "label"), ("0", "1"), (), "accuracy", ""),
        (("text_a", "text_b", "label"), (), (0, 5), "spearman", ""),
        (("text_a", "text_b"), (), (), "mrr", ""),
    ],
)
def test_labels_and_metric_of_a_matching_row_go_together(
    columns: tuple[str, ...], labels: tuple[str, ...], score_range: tuple[float, ...], metric: str, complaint: str
):
    row = DatasetRow(
        name="x", kind="matching", columns=columns, labels=labels, score_range=score_range, metric=metric, files={}
    )
    found = matching.complaint(row)
    assert complaint in found if complaint else not found


def test_what_is_handed_in(world: Path):
    examples = splits_of(world, "chid").examples["test"]
    answers = [np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.6, 0.3, 0.1, 0.0]), np.eye(4)[3], np.eye(4)[2]]
    row = find_row("chid")
    names = [f"#idiom0{number}#" for number in (1, 2, 3, 4)]
    assert choice.submitted(row, answers, examples) == list(zip(names, (0, 0, 3, 2), strict=True))
    assigned = dataclasses.replace(row, metric="accuracy_assigned")
    assert choice.submitted(assigned, answers, examples) == list(zip(names, (1, 0, 3, 2), strict=True))
    scored = regression.submitted(find_row("sts_b"), [1.23456, -1, 7], [])
    assert [answer for _, answer in scored] == ["1.235", "0.000", "5.000"]
    pairs = [matching.TextPair("a", "b", 1.0, "deu"), matching.TextPair("c", "d", 1.0, "deu")]
    vectors = [np.array([[1, 0], [0, 1]], np.float32), np.array([[0, 1], [1, 0]], np.float32)]
    assert matching.submitted(find_row("tatoeba"), vectors, pairs) == [(None, 1), (None, 0)]
    assert matching.submitted(find_row("lcqmc_matching"), vectors, pairs) == [(None, 0.0), (None, 0.0)]
    tags = find_row("tags", world / "rows.toml")
    assert multilabel.submitted(tags, [np.array([0.4, 0.39, 1.0])], []) == [(None, ["early", "both"])]


def test_predictions_are_json_lines(world: Path):
    pairs = [matching.TextPair("a", "b", 1.0, "deu"), matching.TextPair("c", "d", 1.0, "deu")]
    vectors = [np.array([[1, 0], [0, 1]], np.float32), np.array([[0, 1], [1, 0]], np.float32)]
    first = json.loads(next(iter(matching.lines(find_row("tatoeba"), vectors, pairs))))
    assert first == {"index": 0, "cosine": 0.0, "group": "deu", "nearest": 1, "text_a": "a", "text_b": "b"}
    assert matching.files(find_row("tatoeba"), "dev", vectors, pairs) == {}
    row = find_row("tags", world / "rows.toml")
    text = multilabel.LabelledText("a", None, None)
    line = json.loads(next(iter(multilabel.lines(row, [np.array([0.4, 0.39, 1.0])], [text]))))
    assert (line["prediction"], "label" in line) == (["early", "both"], False)
