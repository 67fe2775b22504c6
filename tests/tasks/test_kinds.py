"""A kind of task is a module and a row of KINDS: a toy kind passes through run_classifier.py from file to lines."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from absl.app import UsageError

import run_classifier
import serving
from commands.flags import parse
from data.labelled import ClassificationDataset, encode_examples
from modeling import Config
from tasks import kinds
from tasks.datasets import Example, load_rows
from tasks.kinds import classification, in_order

WORDS = "abcdefghij"
CONFIG = Config(
    family="bert",
    vocab_size=15,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=16,
    initializer_range=0.2,
)
ROW = """[which]
kind = "toy_choice"
columns = ["question", "choices", "answer"]
metric = "right"
files = { train = ["train.txt"], dev = ["dev.txt"], test = ["dev.txt"] }
"""


def toy_choice() -> types.ModuleType:
    """Multiple choice: an example fills one row a choice, and its answer is the choice of the largest probability."""
    module = types.ModuleType("toy_choice")

    def read(row, path, *, need_labels):
        found = []
        for line in path.read_text().splitlines():
            question, choices, answer = line.split("\t")
            found.append(types.SimpleNamespace(question=question, choices=choices.split("|"), label=int(answer)))
        return found

    def dataset(row, examples, tokenizer, *, max_seq_length, batch_size, seed):
        rows = [
            (each.question, choice, int(n == each.label)) for each in examples for n, choice in enumerate(each.choices)
        ]
        questions, choices, labels = map(list, zip(*rows, strict=True))
        return ClassificationDataset(
            encode_examples(questions, choices, labels, tokenizer, max_seq_length),
            batch_size,
            max_seq_length,
            seed=seed,
        )

    def task(row, config, computation, head):
        from tasks.classification import ClassificationTask

        return ClassificationTask(
            config, 2, classifier_dropout=head.dropout, computation=computation, regularizers=head.regularizers
        )

    def answers(row, predictions, examples):
        rows = iter(prediction["probabilities"][1] for prediction in predictions)
        found = [int(np.argmax([next(rows) for _ in example.choices])) for example in examples]
        assert next(rows, None) is None
        return found

    def scores(row, answers, examples):
        return {
            "right": float(
                np.mean([answer == example.label for answer, example in zip(answers, examples, strict=True)])
            )
        }

    def lines(row, answers, examples):
        yield "question\tanswer"
        yield from (f"{each.question}\t{each.choices[answer]}" for answer, each in zip(answers, examples, strict=True))

    def example_of(row, given):
        return types.SimpleNamespace(question=given[0], choices=given[1], label=0)

    def told(row, answer, example):
        return {"chosen": example.choices[answer]}

    vars(module).update(
        verb="run_classifier",
        needs=(),
        columns=("question", "choices", "answer"),
        header_names={},
        metrics=("right",),
        new_heads=classification.new_heads,
        unused_heads=classification.unused_heads,
        **{each.__name__: each for each in (read, dataset, task, answers, scores, lines, example_of, told)},
    )
    return module


@pytest.mark.slow
def test_a_kind_of_several_rows_an_example_needs_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "toy_choice", toy_choice())
    monkeypatch.setitem(kinds.KINDS, "toy_choice", "toy_choice")
    (tmp_path / "rows.toml").write_text(ROW)
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    examples = [
        ("a b", "c|d e|f g h", 1),
        ("b", "a|c", 0),
        ("c d e", "f|g|h|i", 3),
        ("a", "j j|i", 0),
        ("h", "a|b c", 1),
    ]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.txt").write_text("".join(f"{q}\t{c}\t{a}\n" for q, c, a in examples))
    flags = {
        "task_name": "which",
        "task_file": tmp_path / "rows.toml",
        "data_dir": tmp_path,
        "bert_config_file": tmp_path / "config.json",
        "vocab_file": tmp_path / "vocab.txt",
        "output_dir": tmp_path / "out",
        "max_seq_length": 8,
        "train_batch_size": 4,
        "eval_batch_size": 3,
        "num_train_steps": 3,
        "do_train": True,
        "do_eval": True,
    }
    run_classifier.main(parse(run_classifier.Options, [f"--{name}={value}" for name, value in flags.items()]))
    lines = (tmp_path / "out/dev_predictions.tsv").read_text().splitlines()
    given = dict(line.split("\t") for line in lines[1:])
    right = np.mean([given[question] == choices.split("|")[answer] for question, choices, answer in examples])
    assert lines[0] == "question\tanswer"
    assert json.loads((tmp_path / "out/eval_results.json").read_text())["right"] == pytest.approx(right)
    assert json.loads((tmp_path / "out/run.json").read_text())["row"]["kind"] == "toy_choice"
    asked = serving.load(tmp_path / "out").predict(
        [(question, choices.split("|")) for question, choices, _ in examples]
    )
    assert asked == [{"chosen": given[question]} for question, _, _ in examples]


def test_predictions_come_back_in_the_order_of_the_rows():
    class Dataset:
        num_examples = 5

        def evaluation_order(self):
            return np.array([3, 0, 4, 1, 2])

    order = np.array([3, 0, 4, 1, 2, -1])
    batches = ({"value": order[begin : begin + 2]} for begin in (0, 2, 4))
    assert [int(each["value"]) for each in in_order(Dataset(), batches)] == [0, 1, 2, 3, 4]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("metric", '"accuracy"', '"acuracy"'), r"unknown metric 'acuracy'; known: accuracy"),
        (("labels", '["0", "1"]', "[]"), r"\[mine\] lacks labels"),
        (("columns", '["text_a", "label"]', '["text_c", "label"]'), r"unknown column 'text_c'; known: text_a"),
        (("kind", '"classification"', '"clasification"'), r"unknown kind 'clasification'; known: classification"),
    ],
)
def test_a_row_that_its_kind_cannot_use_is_one_line(tmp_path: Path, change: tuple[str, str, str], message: str):
    fields = {
        "kind": '"classification"',
        "columns": '["text_a", "label"]',
        "labels": '["0", "1"]',
        "metric": '"accuracy"',
        "files": '{ train = ["train.tsv"] }',
    }
    name, before, after = change
    assert fields[name] == before
    fields[name] = after
    (tmp_path / "rows.toml").write_text("[mine]\n" + "".join(f"{key} = {value}\n" for key, value in fields.items()))
    with pytest.raises(UsageError, match=message):
        load_rows(tmp_path / "rows.toml")


def test_answers_of_classification_score_themselves():
    row = load_rows()["ocnli"]
    examples = [Example("a", "b", label) for label in row.labels]
    answers = classification.answers(row, [{"probabilities": p} for p in np.eye(3, dtype=np.float32)], examples)
    assert classification.scores(row, answers, examples)["accuracy"] == 1.0
    assert [line.split("\t")[1] for line in classification.lines(row, answers, examples)][1:] == list(row.labels)
