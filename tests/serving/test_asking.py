"""What `serving.load` answers is what the verb writes of the same rows; every form of a model is found out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from kind_files import CONFIG, SPECIALS, TAGS, WORDS, json_lines, write, write_world
from test_exporting import run_of

import serving
from conversion.readers import read_checkpoint
from conversion.writers import write_ours, write_tf1, write_transformers
from ground.tensors import named_variables, ops
from modeling import PretrainingModel
from modeling.config import Config
from serving import loading
from serving.models import open_model
from tasks.datasets import find_row
from tasks.splits import Splits

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
ENTITIES = [{"text": "a b c d e"}, {"text": "j i h g f e d c b a j i h g f e d c b a j i"}]
ANSWERS = [("a b c d e f g h i j", ["c d", "j"]), ("j i", ["i"])]
# A row of each kind, and what a user gives for an example.
GIVEN: dict[str, Any] = {
    "lcqmc": lambda example: (example.text_a, example.text_b),
    "sts_b": lambda example: {"sentence1": example.text_a, "sentence2": example.text_b, "score": example.label},
    "tags": lambda example: example.text_a,
    "copa": lambda example: (example.context, example.question, list(example.choices)),
    "lcqmc_matching": lambda example: [example.text_a, example.text_b],
    "cluener": lambda example: {"text": example.text},
    "squad": lambda example: {"question": example.question, "context": example.context},
}


class Eager:
    """Predicts as an engine does, without compiling."""

    def __init__(self, task: Any, model: Any):
        self.task, self.model = task, model

    def predict(self, batches: Iterator[Mapping[str, Any]]) -> Iterator[dict[str, np.ndarray]]:
        for batch in batches:
            given = {name: ops.convert_to_tensor(value) for name, value in batch.items()}
            found = self.task.predictions(self.model, given)
            yield {name: ops.convert_to_numpy(value) for name, value in found.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_world(folder)
    write(folder / "cluener/test.json", json_lines([{"id": n, **each} for n, each in enumerate(ENTITIES)]))
    asked = [{"id": f"{n}{m}", "question": q} for n, (_, qs) in enumerate(ANSWERS) for m, q in enumerate(qs)]
    paragraphs = [
        {"context": context, "qas": [each for each in asked if each["question"] in questions]}
        for context, questions in ANSWERS
    ]
    write(folder / "squad/test.json", json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return folder


def file_of(name: str, world: Path) -> Path:
    folder = world / {"lcqmc_matching": "lcqmc"}.get(name, name)
    return next(path for path in (folder / "test.tsv", folder / "test.json", folder / "dev.jsonl") if path.is_file())


def candidate(found: dict[str, Any]) -> dict[str, Any]:
    """Return an answer of the verb's n-best file in the form of a served one; no answer has no place."""
    place = {key: found[key] if found["text"] else None for key in ("begin", "end")}
    return {"answer": found["text"], **place, "probability": found["probability"]}


def predictions_of(name: str, folder: Path) -> list[dict[str, Any]]:
    """Return the answers in the files that the verb writes, as `told` names them."""
    if name == "squad":
        content = json.loads((folder / "test_nbest_predictions.json").read_text())
        texts = json.loads((folder / "test_predictions.json").read_text())
        told = [[candidate(each) for each in found] for found in content.values()]
        best = [
            next(each for each in found if each["answer"] == texts[id_])
            for id_, found in zip(content, told, strict=True)
        ]
        kept = [[each for n, each in enumerate(found) if n < 5 or not each["answer"]] for found in told]
        return [{**each, "n_best": others} for each, others in zip(best, kept, strict=True)]
    path = folder / ("test_predictions.jsonl" if (folder / "test_predictions.jsonl").is_file() else "test.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", GIVEN)
