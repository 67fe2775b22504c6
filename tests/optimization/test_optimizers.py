import re

import numpy as np
import pytest
from absl.app import UsageError

from commands import options
from ground.tensors import ops
from optimization import OPTIMIZERS, Constant, Optimizer, PolynomialDecay, Selection, create_optimizer
from optimization.adamw import AdamW
from optimization.transforms import clip_by_global_norm

NAMES = (
    "encoder/kernel",
    "encoder/bias",
    "encoder/layer_norm/gamma",
    "masked_lm/output_bias",
    "embeddings/word_embeddings",
)
SHAPES = ((3, 4), (4,), (4,), (5,), (5, 3))


def arrays(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.normal(size=shape)).astype("float32") for name, shape in zip(NAMES, SHAPES, strict=True)}


def run(optimizer, parameters, gradients_of_step, steps):
    slots, infos = optimizer.init(parameters), []
    for step in range(steps):
        parameters, slots, info = optimizer.update(gradients_of_step(step), parameters, slots, step)
        infos.append(info)
    return {name: ops.convert_to_numpy(value) for name, value in parameters.items()}, slots, infos


def published(name, parameters, gradients_of_step, schedule, steps, decay=0.01, clip=1.0):
    """The papers' formulas in float64, written from specs/albert.md section 5 and LAMB's algorithm 2."""
    left_out = re.compile("LayerNorm|layer_norm|bias")
    w = {key: value.astype("float64") for key, value in parameters.items()}
    m = {key: np.zeros_like(value) for key, value in w.items()}
    v = {key: np.zeros_like(value) for key, value in w.items()}
    for step in range(steps):
        g = {key: value.astype("float64") for key, value in gradients_of_step(step).items()}
        norm = np.sqrt(sum((value**2).sum() for value in g.values()))
        for key in w:
            gradient = g[key] * min(1.0, clip / norm)
            m[key] = 0.9 * m[key] + 0.1 * gradient
            v[key] = 0.999 * v[key] + 0.001 * gradient**2
            special = bool(left_out.search(key))
            if name == "lamb_paper":
                u = (m[key] / (1 - 0.9 ** (step + 1))) / (np.sqrt(v[key] / (1 - 0.999 ** (step + 1))) + 1e-6)
            else:
                u = m[key] / (np.sqrt(v[key]) + 1e-6)
            if name == "lamb_paper" or not special:
                u = u + decay * w[key]
            scaled = {"adamw": False, "lamb": not special, "lamb_paper": True, "lamb_albert_zh": True}[name]
            if scaled and np.linalg.norm(w[key]) > 0 and np.linalg.norm(u) > 0:
                u = u * np.linalg.norm(w[key]) / np.linalg.norm(u)
            w[key] = w[key] - schedule(step) * u
    return w


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("gradient_scale", [0.01, 3.0])
def test_equals_the_published_formulas(name, gradient_scale):
    parameters = arrays(0)
    parameters["encoder/bias"][:] = 0  # a zero norm, where the ratio is 1

    def gradients(step):
        return arrays(step + 1, gradient_scale)

    optimizer = create_optimizer(name, PolynomialDecay(0.05, 20, 3))
    got, _, _ = run(optimizer, parameters, gradients, 8)
    wanted = published(
        name, parameters, gradients, lambda step: 0.05 * (step / 3 if step < 3 else 1 - step / 20), steps=8
    )
    for key in NAMES:
        np.testing.assert_allclose(got[key], wanted[key], rtol=2e-5, atol=2e-6, err_msg=key)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name.startswith("lamb")])
@pytest.mark.parametrize("steps", [1, 4])
def test_lamb_moves_each_scaled_variable_by_rate_times_its_norm(name, steps):
    optimizer = create_optimizer(name, Constant(0.02))
    before, _, _ = run(optimizer, arrays(0), lambda step: arrays(step + 9, 7.0), steps - 1)
    after, _, _ = run(optimizer, arrays(0), lambda step: arrays(step + 9, 7.0), steps)
    scaled = [key for key in NAMES if name != "lamb" or not re.search("norm|bias", key)]
    assert len(scaled) == (2 if name == "lamb" else 5)
    for key in scaled:
        moved = np.linalg.norm(after[key] - before[key])
        np.testing.assert_allclose(moved, 0.02 * np.linalg.norm(before[key]), rtol=1e-4)


@pytest.mark.parametrize(("corrected", "factor"), [(False, 0.1 / np.sqrt(0.001)), (True, 1.0)])
def test_first_adamw_step_in_closed_form(corrected, factor):
    optimizer = create_optimizer("adamw", Constant(1e-3), weight_decay=0, bias_correction=corrected, clip_norm=None)
    parameters, gradients = arrays(0), arrays(1)
    got, _, _ = run(optimizer, parameters, lambda step: gradients, 1)
    for key in NAMES:
        np.testing.assert_allclose(got[key], parameters[key] - 1e-3 * factor * np.sign(gradients[key]), atol=2e-5)


def parabola(w):
    return 2 * (w - 3.0)


