"""The command of ERNIE-M's readme as it stands, on a folder with the names of PaddleNLP; its prediction; its trial."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import types
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from absl.app import UsageError

import run_classifier
from commands.flags import parse
from commands.task_files import find_task, language_options
from conversion.namings import NAMINGS
from conversion.rules import Translation
from conversion.tokenizer_files import sentencepiece_pieces
from data.tokenizers.training import train_sentencepiece
from modeling import PretrainingModel, load_config, variable_shapes
from serving.exporting import is_export
from tasks.languages import LanguageSplits
from tasks.run_file import RunFile
from tasks.splits import Splits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.config.backend() != "tensorflow", reason="an export on JAX is the same process of its own"
    ),
]
COMMAND = shlex.split("""
  --do_train --do_eval --do_export --device gpu --task_type cross-lingual-transfer --model_name_or_path ernie-m-tiny
  --output_dir ./finetuned_models/ --export_model_dir ./finetuned_models/ --per_device_train_batch_size 4
  --per_device_eval_batch_size 4 --max_seq_length 32 --learning_rate 5e-5 --classifier_dropout 0.1 --weight_decay 0.0
  --layerwise_decay 0.8 --save_steps 4 --eval_steps 2 --num_train_epochs 1 --warmup_ratio 0.1 --logging_steps 2
  --max_steps -1 --seed 42 --load_best_model_at_end True --metric_for_best_model eval_accuracy --adam_epsilon 1e-8
  --max_grad_norm 1.0 --overwrite_output_dir --remove_unused_columns False
""")
PREDICTION = shlex.split("""
  --do_predict --task_type cross-lingual-transfer --model_name_or_path ./finetuned_models
  --output_dir ./finetuned_models/ --max_seq_length 32
