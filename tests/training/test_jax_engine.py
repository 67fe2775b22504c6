import engine_cases
import numpy as np
import pytest
from engine_cases import run_apart

pytestmark = pytest.mark.slow


def part(found, prefix):
    return {key.removeprefix(prefix): x for key, x in found.items() if key.startswith(prefix)}


def assert_close(one, two, tolerance):
    assert one.keys() == two.keys()
    for name in one:
        # Softmax does not see the bias of the keys: its gradient is nothing but rounding, which Adam then scales up.
        if "key/bias" not in name:
            np.testing.assert_allclose(one[name], two[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def tensorflow_state():
    return engine_cases.toy_state()


@pytest.fixture(scope="module")
def toy_on_jax(tmp_path_factory, tensorflow_state):
    folder = tmp_path_factory.mktemp("jax")
    np.savez(folder / "state.npz", **tensorflow_state)
    return run_apart(folder / "found.npz", "toy_cases", backend="jax", state=folder / "state.npz")


def test_every_optimizer_equals_tensorflow_after_eight_steps_in_micro_batches_too(toy_on_jax):
    on_jax = part(toy_on_jax, "eight_steps/")
    assert_close(on_jax, engine_cases.eight_steps(), 1e-6)
    assert_close(part(on_jax, "lamb/1/"), part(on_jax, "lamb/2/"), 1e-6)


def test_steps_that_are_not_finite_variables_without_gradient_and_predictions_equal_tensorflow(toy_on_jax):
    found = part(toy_on_jax, "steps/")
    assert [int(found[f"step/{step}/skipped"]) for step in range(5)] == [0, 0, 1, 1, 0]
    assert_close(found, engine_cases.toy_steps(), 1e-6)


def test_a_checkpoint_of_tensorflow_is_continued(toy_on_jax, tensorflow_state):
    assert_close(part(toy_on_jax, "continued/"), engine_cases.continued(tensorflow_state), 1e-6)


def test_resumed_with_dropout_equals_uninterrupted_bit_for_bit(toy_on_jax):
    whole, again = part(toy_on_jax, "resumed/whole/"), part(toy_on_jax, "resumed/again/")
    assert whole.keys() == again.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], again[name], err_msg=name)


def test_a_restart_leaves_nothing_of_the_former_run(toy_on_jax):
    engine_cases.assert_restarted(part(toy_on_jax, "restarted/"))


def test_a_mixture_of_objectives_equals_tensorflow(toy_on_jax):
    assert_close(part(toy_on_jax, "mixture/"), engine_cases.mixture(), 1e-6)


def test_weights_that_follow_the_step_equal_tensorflow(toy_on_jax):
    assert_close(part(toy_on_jax, "scheduled/"), engine_cases.scheduled(), 1e-6)


def test_a_teacher_is_an_argument_of_the_program_and_equals_tensorflow(toy_on_jax):
    # The teacher's weights are set anew after the programs were compiled: a constant would keep the former ones.
    assert_close(part(toy_on_jax, "distilled/"), engine_cases.distilled(), 1e-6)


def test_evaluation_and_prediction_are_without_dropout(toy_on_jax):
    engine_cases.assert_undropped(part(toy_on_jax, "undropped/"))


def test_the_limit_on_the_norm_bounds_the_gradient(toy_on_jax):
    engine_cases.assert_clipped(part(toy_on_jax, "clipped/"))
