import dataclasses
import json
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given
from hypothesis import strategies as st
from toy_run import SignallingDataset, toy_run
from toy_task import ToyDataset, ToyTask

from commands import devices
from commands.options import HealthOptions
from ground.progress import format_flops
from optimization import Constant, create_optimizer
from training.checkpoints import RunState, list_checkpoints, read_state
from training.engine import brick_of
from training.health import DivergedError
from training.hooks import Hook, read_metrics
from training.run import LoopProgress, RunPlan
from training.spikes import LEAST_STEPS, MAX_ROLLBACKS, WINDOW_STEPS, limit_of, observe
from training.tensorflow_engine import TensorFlowEngine

losses = st.lists(st.floats(0.0625, 100, width=32), min_size=LEAST_STEPS, max_size=WINDOW_STEPS)


@given(losses, st.floats(1, 100), st.randoms())
def test_the_limit_lies_above_the_median_grows_with_the_threshold_and_knows_no_order(values, threshold, random):
    limit = limit_of(values, threshold)
    assert limit is not None
    assert limit > np.median(values)
    assert limit <= (limit_of(values, 2 * threshold) or 0)
    assert limit == np.float32(limit)
    random.shuffle(values)
    assert limit_of(values, threshold) == limit


@given(losses, st.floats(1e3, 1e30))
def test_one_spike_hides_no_other(values, spike):
    limit = limit_of([*values, spike], 10.0)
    # One value more moves medians by one rank, within the others; a mean would follow the spike.
    assert limit is not None
    assert limit <= max(values) + 10 * max(1.4826 * (max(values) - min(values)), 0.01 * max(values)) + 1e-3


def test_normal_noise_is_no_spike_and_a_leap_is():
    generator, progress = np.random.default_rng(0), LoopProgress()
    for step in range(5000):
        loss = 8 * np.exp(-step / 1000) + 2 + generator.normal(0, 0.1)
        assert observe(progress, step, {"loss": loss, "skipped": 0.0}, 10.0) is None, step
        assert (progress.loss_limit is None) is (step < LEAST_STEPS - 1)
    assert len(progress.recent_losses) == WINDOW_STEPS
    before = dataclasses.replace(progress)
    assert observe(progress, 5000, {"loss": 4.0, "skipped": 1.0}, 10.0) == before.loss_limit
    assert progress == before
    assert observe(progress, 5001, {"loss": float("nan"), "skipped": 1.0}, 10.0) is None


def test_each_kind_of_batches_has_a_limit_of_its_own():
    generator, progress = np.random.default_rng(0), LoopProgress()
    for step in range(600):
        kind, size = ("veco", 20.0) if step % 10 == 0 else ("tlm", 5.0)
        result = {"loss": size + generator.normal(0, 0.1), "skipped": 0.0}
        assert observe(progress, step, result, 10.0, kind) is None, step
    assert progress.recent_losses == []
    assert progress.loss_limit is None
    limits = {kind: progress.limit(kind) for kind in ("veco", "tlm", "unknown", "")}
    assert limits == {**progress.limits_of_kinds, "unknown": None, "": None}
    # Half the usual loss of the one is a leap of the other.
    assert observe(progress, 600, {"loss": 10.0, "skipped": 1.0}, 10.0, "tlm") == limits["tlm"]
    assert observe(progress, 601, {"loss": 10.0, "skipped": 1.0}, 10.0, "veco") is None
    # All of it is in a checkpoint.
    assert LoopProgress.of(RunState(1, 2, {}, dataclasses.asdict(progress), {})) == progress


@pytest.mark.parametrize("on_spike", ["skip", "warn"])
def test_the_engine_has_the_limit_of_the_kind_of_its_batches(on_spike: str):
    from training.loop import _Loop

    seen = []

    class Engine:
        loss_limit = float("inf")

        def train(self, batches):
            seen.append((self.loss_limit, len(batches)))
            return [{"loss": 1.0} for _ in batches]

    progress = LoopProgress(limits_of_kinds={"a": 3.0})
    plan = RunPlan(
        num_steps=9, output_dir=Path(), config={}, on_spike=on_spike, kind_of=lambda batch: str(batch["kind"])
    )
    run = SimpleNamespace(engine=Engine(), plan=plan, progress=progress, limits={})
    loop: Any = SimpleNamespace(run=run)
    results = _Loop._trained(loop, [{"kind": np.array(kind)} for kind in "aabaa"])
    assert len(results) == 5
    skips = [(3.0, 2), (float("inf"), 1), (3.0, 2)]
    assert seen == (skips if on_spike == "skip" else [(float("inf"), 5)])
    assert run.limits == ({"a": 3.0, "b": float("inf")} if on_spike == "skip" else {})


