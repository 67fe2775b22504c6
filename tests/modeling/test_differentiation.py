"""Gradients inside of a task, on TensorFlow here and on JAX by `tests/test_on_jax.py`."""

import keras
import numpy as np

from ground.tensors import ops
from modeling.differentiation import gradient, variable_gradients


def test_gradient_of_a_function_is_its_derivative():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    found = gradient(lambda x: ops.sum(x**3), ops.convert_to_tensor(x))
    np.testing.assert_allclose(ops.convert_to_numpy(found), 3 * x**2, rtol=1e-5)


def test_gradient_of_each_variable_also_of_those_that_have_none():
    table = keras.Variable(np.arange(8.0).reshape(4, 2), dtype="float32")
    scale, unused = keras.Variable(2.0), keras.Variable(1.0)

    def function(ids, factor):
        return scale * factor * ops.sum(ops.take(table, ids, axis=0))

    compute = variable_gradients(function, [table, scale, unused])
    for value in (2.0, 6.0):  # the compiled function reads the present values
        scale.assign(value)
        found = [ops.convert_to_numpy(part) for part in compute(np.array([1, 1, 3]), np.float32(5))]
        np.testing.assert_array_equal(found[0], np.array([[0, 0], [20, 20], [0, 0], [10, 10]]) * value / 2)
        np.testing.assert_array_equal(found[1], 5 * (2 + 3 + 2 + 3 + 6 + 7))
        np.testing.assert_array_equal(found[2], 0)


def test_a_gradient_inside_is_a_constant_to_the_one_outside():
    x = keras.Variable(3.0)

    def function():
        value = ops.convert_to_tensor(x)
        return value * gradient(lambda y: y**2 * value, value)

    # d/dx of x * constant, the constant being d(y^2 x)/dy = 2 x y at y = x = 3.
    assert float(variable_gradients(function, [x])()[0]) == 18.0
