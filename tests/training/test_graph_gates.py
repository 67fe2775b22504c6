import re

import pytest
from graph_gates import found

pytestmark = pytest.mark.slow
HOST = re.compile("PyFunc|Print|HostCompute|Send|Recv|Infeed|Outfeed|Unique|Where|Iterator|Assert")


@pytest.fixture(scope="module")
def tpu():
    return found("tpu")


@pytest.fixture(scope="module")
def programs():
    return found("compiled")


def test_a_tpu_sums_gradients_before_it_clips_them(tpu):
    assert tpu["trained"] > 20
    # Counts that losses are divided by; gradients; the loss and the sums that are reported.
    assert tpu["sums"] == tpu["normalizers"] + tpu["trained"] + 2
    assert tpu["before_clipping"] == tpu["sums"]
    assert tpu["after_clipping"] == 0


def test_a_tpu_takes_several_steps_in_one_program(tpu):
    assert tpu["replicates"] == [1, 1]
    assert tpu["sums_in_a_loop"] == tpu["sums"]


def test_a_tpu_asks_nothing_of_the_host(tpu):
    assert "CrossReplicaSum" in tpu["types"]
    assert not [name for name in tpu["types"] if HOST.search(name)]
    assert not tpu["strings"]


@pytest.mark.parametrize("model", ["albert", "structbert", "classifier", "several steps"])
def test_xla_compiles_a_whole_step_of_static_shapes(programs, model):
    program = programs[model]
    assert "stablehlo.dot_general" in program
    assert not re.search(r"tensor<[^>]*\?|bounds|dynamic_reshape|set_dimension_size", program)