def test_a_loaded_run_answers_as_the_verb_writes(name: str, world: Path, tmp_path: Path, monkeypatch):
    if name == "tags":
        monkeypatch.setattr("test_exporting.find_row", lambda row: find_row(row, write(tmp_path / "rows.toml", TAGS)))
    content, task, model = run_of(name, tmp_path / "run")
    assert content.row is not None
    splits = Splits(content.row, {"test": (file_of(name, world),)})
    tokenizer = content.tokenizer.load(tmp_path / "run")
    splits.encode(tokenizer, max_seq_length=16, batch_size=4, seed=0)
    answers = splits.answers(Eager(task, model), "test", 4)
    splits.write(tmp_path / f"test_predictions{getattr(splits.kind, 'suffix', '.tsv')}", "test", answers)
    loaded = serving.load(tmp_path / "run")
    assert (loaded.kind, loaded.labels) == (content.row.kind, content.row.labels)
    found = loaded.predict([GIVEN[name](example) for example in splits.examples["test"]], batch_size=2)
    wanted = predictions_of(name, tmp_path)
    assert len(found) == len(wanted) > 1
    for one, other in zip(found, wanted, strict=True):
        json.dumps(one, allow_nan=False)
        assert_equal(one, {key: other[key] for key in one})
    first = GIVEN[name](splits.examples["test"][0])
    assert_equal(loaded.predict(tuple(first) if isinstance(first, list) else first), found[0])
    # The same shapes again compile nothing.
    count = loaded.programs.count
    loaded.predict([GIVEN[name](example) for example in splits.examples["test"]], batch_size=2)
    assert loaded.programs.count == count
    if name == "lcqmc_matching":
        vector = loaded.predict("a b c")["embedding"]
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)
        cosine = float(np.dot(vector, loaded.predict("d e")["embedding"]))
        assert loaded.predict(("a b c", "d e"))["cosine"] == pytest.approx(cosine, abs=1e-4)


def assert_equal(one: Any, other: Any) -> None:
    """Hold that two answers are the same, to the last digit that a file shows."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for each, its in zip(one, other, strict=True):
            assert_equal(each, its)
    elif isinstance(one, float):
        digits = 4 if round(one, 4) == one else 6
        assert one == pytest.approx(other, abs=1.1 * 10.0**-digits, rel=0)
    else:
        assert one == other


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one pretrained model and one classifier in every form."""
    folder = tmp_path_factory.mktemp("forms")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIALS, *WORDS]) + "\n")
    config = Config(**CONFIG)
    model = PretrainingModel(config)
    tensors = {name: np.asarray(value) for name, value in named_variables(model).items()}
    write_ours(folder / "pretrained", config, tensors, [vocabulary])
    write_tf1(folder / "tf1", config, tensors, [vocabulary])
    write_transformers(folder / "transformers", config, tensors, [vocabulary])
    shutil.make_archive(str(folder / "archive"), "gztar", folder, "transformers")
    run_of("lcqmc", folder / "run")
    checkpoint = read_checkpoint(folder / "run/best")
    write_transformers(
        folder / "classifier", config, checkpoint.tensors, [vocabulary], labels=("no", "yes"), kind="classification"
    )
    return folder


