"""Tests of conversion.class_order."""

import json
from pathlib import Path

import numpy as np
import pytest

from conversion.class_order import in_order_of
from conversion.readers import Checkpoint

NLI = ("contradiction", "entailment", "neutral")


def checkpoint(folder: Path, labels: tuple[str, ...], head: str = "classifier") -> Checkpoint:
    (folder / "config.json").write_text(json.dumps({"id2label": {str(i): name for i, name in enumerate(labels)}}))
    numbers = np.arange(4.0 * len(labels), dtype=np.float32).reshape(4, -1)
    tensors = {f"{head}/kernel": numbers, f"{head}/bias": numbers[0], "classifier_layer_norm/gamma": numbers[0]}
    return Checkpoint(tensors, None, "transformers", folder)


def test_each_class_keeps_its_weights_by_name(tmp_path: Path):
    before = checkpoint(tmp_path, NLI)
    labels = ("entailment", "neutral", "contradiction")
    after, said = in_order_of(before, labels)
    for name in ("kernel", "bias"):
        columns = {label: np.asarray(before.tensors[f"classifier/{name}"])[..., i] for i, label in enumerate(NLI)}
        for i, label in enumerate(labels):
            np.testing.assert_array_equal(np.asarray(after.tensors[f"classifier/{name}"])[..., i], columns[label])
    other = "classifier_layer_norm/gamma"
    np.testing.assert_array_equal(after.tensors[other], before.tensors[other])
    assert said == (
        "; its classes contradiction, entailment, neutral were put in the order entailment, neutral, contradiction"
    )
    again, _ = in_order_of(after, NLI[::-1])
    assert again.tensors.keys() == before.tensors.keys()


def test_types_of_entities_are_the_tags_of_a_tagger(tmp_path: Path):
    before = checkpoint(tmp_path, ("O", "B-LOC", "I-LOC", "B-PER", "I-PER"), head="tagger")
    after, _ = in_order_of(before, ("PER", "LOC"))
    assert np.asarray(after.tensors["tagger/bias"]).tolist() == [0, 3, 4, 1, 2]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (NLI, ""),
        ((), ""),
        (("0", "1"), ""),
        (("0", "1", "2"), "; its classes contradiction, entailment, neutral are taken for 0, 1, 2, in this order"),
    ],
)
def test_other_classes_stay_as_they_stand(tmp_path: Path, labels: tuple[str, ...], said: str):
    before = checkpoint(tmp_path, NLI)
    assert in_order_of(before, labels) == (before, said)
