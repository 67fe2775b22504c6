"""run_classifier.py --method: trained, scored, predicted and opened without flags, on both engines."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from absl.app import UsageError
from jax_verbs import call_on_jax
from kind_files import flags_of, write_world

import run_classifier
import serving
from commands.flags import parse

pytestmark = pytest.mark.slow

WORDS: dict[str, Any] = {"pattern": "{text_a}[MASK]e{text_b}f", "verbalizer": "0=a|b c,1=d"}
METHODS: dict[str, dict[str, Any]] = {
    "pet": {**WORDS, "auxiliary_weight": 0.1},
    "p_tuning": WORDS,
    "cp_tuning": {},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    write_world(folder)
    return folder


def flags(world: Path, method: str, output: str) -> dict[str, object]:
    return flags_of(world, "lcqmc", output) | {"method": method, **METHODS[method]}


def predicting(world: Path, output: str, **more: Any) -> dict[str, object]:
    """Return the flags of a prediction with what the run has left: neither method nor words are named."""
    given = flags_of(world, "lcqmc", output) | {"do_train": False, "do_eval": False, "predict_batch_size": 2, **more}
    return {name: value for name, value in given.items() if name not in ("num_train_steps", "save_checkpoints_steps")}


def run(flags: dict[str, object]) -> Path:
    run_classifier.main(parse(run_classifier.Options, [f"--{name}={value}" for name, value in flags.items()]))
    return Path(str(flags["output_dir"]))


def chances(folder: Path) -> np.ndarray:
    text = (folder / "test_predictions.jsonl").read_text(encoding="utf-8")
    return np.array([list(json.loads(line)["probabilities"].values()) for line in text.splitlines()])


def check(folder: Path, method: str) -> None:
    scores = json.loads((folder / "eval_results.json").read_text())
    assert np.isfinite(list(scores.values())).all()
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {name for step in steps for name in step}
    assert ("auxiliary_loss" in names) == (method != "p_tuning")
    content = json.loads((folder / "run.json").read_text())
    assert content["kind"] == content["row"]["kind"] == method
    assert np.allclose(chances(folder).sum(axis=1), 1, atol=1e-4)


@pytest.fixture(scope="module")
def trained(world: Path) -> Callable[[str], Path]:
    """Return the folder of a run of a method; it is made once."""
    return functools.cache(lambda method: run(flags(world, method, method)))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_scores_predicts_and_opens_without_flags(
    world: Path, trained: Callable[[str], Path], method: str
):
    from serving.run_folder import open_run

    folder = trained(method)
    check(folder, method)
    found = chances(folder)
    # The encoder of soft slots is left out, and anchors come with the weights: no training file is read.
    (world / f"alone_{method}").mkdir()
    test = (world / "lcqmc/test.tsv").read_text().splitlines()
    head, lines = test[0], test[1:]
    turned = [line[:-1] + str(1 - int(line[-1])) for line in lines]
    (world / f"alone_{method}/test.tsv").write_text("\n".join([head, *turned]) + "\n")
    run(predicting(world, method, data_dir=world / f"alone_{method}"))
    # Other labels of what is predicted change nothing.
    np.testing.assert_allclose(chances(folder), found, atol=2e-4)
    pairs = [tuple(line.split("\t")[:2]) for line in lines]
    answers = serving.load(folder).predict(pairs)
    np.testing.assert_allclose([[*each["probabilities"].values()] for each in answers], found, atol=2e-4)
    np.testing.assert_allclose([*serving.load(folder).predict(pairs[0])["probabilities"].values()], found[0], atol=2e-4)
    names = {variable.path for variable in open_run(folder).model.weights}
    assert not any("lstm" in name for name in names)
    assert any("soft_prompt/vectors" in name for name in names) == (method != "pet")


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="an export is opened by TensorFlow")
def test_a_run_with_a_method_is_exported(world: Path, trained: Callable[[str], Path]):
    folder = trained("p_tuning")
    run(predicting(world, "p_tuning", do_export=True))
    described = json.loads((folder / "export/export.json").read_text())
    assert described["parts"].count("text_a") == described["parts"].count("text_b") == 1
    lines = (world / "lcqmc/test.tsv").read_text().splitlines()[1:]
    answers = serving.load(folder / "export").predict([tuple(line.split("\t")[:2]) for line in lines])
    np.testing.assert_allclose([[*each["probabilities"].values()] for each in answers], chances(folder), atol=2e-4)


def test_methods_on_jax(world: Path):
    calls: list[tuple[str, dict[str, object]]] = []
    for method in METHODS:
        own = flags(world, method, f"jax_{method}") | {"backend": "jax"}
        calls.append(("run_classifier", own))
        again = world / f"jax_{method}_again"
        calls.append(("copy", {"source": world / f"jax_{method}", "target": again}))
        calls.append(("run_classifier", predicting(world, f"jax_{method}_again", backend="jax")))
    call_on_jax(world, calls)
    for method in METHODS:
        check(world / f"jax_{method}", method)
        found = chances(world / f"jax_{method}")
        np.testing.assert_allclose(chances(world / f"jax_{method}_again"), found, atol=2e-4)


@pytest.mark.usefixtures("operation_by_operation")
def test_without_training_words_answer_at_once(world: Path, trained: Callable[[str], Path]):
    zero = predicting(world, "zero", method="pet", do_eval=True, init_checkpoint=trained("pet") / "best", **WORDS)
    np.testing.assert_allclose(chances(run(zero)), chances(trained("pet")), atol=2e-4)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        (
            "cp_tuning",
            {},
            r"^--method: --output_dir=.* was trained with kind pet, this run has cp_tuning: give the form",
        ),
        ("pet", {"verbalizer": "0=a,1=e"}, r"^--verbalizer: --output_dir=.* was trained with verbalizer 0=a\|b c,1=d,"),
        ("pet", {"pattern": "{text_a}[MASK]{text_b}"}, r"^--pattern: --output_dir=.* was trained with pattern "),
        ("cp_tuning", {"pattern": "x"}, r"^--pattern=x does nothing without --method=pet or p_tuning; give both or"),
        ("cp_tuning", {"r_drop_weight": 1}, r"^--r_drop_weight=1: --method=cp_tuning learns from pairs"),
        ("pet", {"pattern": "{text_a}{text_b}"}, r"^--pattern=.* has no mask"),
        ("pet", {"verbalizer": "0=a,1=z"}, r"^--verbalizer: the vocabulary lacks the word 'z'"),
        ("pet", {"verbalizer": "0=a,1=a"}, r"^--verbalizer: the labels '0' and '1' share the word 'a'"),
        ("cp_tuning", {"train_batch_size": 2}, r"^--train_batch_size=2: --method=cp_tuning needs two examples of two"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    world: Path, trained: Callable[[str], Path], method: str, changes: dict[str, Any], message: str
):
    output = trained("pet").name if "--output_dir" in message else "other"
    with pytest.raises(UsageError, match=message) as error:
        run(flags(world, method, output) | changes)
    assert "\n" not in str(error.value)
    assert not (world / "other").exists()


def test_a_task_of_another_kind_has_no_method(world: Path):
    with pytest.raises(
        UsageError, match=r"^--method=pet does nothing without a --task_name of the kind classification"
    ):
        run(flags_of(world, "sts_b", "other") | {"method": "pet"})


@pytest.mark.usefixtures("operation_by_operation")
def test_patterns_answer_to_unlabelled_texts_and_a_classifier_learns_it(world: Path):
    texts = (world / "lcqmc/train.tsv").read_text().splitlines()[1:]
    lines = [json.dumps(dict(zip(("sentence1", "sentence2"), line.split("\t")[:2], strict=True))) for line in texts]
    (world / "unlabelled.jsonl").write_text("\n".join(lines) + "\n")
    given = flags(world, "pet", "ensemble") | {
        "unlabelled_file": world / "unlabelled.jsonl",
        "pattern": "{text_a}[MASK]e{text_b} || {text_b}[MASK]{text_a}",
        "auxiliary_weight": 0,
        "pet_generations": 1,
    }
    folder = run(given)
    # Four times the examples of each label are wanted, and there are no more texts than these.
    for number in (1, 2):
        own = (folder / f"generation_1/labelled_{number}/train_generation.jsonl").read_text().splitlines()
        assert len(own) == len(texts)
        row = json.loads((folder / f"generation_1/pattern_{number}/run.json").read_text())["row"]
        assert row["kind"] == "pet"
    content = json.loads((folder / "run.json").read_text())
    assert content["kind"] == "soft_labels"
    assert not content["row"]["prompt"]
    patterns = [json.loads((folder / f"pattern_{n}/run.json").read_text())["row"]["pattern"] for n in (1, 2)]
    assert patterns == ["{text_a}[MASK]e{text_b}", "{text_b}[MASK]{text_a}"]
    soft = (folder / "soft_labels/train_soft_labels.jsonl").read_text().splitlines()
    assert len(soft) == len(texts)
    found = chances(folder)
    run(predicting(world, "ensemble"))
    np.testing.assert_allclose(chances(folder), found, atol=2e-4)
    with pytest.raises(UsageError, match=r"^--unlabelled_file=.*nowhere: no such file; expected texts in the form of"):
        run(given | {"unlabelled_file": world / "nowhere"})
    with pytest.raises(UsageError, match=r"^--dev_share=0.2 with --unlabelled_file: the classifier is chosen by"):
        run({**given, "dev_share": 0.2, "data_dir": alone(world)})


def alone(world: Path) -> Path:
    """Return a folder with a training and a test file."""
    folder = world / "without_dev"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.tsv").write_text((world / f"lcqmc/{split}.tsv").read_text())
    return folder
