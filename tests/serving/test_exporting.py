"""Exports answer like the model that they are made of, at any batch and length; a wrong one is not kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from absl.app import UsageError
from kind_files import CONFIG, SPECIALS, WORDS

from conversion.writers import write_ours
from data.tokenizers import load_tokenizer
from ground.tensors import named_variables
from modeling.config import Config
from serving import exporting
from serving.exporting import export_run, inputs_of, is_export, load_samples, save_samples, write_export
from tasks.datasets import find_row
from tasks.run_file import RunFile, describe_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="a SavedModel is TensorFlow's"),
]
# A row of each kind whose answers have axes of their own, and the axes of its features between batch and length.
ROWS = {
    "cluener": (),
    "squad": (),
    "copa": (3,),
    "lcqmc_matching": (2,),
}


def run_of(row_name: str, folder: Path, **config: Any) -> tuple[RunFile, Any, Any]:
    """Write a run of random weights; return what it is made of, its task and its model."""
    row = find_row(row_name)
    folder.mkdir()
    (folder / "words.txt").write_text("\n".join([*SPECIALS, *WORDS]) + "\n")
    tokenizer = load_tokenizer(vocab_file=folder / "words.txt")
    content = RunFile(
        kind=row.kind,
        config=Config(**{**CONFIG, **config}),
        computation={"dtype": "float32"},
        tokenizer=describe_tokenizer(tokenizer, folder, do_lower_case=True, max_seq_length=16),
        row=row,
    )
    content.write(folder)
    task = content.task()
    model = task.build_model()
    weights = {name: np.asarray(value) for name, value in named_variables(model).items()}
    write_ours(folder / "best", content.config, weights)
    return content, task, model


def samples_of(task: Any, model: Any, axes: tuple[int, ...]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return two batches of other shapes, one with padding, and what the model predicts for them."""
    found = []
    for batch, length in ((3, 7), (1, 12)):
        shape = (batch, *axes, length)
        mask = np.ones(shape, np.int32)
        mask[..., 5:] = 0 if length == 7 else 1
        ids = np.random.default_rng(length).integers(5, 15, shape).astype(np.int32)
        segments = (np.arange(length) > 2).astype(np.int32) * mask
        features = {"input_ids": ids * mask, "input_mask": mask, "segment_ids": segments}
        predicted = task.predictions(model, {name: keras.ops.convert_to_tensor(x) for name, x in features.items()})
        found.append((features, {name: keras.ops.convert_to_numpy(value) for name, value in predicted.items()}))
    return found


@pytest.mark.parametrize("row_name", ROWS)
def test_an_export_answers_like_the_model(row_name: str, tmp_path: Path):
    import tensorflow as tf

    content, task, model = run_of(row_name, tmp_path / "run")
    (tmp_path / "export").mkdir()
    write_export(tmp_path / "export", task, model, content.tokenizer.load(tmp_path / "run"), content)
    assert is_export(tmp_path / "export")
    loaded: Any = tf.saved_model.load(str(tmp_path / "export"))
    samples = samples_of(task, model, ROWS[row_name])
    for features, wanted in samples:
        given = {"input_ids": "input_ids", "attention_mask": "input_mask", "token_type_ids": "segment_ids"}
        answers = loaded.signatures["serving_default"](**{n: tf.constant(features[ours]) for n, ours in given.items()})
        assert answers.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(answers[name].numpy(), value, atol=1e-5, rtol=1e-5)
    described = json.loads((tmp_path / "export/export.json").read_text())
    assert described["outputs"].keys() == samples[0][1].keys()
    assert (tmp_path / "export/vocab.txt").is_file()
    if row_name == "cluener":
        assert described["labels"][:3] == ["O", "B-address", "I-address"]


def test_an_export_with_other_answers_than_the_runs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a process of its own it is loaded by `tests/test_ernie_m_command.py`."""
    _, task, model = run_of("lcqmc_pair", tmp_path / "run", type_vocab_size=1)
    samples = samples_of(task, model, ())
    wanted = {f"{n}/{name}": value for n, (_, each) in enumerate(samples) for name, value in each.items()}
    monkeypatch.setattr(exporting, "answers_of", lambda folder, samples: wanted)
    target = tmp_path / "models/export"
    save_samples(tmp_path / "samples.npz", samples)
    made = export_run(tmp_path / "run", tmp_path / "run/best", target, load_samples(tmp_path / "samples.npz"))
    assert (made.folder, made.examples, made.difference) == (target, 4, 0)
    # The model has one type of segment: nobody is asked for it.
    assert json.loads((target / "export.json").read_text())["inputs"].keys() == {"input_ids", "attention_mask"}
    assert is_export(target)
    former = (target / "export.json").read_bytes()
    wanted["1/probabilities"] = wanted["1/probabilities"] + 0.01
    with pytest.raises(UsageError, match=r"answers are .* from the run's, 1e-04 is allowed: none of it is kept"):
        export_run(tmp_path / "run", tmp_path / "run/best", target, samples)
    assert (target / "export.json").read_bytes() == former
    assert [path.name for path in target.parent.iterdir()] == ["export"]
    # What else lies in the folder is of somebody else.
    (target / "variables/notes.txt").touch()
    assert not is_export(target)
    with pytest.raises(
        UsageError, match=r"export exists and is no export of ours: its export\.json does not list what"
    ):
        export_run(tmp_path / "run", tmp_path / "run/best", target, samples)
    assert (target / "variables/notes.txt").is_file()


def test_an_export_that_is_damaged_or_of_another_program_is_not_ours(tmp_path: Path):
    assert not is_export(tmp_path)
    (tmp_path / "export.json").write_text('{"format": "another", "files": {}, "inputs": {}}')
    assert not is_export(tmp_path)
    (tmp_path / "export.json").write_text('{"format": "divan export", "files": {"a": 2}, "inputs": {}}')
    (tmp_path / "a").write_text("x")
    assert not is_export(tmp_path)
    (tmp_path / "a").write_text("xx")
    assert is_export(tmp_path)


def test_a_run_that_generates_is_refused():
    row = find_row("text_to_text")
    content = RunFile(kind=row.kind, config=Config(**CONFIG), computation={}, tokenizer=None, row=row)  # pyright: ignore
    with pytest.raises(UsageError, match=r"only runs of run_classifier\.py are written as a SavedModel"):
        inputs_of(content)
