"""Heads and units that are 0 leave: the same outputs from fewer weights, here, in a file and in PyTorch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from absl.app import UsageError
from conversion_cases import CONFIGS, random_tensors

from conversion.lazy import Array
from conversion.parity import our_outputs, random_features
from conversion.readers import Checkpoint, read_checkpoint
from conversion.stripping import strip
from conversion.writers import write_ours, write_tf1, write_transformers
from modeling import Config

GRAPHS = {name: CONFIGS[name] for name in ("bert", "google_groups")}
GRAPHS["zh_preln"] = dataclasses.replace(CONFIGS["zh_preln"], sharing="none")


def pruned(graph: str, *, alike: bool) -> tuple[Config, dict[str, Array]]:
    """Return random tensors with some heads and units at 0, in every layer as many or not."""
    tensors: dict[str, Array] = {}
    for name, value in random_tensors(GRAPHS[graph], num_labels=2).items():
        tensors[name] = kernel = np.array(value)
        if name.endswith("output/kernel") and "/encoder/" in name:
            number = 0 if alike else int(name.split("/")[2].rpartition("_")[2])
            if "/feed_forward_" in name:
                kernel[1 : 4 + number] = 0
            elif number == 1:
                kernel[: len(kernel) // 2] = 0
    return GRAPHS[graph], tensors


def outputs(config: Config, tensors: dict[str, Array]) -> dict[str, np.ndarray]:
    return our_outputs(Checkpoint(tensors, config, "ours", Path("memory")), random_features(config))


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_stripped_model_computes_the_same_with_fewer_weights(graph: str, tmp_path: Path):
    config, tensors = pruned(graph, alike=False)
    small, left = strip(config, tensors)
    assert small.heads_by_brick[1] == 1
    assert {*small.heads_by_brick} == {1, 2}
    numbers = sorted({int(name.split("/")[2].rpartition("_")[2]) for name in tensors if "/feed_forward_" in name})
    assert small.units_by_brick == tuple(13 - number for number in numbers)
    whole, found = outputs(config, tensors), outputs(small, left)
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
    write_ours(tmp_path, small, left)
    again = read_checkpoint(tmp_path)
    assert again.config == small
    assert {name: value.shape for name, value in again.tensors.items()} == {n: v.shape for n, v in left.items()}
    # Strip once more, a further unit.
    kernel = next(name for name in left if "/feed_forward_" in name and name.endswith("output/kernel"))
    more = {**left, kernel: np.array(left[kernel])}
    more[kernel][0] = 0
    assert strip(small, more)[0].units_by_brick[0] == small.units_by_brick[0] - 1


def test_layers_that_keep_as_many_units_are_a_plain_narrower_model():
    config, tensors = pruned("bert", alike=True)
    small, left = strip(config, tensors)
    assert small == dataclasses.replace(config, intermediate_size=13)
    assert left["backbone/encoder/feed_forward_0/intermediate/bias"].shape == (13,)


def test_a_layer_keeps_a_head_and_a_unit():
    config, tensors = pruned("bert", alike=False)
    for side in ("attention", "feed_forward"):
        tensors[f"backbone/encoder/{side}_0/output/kernel"] = np.zeros_like(
            tensors[f"backbone/encoder/{side}_0/output/kernel"]
        )
    small, _ = strip(config, tensors)
    assert (small.heads_by_brick[0], small.units_by_brick[0]) == (1, 1)


@pytest.mark.slow
def test_pytorch_has_it_by_code_of_ours_and_tf_1_refuses_it(tmp_path: Path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from conversion.parity import largest_differences

    small, left = strip(*pruned("bert", alike=False))
    checkpoint = Checkpoint(left, small, "ours", Path("memory"))
    assert write_transformers(tmp_path / "torch", small, left).model_type == "divan_encoder"
    assert max(largest_differences(checkpoint, tmp_path / "torch").values()) < 1e-4
    assert read_checkpoint(tmp_path / "torch").config == small
    with pytest.raises(UsageError, match="its layers all have the same heads and units"):
        write_tf1(tmp_path / "tf1", small, left)
    with pytest.raises(UsageError, match=r"as transformers' BERT: its layers have different numbers of heads"):
        write_transformers(tmp_path / "bert", small, left, model_type="bert")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"heads_by_brick": (1, 2)},
            r"heads_by_brick is \[1, 2\]; expected 4 numbers from 1 to num_attention_heads, 2",
        ),
        ({"units_by_brick": (0, 1, 1, 1)}, "units_by_brick is .*expected 4 numbers from 1 to intermediate_size, 16"),
        ({"units_by_brick": (1, 1, 1, "1")}, "units_by_brick is"),
        ({"units_by_brick": (1, 1, 1, 1), "ffn_groups": 2}, "groups have equal widths"),
        ({"family": "palm", "heads_by_brick": (1, 1, 1, 1)}, 'which family "palm" has not'),
    ],
)
def test_widths_that_no_model_has_are_refused_in_a_line(changes: dict, message: str):
    with pytest.raises(UsageError, match=message) as error:
        dataclasses.replace(CONFIGS["bert"], **changes)
    assert "\n" not in str(error.value)


def test_what_has_nothing_to_leave_or_cannot_is_refused():
    with pytest.raises(UsageError, match="nothing to take out"):
        strip(CONFIGS["bert"], random_tensors("bert"))
    with pytest.raises(UsageError, match=r'this family \("palm"\) cannot be stripped'):
        strip(CONFIGS["palm"], random_tensors("palm"))
