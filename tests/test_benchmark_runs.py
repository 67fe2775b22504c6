"""Rows of benchmarks through training, evaluation, prediction and submission with a tiny model."""

import json

import numpy as np
import pytest

import run_classifier
from commands import resuming
from commands.flags import parse
from modeling import Config
from tasks.run_file import RunFile

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


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    rng = np.random.default_rng(0)
    return lambda number: [" ".join(rng.choice(list(WORDS), 4)) for _ in range(number)]


def run(folder, task, *flags, output="out"):
    given = {
        "task_name": task,
        "data_dir": folder / "data",
        "bert_config_file": folder / "config.json",
        "vocab_file": folder / "vocab.txt",
        "output_dir": folder / output,
        "max_seq_length": 12,
        "train_batch_size": 4,
        "num_train_steps": 2,
    }
    run_classifier.main(parse(run_classifier.Options, [*(f"--{name}={each}" for name, each in given.items()), *flags]))
    return folder / output


def rows(path):
    head, *lines = [line.split("\t") for line in path.read_text().splitlines()]
    return [dict(zip(head, line, strict=True)) for line in lines]


@pytest.mark.slow
def test_a_row_with_further_splits_scores_and_hands_in_all_of_them(tmp_path, texts, capsys):
    head = "index\tsentence1\tsentence2"
    names = ("contradiction", "entailment", "neutral")
    data = tmp_path / "data"
    data.mkdir()
    sizes = {
        "train": 9,
        "dev_matched": 5,
        "dev_mismatched": 4,
        "test_matched": 5,
        "test_mismatched": 3,
        "diagnostic": 2,
    }
    for name, number in sizes.items():
        labelled = name.startswith(("train", "dev"))
        lines = [f"{n}\t{a}\t{b}" for n, (a, b) in enumerate(zip(texts(number), texts(number), strict=True))]
        lines = [f"{line}\t{names[n % 3]}" if labelled else line for n, line in enumerate(lines)]
        (data / f"{name}.tsv").write_text("\n".join([head + "\tgold_label" * labelled, *lines]) + "\n")
    out = run(tmp_path, "mnli", "--do_train", "--do_eval", "--do_predict")
    handed = {path.name: [row["prediction"] for row in rows(path)] for path in (out / "submission").iterdir()}
    assert handed == {
        name: [row["prediction"] for row in rows(out / f"{split}_predictions.tsv")]
        for name, split in (("MNLI-m.tsv", "test"), ("MNLI-mm.tsv", "test_mismatched"), ("AX.tsv", "test_ax"))
    }
    assert {name: len(labels) for name, labels in handed.items()} == {"MNLI-m.tsv": 5, "MNLI-mm.tsv": 3, "AX.tsv": 2}
    found = rows(out / "dev_mismatched_predictions.tsv")
    right = np.mean([row["prediction"] == row["label"] for row in found])
    assert json.loads((out / "eval_results_mismatched.json").read_text())["accuracy"] == pytest.approx(right)
    # No labels, no scores: what is left is ERNIE-M's form.
    listed = json.loads((out / "test_results.json").read_text())
    assert list(listed) == ["label", "confidence"]
    labels = RunFile.read(out).row.labels  # pyright: ignore[reportOptionalMemberAccess]
    assert [labels[each] for each in listed["label"]] == [
        row["prediction"] for row in rows(out / "test_predictions.tsv")
    ]
    printed = capsys.readouterr().out
    assert "AX.tsv has 2 rows, the leaderboard's test 1,104: it will be refused" in printed
    # What a run writes it also knows as its own.
    files = RunFile.read(out).row.files  # pyright: ignore[reportOptionalMemberAccess]
    known = {target.path.name for target in resuming.targets(out, files)}
    assert {path.name for path in out.iterdir() if path.name[0] != "."} <= known


@pytest.mark.slow
def test_a_table_of_one_s_own_from_labels_to_a_later_prediction(tmp_path, texts):
    data = tmp_path / "data"
    data.mkdir()
    lines = [f'"{text}",{len(text) % 2},{n % 3 + 8}' for n, text in enumerate(texts(24))]
    (data / "train.csv").write_text("\n".join(["review,id,stars", *lines]) + "\n")
    (data / "test.csv").write_text("review\n" + "\n".join(texts(3)) + "\n")
    flags = ("--label_column=stars", "--dev_share=0.3")
    out = run(tmp_path, "csv", "--do_train", "--do_eval", *flags)
    row = RunFile.read(out).row
    assert row is not None
    assert row.labels == ("8", "9", "10")
    assert 1 <= len(rows(out / "dev_predictions.tsv")) <= 16
    (data / "train.csv").unlink()
    run(tmp_path, "csv", "--do_predict")
    assert {each["prediction"] for each in rows(out / "test_predictions.tsv")} <= {"8", "9", "10"}
    assert len(rows(out / "test_predictions.tsv")) == 3


@pytest.mark.slow
def test_a_row_with_a_test_that_is_scored_and_one_that_is_handed_in(tmp_path, texts):
    data = tmp_path / "data"
    data.mkdir()
    pairs = [
        {"sentence1": a, "sentence2": b, "label": str(n % 2)}
        for n, (a, b) in enumerate(zip(texts(8), texts(8), strict=True))
    ]
    for name in ("train_2", "dev_2", "test_public"):
        (data / f"{name}.json").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    hidden = [{"sentence1": a, "sentence2": a, "id": n} for n, a in zip((3009, 3001), texts(2), strict=True)]
    (data / "test.json").write_text("".join(json.dumps(pair) + "\n" for pair in hidden))
    out = run(tmp_path, "fewclue-bustm-2", "--do_train", "--do_predict")
    lines = [json.loads(line) for line in (out / "submission/bustm_predict_2.json").read_text().splitlines()]
    predicted = [row["prediction"] for row in rows(out / "test_hidden_predictions.tsv")]
    assert lines == [{"id": n, "label": label} for n, label in zip((3009, 3001), predicted, strict=True)]
    assert 0 <= json.loads((out / "test_results.json").read_text())["accuracy"] <= 1
    assert list(json.loads((out / "test_results_hidden.json").read_text())) == ["label", "confidence"]
