import errno
import itertools
import json
import resource
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from training import checkpoints
from training.checkpoints import (
    CorruptCheckpointError,
    Pieces,
    RunState,
    best_of,
    checkpoint_folder,
    latest_state,
    list_checkpoints,
    read_state,
    rotate,
    write_state,
)
from training.hooks import read_metrics
from training.processes import Processes
from training.run import LoopProgress

STATE = {
    "model/a/kernel": np.arange(6, dtype="float32").reshape(2, 3),
    "model/步/bias": np.zeros(0, "float32"),
    "optimizer/m/a/kernel": np.ones((2, 3), "float32"),
    "ema/a/kernel": np.full((2, 3), 2.0, "float32"),
}


def checkpoint(step=7, state=STATE):
    return RunState(step, 2**40, {"hidden_size": 8, "name": "小"}, {"best": 0.5}, state)


def written(tmp_path, *steps):
    for step in steps:
        write_state(checkpoint_folder(tmp_path, step), checkpoint(step))
    return list_checkpoints(tmp_path)


def assert_equal(one, two):
    assert (one.step, one.seed, one.config, one.progress) == (two.step, two.seed, two.config, two.progress)
    assert one.tensors.keys() == two.tensors.keys()
    for name in one.tensors:
        np.testing.assert_array_equal(np.asarray(one.tensors[name]), two.tensors[name], strict=True)


def test_round_trip_and_layout(tmp_path):
    (folder,) = written(tmp_path, 7)
    assert folder == tmp_path / "checkpoints" / "step_00000007"
    names = {"model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    assert_equal(read_state(folder), checkpoint())
    write_state(folder, checkpoint(7, {"model/b": np.ones(1)}))
    assert list(read_state(folder).tensors) == ["model/b"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_any_flipped_byte_is_noticed(tmp_path):
    (folder,) = written(tmp_path, 7)
    path = folder / "model.safetensors"
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bad)
        with pytest.raises(CorruptCheckpointError):
            read_state(folder)


@pytest.mark.parametrize("part_bytes", [1, 24, 30, 48, 10**6])
def test_large_groups_come_in_parts_of_whole_tensors(tmp_path, part_bytes):
    state = {
        f"model/{name}": np.full(size, size, "float32") for name, size in zip("abcdef", (1, 6, 5, 9, 0, 2), strict=True)
    }
    whole = RunState(7, 1, {}, {}, state)
    write_state(tmp_path / "step", whole, part_bytes=part_bytes)
    assert_equal(read_state(tmp_path / "step"), whole)
    parts = sorted((tmp_path / "step").glob("model*"))
    held = [load_file(part) for part in parts]
    names = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    assert [part.name for part in parts] == (names if len(parts) > 1 else ["model.safetensors"])
    for tensors in held:
        assert sum(value.nbytes for value in tensors.values()) <= part_bytes or len(tensors) == 1
    # No two neighbours would fit into one.
    for one, two in itertools.pairwise(held):
        first = next(iter(sorted(two)))
        assert sum(value.nbytes for value in one.values()) + two[first].nbytes > part_bytes
    for part in parts:
        kept = part.read_bytes()
        for damaged in (kept[:-1], kept[:-1] + bytes([kept[-1] ^ 1]), None):
            part.unlink()
            if damaged is not None:
                part.write_bytes(damaged)
            with pytest.raises(CorruptCheckpointError, match=part.name):
                read_state(tmp_path / "step")
            part.write_bytes(kept)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "state", "no_state"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_line(tmp_path, capsys, damage):
    newest = written(tmp_path, 1, 2)[-1]
    if damage == "truncate":
        path = newest / "optimizer.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "flip":
        path = newest / "ema.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    elif damage == "remove":
        (newest / "model.safetensors").unlink()
    elif damage == "state":
        (newest / "state.json").write_text('{"step": 2')
    else:
        (newest / "state.json").unlink()
    found = latest_state(tmp_path)
    assert found is not None
    assert found.step == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the checkpoint step_00000002 is damaged, the one before it is taken instead: ")
    found = latest_state(tmp_path, up_to_step=1)
    assert found is not None
    assert found.step == 1
    assert latest_state(tmp_path, up_to_step=0) is None


def test_none_and_none_readable(tmp_path):
    assert latest_state(tmp_path) is None
    for folder in written(tmp_path, 1, 2):
        (folder / "state.json").unlink()
    with pytest.raises(UsageError, match=r"none of the 2 checkpoints in .*checkpoints can be read: remove that folder"):
        latest_state(tmp_path)


def test_what_a_crash_leaves_is_cleared_or_brought_back(tmp_path):
    written(tmp_path, 1, 2, 3)
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(checkpoints / "step_00000003", checkpoints / ".step_00000004.new")
    # Killed between the two renames of an overwritten folder, and amid a removal.
    shutil.copytree(checkpoints / "step_00000003", checkpoints / ".step_00000003.new")
    (checkpoints / "step_00000003").rename(checkpoints / ".step_00000003.old")
    (checkpoints / "step_00000001").rename(checkpoints / ".step_00000001.old")
    found = latest_state(tmp_path)
    assert found is not None
    assert found.step == 3
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_00000002", "step_00000003"]


@pytest.mark.parametrize(
    ("keep", "left"), [(0, [5, 10, 20, 100]), (1, [100]), (3, [10, 20, 100]), (9, [5, 10, 20, 100])]
)
def test_rotation_keeps_the_newest(tmp_path, keep, left):
    written(tmp_path, 5, 10, 20, 100)
    rotate(tmp_path, keep)
    assert [read_state(folder).step for folder in list_checkpoints(tmp_path)] == left


def test_rotation_spares_the_checkpoint_that_a_rollback_needs(tmp_path):
    written(tmp_path, 5, 10, 20, 100)
    rotate(tmp_path, 1, spared_step=10)
    assert [read_state(folder).step for folder in list_checkpoints(tmp_path)] == [10, 100]


def test_best_keeps_the_evaluated_weights_only():
    kept = best_of(checkpoint()).tensors
    assert set(kept) == {"model/a/kernel", "model/步/bias"}
    np.testing.assert_array_equal(kept["model/a/kernel"], STATE["ema/a/kernel"])


def test_a_failed_write_leaves_the_former_checkpoint_and_names_the_folder(tmp_path):
    (folder,) = written(tmp_path, 7)
    large = {"model/x": np.zeros(100_000, "float32")}
    former, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, former[1]))
    try:
        with pytest.raises(OSError, match=r"step_00000007") as error:
            write_state(folder, checkpoint(7, large))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)
    assert error.value.errno in (errno.EIO, errno.EFBIG)
    assert_equal(read_state(folder), checkpoint())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_state_names_what_it_holds(tmp_path):
    (folder,) = written(tmp_path, 7)
    facts = json.loads((folder / "state.json").read_text())
    assert (facts["step"], facts["seed"], facts["config"]["name"]) == (7, 2**40, "小")
    assert set(facts["files"]) == {"model.safetensors", "optimizer.safetensors", "ema.safetensors"}


