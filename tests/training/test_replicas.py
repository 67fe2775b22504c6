import numpy as np
import pytest
from replica_cases import all_of, ending, finish, free_addresses, start

from optimization import OPTIMIZERS

pytestmark = pytest.mark.slow
SHARED = "every_optimizer,micro_batches,evaluation,companion"
ALONE = "poisoned,unscaled,masks,resumed"
RUNS = [(2, "every_optimizer", name) for name in OPTIMIZERS]
RUNS += [(4, "one_optimizer", "lamb")]


def part(found, prefix):
    return {key.removeprefix(prefix): x for key, x in found.items() if key.startswith(prefix)}


def assert_close(one, two, tolerance=1e-6):
    assert one
    assert one.keys() == two.keys()
    for name in one:
        # Softmax does not see the bias of the keys: its gradient is nothing but rounding, which Adam then scales up.
        if "key/bias" not in name:
            np.testing.assert_allclose(one[name], two[name], rtol=tolerance, atol=tolerance, err_msg=name)


def assert_same_bits(one, two):
    assert one
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.fixture(scope="module")
def single():
    return all_of(f"{SHARED},pretraining", None)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The outcome by the number of replicas."""
    folder = tmp_path_factory.mktemp("replicas")
    cases = {2: f"{SHARED},pretraining,{ALONE}", 4: "one_optimizer,evaluation"}
    paths = {replicas: folder / f"{replicas}.npz" for replicas in cases}
    started = {replicas: start(path, cases[replicas], replicas=replicas) for replicas, path in paths.items()}
    with ending(started.values()):
        return {replicas: finish(started[replicas], path) for replicas, path in paths.items()}


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    paths, workers = [folder / "0.npz", folder / "1.npz"], free_addresses(2)
    started = [
        start(path, "micro_batches,evaluation,preempted", workers=workers, index=n) for n, path in enumerate(paths)
    ]
    with ending(started):
        return [finish(process, path) for process, path in zip(started, paths, strict=True)]


@pytest.mark.parametrize(("replicas", "case", "name"), RUNS)
def test_replicas_equal_one_device(single, several, replicas, case, name):
    # Real weights differ from replica to replica, so that a mean of means would show.
    assert_close(part(several[replicas], f"{case}/{name}/"), part(single, f"every_optimizer/{name}/"))


def test_replicas_equal_one_device_on_a_model(single, several):
    assert_close(part(several[2], "pretraining/"), part(single, "pretraining/"))


def test_a_teacher_on_replicas_equals_one_device(single, several):
    assert_close(part(several[2], "companion/"), part(single, "companion/"))


def test_micro_batches_on_replicas_equal_the_whole_batch(single, several):
    assert_close(part(several[2], "micro_batches/cut/"), part(single, "every_optimizer/lamb/"))


@pytest.mark.parametrize("replicas", [1, 2])
def test_steps_in_one_call_equal_steps_in_calls_of_their_own(single, several, replicas):
    found = part(single if replicas == 1 else several[2], "micro_batches/")
    assert_same_bits(part(found, "called/"), part(found, "cut/"))


@pytest.mark.parametrize("replicas", [2, 4])
def test_evaluation_shared_by_replicas_equals_one_device(single, several, replicas):
    assert_close(part(several[replicas], "evaluation/"), part(single, "evaluation/"))


def test_two_processes_equal_one(single, processes):
    first, second = processes
    assert_same_bits(first, second)
    for case in ("micro_batches/", "evaluation/"):
        assert_close(part(first, case), part(single, case))


def test_a_gradient_that_is_not_finite_on_the_last_replica_stops_all(several):
    found = part(several[2], "poisoned/")
    assert found["skipped"].tolist() == [0, 0, 1, 0, 0, 1, 0, 0]
    assert np.isfinite(found["loss"]).all()
    assert set(found["changed"]) == {"optimizer/loss_scale/scale"}
    # Two finite steps double it, one that is not halves it.
    assert np.log2(found["loss_scale"]).tolist() == [10, 10, 11, 10, 10, 11, 10, 10]
    assert found["optimizer/loss_scale/scale"] == 2**11
    assert found["optimizer/loss_scale/finite_steps"] == 0


def test_loss_scaling_alters_no_bit_of_a_finite_step(several):
    assert_same_bits(part(several[2], "unscaled/with/"), part(several[2], "unscaled/without/"))


def test_every_replica_draws_masks_of_its_own(several):
    drawn, expected = several[2]["masks/drawn"], several[2]["masks/expected"]
    # The mean over micro-batches and replicas, each of which tells its own with weight 1.
    np.testing.assert_allclose(drawn, expected.mean(axis=1), rtol=1e-6)
    assert np.unique(expected).size > expected.size / 2


def test_resumed_on_two_replicas_with_dropout_equals_uninterrupted_bit_for_bit(several):
    assert_same_bits(part(several[2], "resumed/whole/"), part(several[2], "resumed/again/"))


def test_a_signal_to_one_process_saves_on_all_and_the_run_goes_on_bit_for_bit(processes):
    for found in processes:
        found = part(found, "preempted/")
        assert found["texts"].tolist() == ["Läufer 0", "Läufer 1"]
        assert found["code"] == 128 + 15
        assert 0 < found["stopped/step"] < 8
        assert_same_bits(part(found, "again/"), part(found, "whole/"))
    assert processes[0]["preempted/stopped/step"] == processes[1]["preempted/stopped/step"]
