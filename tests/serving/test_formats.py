"""Every format answers like the model in a process of its own, at any batch and length; a wrong one is not kept."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from absl.app import UsageError
from kind_files import CONFIG, SPECIALS, WORDS
from test_exporting import run_of

from conversion.writers import write_ours
from ground.tensors import named_variables
from modeling import PretrainingModel
from modeling.config import Config
from serving import formats
from serving.exporting import is_export
from serving.formats import FORMATS, TEXTS, export, given_forms
from serving.loading import load
from serving.strings import compare_answers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="exports are TensorFlow's"),
]
HAS_ONNX = all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime", "tf2onnx"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="ONNX is an extra")


def opened(row_name: str, folder: Path) -> Any:
    run_of(row_name, folder / "run")
    return load(folder / "run", dtype="float32")


def test_strings_are_answered_like_the_model(tmp_path: Path):
    """`test_rows.py` has a classifier's."""
    loaded = opened("cluener", tmp_path)
    (made,) = export(loaded, tmp_path / "out", "saved_model_text")
    assert made.difference < 1e-4
    assert made.agreeing == 1.0
    assert made.rows == ((1, 0), (8, 0))
    assert all(0 < each < 60 for each in made.seconds)
    assert is_export(tmp_path / "out")
    described = json.loads((tmp_path / "out/export.json").read_text())
    assert described["imports"] == ["tensorflow_text"]
    assert {tuple(x) for x in described["inputs"].values()} == {(None,)}
    given = ["a b c d e", "j", "i h g f e d c b a " * 4]
    found = load(tmp_path / "out").predict(given, batch_size=2)
    assert compare_answers(found, loaded.predict(given), 1e-4, what="opened") < 1e-4
    with pytest.raises(UsageError, match="answers as it was made: leave doc_stride out"):
        load(tmp_path / "out", doc_stride=4)


def test_a_pretrained_model_is_exported_as_vectors_and_tokens_of_masks(tmp_path: Path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, *WORDS]) + "\n")
    config = Config(**CONFIG)
    tensors = {name: np.asarray(value) for name, value in named_variables(PretrainingModel(config)).items()}
    write_ours(tmp_path / "model", config, tensors, [tmp_path / "vocab.txt"])
    (made,) = export(load(tmp_path / "model", dtype="float32"), tmp_path / "out", "saved_model")
    assert made.difference < 1e-5
    described = json.loads((tmp_path / "out/export.json").read_text())
    assert described["outputs"] == {"embedding": [None, 8], "tokens": [None, None, 5], "chances": [None, None, 5]}
    assert described["inputs"]["masked_lm_positions"] == [None, None]


@needs_onnx
@pytest.mark.parametrize("row_name", ["lcqmc", "cluener", "squad", "copa", "lcqmc_matching"])
def test_onnx_answers_like_the_model(row_name: str, tmp_path: Path):
    loaded = opened(row_name, tmp_path)
    full, small = export(loaded, tmp_path / "out", "onnx", int8=True)
    assert full.difference < 1e-5
    assert (full.name, small.name) == ("model.onnx", "model_int8.onnx")
    assert full.difference <= small.difference < formats.INT8_TOLERANCE
    assert len(set(full.rows)) > 1
    assert is_export(tmp_path / "out")
    # No place of the machine that it was made on.
    for name in ("model.onnx", "model_int8.onnx"):
        content = (tmp_path / "out" / name).read_bytes()
        assert str(tmp_path).encode() not in content
        assert str(Path(__file__).parents[2]).encode() not in content


def test_wrong_answers_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loaded = opened("lcqmc", tmp_path)

    def asked(ask: str, path: Path, given: list[Any], **further: Any) -> dict[str, np.ndarray]:
        found = {}
        for number, _ in enumerate(given):
            found |= {f"{number}/probabilities": np.array([[0.5, 0.6]]), f"{number}/seconds": np.array(1.0)}
        return found

    monkeypatch.setattr(formats, "asked", asked)
    with pytest.raises(UsageError, match=r"saved_model's answers are .* from the run's, 1e-04 is allowed"):
        export(loaded, tmp_path / "out", "saved_model")
    assert not (tmp_path / "out").exists()


def test_what_a_format_cannot_do_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened("lcqmc", tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tf2onnx" else found(name))
    if HAS_ONNX:
        with pytest.raises(UsageError, match=r"needs the package tf2onnx: pip install onnx onnxruntime tf2onnx"):
            export(load(tmp_path / "run"), tmp_path / "out", "onnx")
    else:
        with pytest.raises(UsageError, match=r"needs the package \w+: pip install onnx onnxruntime tf2onnx"):
            export(load(tmp_path / "run"), tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("row_name", "first"), [("chnsenticorp", TEXTS[0]), ("squad", TEXTS[:2])])
def test_texts_take_the_form_of_the_kind(row_name: str, first: Any, tmp_path: Path):
    assert given_forms(opened(row_name, tmp_path), TEXTS)[0] == first


def test_formats_are_those_of_the_flag():
    import export_model

    assert tuple(FORMATS) == export_model.FORMATS
