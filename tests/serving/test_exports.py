"""An export is opened by `serving.load` and answers like the model; texts of two graphs are those of the search."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from absl.app import UsageError
from kind_files import CONFIG, SPECIALS, WORDS, write
from test_exporting import run_of

from conversion.writers import write_ours
from ground.tensors import named_variables
from modeling import PretrainingModel
from modeling.config import Config
from serving import formats
from serving.exported import is_exported
from serving.formats import Development, export
from serving.loading import load
from serving.strings import compare_answers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="exports are TensorFlow's"),
]
HAS_ONNX = all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime", "tf2onnx"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="ONNX is an extra")
ROOT = Path(__file__).resolve().parents[2]
PAIRS = [("a b c", "d"), ("j", "i h g f e d c b a"), ("e", "f g")]
SOURCES = ["a b c d", "j i h g f", "e"]
GENERATING = {"family": "palm", "num_decoder_layers": 1, "num_hidden_layers": 1, "copy": "additive"}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("classifier")
    run_of("lcqmc", folder / "run")
    return load(folder / "run", dtype="float32")


@pytest.fixture(scope="module")
def onnx(classifier: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an ONNX export with weights of 8 bits and a score on labelled rows."""
    folder = tmp_path_factory.mktemp("onnx")
    rows = "".join(f"{a}\t{b}\t{n % 2}\n" for n, (a, b) in enumerate(PAIRS))
    path = write(folder / "dev.tsv", f"sentence1\tsentence2\tlabel\n{rows}")
    development = formats.development_of(classifier, path, 100.0)
    export(classifier, folder / "out", "onnx", PAIRS, int8=True, development=development)
    return folder / "out"


@needs_onnx
def test_an_onnx_folder_is_opened_and_answers_without_tensorflow(classifier: Any, onnx: Path):
    script = f"""
import json, sys
import serving
model = serving.load({str(onnx)!r})
print(json.dumps([model.kind, list(model.labels), model.predict({PAIRS!r})]))
print([name for name in ("tensorflow", "keras", "jax") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    kind, labels, answers = json.loads(done.stdout)
    assert (kind, labels) == ("classification", ["0", "1"])
    assert compare_answers(answers, classifier.predict(PAIRS), 1e-4, what="onnx") < 1e-4
    assert done.stderr.strip().splitlines()[-1] == "[]"
    small = load(onnx / "model_int8.onnx")
    assert compare_answers(small.predict(PAIRS), classifier.predict(PAIRS), 0.3, what="int8") < 0.3
    with pytest.raises(UsageError, match="an export of the kind classification answers its task alone"):
        small.embed(["a"])
    with pytest.raises(UsageError, match="is an export, which has its own vocabulary"):
        load(onnx, vocab_file="vocab.txt")
    with pytest.raises(UsageError, match="is an export itself: give the run"):
        export(small, onnx.parent / "again", "onnx")


@needs_onnx
def test_what_was_measured_stands_in_the_export(onnx: Path):
    measured = json.loads((onnx / "export.json").read_text())["measured"]
    assert [each["name"] for each in measured] == ["model.onnx", "model_int8.onnx"]
    assert all(each["num_bytes"] > 0 and 0 <= each["score"] <= 1 and min(each["seconds"]) > 0 for each in measured)


@needs_onnx
def test_eight_bits_that_cost_too_much_are_not_kept(classifier: Any, onnx: Path, monkeypatch: pytest.MonkeyPatch):
    development = Development([classifier.example(each) for each in PAIRS], 0.5)
    scores = iter([0.9, 0.9, 0.8])
    monkeypatch.setattr(type(classifier), "score", lambda self, examples: next(scores))
    written = [formats.Written(each.name, 1, (), (), 0.0, 1.0) for each in sorted(onnx.glob("*.onnx"))]
    with pytest.raises(UsageError, match=r"model_int8.onnx has accuracy 0\.8000 on 3 .*10\.00 points less, 0\.5 are"):
        development.judged(classifier, onnx, written)


@needs_onnx
def test_a_folder_that_was_changed_is_no_export(tmp_path: Path, onnx: Path):
    """`test_rows.py` opens an export of every format as it was written."""
    shutil.copytree(onnx, tmp_path / "out")
    assert is_exported(tmp_path / "out")
    assert not is_exported(tmp_path)
    (tmp_path / "out/vocab.txt").write_text("a\n")
    with pytest.raises(UsageError, match=r"does not hold the files that its export\.json lists"):
        load(tmp_path / "out")


@needs_onnx
def test_masks_and_vectors_are_those_of_the_model(tmp_path: Path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, *WORDS]) + "\n")
    config = Config(**CONFIG)
    tensors = {name: np.asarray(value) for name, value in named_variables(PretrainingModel(config)).items()}
    write_ours(tmp_path / "model", config, tensors, [tmp_path / "vocab.txt"])
    loaded = load(tmp_path / "model", dtype="float32")
    given = ["a [MASK] b [MASK]", "c d", "[MASK]"]
    export(loaded, tmp_path / "out", "onnx", given)
    opened = load(tmp_path / "out")
    assert compare_answers(opened.predict(given), loaded.predict(given), 1e-4, what="masks") < 1e-4
    np.testing.assert_allclose(opened.embed(["a b", "c"]), loaded.embed(["a b", "c"]), atol=1e-5)


@needs_onnx
def test_two_graphs_write_the_texts_of_the_search(tmp_path: Path):
    run_of("text_to_text", tmp_path / "run", **GENERATING)
    loaded = load(tmp_path / "run", dtype="float32", num_beams=3, max_target_length=8)
    export(loaded, tmp_path / "out", "onnx", SOURCES)
    files = {path.name for path in (tmp_path / "out").glob("*.onnx")}
    assert files == {"encoder.onnx", "decoder.onnx"}
    # Beams were compared before the folder was kept; the greedy path is another one.
    greedy: dict[str, Any] = {"preset": "greedy", "num_beams": 1}
    wanted = load(tmp_path / "run", dtype="float32", max_target_length=8, **greedy).predict(SOURCES)
    found = load(tmp_path / "out", **greedy).predict(SOURCES)
    assert compare_answers(found, wanted, 1e-3, what="texts") < 1e-3


def test_two_signatures_write_the_texts_of_the_search(tmp_path: Path):
    run_of("text_to_text", tmp_path / "run", **{**GENERATING, "copy": "none"})
    loaded = load(tmp_path / "run", dtype="float32", num_beams=2, max_target_length=6)
    export(loaded, tmp_path / "out", "saved_model", SOURCES)
    found = load(tmp_path / "out").predict(SOURCES)
    assert compare_answers(found, loaded.predict(SOURCES), 1e-3, what="texts") < 1e-3