@pytest.mark.slow
def test_a_step_has_the_loss_of_its_kind(tmp_path):
    def kind(batch):
        return "ab"[int(batch["ids"][0, 0]) % 2]

    seen = []

    class Watching(Hook):
        def steps(self, run, batches, results):
            seen.extend((kind(batch), result) for batch, result in zip(batches, results, strict=True))

    run(tmp_path, ToyDataset(), hooks=[Watching()], num_steps=6, kind_of=kind)
    assert {name for name, _ in seen} == {"a", "b"}
    for name, result in seen:
        assert {key: result[key] for key in ("a_loss", "b_loss") if key in result} == {f"{name}_loss": result["loss"]}


class Recorder(Hook):
    def __init__(self):
        self.losses, self.skipped, self.went_back_to, self.ends = {}, [], [], []

    def steps(self, run, batches, results):
        first = run.engine.step - len(results)
        self.ends.append(run.engine.step)
        for step, result in enumerate(results, first):
            self.losses[step] = result["loss"]
            self.skipped += [step] * bool(result["skipped"])

    def went_back(self, run):
        self.went_back_to.append(run.engine.step)


def run(folder, dataset, *, hooks=None, **arguments):
    optimizer = create_optimizer("adamw", Constant(0.05))
    engine = TensorFlowEngine(ToyTask(dropout=0.1), optimizer, seed=5, ema_decay=0.8)
    settings = {"num_steps": 96, "save_every_steps": 20, "log_every_steps": 7, "hooks": hooks} | arguments
    toy_run(folder, dataset, engine=engine, **settings)
    return engine.state()


