"""Kill a pretraining run with SIGKILL again and again, wherever it is; it must end with the weights of one left alone.

    python tests/kill_test.py --kills=30

Every life is `run_pretraining.py` in a process forked after the imports, which leave no trace on disk. The run left
alone is the plain command. Compared bitwise are weights, averages and optimizer state of the last step and of the best
one, and by value the loss of every step and the held-out scores. pytest runs the short form.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PHASES = {"starting": 1, "compiling": 1, "training": 8, "evaluating": 3, "saving": 4}
"""Where a life may end, and how many times it may have been there."""
STEPS = 24


class Whereabouts:
    """What a child tells its parent through shared memory: its phase, how often it was there, how long that takes."""

    def __init__(self):
        self._memory = mmap.mmap(-1, 4096)
        for number in range(len(PHASES)):
            struct.pack_into("d", self._memory, 1024 + 8 * number, 0.2)

    def begin(self) -> None:
        """A life begins."""
        self._memory[:512] = bytes(512)
        self._enter(0)

    @contextlib.contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        """The child is in `phase`, then again where it was."""
        before, started = self._memory[0], time.monotonic()
        self._enter(list(PHASES).index(phase))
        try:
            yield
        finally:
            struct.pack_into("d", self._memory, 1024 + 8 * self._memory[0], time.monotonic() - started)
            self._memory[0] = before

    def _enter(self, number: int) -> None:
        self._memory[1 + number] += 1
        self._memory[0] = number

    @property
    def phase(self) -> str:
        """Where the child is."""
        return list(PHASES)[self._memory[0]]

    def visits(self, phase: str) -> int:
        """How often the child was in `phase`."""
        return self._memory[1 + list(PHASES).index(phase)]

    def seconds(self, phase: str) -> float:
        """How long the last one of that phase took."""
        return struct.unpack_from("d", self._memory, 1024 + 8 * list(PHASES).index(phase))[0]


def within(whereabouts: Whereabouts, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        with whereabouts.inside(phase):
            return function(*arguments, **named)

    return wrapped


def live(flags: list[str], whereabouts: Whereabouts, log: Path) -> int:
    """Fork a life; returns its process id. TensorFlow must not have computed anything in this process."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("ab") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        import run_pretraining
        import training.loop
        from commands.flags import run
        from training.tensorflow_engine import TensorFlowEngine

        engine: Any = TensorFlowEngine
        first, later = (within(whereabouts, phase, engine.train) for phase in ("compiling", "training"))
        calls = itertools.chain([first], itertools.repeat(later))

        def train(*arguments: Any) -> Any:
            return next(calls)(*arguments)

        engine.train = train
        engine.evaluate = within(whereabouts, "evaluating", engine.evaluate)
        training.loop.write_state = within(whereabouts, "saving", training.loop.write_state)
        run(run_pretraining.main, run_pretraining.Options, flags)
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@dataclasses.dataclass
class Result:
    """How the lives went."""

    kills: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    runs: int = 0
    crashes: int = 0

    def crashed(self, finished: int | None) -> bool:
        """Whether a life ended by a segmentation fault, which for the run is one more death.

        Seen once: forking after TensorFlow was imported is not safe. More than one in ten kills
        would be ours.
        """
        if finished != -signal.SIGSEGV or self.crashes > self.kills.total() // 10:
            return False
        self.crashes += 1
        print(f"a life crashed, run {self.runs}", flush=True)
        return True


def kill_and_finish(folder: Path, flags: list[str], kills: int, generator: random.Random) -> Result:
    """Run until `kills` lives were killed, in as many runs as that takes; raises `RuntimeError` for one that fails."""
    whereabouts, result = Whereabouts(), Result()
    log = folder / "log.txt"
    while True:
        output = folder / f"run_{result.runs}"
        while result.kills.total() < kills:
            whereabouts.begin()
            pid = live([*flags, f"--output_dir={output}"], whereabouts, log)
            phase = generator.choice(list(PHASES))
            visit = generator.randint(1, PHASES[phase])
            finished = None
            while finished is None and (whereabouts.phase != phase or whereabouts.visits(phase) < visit):
                time.sleep(0.0005)
                finished = status_of(pid, wait=False)
            where = phase
            if finished is None:
                time.sleep(generator.uniform(0, whereabouts.seconds(phase)))
                where = whereabouts.phase
                os.kill(pid, signal.SIGKILL)
                finished = status_of(pid, wait=True)
            if finished == -signal.SIGKILL:
                result.kills[where] += 1
                print(f"kill {result.kills.total()} of {kills}: {where}, run {result.runs}", flush=True)
            elif finished == 0:
                break
            elif not result.crashed(finished):
                raise RuntimeError(f"a life ended with {finished}:\n{log.read_text()[-4000:]}")
        else:
            code: int | None = None
            while code is None or (code and result.crashed(code)):
                code = status_of(live([*flags, f"--output_dir={output}"], whereabouts, log), wait=True)
            if code:
                raise RuntimeError(f"the last life ended with {code}:\n{log.read_text()[-4000:]}")
        result.runs += 1
        if result.kills.total() >= kills:
            return result


