"""A run folder opens without flags, with the weights that the verb itself predicted with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError

import run_classifier
import run_pretraining
from commands.flags import parse
from modeling import load_config
from serving.run_folder import open_run
from tasks.run_file import NAME, RunFile

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = ROOT / "albert_config/vocab.txt"


def call(verb: Any, **flags: object) -> None:
    verb.main(parse(verb.Options, [f"--{name}={value}" for name, value in flags.items()]))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    demo = load_config(ROOT / "albert_config/albert_config_demo.json")
    config = dataclasses.replace(
        demo, hidden_size=16, embedding_size=8, num_attention_heads=2, intermediate_size=32, max_position_embeddings=40
    )
    (folder / "config.json").write_text(config.to_json())
    for split, count in (("train", 24), ("dev", 9)):
        lines = (ROOT / f"data/samples/pairs/{split}.txt").read_text(encoding="utf-8").splitlines()[:count]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    call(
        run_classifier,
        task_name="lcqmc_pair",
        data_dir=folder,
        output_dir=folder / "out",
        bert_config_file=folder / "config.json",
        vocab_file=VOCABULARY,
        max_seq_length=40,
        do_train=True,
        do_eval=True,
        train_batch_size=8,
        num_train_steps=4,
        save_checkpoints_steps=2,
        learning_rate=0.01,
        ema_decay=0.5,
    )
    return folder


def test_a_classifier_answers_as_the_verb_did(classifier: Path):
    from data.labelled import encode_examples

    run = open_run(classifier / "out")
    assert run.content.row is not None
    assert run.content.row.labels == ("0", "1")
    rows = [line.split("\t") for line in (classifier / "out/dev_predictions.tsv").read_text().splitlines()[1:]]
    encoded = encode_examples([row[4] for row in rows], [row[5] for row in rows], [0] * len(rows), run.tokenizer(), 40)
    for number, row in enumerate(rows):
        span = slice(*encoded.splits[number : number + 2])
        features = {"input_ids": encoded.ids[None, span], "segment_ids": encoded.segments[None, span]}
        probabilities = run.task.predictions(run.model, features)["probabilities"][0]
        assert run.content.row.labels[int(np.argmax(probabilities))] == row[1]
        assert float(np.max(probabilities)) == pytest.approx(float(row[2]), abs=1e-4)


def test_a_pretraining_run_opens_as_its_objective(classifier: Path, tmp_path: Path):
    import create_pretraining_data

    create_pretraining_data.main(
        parse(
            create_pretraining_data.Options,
            [
                f"--input_file={ROOT / 'data/samples/zh/nature.txt'}",
                f"--output_file={tmp_path / 'zh.tfrecord'}",
                f"--vocab_file={VOCABULARY}",
                "--objective=structbert",
                "--max_seq_length=32",
                "--max_predictions_per_seq=5",
                "--dupe_factor=1",
                "--num_workers=1",
            ],
        )
    )
    call(
        run_pretraining,
        input_file=tmp_path / "zh.tfrecord",
        output_dir=tmp_path / "out",
        bert_config_file=classifier / "config.json",
        objective="structbert",
        do_train=True,
        train_batch_size=4,
        num_train_steps=2,
        num_warmup_steps=1,
    )
    run = open_run(tmp_path / "out")
    assert run.content.objective == "structbert"
    assert run.content.shuffles_words
    assert set(run.task.loss_weights) == {"masked_lm", "word_order", "sentence_structure"}
    outputs = run.model({"input_ids": np.ones((1, 4), np.int32)})
    assert outputs["sentence_pair_logits"].shape == (1, 3)
    with pytest.raises(UsageError, match="holds no vocabulary: copy the one"):
        run.tokenizer()


def test_run_files_read_back_equal(classifier: Path, tmp_path: Path):
    content = RunFile.read(classifier / "out")
    content.write(tmp_path)
    assert RunFile.read(tmp_path) == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: None, r"is no run folder: it has no run\.json; give the --output_dir of a run"),
        (lambda content: {**content, "version": 7}, "is of version 7, this installation reads 1"),
        (lambda content: {**content, "stride": 3}, "unknown field 'stride'.* not as a run wrote it"),
        (lambda content: [content], r"run\.json: \$ is a list: expected an object"),
        (lambda content: {**content, "config": {**content["config"], "hiden": 3}}, "hiden"),
        (lambda content: {**content, "row": {**content["row"], "kind": "retrieval"}}, "unknown kind 'retrieval'"),
    ],
)
def test_what_is_no_run_folder_is_one_line(classifier: Path, tmp_path: Path, change: Any, message: str):
    content = change(json.loads((classifier / "out" / NAME).read_text()))
    if content is not None:
        (tmp_path / NAME).write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message) as raised:
        open_run(tmp_path)
    assert "\n" not in str(raised.value)


def test_another_vocabulary_is_refused(classifier: Path, tmp_path: Path):
    content = RunFile.read(classifier / "out")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]) + "\n")
    with pytest.raises(UsageError, match="is not the vocabulary of this run"):
        content.tokenizer.load(tmp_path)