def assert_same_bits(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


BAD = (50, 51, 70)


@pytest.fixture(scope="module")
def ignoring(tmp_path_factory):
    return run(tmp_path_factory.mktemp("ignoring"), ToyDataset(mislabelled=BAD), hooks=[])


@pytest.mark.slow
def test_a_warning_changes_nothing_and_comes_once_a_streak(tmp_path, capsys, ignoring):
    assert_same_bits(run(tmp_path, ToyDataset(mislabelled=BAD), on_spike="warn"), ignoring)
    lines = [line for line in capsys.readouterr().err.splitlines() if "is a spike, above" in line]
    assert [line.split(":")[0] for line in lines] == ["step 50", "step 70"]


@pytest.mark.slow
def test_skipping_leaves_out_exactly_the_bad_batches_however_the_run_is_cut(tmp_path, capsys, ignoring):
    recorder = Recorder()
    dataset = ToyDataset(mislabelled=BAD)
    whole = run(tmp_path / "whole", dataset, on_spike="skip", hooks=[recorder])
    assert recorder.skipped == list(BAD)
    assert any((whole[name] != ignoring[name]).any() for name in whole)
    assert_same_bits(run(tmp_path / "calls", dataset, on_spike="skip", hooks=[], steps_per_call=9), whole)
    # The window and the limit come from the checkpoint: 49 is amid two renewals.
    stopping = SignallingDataset(signal.SIGTERM, 49, mislabelled=BAD)
    with pytest.raises(SystemExit):
        run(tmp_path / "cut", stopping, on_spike="skip", prefetch_batches=0)
    assert read_state(list_checkpoints(tmp_path / "cut")[-1]).step == 50
    assert_same_bits(run(tmp_path / "cut", dataset, on_spike="skip"), whole)
    assert "step 50 was skipped: loss" in capsys.readouterr().err


def test_skipping_without_end_stops_with_a_replay(tmp_path):
    with pytest.raises(DivergedError) as error:
        run(tmp_path, ToyDataset(mislabelled=range(50, 96)), on_spike="skip")
    folder = tmp_path / "replay" / "step_00000050"
    assert str(error.value) == (
        f"5 steps in a row were spikes (steps 50 to 54); batch, seed, flags and weights are in {folder}; "
        "lower the learning rate or lengthen the warmup, or raise --spike_threshold"
    )
    assert read_state(folder).step == 50


@pytest.mark.slow
def test_a_rollback_passes_over_the_batches_since_the_checkpoint(tmp_path, capsys):
    recorder = Recorder()
    rolled = run(tmp_path / "one", ToyDataset(mislabelled=BAD[:1]), on_spike="rollback", hooks=[recorder])
    assert recorder.went_back_to == [40]

    class Shifted(ToyDataset):
        def batch(self, step):
            return super().batch(step if step < 40 else step + 11)

    assert_same_bits(rolled, run(tmp_path / "two", Shifted(), hooks=[]))
    progress = read_state(list_checkpoints(tmp_path / "one")[-1]).progress
    assert (progress["batches_passed_over"], progress["rollbacks"], progress["return_step"]) == (11, 0, 80)
    replay = tmp_path / "one" / "replay" / "step_00000050"
    facts = json.loads((replay / "replay.json").read_text())
    assert (facts["step"], facts["batch"], facts["seed"], facts["after_checkpoint"]) == (50, 50, 5, 40)
    with np.load(replay / "batch.npz") as kept:
        np.testing.assert_array_equal(kept["labels"], ToyDataset(mislabelled=BAD).batch(50)["labels"])
    assert "back to step 40, its 11 batches are passed over (rollback 1 of 3; " in capsys.readouterr().err


@pytest.mark.slow
def test_a_rolled_back_run_that_is_interrupted_anywhere_ends_alike(tmp_path):
    # Batch 62 comes at step 51 after the first rollback, to step 40; another rollback passes over it too.
    bad = (50, 62, 100)
    recorder = Recorder()
    whole = run(
        tmp_path / "whole", ToyDataset(mislabelled=bad), on_spike="rollback", keep_checkpoint_max=1, hooks=[recorder]
    )
    assert recorder.went_back_to == [40, 40, 60]
    for batch in (45, 55, 64, 99):
        folder = tmp_path / str(batch)
        stopping = SignallingDataset(signal.SIGTERM, batch, mislabelled=bad)
        with pytest.raises(SystemExit):
            run(folder, stopping, on_spike="rollback", prefetch_batches=0, keep_checkpoint_max=1)
        again = run(folder, ToyDataset(mislabelled=bad), on_spike="rollback", keep_checkpoint_max=1)
        assert_same_bits(again, whole)
        steps = [record["step"] for record in read_metrics(folder / "metrics.jsonl")]
        assert steps == sorted(set(steps))
        assert set(range(7, 96, 7)) <= set(steps)


def test_a_spike_before_the_first_checkpoint_goes_back_to_the_start(tmp_path):
    recorder = Recorder()
    run(tmp_path, ToyDataset(mislabelled=BAD[:1]), on_spike="rollback", save_every_steps=0, hooks=[recorder])
    assert recorder.went_back_to == [0]


def test_rollbacks_end(tmp_path):
    with pytest.raises(DivergedError) as error:
        run(tmp_path, ToyDataset(mislabelled=range(45, 10**6)), on_spike="rollback", hooks=[])
    text = str(error.value)
    assert text.startswith("step 4")
    assert f", after {MAX_ROLLBACKS} rollbacks to step 40: lower the learning rate, raise --spike_threshold, or" in text
    assert "\n" not in text
    assert Path(text.rsplit(" ", 1)[1]).is_dir()


def test_norms_come_when_due_by_brick_and_change_no_loss(tmp_path, capsys):
    recorder = Recorder()
    plain = run(tmp_path / "plain", ToyDataset(), num_steps=9, hooks=[recorder])
    optimizer = create_optimizer("adamw", Constant(0.05))
    engine = TensorFlowEngine(ToyTask(dropout=0.1), optimizer, seed=5, ema_decay=0.8, norm_steps=3)
    toy_run(tmp_path / "norms", engine=engine, num_steps=9, log_every_steps=1)
    assert_same_bits(engine.state(), plain)
    records = read_metrics(tmp_path / "norms" / "metrics.jsonl")
    assert [record["loss"] for record in records] == list(recorder.losses.values())
    names = {f"{kind}/{brick}" for kind in ("gradient_norm", "update_norm") for brick in ("embed", "score")}
    for record in records:
        due = record["step"] % 3 == 0
        assert {name for name in record if "/" in name} == (names if due else set())
        if due:
            bricks = [record["gradient_norm/embed"], record["gradient_norm/score"]]
            assert np.hypot(*bricks) == pytest.approx(record["gradient_norm"], rel=1e-5)
    assert "gradient_norm/" not in capsys.readouterr().err
    assert "embed" not in (tmp_path / "norms" / "report.html").read_text()
    assert any(b"train/update_norm/score" in path.read_bytes() for path in (tmp_path / "norms/tensorboard").iterdir())


def test_update_norms_are_those_of_the_weights():
    engine = TensorFlowEngine(ToyTask(), create_optimizer("lamb", Constant(0.05)), seed=5, norm_steps=1)
    before = engine.state()
    (result,) = engine.train([ToyDataset().batch(0)])
    after = engine.state()
    for brick in ("embed", "score"):
        moved = [after[name] - before[name] for name in after if name.startswith(f"model/{brick}/")]
        total = np.sqrt(sum(np.square(x.astype("float64")).sum() for x in moved))
        assert result[f"update_norm/{brick}"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "brick"),
    [
        ("backbone/embeddings/word_embeddings", "backbone/embeddings"),
        ("backbone/encoder/attention_3/query/kernel", "backbone/encoder/attention_3"),
        ("masked_lm/output_bias", "masked_lm"),
        ("bias", ""),
    ],
)
def test_bricks(name, brick):
    assert brick_of(name) == brick


