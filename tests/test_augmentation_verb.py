"""augment_examples.py: a folder with more rows that run_classifier.py reads, and what is refused before it is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from absl.app import UsageError

import augment_examples
from commands.flags import parse
from conversion.writers import write_ours
from modeling import Config, PretrainingModel, variable_shapes
from tasks.datasets import find_row, read_examples

WORDS = "abcdefghij"
CONFIG = Config(
    family="bert",
    vocab_size=15,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=16,
)


def write_model(folder: Path, config: Config = CONFIG, lacking: str = "none") -> Path:
    shapes = variable_shapes(lambda: PretrainingModel(config, 2))
    random = np.random.default_rng(7)
    tensors = {
        name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items() if lacking not in name
    }
    write_ours(folder, config, tensors, [folder.parent / "vocab.txt"] if config.vocab_size == 15 else [])
    return folder


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    (tmp_path / "data").mkdir()
    for split, texts in (("train", ["a b  c d", "e f"]), ("dev", ["g h"])):
        lines = "".join(f"{number % 2}\t{text}\n" for number, text in enumerate(texts))
        (tmp_path / f"data/{split}.tsv").write_text(lines)
    return {
        "task_name": "chnsenticorp",
        "data_dir": tmp_path / "data",
        "output_dir": tmp_path / "out",
        "init_checkpoint": write_model(tmp_path / "model"),
        "num_copies": 3,
        "max_seq_length": 16,
        "predict_batch_size": 4,
    }


def run(arguments: dict[str, object], **more: object) -> None:
    given = {**arguments, **more}
    augment_examples.main(parse(augment_examples.Options, [f"--{name}={value}" for name, value in given.items()]))


@pytest.mark.slow
def test_the_folder_has_more_rows_to_train_with_and_the_same_to_evaluate(arguments, tmp_path, capsys):
    run(arguments)
    told = capsys.readouterr().out
    assert "2 examples, 6 copies with " in told
    former, made = ((tmp_path / folder / "train.tsv").read_bytes() for folder in ("data", "out"))
    assert made.startswith(former)
    assert (tmp_path / "out/dev.tsv").read_bytes() == (tmp_path / "data/dev.tsv").read_bytes()
    examples = read_examples(find_row("chnsenticorp"), tmp_path / "out/train.tsv", need_labels=True)
    assert [each.label for each in examples] == ["0", "1", *"000", *"111"]
    assert len({each.text_a for each in examples}) == 8
    assert all("  " in each.text_a for each in examples[2:5])
    # The same again, and no other with another seed.
    run(arguments)
    assert (tmp_path / "out/train.tsv").read_bytes() == made
    run(arguments, seed=7, pick="best", output_dir=tmp_path / "best")
    assert (tmp_path / "best/train.tsv").read_bytes() != made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_name": "c3"}, r"--task_name=c3: its files \(format c3, kind choice\) do not hold a text"),
        ({"data_dir": "absent"}, r"--data_dir=absent is not a folder"),
        ({"max_seq_length": 64}, r"--max_seq_length=64: .* has positions for 16 tokens"),
        ({"pick": "best", "top_k": 5}, r"--top_k=5 does nothing without --pick=sample"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(arguments, tmp_path, change, message):
    with pytest.raises(UsageError, match=message) as error:
        run(arguments, **change)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_model_without_its_head_or_of_another_vocabulary_and_a_folder_of_others_are_refused(arguments, tmp_path):
    with pytest.raises(UsageError, match="masked_lm"):
        run(arguments, init_checkpoint=write_model(tmp_path / "headless", lacking="masked_lm"))
    wide = dataclasses.replace(CONFIG, vocab_size=16)
    with pytest.raises(UsageError, match=r"the vocabulary has 15 tokens but .* has vocab_size=16"):
        run(arguments, init_checkpoint=write_model(tmp_path / "wide", wide), vocab_file=tmp_path / "vocab.txt")
    with pytest.raises(UsageError, match="--output_dir would write over"):
        run(arguments, output_dir=tmp_path / "data")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train.tsv").write_text("mine")
    with pytest.raises(UsageError, match="is not known to be an earlier output of this command"):
        run(arguments)
    assert (tmp_path / "out/train.tsv").read_text() == "mine"