def rosenbrock(w):
    x, y = w
    return np.array([2 * (x - 1) - 40 * x * (y - x * x), 20 * (y - x * x)], "float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("gradient", "start", "goal"), [(parabola, [-2.0, 8.0], [3.0, 3.0]), (rosenbrock, [-1.0, 1.5], [1.0, 1.0])]
)
def test_finds_the_minimum(name, gradient, start, goal):
    optimizer = create_optimizer(name, PolynomialDecay(0.05, 600), weight_decay=0)
    w, slots = {"w": np.array(start, "float32")}, optimizer.init({"w": np.zeros(2)})
    for step in range(600):
        w, slots, _ = optimizer.update({"w": gradient(ops.convert_to_numpy(w["w"]))}, w, slots, step)
    np.testing.assert_allclose(ops.convert_to_numpy(w["w"]), goal, atol=0.05)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learning_rate_multipliers_scale_the_update_exactly(name):
    parameters, gradients = {key: np.zeros_like(value) for key, value in arrays(0).items()}, arrays(1)
    plain, _, _ = run(create_optimizer(name, Constant(0.5)), parameters, lambda step: gradients, 1)
    rates = [("word_embeddings", 0.25), ("encoder/", 0.5)]
    layered, _, _ = run(
        create_optimizer(name, Constant(0.5), learning_rate_multipliers=rates), parameters, lambda step: gradients, 1
    )
    for key in NAMES:
        factor = 0.25 if "word" in key else 0.5 if "encoder/" in key else 1.0
        np.testing.assert_array_equal(layered[key], factor * plain[key], err_msg=key)


def test_decay_leaves_out_norms_and_biases_but_not_embeddings():
    zeros = {key: np.zeros_like(value) for key, value in arrays(0).items()}
    parameters = arrays(0)
    got, _, _ = run(create_optimizer("adamw", Constant(1.0)), parameters, lambda step: zeros, 1)
    for key in NAMES:
        factor = 1.0 if re.search("norm|bias", key) else 0.99
        np.testing.assert_allclose(got[key], factor * parameters[key], rtol=1e-6, err_msg=key)


def test_frozen_variables_do_not_move_have_no_slots_and_no_part_in_the_norm():
    optimizer = create_optimizer("adamw", Constant(0.1), frozen=["embeddings", "bias$"])
    names = optimizer.trainable(NAMES)
    assert names == ["encoder/kernel", "encoder/layer_norm/gamma"]
    parameters = arrays(0)
    assert list(optimizer.init(parameters)["m"]) == names
    gradients = {key: value for key, value in arrays(1).items() if key in names}
    got, _, infos = run(optimizer, parameters, lambda step: gradients, 2)
    for key in set(NAMES) - set(names):
        np.testing.assert_array_equal(got[key], parameters[key])
    wanted = np.sqrt(sum((value**2).sum() for value in gradients.values()))
    np.testing.assert_allclose(float(infos[0]["gradient_norm"]), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (["word_embedings"], "'word_embedings' matches no variable; the nearest name is 'embeddings/word_embeddings'"),
        (["("], r"'\(' is not a regular expression: "),
        (["."], "all 5 variables are frozen by .: nothing is left to train"),
    ],
)
def test_mistakes_in_frozen_expressions(frozen, message):
    with pytest.raises(UsageError, match="^" + message):
        create_optimizer("adamw", Constant(0.1), frozen=frozen).init(arrays(0))


def test_an_uncovered_variable_is_an_error():
    optimizer = Optimizer(AdamW(), Constant(0.1), weight_decay=Selection.of([("bias", 0.0), ("kernel", 0.1)]))
    with pytest.raises(UsageError, match="no rule covers the variable 'encoder/layer_norm/gamma'"):
        optimizer.init(arrays(0))


def test_first_matching_rule_wins():
    selection = Selection.of([("bias", 1), ("encoder", 2), ("", 3)])
    assert selection.resolve(["encoder/bias", "encoder/kernel", "x"]) == {
        "encoder/bias": 1,
        "encoder/kernel": 2,
        "x": 3,
    }


def test_unknown_optimizer():
    with pytest.raises(
        UsageError, match="unknown optimizer 'sgd': expected one of adamw, lamb, lamb_paper, lamb_albert_zh"
    ):
        create_optimizer("sgd", Constant(0.1))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_clipping_keeps_the_direction_and_bounds_the_norm(scale):
    gradients = arrays(3, scale)
    clipped, norm = clip_by_global_norm(gradients, 1.0)
    wanted = np.sqrt(sum((value.astype("float64") ** 2).sum() for value in gradients.values()))
    np.testing.assert_allclose(float(norm), wanted, rtol=1e-6)
    for key in NAMES:
        np.testing.assert_allclose(clipped[key], gradients[key] / max(wanted, 1.0), rtol=1e-5)


def test_transforms_come_before_clipping():
    def mask(gradients, step):
        return {key: value * (key == "encoder/kernel") for key, value in gradients.items()}

    optimizer = create_optimizer("adamw", Constant(0.1), weight_decay=0, transforms=[mask])
    parameters, gradients = arrays(0), arrays(1)
    got, _, infos = run(optimizer, parameters, lambda step: gradients, 1)
    np.testing.assert_allclose(float(infos[0]["gradient_norm"]), np.linalg.norm(gradients["encoder/kernel"]), rtol=1e-6)
    np.testing.assert_array_equal(got["embeddings/word_embeddings"], parameters["embeddings/word_embeddings"])


def test_the_flag_offers_exactly_the_optimizers_that_there_are():
    assert tuple(OPTIMIZERS) == options.OPTIMIZERS