def test_a_profile_is_written_for_the_steps_that_were_asked_for(tmp_path, capsys):
    calls = Recorder()
    run(tmp_path, ToyDataset(), num_steps=9, profile_steps=(3, 5), steps_per_call=9, log_every_steps=9, hooks=[calls])
    assert calls.ends == [3, 5, 9]
    (profile,) = (tmp_path / "tensorboard").glob("plugins/profile/*/*.xplane.pb")
    assert b"MatMul" in profile.read_bytes()
    assert "profile of steps 3 to 5: tensorboard --logdir=" in capsys.readouterr().err
    run(tmp_path, ToyDataset(), num_steps=9, profile_steps=(3, 5))
    assert len(list((tmp_path / "tensorboard").glob("plugins/profile/*"))) == 1


@pytest.mark.parametrize("text", ["5", "5:", ":5", "7:7", "9:7", "a:b", "-1:4", "1:2:3"])
def test_no_range_of_steps(text):
    with pytest.raises(UsageError, match=f"--profile_steps={text}: expected two steps A:B with A < B"):
        HealthOptions(profile_steps=text)
    assert HealthOptions(profile_steps="10:15").profile_range() == (10, 15)


def test_speed_is_told_as_far_as_it_is_known(tmp_path, capsys):
    known = {"flops_per_unit": 2e9, "peak_flops_per_second": 1e15, "unit": "tokens"}
    run(tmp_path / "known", ToyDataset(), num_steps=14, **known)
    record = read_metrics(tmp_path / "known" / "metrics.jsonl")[-1]
    assert record["flops_per_second"] == 2e9 * record["tokens_per_second"]
    assert record["flop_utilization"] == record["flops_per_second"] / 1e15
    err = capsys.readouterr().err
    assert re.search(r"of training, [\d,]+ tokens/s, [\d.]+[A-Z]? FLOP/s \(\d+% of peak\)", err)
    run(tmp_path / "unknown", ToyDataset(), num_steps=14)
    assert "flops_per_second" not in read_metrics(tmp_path / "unknown" / "metrics.jsonl")[-1]
    assert "FLOP" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "tera"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("CPU", 0),
        ("NVIDIA GeForce RTX 4090", 0),
    ],
)
def test_peak_of_devices_by_the_names_that_they_give_themselves(device, tera):
    assert devices.peak_flops_per_second(device, 4, "bfloat16") == 4e12 * tera


def test_flops_have_three_digits_and_a_prefix():
    assert [format_flops(x) for x in (61.23e12, 1e15, 999e6, 12.0)] == ["61.2T", "1P", "999M", "12"]
