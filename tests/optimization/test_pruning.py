"""Pruning against NumPy: the curve, what is kept, how scores move, and weights whose zeros are the masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from absl.app import UsageError

from ground.tensors import ops
from optimization import Constant, Cubic, Structured, Unstructured, create_optimizer
from optimization.pruning import largest

HEADS, SIZE, UNITS, WIDTH = 3, 2, 5, 6
SHAPES = {
    f"backbone/encoder/{side}_{layer}/{name}": shape
    for layer in range(2)
    for side, shapes in {
        "attention": {
            "query/kernel": (WIDTH, HEADS * SIZE),
            "query/bias": (HEADS * SIZE,),
            "output/kernel": (HEADS * SIZE, WIDTH),
        },
        "feed_forward": {
            "intermediate/kernel": (WIDTH, UNITS),
            "intermediate/bias": (UNITS,),
            "output/kernel": (UNITS, WIDTH),
        },
    }.items()
    for name, shape in shapes.items()
} | {"classifier/kernel": (WIDTH, 2)}
KERNELS = [name for name in SHAPES if name.startswith("backbone/") and name.endswith("kernel")]


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype("float32") for name, shape in SHAPES.items()}


def optimizer(pruning: Any, rate: float = 0.01) -> Any:
    return create_optimizer("adamw", Constant(rate), weight_decay=0.0, clip_norm=None, around=[pruning])


def run(pruning: Any, steps: int, rate: float = 0.01, begin: int = 0, state: Any = None) -> Any:
    """Take steps with gradients of their own; return the parameters of every step, and the last slots."""
    own = optimizer(pruning, rate)
    parameters, slots = state or (arrays(0), own.init(arrays(0)))
    found = []
    for step in range(begin, begin + steps):
        parameters, slots, _ = own.update(arrays(step + 1), parameters, slots, step)
        found.append({name: ops.convert_to_numpy(value) for name, value in parameters.items()})
    return found, slots


def test_the_curve_is_zhu_and_guptas():
    curve = Cubic(0.8, 2, 12)
    wanted = [0.8 * (1 - (1 - min(max((step - 2) / 10, 0), 1)) ** 3) for step in range(15)]
    np.testing.assert_allclose([float(curve(step)) for step in range(15)], wanted, rtol=1e-6)


def test_the_largest_are_as_many_as_are_asked_for_whatever_is_equal():
    scores = np.array([3, 1, 3, 3, 0], np.float32)
    assert ops.convert_to_numpy(largest(scores, 2)).tolist() == [True, False, True, False, False]
    for count in range(1, 6):
        assert ops.convert_to_numpy(largest(scores, count)).sum() == count
    rng = np.random.default_rng(1)
    for _ in range(5):
        values = rng.integers(0, 4, 30).astype(np.float32)
        order = np.lexsort((np.arange(30), -values))[:11]
        assert np.flatnonzero(ops.convert_to_numpy(largest(values, 11))).tolist() == sorted(order.tolist())


def importance(steps: int, found: list[dict[str, np.ndarray]], name: str, size: int) -> np.ndarray:
    """Return by NumPy the sum over steps of what the loss changes by with a factor on each head or unit."""
    total, weights = np.zeros(1), [arrays(0), *found]
    for step in range(steps):
        each = (weights[step][name] * arrays(step + 1)[name]).sum(axis=1)
        total = total + np.abs(each.reshape(-1, size).sum(axis=1))
    return np.asarray(total / np.linalg.norm(total))


@pytest.mark.parametrize(("side", "size", "count"), [("attention", SIZE, HEADS), ("feed_forward", 1, UNITS)])
def test_the_least_important_heads_and_units_of_all_layers_leave_at_their_step(side: str, size: int, count: int):
    found, _ = run(Structured(0.5, 3, SIZE), 6)
    names = [f"backbone/encoder/{side}_{layer}/output/kernel" for layer in range(2)]
    for step in range(3):
        assert all((found[step][name] != 0).all() for name in names)
    # The sums have the gradients of the step itself, whose update is the first to be pruned.
    scores = np.stack([importance(4, found, name, size) for name in names])
    ranked = scores.copy()
    ranked[np.arange(2), scores.argmax(axis=1)] = np.inf
    wanted = np.zeros(2 * count, bool)
    wanted[np.argsort(-ranked.ravel(), kind="stable")[: round(0.5 * 2 * count)]] = True
    for step in (3, 4, 5):
        live = np.concatenate([found[step][name].reshape(count, -1).any(axis=1) for name in names])
        assert live.tolist() == wanted.tolist()


def test_a_layer_keeps_its_best_head_and_unit():
    found, _ = run(Structured(0.99, 0, SIZE), 2)
    for name in KERNELS:
        if name.endswith("output/kernel"):
            heads = found[-1][name].reshape(HEADS if "attention" in name else UNITS, -1)
            assert heads.any(axis=1).sum() == 1


def test_what_is_not_pruned_learns_as_ever():
    found, _ = run(Structured(0.5, 0, SIZE), 1)
    plain, _, _ = create_optimizer("adamw", Constant(0.01), weight_decay=0.0, clip_norm=None).update(
        arrays(1), arrays(0), create_optimizer("adamw", Constant(0.01)).init(arrays(0)), 0
    )
    for name in SHAPES:
        live = found[0][name] != 0
        np.testing.assert_array_equal(found[0][name][live], ops.convert_to_numpy(plain[name])[live])
        assert live.all() or name.endswith("output/kernel")


def magnitudes(sparsity: float) -> Unstructured:
    return Unstructured(Cubic(sparsity, 0, 4), every=1)


def test_single_weights_leave_by_size_in_every_matrix_and_their_values_go_on():
    found, slots = run(magnitudes(0.7), 6)
    for name in KERNELS:
        size = found[0][name].size
        counts = [int((each[name] != 0).sum()) for each in found]
        wanted = [round((1 - 0.7 * (1 - (1 - min(step / 4, 1)) ** 3)) * size) for step in range(6)]
        assert np.abs(np.subtract(counts, wanted)).max() <= 1  # a half is rounded in float32
        held = ops.convert_to_numpy(slots["held"][name])
        assert ((held != 0) == (found[-1][name] == 0)).all()
        kept = np.abs(found[-1][name][found[-1][name] != 0])
        assert np.abs(held).max() <= kept.min()
    assert (found[-1]["classifier/kernel"] != 0).all()


def adam(gradients: list[np.ndarray], rate: float) -> np.ndarray:
    """Return what Adam without bias of a start at 0 moves by: Kingma and Ba, algorithm 1, in float64."""
    m = v = total = 0.0
    for t, gradient in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        total = total - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return np.asarray(total)


def test_scores_of_movement_follow_the_gradient_times_the_hidden_weight():
    movement = Unstructured(Cubic(0.6, 0, 2), every=1, scores="movement", rate=Constant(0.1))
    found, slots = run(movement, 5, rate=0.0)
    for name in KERNELS:
        # Without a rate hidden weights stay: gradients reach the scores through the masks.
        gradients = [(arrays(step + 1)[name] * arrays(0)[name]).astype(np.float64) for step in range(5)]
        scores = adam(gradients, 0.1)
        np.testing.assert_allclose(ops.convert_to_numpy(slots["score"][name]), scores, atol=1e-4)
        live = found[-1][name] != 0
        assert live.sum() == round(0.4 * live.size)
        assert scores[live].min() >= scores[~live].max() - 1e-4
        hidden = found[-1][name] + ops.convert_to_numpy(slots["held"][name])
        np.testing.assert_array_equal(hidden, arrays(0)[name])
        # One that left comes back where its score rises.
    assert any(((found[1][name] == 0) & (found[-1][name] != 0)).any() for name in KERNELS)


def test_soft_scores_fall_with_their_penalty_and_a_weight_leaves_below_the_threshold():
    soft = Unstructured(
        Cubic(0.0, 0, 2), 1, scores="soft", rate=Constant(1.0), threshold=Cubic(0.1, 0, 2), penalty=Cubic(1e4, 0, 0)
    )
    found, slots = run(soft, 6, rate=0.0)
    for name in KERNELS:
        chance = 1 / (1 + np.exp(-ops.convert_to_numpy(slots["score"][name]).astype(np.float64)))
        assert ((chance > 0.1) == (found[-1][name] != 0)).all()
        assert (found[-1][name] == 0).mean() > 0


@pytest.mark.parametrize(
    "pruning",
    [
        Structured(0.5, 2, SIZE),
        magnitudes(0.5),
        Unstructured(Cubic(0.6, 0, 4), every=2, scores="movement", rate=Constant(0.1)),
    ],
)
def test_a_run_that_is_cut_in_two_ends_bit_for_bit_alike(pruning: Any):
    whole, whole_slots = run(pruning, 6)
    first, slots = run(pruning, 3)
    second, slots = run(pruning, 3, begin=3, state=(first[-1], slots))
    for name in SHAPES:
        np.testing.assert_array_equal(whole[-1][name], second[-1][name])
    for slot, values in slots.items():
        for name, value in values.items():
            np.testing.assert_array_equal(ops.convert_to_numpy(whole_slots[slot][name]), ops.convert_to_numpy(value))


def test_what_a_former_run_has_taken_out_stays_out():
    first, _ = run(Structured(0.4, 0, SIZE), 1)
    own = optimizer(Structured(0.8, 2, SIZE))
    again, _ = run(Structured(0.8, 2, SIZE), 4, state=(first[-1], own.init(first[-1])))
    movement = Unstructured(Cubic(0.0, 0, 1), 1, scores="movement", rate=Constant(0.1))
    moved, _ = run(movement, 4, state=(first[-1], optimizer(movement).init(first[-1])))
    for name in KERNELS:
        gone = first[-1][name] == 0
        assert not again[-1][name][gone].any()
        assert not moved[-1][name][gone].any()


def test_a_model_whose_layers_are_one_is_pruned_too():
    shared = {name: value for name, value in arrays(0).items() if "_1/" not in name}
    own = optimizer(Structured(0.5, 0, SIZE))
    gradients = {name: arrays(1)[name] for name in shared}
    found, _, _ = own.update(gradients, shared, own.init(shared), 0)
    for side, count, left in (("attention", HEADS, 2), ("feed_forward", UNITS, 2)):
        kernel = ops.convert_to_numpy(found[f"backbone/encoder/{side}_0/output/kernel"])
        assert kernel.reshape(count, -1).any(axis=1).sum() == left


def test_a_frozen_layer_cannot_be_pruned():
    own = create_optimizer("adamw", Constant(0.1), frozen=["attention_0/"], around=[magnitudes(0.5)])
    with pytest.raises(UsageError, match=r"attention_0/.* is frozen.*leave out --freeze"):
        own.trainable(SHAPES)
