"""Laws of Child-Tuning, of rates that depend on the step, and of where each stands in an update."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ground.tensors import ops
from optimization import Constant, Start, TaskDrivenChild, TaskFreeChild, child_masks, create_optimizer

SHAPES = {"encoder/attention_0/kernel": (30, 40), "encoder/attention_1/kernel": (30, 40), "classifier/bias": (3,)}


def arrays(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.normal(size=shape)).astype("float32") for name, shape in SHAPES.items()}


def run(optimizer, parameters, steps, gradients=lambda step: arrays(step + 1)):
    slots = optimizer.init(parameters)
    for step in range(steps):
        parameters, slots, _ = optimizer.update(gradients(step), parameters, slots, step)
    return {name: ops.convert_to_numpy(value) for name, value in parameters.items()}, slots


def free_child(fraction, seed, step):
    ones = {name: np.ones(shape, "float32") for name, shape in SHAPES.items()}
    return {name: ops.convert_to_numpy(value) for name, value in TaskFreeChild(fraction, seed)(ones, step).items()}


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.2, 0.7])
def test_task_free_child_keeps_the_gradient_in_the_mean(fraction):
    """Over steps, over seeds and over positions: each within five deviations of a binomial."""
    for draws in (
        [free_child(fraction, 5, step) for step in range(60)],
        [free_child(fraction, s, 9) for s in range(60)],
    ):
        for name in list(SHAPES)[:2]:
            values = np.stack([draw[name] for draw in draws])
            assert set(np.unique(values)) == {np.float32(0), np.float32(1) / np.float32(fraction)}
            deviation = np.sqrt((1 - fraction) / fraction)  # of one element, whose mean is 1
            assert abs(values.mean() - 1) < 5 * deviation / np.sqrt(values.size)
            assert np.abs(values.mean(axis=0) - 1).max() < 5 * deviation / np.sqrt(len(draws))
            assert np.abs(values.mean(axis=(1, 2)) - 1).max() < 5 * deviation / np.sqrt(values[0].size)


def test_task_free_children_of_other_steps_seeds_names_and_positions_are_unrelated():
    def kept(seed, step, name="encoder/attention_0/kernel"):
        return free_child(0.5, seed, step)[name] > 0

    one = kept(1, 1)
    for other in (
        kept(1, 2),
        kept(2, 1),
        kept(1 + 2**32, 1),
        kept(1, 1, "encoder/attention_1/kernel"),
        np.roll(one, 1),
    ):
        assert 0.42 < (one == other).mean() < 0.58  # 0.5 +- 5.5 deviations of 1,200 throws
    np.testing.assert_array_equal(one, kept(1, 1))
    whole = free_child(1.0, 1, 1)
    assert all((value == 1).all() for value in whole.values())


def test_task_free_child_is_the_same_on_every_backend():
    """`tests/test_on_jax.py` runs this on JAX too."""
    child = TaskFreeChild(0.3, 2**40 + 7)({"a/b": np.ones((5, 60), "float32")}, 11)["a/b"]
    kept = np.packbits(ops.convert_to_numpy(child) > 0).tobytes().hex()
    assert kept == "211c0baa841129c080c0011021520001199002500760b80036410e83000170460046c3028460"


def test_the_child_is_cut_out_after_clipping_and_before_the_moments():
    parameters, gradients = arrays(0), arrays(1, 10.0)
    child = TaskFreeChild(0.5, 3)
    optimizer = create_optimizer("adamw", Constant(0.1), weight_decay=0, transforms_after_clipping=[child])
    _, slots, info = optimizer.update(gradients, parameters, optimizer.init(parameters), 4)
    norm = np.sqrt(sum((value**2).sum() for value in gradients.values()))
    np.testing.assert_allclose(float(info["gradient_norm"]), norm, rtol=1e-5)
    wanted = child({name: value / norm for name, value in gradients.items()}, 4)
    for name in SHAPES:
        np.testing.assert_allclose(slots["m"][name], 0.1 * np.asarray(wanted[name]), rtol=1e-4)
        np.testing.assert_allclose(slots["v"][name], 0.001 * np.asarray(wanted[name]) ** 2, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    fraction=st.floats(0, 1),
    zeros=st.floats(0, 1),
    shapes=st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_the_child_has_exactly_the_size_asked_for_and_the_largest_information(fraction, zeros, shapes, seed):
    rng = np.random.default_rng(seed)
    fisher = {str(i): (rng.random(shape) * (rng.random(shape) >= zeros)) for i, shape in enumerate(shapes)}
    masks = child_masks(fisher, fraction)
    total = sum(value.size for value in fisher.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(fraction * total)
    assert all(masks[name].shape == np.shape(value) for name, value in fisher.items())
    inside = [x for name in fisher for x in np.ravel(fisher[name])[np.ravel(masks[name])]]
    outside = [x for name in fisher for x in np.ravel(fisher[name])[~np.ravel(masks[name])]]
    assert not inside or not outside or min(inside) >= max(outside)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_weights_outside_the_task_driven_child_stay_bit_for_bit_unless_they_decay(name, decay):
    child, before = TaskDrivenChild(), arrays(0)
    fisher = {name: value**2 for name, value in arrays(7).items() if "encoder" in name}
    masks = child_masks(fisher, 0.3)
    child.choose(masks)
    optimizer = create_optimizer(name, Constant(0.1), weight_decay=decay, transforms_after_clipping=[child])
    after, _ = run(optimizer, before, 5)
    for variable, mask in masks.items():
        stayed = after[variable] == before[variable]
        assert not stayed[mask].any()
        assert stayed[~mask].all() if decay == 0 else not stayed[~mask].all()
    assert not (after["classifier/bias"] == before["classifier/bias"]).any()


def test_a_child_that_was_never_chosen_is_our_bug():
    with pytest.raises(RuntimeError, match="not chosen yet"):
        TaskDrivenChild()(arrays(0), 0)


def test_rates_of_layers_scale_updates_exactly():
    """With decay and with powers of two, to which float32 is blind."""
    plain = create_optimizer("adamw", Constant(0.1))
    scaled = create_optimizer("adamw", Constant(0.1), learning_rate_multipliers=[("_0/", 0.25), ("_1/", 0.5)])
    zero = {name: np.zeros_like(value) for name, value in arrays(0).items()}
    one, two = run(plain, zero, 1)[0], run(scaled, zero, 1)[0]
    for name, factor in zip(SHAPES, (0.25, 0.5, 1.0), strict=True):
        np.testing.assert_array_equal(two[name], factor * one[name])
        assert two[name].any()


def test_a_variable_that_joins_later_stays_until_then_bit_for_bit():
    optimizer = create_optimizer("adamw", Constant(0.1), learning_rate_multipliers=[("_0/", Start(0.5, 3))])
    before = arrays(0)
    runs = [run(optimizer, before, steps)[0] for steps in range(5)]
    for steps, after in enumerate(runs):
        assert (after["encoder/attention_0/kernel"] == before["encoder/attention_0/kernel"]).all() == (steps <= 3)
    plain = run(create_optimizer("adamw", Constant(0.1)), before, 4)[0]
    np.testing.assert_array_equal(runs[4]["encoder/attention_1/kernel"], plain["encoder/attention_1/kernel"])
