"""One step is one step, whatever the devices and processes: all against one device, in float32."""

import shutil

import numpy as np
import pytest
from jax_cases import MESHES, run_apart, run_in_two

from optimization import OPTIMIZERS
from training.checkpoints import list_checkpoints
from training.hooks import read_metrics

pytestmark = pytest.mark.slow
TOLERANCE = 1e-6


def part(found, prefix):
    return {key.removeprefix(prefix): x for key, x in found.items() if key.startswith(prefix)}


def assert_close(one, two, but=()):
    assert one.keys() == two.keys()
    for name in one:
        if not name.endswith(but):
            np.testing.assert_allclose(one[name], two[name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


@pytest.fixture(scope="module")
def on_eight_devices(tmp_path_factory):
    """What the cases of one process found, by case."""
    cases = "every_optimizer,taught,pretraining,blocks,lowered,mistakes,whole"
    return run_apart(tmp_path_factory.mktemp("devices") / "found.npz", cases)


def test_every_optimizer_on_every_mesh_equals_one_device(on_eight_devices):
    found = part(on_eight_devices, "every_optimizer/")
    for name in OPTIMIZERS:
        one = part(found, f"{name}|one|")
        assert one["step/4/loss"] < one["step/0/loss"]
        meshes = {key.split("|")[1] for key in found if key.startswith(f"{name}|")}
        assert meshes >= {"one", "fsdp 4, model 2"}
        assert meshes == MESHES.keys() or name != "adamw"
        for mesh in meshes:
            assert_close(part(found, f"{name}|{mesh}|"), one)


def test_a_teacher_on_every_mesh_equals_one_device_and_is_cut_like_fixed_weights(on_eight_devices):
    found = part(on_eight_devices, "taught/")
    one = part(found, "one|")
    assert one["step/2/loss"] < one["step/0/loss"]
    assert not [name for name in one if "teacher" in name or "companion" in name]
    shards = {"one": [8, 32], "data 8": [8, 32], "data 2, model 4": [8, 8], "fsdp 4, model 2": [2, 16]}
    for mesh, shape in shards.items():
        assert_close(part(found, f"{mesh}|"), one, ("shard",))
        assert found[f"{mesh}|shard"].tolist() == shape


def test_the_model_with_dropout_equals_one_device_and_resumes_on_another(on_eight_devices):
    found = part(on_eight_devices, "pretraining/")
    # Softmax does not see the bias of the keys: its gradient is nothing but rounding, which Adam then scales up.
    uncertain = ("key/bias", "_shard")
    one = part(found, "one|")
    shards = {"one": ([8, 16], [32, 4]), "data 2, model 4": ([8, 4], [8, 4]), "fsdp 4, model 2": ([2, 8], [16, 1])}
    for mesh, (kernel, slot) in shards.items():
        assert_close(part(found, f"{mesh}|"), one, uncertain)
        assert found[f"{mesh}|kernel_shard"].tolist() == kernel
        assert found[f"{mesh}|slot_shard"].tolist() == slot
    assert_close(part(found, "resumed|"), {name: one[name] for name in part(found, "resumed|")}, uncertain)


def test_blocks_that_gather_their_own_weights_equal_one_device(on_eight_devices):
    found = part(on_eight_devices, "blocks/")
    one = part(found, "one False False|")
    for scan in (False, True):
        assert_close(part(found, f"fsdp 4, model 2 True {scan}|"), one, ("key/bias",))


def test_the_step_is_lowered_from_shapes_and_fsdp_holds_less(on_eight_devices):
    found = part(on_eight_devices, "lowered/")
    assert found["values"] == 0
    # Where only a batch is shared nothing but sums is sent.
    assert found["gathers/False"] == 0
    assert found["gathers/True"] > 0
    assert found["arguments/True"] < 0.5 * found["arguments/False"]


def test_two_processes_equal_one_and_a_signal_to_one_saves_on_both(on_eight_devices, tmp_path):
    whole = part(on_eight_devices, "whole/state/")
    together = [found for found, _ in run_in_two(tmp_path, "loop,disagreement", tmp_path / "together", -1)]
    for found in together:
        assert_close(part(found, "loop/"), whole)
    assert_a_mistake_that_one_process_sees_ends_all(*together)
    records = read_metrics(tmp_path / "together/metrics.jsonl")
    assert [record["step"] for record in records if record["phase"] == "train"] == [2, 4, 6, 8, 10, 12]
    losses = [record["loss"] for record in records]
    np.testing.assert_allclose(losses, on_eight_devices["whole/losses"], rtol=1e-6)

    errors = [error for _, error in run_in_two(tmp_path, "loop", tmp_path / "stopped", 8, code=128 + 15)]
    assert "SIGTERM: saved" in errors[0]
    assert errors[1].startswith("waiting at most 300 s for all 2 processes")
    assert errors[1].count("\n") == 1
    saved = [int(path.name.removeprefix("step_")) for path in list_checkpoints(tmp_path / "stopped")]
    assert saved[0] == 6
    assert 6 <= saved[-1] <= 9
    # Each process wrote what it holds.
    files = {path.name for path in list_checkpoints(tmp_path / "stopped")[-1].glob("optimizer*")}
    assert files == {f"optimizer-process-0000{index}-of-00002.safetensors" for index in (1, 2)}
    shutil.copytree(tmp_path / "stopped", tmp_path / "again")
    for found, _ in run_in_two(tmp_path, "loop", tmp_path / "again", -1):
        assert_close(part(found, "loop/"), whole)
    # Begun by two processes, ended by one, on one device.
    ended = run_apart(tmp_path / "ended.npz", "loop", tmp_path / "stopped", -1, devices=1)
    assert_close(part(ended, "loop/"), whole)


def assert_a_mistake_that_one_process_sees_ends_all(*together):
    first, second = (part(found, "disagreement/") for found in together)
    assert first["text"] == "process 1 of 2: no record file matches 'gone*'"
    assert second["text"] == "no record file matches 'gone*'"
    assert first["largest"] == second["largest"] == 1


def test_meshes_that_cannot_be_are_one_line(on_eight_devices):
    found = part(on_eight_devices, "mistakes/")
    assert str(found["devices"]) == "--model_parallel=3 does not divide the 8 devices: choose a number that does"
    assert str(found["axis"]).startswith("table of shape [10, 8] cannot be cut into 4 equal parts: choose a")
    assert "this model declares no layout rules; give --model_parallel=1" in str(found["rules"])
    assert str(found["rule"]) == "no layout rule covers the variable 'b'; end the rules with ('', ()) for the rest"