""")
SENTENCES = [
    *("The river rose in 1999, and the bridge fell.", "A boy reads books under the old tree.", "It rains today."),
    *("河水涨了，桥塌了。", "男孩在树下读书。", "今天下雨。"),
]
SHAPE: dict[str, Any] = {
    "model_type": "ernie_m",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 77,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 40,
    "initializer_range": 0.02,
    "pad_token_id": 1,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ernie_m")
    make_model(folder / "ernie-m-tiny")
    (folder / "xnli").mkdir()
    labels = ("entailment", "neutral", "contradiction")
    for language, texts in (("en", SENTENCES[:3]), ("zh", SENTENCES[3:])):
        for split, count in (("train", 12), ("dev", 7), ("test", 5)):
            rows = [f"{texts[n % 3]}\t{texts[n % 2]}\t{labels[n % 3]}\n" for n in range(count)]
            (folder / f"xnli/{split}-{language}.tsv").write_text("premise\thypo\tlabel\n" + "".join(rows))
    trial = [{"premise": SENTENCES[n % 6], "hypothesis": SENTENCES[0], "label": n % 3} for n in range(6)]
    (folder / "trial.json").write_text("".join(json.dumps(row) + "\n" for row in trial))
    return folder


def make_model(folder: Path, positions: int = 40) -> None:
    """Write a folder as PaddleNLP has it; its JSON tells another width of the feed-forward than the weights have."""
    folder.mkdir()
    model = train_sentencepiece(SENTENCES * 30, vocab_size=56, layout="xlmr")
    pieces = [piece for piece, _, _ in sentencepiece_pieces(model)[0]][3:]
    tokens = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *pieces, "[MASK]"]
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    shape = SHAPE | {"vocab_size": len(tokens), "max_position_embeddings": positions}
    (folder / "config.json").write_text(json.dumps(shape | {"intermediate_size": 64}))
    config = load_config(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(shape))
    random = np.random.default_rng(0)
    shapes = variable_shapes(lambda: PretrainingModel(config, 2))
    tensors = {
        name: random.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in shapes.items()
        if name.startswith("backbone/")
    }
    named, _ = Translation(next(n for n in NAMINGS if n.name == "ernie_m_paddle")).exported(tensors)
    content = {name: np.asarray(value) for name, value in named.items()}
    (folder / "model_state.pdparams").write_bytes(pickle.dumps(content, protocol=4))


@pytest.fixture
def go(world: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(world)
    return lambda *arguments: run_classifier.main(parse(run_classifier.Options, arguments, print))


def results(folder: Path, name: str = "eval_results") -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.usefixtures("operation_by_operation")
def test_the_command_of_the_readme(world: Path, go: Any, capsys: pytest.CaptureFixture[str]):
    go(*COMMAND)
    said, folder = capsys.readouterr().out, world / "finetuned_models"
    assert "--device=gpu: the GPU is used where there is one" in said
    assert "--remove_unused_columns=False: means nothing here" in said
    # --max_steps -1 leaves the length to the epochs: 12 rows in batches of 4.
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_00000003"]
    scores = results(folder)
    assert scores["eval_accuracy_average"] == pytest.approx((scores["accuracy_en"] + scores["accuracy_zh"]) / 2)
    assert scores["eval_accuracy_zh"] == scores["accuracy_zh"] == scores["accuracy_average_without_en"]
    assert scores["accuracy_transfer_gap"] == pytest.approx(scores["accuracy_en"] - scores["accuracy_zh"])
    described = RunFile.read(folder)
    assert (described.tokenizer.segmentation, described.config.intermediate_size) == ("paddlenlp", 64)
    assert is_export(folder / "export")
    assert re.search(
        r"loaded by TensorFlow alone, its answers to 7 rows of dev_en are at most (0e\+00|\de-0[5-9]) ", said
    )
    assert results(folder / "export", "export")["labels"] == ["contradiction", "entailment", "neutral"]
    assert results(folder / "export", "export")["template"]["between"] == [2, 2]

    # As it stands there, the prediction names the folder of the run alone.
    go(*PREDICTION)
    tested = results(folder, "test_results")
    assert len(tested["label"]) == len(tested["confidence"]) == 5
    assert tested["languages"] == ["en"]

    # What the former run wrote makes room, what it did not write stays, and the export is the new one's.
    (folder / "mine.txt").write_text("mine")
    before = (folder / "export/export.json").stat().st_mtime_ns
    go(*COMMAND, "--do_export", "False", "--export_model_dir=", "--max_steps=2")
    assert "--overwrite_output_dir: removed" in capsys.readouterr().out
    assert not (folder / "test_results.json").exists()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_00000002"]
    assert (folder / "mine.txt").read_text() == "mine"
    assert (folder / "export/export.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ([], {"train": 6, "dev_en": 6, "test_en": 6}),
        (["--data_dir=xnli"], {"train": 24, "dev_en": 7, "dev_zh": 7, "test_en": 6}),
        (["--data_dir=xnli", "--task_name=xnli_zh", "--task_type="], {"train": 12, "dev": 7, "test": 6}),
    ],
)
def test_a_trial_on_one_file(flags: list[str], found: dict[str, int], world: Path, monkeypatch: pytest.MonkeyPatch):
    """In place of the test file, or without a folder of all files; it is of the source language."""
    monkeypatch.chdir(world)
    plain = ["--do_train", "--do_predict", "--task_type=translate-train-all", "--output_dir=x"]
    given = [*plain, "--use_test_data", "True", "--test_data_path=trial.json", *flags]
    options = run_classifier.with_defaults(parse(run_classifier.Options, given))
    session: Any = types.SimpleNamespace(together=lambda function: function(), say=print)
    row, files = find_task(session, options, "run_classifier")
    splits = LanguageSplits(row, files, **language_options(options, row)) if row.by_language else Splits(row, files)
    assert {name: len(examples) for name, examples in splits.examples.items()} == found
    assert {example.label for example in splits.examples[next(reversed(found))]} == {*row.labels}
    assert not [note for note in splits.notes if "trial" in note]


def test_mistakes_of_the_command_are_one_line(world: Path, go: Any):
    plain = ["--do_train", "--task_type=cross-lingual-transfer", "--model_name_or_path=ernie-m-tiny", "--output_dir=x"]
    for more, message in (
        (["--test_data_path=absent.json"], "--test_data_path=absent.json: no such file; expected a .json or .jsonl"),
        (["--export_model_dir=x"], "--export_model_dir=x does nothing without --do_export"),
        (["--do_export", "--export_model_dir=mine"], "mine/export exists and is not known to be an earlier output"),
        (["--use_test_data=False"], "--use_test_data=False: expected true, or leave it out"),
        (["--vocab_file=ernie-m-tiny/vocab.txt", "--segmentation=hf"], "--segmentation=hf is of ERNIE-M's tokenizer"),
    ):
        (world / "mine/export").mkdir(parents=True, exist_ok=True)
        with pytest.raises(UsageError, match=re.escape(message)):
            go(*plain, *more)
    assert not (world / "x").exists()
