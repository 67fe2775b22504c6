"""Tasks in several languages, and retrieval by an encoder that was not trained for it, through run_classifier.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from kind_files import flags_of as flags_of_kind
from kind_files import write_world
from language_files import write_languages

import run_classifier
from commands.flags import parse
from tasks.run_file import RunFile

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("languages")
    write_languages(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(world: Path) -> Path:
    """A pretrained model of random weights."""
    from conversion.writers import write_ours
    from modeling import PretrainingModel, load_config, named_variables

    config = load_config(str(world / "config.json"))
    weights = {name: np.asarray(value) for name, value in named_variables(PretrainingModel(config, 2)).items()}
    write_ours(world / "encoder", config, weights)
    return world / "encoder"


def run(world: Path, task: str, output: str, **flags: Any) -> Path:
    given = {
        "task_name": task,
        "data_dir": world / {"xtreme_panx": "panx", "xtreme_tatoeba": "tatoeba"}.get(task, task),
        "bert_config_file": world / "config.json",
        "vocab_file": world / "vocab.txt",
        "output_dir": world / output,
        "max_seq_length": 16,
        "train_batch_size": 4,
        "num_train_steps": 2,
        "save_checkpoints_steps": 1,
        "learning_rate": 0.01,
    }
    run_classifier.main(
        parse(run_classifier.Options, [f"--{name}={value}" for name, value in {**given, **flags}.items()])
    )
    return world / output


def results(folder: Path, name: str = "eval_results") -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


EVERYTHING = {"do_train": True, "do_eval": True, "do_predict": True}


def test_transfer_scores_and_predicts_every_language(world: Path):
    folder = run(world, "xnli", "transfer", task_type="cross-lingual-transfer", **EVERYTHING)
    scores = results(folder)
    assert scores["accuracy_average"] == pytest.approx(np.mean([scores[f"accuracy_{x}"] for x in ("de", "en", "fr")]))
    assert (scores["selected_by"], scores["accuracy"]) == (["en"], scores["accuracy_en"])
    handed_in = {path.name for path in (folder / "submission").rglob("*") if path.is_file()}
    assert handed_in == {f"test-{language}.tsv" for language in ("de", "en", "fr")}
    # Only the language that selects is read while it trains.
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    held_out = [record for record in records if record["phase"] == "eval"]
    assert len(held_out) == 2
    assert not any("accuracy_fr" in record for record in held_out)
    tested = results(folder, "test_results")
    assert len(tested["label"]) == len(tested["confidence"]) == 3
    # Scored again without the flags of training: the same results, and no claim about what selected.
    again = run(world, "xnli", "transfer", do_eval=True)
    assert results(again) == {key: value for key, value in scores.items() if key != "selected_by"}


def test_all_languages_train_and_select_together(world: Path):
    flags = {"task_type": "translate-train-all", "selection_language": "all", "do_train": True}
    folder = run(world, "xtreme_panx", "together", **flags)
    scores = results(folder)
    assert scores["selected_by"] == ["de", "en", "fr"]
    assert (
        scores["f1"] == scores["f1_average"] == pytest.approx(np.mean([scores[f"f1_{x}"] for x in ("de", "en", "fr")]))
    )
    row = RunFile.read(folder).row
    assert row is not None
    assert {*row.by_language} == {"de", "en", "fr"}


def test_a_translation_is_plugged_in(world: Path):
    flags = {"plug_in": True, "task_type": "translate-train-all", "languages": "en,fr", "do_train": True}
    flags |= {"num_train_steps": 1}
    with pytest.raises(UsageError, match='--plug_in: a model of family "bert" with cross_attention false has nothing'):
        run(world, "xnli", "nothing", data_dir=world / "aligned", **flags)
    folder = run(world, "xnli", "beside", data_dir=world / "aligned", bert_config_file=world / "veco.json", **flags)
    assert {"accuracy_en", "accuracy_fr", "accuracy_average"} <= results(folder).keys()
    row = RunFile.read(folder).row
    assert row is not None
    assert row.plug_in


@pytest.mark.usefixtures("operation_by_operation")
def test_an_encoder_finds_translations_without_training(world: Path, encoder: Path):
    from tasks.retrieval import Margin, retrieval_scores

    flags: dict[str, Any] = {"init_checkpoint": encoder, "do_eval": True, "do_predict": True, "pooling_layer": 1}
    folder = run(world, "tatoeba", "nearest", **flags)
    scores = results(folder)
    vectors = np.load(folder / "test_embeddings.npy")
    for place, group in enumerate(("deu", "fra")):
        own = vectors[place * 4 : place * 4 + 4]
        wanted = retrieval_scores(own[:, 0], own[:, 1])
        for way in ("", "_a_to_b", "_b_to_a"):
            assert scores[f"retrieval_accuracy_{group}{way}"] == wanted[f"retrieval_accuracy{way}"]
        code = {"deu": "de", "fra": "fr"}[group]
        (lines) = (folder / f"submission/tatoeba/test-{code}.tsv").read_text().split()
        assert [int(line) for line in lines] == (own[:, 0] @ own[:, 1].T).argmax(axis=1).tolist()
    other = run(world, "tatoeba", "margin", **flags, retrieval_margin="ratio", margin_neighbours=2, languages="fr")
    wanted = retrieval_scores(vectors[4:, 0], vectors[4:, 1], Margin("ratio", 2))
    assert results(other)["retrieval_accuracy"] == wanted["retrieval_accuracy"]
    lower = run(world, "tatoeba", "lower", **{**flags, "pooling_layer": -2})
    np.testing.assert_array_equal(np.load(lower / "test_embeddings.npy"), vectors)
    with pytest.raises(UsageError, match="pooling_layer -6: the model has 2 layers; expected 0 to 2, or from -1"):
        run(world, "xtreme_tatoeba", "deep", **{**flags, "pooling_layer": -6})


@pytest.mark.usefixtures("operation_by_operation")
def test_translations_are_mined_from_the_threshold_of_each_language(world: Path, encoder: Path):
    flags: dict[str, Any] = {"data_dir": world / "bucc", "init_checkpoint": encoder, "pooling_layer": 1}
    folder = run(world, "xtreme_bucc", "mined", do_eval=True, **flags)
    scores = results(folder)
    assert scores["f1_average"] == pytest.approx((scores["f1_de"] + scores["f1_fr"]) / 2)
    row = RunFile.read(folder).row
    assert row is not None
    thresholds = {language: own["threshold"] for language, own in row.by_language.items()}
    assert thresholds.keys() == {"de", "fr"}
    # Without dev the test files are mined from the same thresholds.
    run(world, "xtreme_bucc", "mined", do_predict=True, **flags)
    for language, threshold in thresholds.items():
        lines = (folder / f"test_{language}_predictions.jsonl").read_text().splitlines()
        handed_in = (folder / f"submission/bucc2018/test-{language}.tsv").read_text().splitlines()
        assert all(json.loads(line)["score"] >= threshold - 1e-6 for line in lines)
        assert len(handed_in) == len(lines)
    again = RunFile.read(folder).row
    assert again is not None
    assert {language: own["threshold"] for language, own in again.by_language.items()} == thresholds


@pytest.mark.usefixtures("operation_by_operation")
def test_a_threshold_of_dev_is_kept_and_predicts(tmp_path: Path):
    write_world(tmp_path)
    flags = flags_of_kind(tmp_path, "lcqmc_matching", "out") | {"do_predict": False}

    def go(**more: Any) -> Path:
        given = [f"--{name}={value}" for name, value in {**flags, **more}.items()]
        run_classifier.main(parse(run_classifier.Options, given))
        return tmp_path / "out"

    found = results(go())
    row = RunFile.read(tmp_path / "out").row
    assert row is not None
    assert row.threshold == found["threshold"] != 0.5
    predicted = go(do_train=False, do_eval=False, do_predict=True) / "test_predictions.jsonl"
    for line in map(json.loads, predicted.read_text().splitlines()):
        assert line["prediction"] == "01"[line["cosine"] >= row.threshold]
    assert results(tmp_path / "out", "test_results")["threshold"] == row.threshold
    assert results(go(do_train=False, threshold=0.25))["threshold"] == 0.25
