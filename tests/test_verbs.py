"""The verbs as a person uses them: the whole journey on a tiny model, and one clear line for every mistake."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import convert_checkpoint
import create_pretraining_data
import run_classifier
import run_pretraining
from commands.flags import run
from modeling import load_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = ROOT / "albert_config/vocab.txt"
VERBS: dict[str, Any] = {
    "create_pretraining_data": create_pretraining_data,
    "run_pretraining": run_pretraining,
    "run_classifier": run_classifier,
    "convert_checkpoint": convert_checkpoint,
}


def call(verb: str, **flags: object) -> int:
    """Run a verb with flags as on the command line; returns its exit code."""
    module = VERBS[verb]
    with pytest.raises(SystemExit) as stopped:
        run(module.main, module.Options, [f"--{name}={value}" for name, value in flags.items()])
    return int(stopped.value.code or 0)


@dataclasses.dataclass(frozen=True)
class Journey:
    """Folders and flags of a journey already made."""

    folder: Path
    pretraining: dict[str, object]
    classifier: dict[str, object]


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    folder = tmp_path_factory.mktemp("journey")
    demo = load_config(ROOT / "albert_config/albert_config_demo.json")
    config = dataclasses.replace(
        demo, hidden_size=16, embedding_size=8, num_attention_heads=2, intermediate_size=32, max_position_embeddings=40
    )
    (folder / "config.json").write_text(config.to_json())
    assert not call(
        "create_pretraining_data",
        input_file=ROOT / "data/samples/zh/nature.txt",
        output_file=folder / "records/zh.tfrecord",
        vocab_file=VOCABULARY,
        do_whole_word_mask=True,
        max_seq_length=32,
        max_predictions_per_seq=5,
        dupe_factor=1,
        eval_fraction=0.3,
        num_workers=1,
    )
    pretraining: dict[str, object] = {
        "input_file": folder / "records/*.tfrecord",
        "output_dir": folder / "pretraining",
        "bert_config_file": folder / "config.json",
        "do_train": True,
        "do_eval": True,
        "train_batch_size": 8,
        "num_train_steps": 4,
        "num_warmup_steps": 1,
        "save_checkpoints_steps": 2,
        "seed": 3,
    }
    assert not call("run_pretraining", **pretraining)
    data = folder / "pairs"
    data.mkdir()
    for split, count in (("train", 24), ("dev", 9), ("test", 7)):
        lines = (ROOT / f"data/samples/pairs/{split}.txt").read_text(encoding="utf-8").splitlines()[:count]
        (data / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    classifier: dict[str, object] = {
        "task_name": "lcqmc_pair",
        "data_dir": data,
        "output_dir": folder / "classifier",
        "bert_config_file": folder / "config.json",
        "vocab_file": VOCABULARY,
        "init_checkpoint": folder / "pretraining",
        "max_seq_length": 40,
        "do_train": True,
        "do_eval": True,
        "do_predict": True,
        "train_batch_size": 8,
        "num_train_epochs": 1,
        "save_checkpoints_steps": 2,
    }
    assert not call("run_classifier", **classifier)
    return Journey(folder, pretraining, classifier)


def test_pretraining_scores_documents_that_were_held_out(journey: Journey):
    results = json.loads((journey.folder / "pretraining/eval_results.json").read_text())
    assert results["global_step"] == 4
    assert {"masked_lm_accuracy", "sentence_order_accuracy", "unigram_accuracy"} <= set(results)
    texts = {}
    for name in ("zh", "zh.held_out"):
        manifest = json.loads((journey.folder / f"records/{name}.manifest.json").read_text())
        texts[name] = manifest["recipe"]["held_out"], manifest["num_examples"]
    assert texts["zh"][0] is False
    assert texts["zh.held_out"][0] is True
    assert all(count > 0 for _, count in texts.values())


def test_a_run_leaves_its_flags_and_they_read_back(journey: Journey):
    flags = json.loads((journey.folder / "pretraining/config.json").read_text())
    assert flags["num_train_steps"] == 4
    assert flags["learning_rate"] == run_pretraining.Options.learning_rate
    # The finished run again, from its own file of flags: nothing is left to do, the scores are the same.
    before = json.loads((journey.folder / "pretraining/eval_results.json").read_text())
    assert not call("run_pretraining", config=journey.folder / "pretraining/config.json")
    assert json.loads((journey.folder / "pretraining/eval_results.json").read_text()) == before


def test_predictions_have_one_row_an_example_in_file_order(journey: Journey):
    lines = (journey.folder / "classifier/test_predictions.tsv").read_text(encoding="utf-8").splitlines()
    examples = (journey.folder / "pairs/test.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(examples) + 1
    for line, example in zip(lines[1:], examples, strict=True):
        _, prediction, confidence, label, text_a, text_b = line.split("\t")
        assert [text_a, text_b, label] == example.split("\t")
        assert prediction in ("0", "1")
        assert 0.5 <= float(confidence) <= 1


def test_scores_are_those_of_the_predictions(journey: Journey):
    rows = [
        line.split("\t") for line in (journey.folder / "classifier/dev_predictions.tsv").read_text().splitlines()[1:]
    ]
    results = json.loads((journey.folder / "classifier/eval_results.json").read_text())
    assert results["accuracy"] == pytest.approx(sum(row[1] == row[3] for row in rows) / len(rows))


def test_evaluation_alone_finds_the_trained_weights(journey: Journey, tmp_path: Path):
    shutil.copytree(journey.folder / "classifier", tmp_path / "again")
    flags = journey.classifier | {"output_dir": tmp_path / "again", "do_train": False, "do_predict": False}
    (tmp_path / "again/eval_results.json").unlink()
    assert not call("run_classifier", **flags)
    for folder in (journey.folder / "classifier", tmp_path / "again"):
        results = json.loads((folder / "eval_results.json").read_text())
        assert results["loss"] == pytest.approx(
            json.loads((journey.folder / "classifier/eval_results.json").read_text())["loss"], abs=1e-6
        )


def test_the_classifier_opens_in_transformers(journey: Journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert not call(
        "convert_checkpoint", input=journey.folder / "classifier", output=tmp_path / "torch", format="transformers"
    )
    largest = [float(x) for x in re.findall(r"(\d\.\de[-+]\d\d)$", capsys.readouterr().out, re.MULTILINE)]
    assert largest
    assert max(largest) < 1e-4


def test_seeds_report_mean_and_deviation(journey: Journey, tmp_path: Path):
    flags = journey.classifier | {"output_dir": tmp_path, "num_train_steps": 2, "seeds": "1,2"}
    assert not call("run_classifier", **flags)
    # The second run takes over the compiled programs of the first; it must be the one that stands alone.
    assert not call("run_classifier", **flags | {"output_dir": tmp_path / "alone", "seeds": "", "seed": 2})
    names = ("dev_predictions.tsv", "test_predictions.tsv", "eval_results.txt")
    first, second, alone = (tmp_path / folder for folder in ("seed_1", "seed_2", "alone"))
    for name in names:
        assert (second / name).read_bytes() == (alone / name).read_bytes()
        assert (first / name).read_bytes() != (alone / name).read_bytes()
    summary = json.loads((tmp_path / "eval_results.json").read_text())
    each = [json.loads((tmp_path / f"seed_{seed}/eval_results.json").read_text())["accuracy"] for seed in (1, 2)]
    assert summary["accuracy"]["mean"] == pytest.approx(sum(each) / 2)


MISTAKES = [
    (
        "run_pretraining",
        {"input_file": "nowhere/*.tfrecord"},
        r"--input_file=nowhere/\*\.tfrecord: no record file matches",
    ),
    ("run_pretraining", {"bert_config_file": "gone.json"}, r"--bert_config_file=gone\.json: no such file"),
    ("run_pretraining", {"max_seq_length": 64}, r"--max_seq_length=64 but .* has max_seq_length=32"),
    ("run_pretraining", {"objective": "bert"}, r"--objective=bert but the records were made with --objective=albert"),
    ("run_pretraining", {"do_train": False, "do_eval": False}, "nothing to do"),
    ("run_pretraining", {"init_checkpoint": "nothing", "output_dir": "new"}, "checkpoint nothing does not exist"),
    ("run_pretraining", {"num_warmup_steps": 9}, "the warmup ends at step 9, after the last step 4"),
    ("run_pretraining", {"learning_rte": 1}, "unknown flag --learning_rte; the nearest is --learning_rate"),
    ("run_pretraining", {"seed": 4}, "was trained with seed 3, this run has 4"),
    ("run_classifier", {"task_name": "lcqmc_pear"}, "did you mean 'lcqmc_pair'"),
    ("run_classifier", {"data_dir": "gone"}, "--data_dir=gone is not a folder"),
    ("run_classifier", {"max_seq_length": 41}, "max_seq_length=41 but .* has positions for 40 tokens"),
    ("run_classifier", {"vocab_file": "gone.txt"}, r"--vocab_file=gone\.txt: no such file"),
    ("run_classifier", {"do_train": False, "init_checkpoint": "", "output_dir": "empty"}, "no weights"),
]


@pytest.mark.parametrize(("verb", "flags", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(
    verb: str,
    flags: dict[str, object],
    message: str,
    journey: Journey,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    usual = journey.pretraining if verb == "run_pretraining" else journey.classifier
    capsys.readouterr()
    assert call(verb, **(usual | flags)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, error[-1]), error
    assert "Traceback" not in "".join(error)
    assert not any(tmp_path.rglob("*.*"))


def test_a_finished_run_is_not_taken_for_another(journey: Journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = journey.folder / "classifier"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    rows = (ROOT / "tasks/datasets.toml").read_text(encoding="utf-8")
    table = re.search(r"^\[lcqmc_pair\]\n(.*?)(?=^\[|\Z)", rows, re.MULTILINE | re.DOTALL)
    assert table
    (tmp_path / "rows.toml").write_text(f"[other]\n{table[1]}", encoding="utf-8")
    for do_train in (True, False):
        flags = {"task_name": "other", "task_file": tmp_path / "rows.toml", "do_train": do_train}
        assert call("run_classifier", **(journey.classifier | flags)) == 2
        assert "was trained with task lcqmc_pair, this run has other" in capsys.readouterr().err
    assert call("run_classifier", **(journey.classifier | {"num_train_steps": 1})) == 2
    assert "is at step 3, this run would end at step 1" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("lines", [3, 30_000])
def test_a_vocabulary_of_another_size_is_refused(
    lines: int, journey: Journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x4E00 + i) for i in range(lines))]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    assert call("run_classifier", **(journey.classifier | {"vocab_file": tmp_path / "vocab.txt"})) == 2
    assert re.search(r"has [\d,]+ entries but .* has vocab_size=21,128", capsys.readouterr().err)


def test_records_without_a_manifest_are_checked_against_the_vocabulary(
    journey: Journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("zh", "zh.held_out"):
        shutil.copy(journey.folder / f"records/{name}.tfrecord", tmp_path)
    config = json.loads((journey.folder / "config.json").read_text()) | {"vocab_size": 300}
    (tmp_path / "small.json").write_text(json.dumps(config))
    flags = journey.pretraining | {
        "input_file": tmp_path / "zh.tfrecord",
        "eval_input_file": tmp_path / "zh.held_out.tfrecord",
        "bert_config_file": tmp_path / "small.json",
        "output_dir": tmp_path / "out",
    }
    assert call("run_pretraining", **flags) == 2
    assert re.search(r"hold the id [\d,]+ but .*small\.json has vocab_size=300", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_graph_is_refused(journey: Journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = json.loads((journey.folder / "config.json").read_text()) | {"family": "albert_zh"}
    (tmp_path / "zh.json").write_text(json.dumps(config))
    flags = journey.classifier | {"bert_config_file": tmp_path / "zh.json", "output_dir": tmp_path / "out"}
    assert call("run_classifier", **flags) == 2
    assert "the config describes" in capsys.readouterr().err


def test_a_malformed_row_is_named_with_its_line(journey: Journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(journey.folder / "pairs", tmp_path / "pairs")
    with (tmp_path / "pairs/train.txt").open("a", encoding="utf-8") as file:
        file.write("只有一列\n")
    assert call("run_classifier", **(journey.classifier | {"data_dir": tmp_path / "pairs"})) == 2
    assert re.search(r"train\.txt:25: got 1 TAB separated columns", capsys.readouterr().err)