class Thread(Processes):
    """One of several processes, as threads that wait for one another."""

    def __init__(self, index, barrier, given_texts):
        self.index, self.count, self._barrier, self._texts = index, barrier.parties, barrier, given_texts

    def largest(self, number):
        return max(map(int, self.texts(str(number))))

    def texts(self, text):
        self._texts[self.index] = text
        self._barrier.wait()
        found = [self._texts[index] for index in range(self.count)]
        self._barrier.wait()
        return found


def in_threads(count: int, function: Any) -> list[Any]:
    """What `function(processes)` returns or raises in each."""

    def caught(process):
        try:
            return function(process)
        except (OSError, UsageError) as error:
            return error

    barrier, texts = threading.Barrier(count), {}
    with ThreadPoolExecutor(count) as executor:
        return list(executor.map(caught, [Thread(index, barrier, texts) for index in range(count)]))


def cut_state(index, count, arrays):
    """Of each array, whose first axis is cut into equal pieces, those of a process; what cannot be cut is whole."""
    state = {}
    for name, array in arrays.items():
        if array.ndim and len(array) and len(array) % (2 * count) == 0:
            cuts = dict(zip(range(0, len(array), len(array) // (2 * count)), np.split(array, 2 * count), strict=True))
            mine = list(cuts.items())[index::count]
            state[name] = Pieces(array.shape, {(start, *[0] * (array.ndim - 1)): piece for start, piece in mine})
        else:
            state[name] = array
    return state


@given(count=st.integers(1, 3), shapes=st.lists(st.lists(st.sampled_from([0, 1, 6, 12]), max_size=3), max_size=4))
def test_what_processes_hold_of_tensors_comes_back_whole_or_in_any_cut(tmp_path_factory, count, shapes):
    folder = checkpoint_folder(tmp_path_factory.mktemp("cut"), 7)
    draw = np.random.default_rng(0)
    arrays = {f"model/x{i}": np.asarray(draw.normal(size=shape), "float32") for i, shape in enumerate(shapes)}
    in_threads(count, lambda me: write_state(folder, checkpoint(7, cut_state(me.index, count, arrays)), processes=me))
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert_equal(read_state(folder), checkpoint(7, arrays))
    found = in_threads(count, lambda me: latest_state(folder.parent.parent, processes=me))
    for each in found:
        assert_equal(each, checkpoint(7, arrays))
        for name, array in arrays.items():
            index = tuple(slice(None) if n < 2 else slice(n // 4, n - 1) for n in array.shape)
            np.testing.assert_array_equal(each.tensors[name][index], array[index])


def test_damage_to_a_piece_and_a_process_that_cannot_write_are_known_to_all(tmp_path, capsys, monkeypatch):
    arrays = {"model/x": np.arange(24, dtype="float32").reshape(12, 2)}

    def write(step):
        return in_threads(
            2,
            lambda me: write_state(
                checkpoint_folder(tmp_path, step), checkpoint(step, cut_state(me.index, 2, arrays)), processes=me
            ),
        )

    assert [write(step) for step in (1, 2)] == [[None, None]] * 2
    names = {path.name for path in checkpoint_folder(tmp_path, 2).iterdir()}
    assert names == {f"model-process-0000{index}-of-00002.safetensors" for index in (1, 2)} | {"state.json"}
    for index in (1, 2):
        path = checkpoint_folder(tmp_path, 2) / f"model-process-0000{index}-of-00002.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        found = in_threads(2, lambda me: latest_state(tmp_path, processes=me))
        assert [each.step for each in found] == [1, 1]
        assert capsys.readouterr().err.count("is damaged, the one before it is taken instead") == 1
        path.write_bytes(content)

    def failing(path, *arguments):
        if "process-00002" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, *arguments)

    original = checkpoints._write_tensors
    monkeypatch.setattr(checkpoints, "_write_tensors", failing)
    first, second = write(3)
    assert isinstance(first, UsageError)
    assert str(first).startswith("process 1 of 2: ")
    assert isinstance(second, OSError)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000001", "step_00000002"]
    assert not list(tmp_path.glob("checkpoints/.*"))


def test_an_interruption_between_the_renames_keeps_the_former_checkpoint(tmp_path, monkeypatch):
    (folder,) = written(tmp_path, 7)
    rename = type(folder).rename

    def interrupted(self, target):
        if self.name.endswith(".new"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(type(folder), "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_state(folder, checkpoint(7, {"model/b": np.ones(1)}))
    monkeypatch.undo()
    assert not folder.exists()
    assert_equal(latest_state(tmp_path), checkpoint())


@pytest.mark.parametrize("name", ["step_00000002_copy", "step_2", "step_00000002.bak", "step_²", "step_"])
def test_folders_of_other_names_are_neither_read_nor_removed(tmp_path, name):
    newest = written(tmp_path, 1, 2)[-1]
    shutil.copytree(newest, newest.with_name(name))
    shutil.copytree(newest, newest.with_name(f".{name}.old"))
    (newest.with_name("step_00000009")).write_text("a file")
    found = latest_state(tmp_path)
    assert found is not None
    assert found.step == 2
    rotate(tmp_path, 1)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step_00000002"]
    assert newest.with_name(name).is_dir()
    assert newest.with_name(f".{name}.old").is_dir()


@pytest.mark.parametrize(
    "change",
    [
        {"step": "7"},
        {"step": -1},
        {"step": 2**70},
        {"seed": None},
        {"config": []},
        {"progress": 3},
        {"files": []},
        {"files": {"../model.safetensors": {"bytes": 1, "sha256": ""}}},
        {"files": {"model.safetensors": {"bytes": "1", "sha256": ""}}},
    ],
)
def test_a_state_of_another_shape_is_a_damaged_checkpoint(tmp_path, change):
    (folder,) = written(tmp_path, 7)
    facts = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(facts | change))
    with pytest.raises(CorruptCheckpointError, match=r"state\.json: .*\$.*: expected"):
        read_state(folder)


@pytest.mark.parametrize("content", ["[]", "3", "null", "[" * 100_000, '{"step": ' + "9" * 5_000 + "}"])
def test_a_state_that_is_none_is_a_damaged_checkpoint(tmp_path, content):
    (folder,) = written(tmp_path, 7)
    (folder / "state.json").write_text(content)
    with pytest.raises(CorruptCheckpointError, match=r"state\.json: "):
        read_state(folder)


def test_a_progress_that_no_loop_wrote_is_one_line():
    for progress, message in (({"bst": 1}, "unknown key 'bst'"), ({"recent_losses": "x"}, "recent_losses is 'x'")):
        with pytest.raises(UsageError, match=rf"checkpoint of step 7.*{message}"):
            LoopProgress.of(RunState(7, 1, {}, progress, {}))


def test_a_line_of_metrics_that_no_run_wrote_is_named(tmp_path):
    path, good = tmp_path / "metrics.jsonl", '{"step": 1, "phase": "train", "loss": 2.0}\n'
    path.write_text(good + good[:9])
    assert len(read_metrics(path)) == 1
    for wrong in ("[]", "{}", "{", '{"step": "1", "phase": "train"}', '{"step": 1, "phase": "x"}', "[" * 9999):
        path.write_text(f"{good}{wrong}\n{good}")
        with pytest.raises(UsageError, match=r"metrics\.jsonl:2: "):
            read_metrics(path)
