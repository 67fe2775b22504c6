import dataclasses
import sys
import types

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given
from hypothesis import strategies as st

from training import planning
from training.planning import CHIPS, DEVICES, GENERATIONS, collectives, largest_batch, parse_topology, roofline


@given(
    slope=st.floats(0.01, 100),
    offset=st.floats(0, 1000),
    bend=st.floats(0, 1),
    known=st.booleans(),
    start=st.integers(0, 5000),
    capacity=st.floats(0, 5000),
)
def test_the_largest_batch_is_found_however_memory_bends(slope, offset, bend, known, start, capacity):
    tried = []

    def peak(number: int) -> float | None:
        tried.append(number)
        value = offset + slope * number + bend * number**1.5
        return value if known or value <= capacity else None

    found = largest_batch(peak, capacity, start)
    assert found == 0 or offset + slope * found + bend * found**1.5 <= capacity
    assert offset + slope * (found + 1) + bend * (found + 1) ** 1.5 > capacity
    assert len(tried) == len(set(tried)) <= 50


def test_this_machine_is_measured():
    chip = planning.measure_this_machine()
    # A product or a copy that was not done would take no time; no CPU makes 100 TFLOP/s or moves 10 TB/s.
    assert 1e8 < chip.float32_flops < 1e14
    assert 1e7 < chip.memory_bandwidth < 1e13


def test_topologies_and_devices_are_rows_of_one_table():
    assert parse_topology("v4:4x4x8") == ("v4", (4, 4, 8))
    assert parse_topology("v6e:16x16") == ("v6e", (16, 16))
    assert {*GENERATIONS, *DEVICES} == {*CHIPS, "cpu"}
    for name, chip in CHIPS.items():
        assert chip.source, name
        assert chip.bfloat16_flops >= chip.float32_flops > chip.memory_bandwidth > chip.link_bandwidth, name


def test_without_libtpu_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UsageError, match=r"needs the package libtpu, .* pip install 'jax' 'libtpu==0.0.42.\*'"):
        planning.topology_devices("v4:2x2x1")


PROGRAM = """
HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p = (s32[], bf16[8,16]{1,0}) parameter(0)
  %w = bf16[8,16]{1,0} get-tuple-element(%p), index=1
  %gathered = bf16[32,16]{1,0} all-gather(%w), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %t = (s32[], bf16[8,16]{1,0}) tuple(%i, %w)
}

%condition (p: (s32[], bf16[8,16])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body.2 (p: (s32[], bf16[4])) -> (s32[], bf16[4]) {
  %sent = bf16[4]{0} collective-permute(%p), channel_id=5, source_target_pairs={{0,1},{1,0}}
  ROOT %t = (s32[], bf16[4]{0}) tuple(%i, %sent)
}

%condition.2 (p: (s32[], bf16[4])) -> pred[] {
  %five.1 = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%i, %five.1), direction=LT, metadata={op_name="while"}
}

ENTRY %main (a: f32[10], w: bf16[8,16]) -> f32[10] {
  %a = f32[10]{0} parameter(0)
  %loop = (s32[], bf16[8,16]) while(%i), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %other = (s32[], bf16[4]) while(%j), condition=%condition.2, body=%body.2
  %both = (f32[10]{0}, f32[5,2]{1,0:T(8,128)}) all-reduce(%a, %b), channel_id=2, replica_groups={}, to_apply=%add
  %scattered = f32[3]{0} reduce-scatter(%c), channel_id=3, replica_groups={{0,1},{2,3}}, dimensions={0}, to_apply=%add
  %started = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%d), channel_id=4, replica_groups=[1,4]<=[4], dimensions={0}
  %done = bf16[16]{0} all-gather-done(%started)
  ROOT %out = f32[10]{0} add(%a, %a)
}
"""


def test_collectives_are_counted_by_kind_and_as_often_as_their_loop_runs():
    found = collectives(PROGRAM)
    assert found == {"all-gather": 6 * 32 * 16 * 2 + 16 * 2, "all-reduce": 4 * 20, "reduce-scatter": 2 * 3 * 4} | {
        "collective-permute": 5 * 4 * 2
    }
    assert collectives("HloModule empty\n") == {}


@given(st.lists(st.floats(0, 1e15), min_size=3, max_size=3))
def test_a_step_is_as_slow_as_its_slowest_part_and_no_slower_than_all_after_another(amounts):
    flops, memory, sent = amounts
    chip = CHIPS["v4"]
    bound = roofline(chip, "bfloat16", flops, memory, {"all-reduce": sent, "all-gather": sent})
    assert bound.link_seconds == pytest.approx(3 * sent / chip.link_bandwidth)
    assert bound.fast_seconds == max(flops / 275e12, memory / 1228e9, bound.link_seconds)
    assert bound.fast_seconds <= bound.slow_seconds <= 3 / planning.EFFICIENCY * bound.fast_seconds * (1 + 1e-12)


@given(st.lists(st.integers(1, 9), max_size=4), st.sampled_from(["float32", "bfloat16", "int8"]))
def test_a_tensor_has_on_one_device_the_bytes_of_its_shard(shape, dtype):
    sharding = types.SimpleNamespace(shard_shape=lambda whole: whole)
    item = {"float32": 4, "bfloat16": 2, "int8": 1}[dtype]
    array = types.SimpleNamespace(sharding=sharding, shape=tuple(shape), dtype=types.SimpleNamespace(itemsize=item))
    assert planning._bytes_on_one(array) == np.zeros(shape, np.int8).nbytes * item
    halves = types.SimpleNamespace(shard_shape=lambda whole: (whole[0] // 2, *whole[1:]))
    cut = types.SimpleNamespace(sharding=halves, shape=(8, *shape), dtype=array.dtype)
    assert planning._bytes_on_one(cut) == 4 * planning._bytes_on_one(array)


@pytest.mark.parametrize("name", CHIPS)
def test_a_row_of_the_chips_holds_what_data_sheets_have_in_common(name):
    """NVIDIA's tensor cores take TF32 at half the rate of bfloat16; a TPU has one rate. No figure is off by a power."""
    chip = CHIPS[name]
    half, single = dataclasses.astuple(chip)[:2]
    assert half / single == pytest.approx(1 if name in GENERATIONS else 2, rel=0.02)
    assert 1e14 < half < 1e15
    assert 15 * 2**30 < chip.memory_bytes < 150e9
