"""Shards, names of variables, old records, old runs and losses against what older code gave (record.py).

Bytes and names have to be equal; losses to 1e-4, since another processor rounds differently. compare.py compares two
checkouts on one machine, exactly and in more cases.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from .cases import (
    BEFORE,
    EXPECTED,
    INTERRUPTED_STEP,
    LOSSES,
    RECORDS,
    ROOT,
    RUNS,
    SENTENCEPIECE,
    SHARDS,
    TOKENIZERS,
)
from .compare import differences
from .measure import (
    Losses,
    Measurement,
    batches,
    call,
    digest,
    lines_digest,
    losses,
    read_curves,
    records_pattern,
    sentencepiece_shards,
    start,
    train_tokenizer,
    variables,
    wordpiece_shards,
)

pytestmark = pytest.mark.slow

EXPECT: dict[str, Any] = json.loads(EXPECTED.read_text(encoding="utf-8"))
WHOLE_RUNS: dict[str, Any] = json.loads((BEFORE / "whole_runs.json").read_text(encoding="utf-8"))
ON_JAX = [name for name, case in LOSSES.items() if "jax" in case.tested]
ON_TENSORFLOW = [name for name, case in LOSSES.items() if "tensorflow" in case.tested]
# A large model has the names of a smaller one, and counts of its own in tests/modeling/test_models.py and test_palm.py.
CONFIGS = [
    path
    for path in sorted((ROOT / "albert_config").glob("*.json"))
    if "large" not in path.stem or path.stem in ("albert_config_xxlarge", "structroberta_large_en")
]
TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def jax(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measurement | None]:
    """Start the cases on JAX in another process, which computes them while the other tests run."""
    if not any(getattr(item, "function", None) is test_losses_on_jax for item in request.session.items):
        yield None
        return
    measurement = start(ROOT, "jax", ON_JAX, tmp_path_factory.mktemp("jax"))
    yield measurement
    measurement.process.kill()
    measurement.process.wait()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: train_tokenizer(name, folder) for name in TOKENIZERS}


def assert_close(found: Mapping[str, list[float]], expected: Mapping[str, list[float]]) -> None:
    """Compare the values of losses and learning rate; of other metrics, which may jump, the names alone."""
    assert found.keys() == expected.keys()
    for name in (name for name in expected if name.endswith("loss") or name == "learning_rate"):
        assert found[name] == pytest.approx(expected[name], rel=TOLERANCE), name


# -- text -> tokenizers, shards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(name: str, tokenizers: dict[str, Path]):
    if "model_type" in TOKENIZERS[name] and platform.machine() != "x86_64":
        pytest.skip("SentencePiece was recorded on x86-64: it rounds differently elsewhere")
    assert digest(tokenizers[name].read_bytes()) == EXPECT["tokenizers"][name]


@pytest.mark.parametrize("name", SHARDS)
def test_shards(name: str, tmp_path: Path):
    assert wordpiece_shards(name, tmp_path) == EXPECT["shards"][name]


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_sentencepiece_shards(name: str, tokenizers: dict[str, Path], tmp_path: Path):
    row, _ = SENTENCEPIECE[name]
    if digest(tokenizers[row].read_bytes()) != EXPECT["tokenizers"][row]:
        pytest.skip(f"the tokenizer {row} is another one; test_tokenizers says whether that is a failure")
    assert sentencepiece_shards(name, tmp_path, tokenizers[row]) == EXPECT["sentencepiece"][name]


def test_cases_differ_from_one_another():
    """A case whose flag has no effect on so little text would guard nothing."""
    same = {
        "num_shards, three processes": "num_shards",
        "parts, three processes": "parts",
        "random_next_sentence": "bert, static",
    }
    seen: dict[str, str] = {}
    for name, files in EXPECT["shards"].items():
        first = seen.setdefault(json.dumps(files), name)
        assert first in (name, same.get(name)), f"{name} has the bytes of {first}"


# -- shards -> batches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDS)
def test_old_records_become_the_same_batches(name: str):
    assert batches(records_pattern(name)) == EXPECT["batches"][name]


@pytest.mark.parametrize("name", ["albert", "bert", "masked_lm", "structbert", "structbert_5way"])
def test_old_static_records_are_read_without_their_manifest(name: str, tmp_path: Path):
    pattern = records_pattern(name)
    for path in pattern.parent.glob(pattern.name):
        shutil.copy(path, tmp_path)
    assert batches(records_pattern(name, tmp_path)) == EXPECT["batches"][name]


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_names_and_shapes_of_variables(path: Path):
    found = variables(path)
    assert {name: lines_digest(lines) for name, lines in found.items()} == EXPECT["variables"][path.name], found


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of before/; paths in its files are relative to it."""
    monkeypatch.chdir(shutil.copytree(BEFORE, tmp_path / "before"))
    return tmp_path / "before"


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("operation_by_operation")
def test_an_old_run_goes_on_as_if_it_had_not_been_stopped(name: str, before: Path):
    verb, _ = RUNS[name]
    call(verb, {"config": before / name / "config.json"})
    for phase, expected in EXPECT["continued"].get(name, WHOLE_RUNS[name]).items():
        found = read_curves(before / name, phase)
        assert_close(found, expected)
        assert len(found["loss"]) == len(expected["loss"])
    assert (before / f"{name}/checkpoints/step_00000004/state.json").exists()


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("operation_by_operation")
def test_the_best_weights_of_an_old_run_have_their_scores(name: str, before: Path):
    verb, _ = RUNS[name]
    call(verb, {"config": before / name / "config.json", "do_train": False})
    results = json.loads((before / name / "eval_results.json").read_text())
    assert results["global_step"] == INTERRUPTED_STEP
    assert results["loss"] == pytest.approx(WHOLE_RUNS[name]["eval"]["loss"][0], rel=TOLERANCE)


@pytest.mark.parametrize("name", ON_TENSORFLOW)
@pytest.mark.usefixtures("operation_by_operation")
def test_losses_on_tensorflow(name: str, tmp_path: Path):
    assert_close(losses(name, tmp_path, "tensorflow")["training"], EXPECT["losses"]["tensorflow"][name])


@pytest.mark.parametrize("name", ON_JAX)
def test_losses_on_jax(name: str, jax: Measurement):
    assert_close(jax.results()[name]["training"], EXPECT["losses"]["jax"][name])


def test_compare_tells_one_bit():
    one = next(iter(EXPECT["losses"]["tensorflow"].values()))
    base: Losses = {"training": one, "evaluation": {}, "state": "a", "results": {"test_predictions.tsv": "b"}}
    assert not list(differences(base, base))
    other = {**one, "loss": [one["loss"][0], one["loss"][1] * (1 + 2**-24), one["loss"][2]]}
    changed = [{"training": other}, {"evaluation": {"loss": [1.0]}}, {"state": "b"}, {"results": {}}]
    for change in changed:
        (line,) = differences(base, {**base, **change})
        assert line