def status_of(pid: int, *, wait: bool) -> int | None:
    """Return the exit code, negative for a signal, or None for a process that goes on."""
    found, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def make_inputs(folder: Path) -> list[str]:
    """Write records and a config with dropout; returns the flags of the run."""
    from modeling import load_config

    demo = load_config(ROOT / "albert_config/albert_config_demo.json")
    config = dataclasses.replace(
        demo,
        hidden_size=16,
        embedding_size=8,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    (folder / "config.json").write_text(config.to_json())
    records = [
        f"--input_file={ROOT / 'data/samples/zh/nature.txt'}",
        f"--output_file={folder / 'records/zh.tfrecord'}",
        f"--vocab_file={ROOT / 'albert_config/vocab.txt'}",
        *("--do_whole_word_mask=True", "--max_seq_length=32", "--max_predictions_per_seq=5", "--dupe_factor=1"),
        *("--eval_fraction=0.3", "--num_workers=1"),
    ]
    call("create_pretraining_data.py", records)
    return [
        f"--input_file={folder / 'records/*.tfrecord'}",
        f"--bert_config_file={folder / 'config.json'}",
        *("--do_train=True", "--do_eval=True", "--max_eval_steps=2", "--train_batch_size=8"),
        *("--gradient_accumulation_steps=2", "--ema_decay=0.9", "--learning_rate=0.01", "--on_spike=skip"),
        *("--save_checkpoints_steps=4", "--eval_steps=6", "--keep_checkpoint_max=2", "--log_steps=1", "--norm_steps=3"),
        *(f"--num_train_steps={STEPS}", "--num_warmup_steps=4"),
    ]


def call(verb: str, flags: list[str]) -> None:
    finished = subprocess.run(
        [sys.executable, str(ROOT / verb), *flags], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise RuntimeError(f"{verb} ended with {finished.returncode}:\n{finished.stderr[-4000:]}")


def left_by(output: Path) -> dict[str, Any]:
    """Return what a finished run left: tensors as bytes, losses by step, scores."""
    from training.checkpoints import checkpoint_folder, read_state
    from training.hooks import read_metrics

    left: dict[str, Any] = {}
    for name, folder in (("last", checkpoint_folder(output, STEPS)), ("best", output / "best")):
        checkpoint = read_state(folder)
        left[f"{name} step"] = checkpoint.step
        left |= {f"{name} {key}": value.tobytes() for key, value in checkpoint.tensors.items()}
    timed = {"time", "tokens_per_second", "flops_per_second", "flop_utilization"}
    for record in read_metrics(output / "metrics.jsonl"):
        left[f"{record['phase']} {record['step']}"] = {key: x for key, x in record.items() if key not in timed}
    left["scores"] = json.loads((output / "eval_results.json").read_text())
    return left


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow", "TF_ENABLE_ONEDNN_OPTS": "1"}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        flags = make_inputs(folder)
        call("run_pretraining.py", [*flags, f"--output_dir={folder / 'alone'}"])
        alone = left_by(folder / "alone")
        # What every life imports.
        from commands.startup import import_tensorflow

        import_tensorflow()
        import run_pretraining  # noqa: F401
        import tasks.pretraining  # noqa: F401
        import training.loop
        import training.tensorflow_engine  # noqa: F401

        result = kill_and_finish(folder, flags, options.kills, random.Random(options.seed))
        for number in range(result.runs):
            found = left_by(folder / f"run_{number}")
            different = sorted(key for key in alone.keys() | found.keys() if alone.get(key) != found.get(key))
            assert not different, f"run {number} differs in {different[:5]} and {len(different)} values in all"
    where = ", ".join(f"{phase} {result.kills[phase]}" for phase in PHASES)
    seconds = time.monotonic() - started
    print(f"{result.kills.total()} kills ({where}) in {result.runs} runs and {seconds:.0f} s: all as if left alone")


@pytest.mark.slow
def test_a_run_killed_anywhere_ends_as_if_left_alone():
    # In a process of its own: one that has computed with TensorFlow cannot fork.
    command = [sys.executable, __file__, "--kills=2", f"--seed={int(time.time())}"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "2 kills" in finished.stdout


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