@pytest.mark.parametrize("form", ["pretrained", "tf1", "transformers", "archive.tar.gz"])
def test_a_pretrained_model_fills_masks_and_embeds(form: str, forms: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("DIVAN_CACHE", str(tmp_path))
    loaded = serving.load(forms / form, mask_tokens=3)
    assert (loaded.kind, loaded.labels) == ("pretrained", ())
    filled, embedded = loaded.predict(["a [MASK] c", "d"])
    ids = np.array([[2, 5, 4, 7, 3]])
    outputs = loaded.model({"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)})
    logits = ops.convert_to_numpy(outputs["masked_lm_logits"])[0, 2].astype(np.float64)
    chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = np.argsort(-chances)[:3]
    (mask,) = filled["masks"]
    assert [each["token"] for each in mask] == loaded.tokenizer.tokens(best.tolist())
    assert [each["probability"] for each in mask] == pytest.approx(chances[best], abs=1e-5)
    ids = np.array([[2, 8, 3]])
    outputs = loaded.model({"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)})
    mean = ops.convert_to_numpy(outputs["sequence_output"])[0].mean(axis=0)
    np.testing.assert_allclose(embedded["embedding"], mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(loaded.embed(["d"])[0], embedded["embedding"], atol=1e-5)
    with pytest.raises(UsageError, match=r"a \[MASK\] stands behind 40 tokens; the model reads 30: shorten the text"):
        loaded.predict("a " * 40 + "[MASK]")


def test_a_classifier_of_another_program_takes_texts_or_pairs_and_has_its_labels(forms: Path):
    run, foreign = serving.load(forms / "run/best"), serving.load(forms / "classifier")
    assert (foreign.kind, foreign.labels) == ("classification", ("no", "yes"))
    pair = ("a b", "c d e")
    assert [*foreign.predict(pair)["probabilities"].values()] == pytest.approx(
        [*run.predict(pair)["probabilities"].values()], abs=2e-6
    )
    assert foreign.predict("a b").keys() == {"prediction", "confidence", "probabilities"}
    with pytest.raises(UsageError, match="1 of 2 inputs are pairs; give texts and pairs in calls of their own"):
        foreign.predict(["a", ("a", "b")])
    with pytest.raises(
        UsageError, match=r"^input 1: 'a' has no text_b; expected a list or an object of text_a, text_b"
    ):
        run.predict([pair, "a"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a", "'a' has no text_b"),
        (3, "3 is no input; expected a list or an object of text_a, text_b"),
        (("a", " "), "text_b is empty; expected text"),
        (("a", "b", "c"), r"\('a', 'b', 'c'\) is no input"),
        ({"sentence1": "a", "sentense2": "b"}, "unknown key 'sentense2'.*sentence2"),
        ({"text_a": "a", "text_b": 3}, "text_b is 3; expected text"),
        (("a", "\ud800"), "text_b is no Unicode"),
    ],
)
def test_a_wrong_input_is_one_line(given: Any, message: str, forms: Path):
    loaded = serving.load(forms / "run")
    with pytest.raises(UsageError, match=message) as error:
        loaded.predict(given)
    assert "\n" not in str(error.value)


def test_what_is_no_model_is_one_line(forms: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="does not exist"):
        serving.load(tmp_path / "absent")
    shutil.copytree(forms / "pretrained", tmp_path / "bare")
    (tmp_path / "bare/vocab.txt").unlink()
    with pytest.raises(UsageError, match=r"no vocabulary lies beside the weights in .*bare: give vocab_file"):
        serving.load(tmp_path / "bare")
    with pytest.raises(
        UsageError, match=r"in .*bare: copy the vocabulary that .* there, as vocab\.txt or spiece\.model"
    ):
        open_model(str(tmp_path / "bare"))  # of a server, which has no flag for it
    assert serving.load(tmp_path / "bare", vocab_file=forms / "vocab.txt").predict("a").keys() == {"embedding"}
    with pytest.raises(UsageError, match=r"unknown setting 'mask_token'.*mask_tokens"):
        serving.load(forms / "pretrained", mask_token=3)


def test_the_settings_of_the_run_decide_unless_others_are_given(forms: Path, tmp_path: Path):
    run_of("squad", tmp_path / "run")
    (tmp_path / "run/config.json").write_text(json.dumps({"doc_stride": 3, "n_best_size": 4, "learning_rate": 1}))
    assert serving.load(tmp_path / "run").settings == {"doc_stride": 3, "n_best_size": 4}
    assert serving.load(tmp_path / "run", n_best_size=2).settings == {"doc_stride": 3, "n_best_size": 2}


def test_importing_serving_imports_nothing_slow():
    script = "import sys, serving; print([m for m in ('numpy', 'keras', 'tensorflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert serving.Loaded is loading.Loaded
    with pytest.raises(AttributeError, match="'serving' has no attribute 'laod'"):
        serving.laod  # noqa: B018
