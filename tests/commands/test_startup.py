import os
import shlex
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError

from commands import startup
from commands.options import DeviceOptions
from commands.startup import _stderr_kept_back, choose_backend, tpu_cores

EVERYTHING = {"tensorflow", "jax", "libtpu"}


def installed(monkeypatch, packages, backend="tensorflow", tpu=True):
    monkeypatch.setattr(startup, "_is_installed", lambda package: package in packages)
    monkeypatch.setattr(startup, "_is_distributed", lambda name: name in packages)
    monkeypatch.setattr(startup, "_tpu_is_attached", lambda: tpu)
    # Set first, so that what choose_backend sets is undone in either case.
    monkeypatch.setenv("KERAS_BACKEND", backend)


@pytest.mark.parametrize(
    ("flags", "environment", "packages", "chosen"),
    [
        ({}, "tensorflow", {"tensorflow", "jax"}, "tensorflow"),
        ({}, "jax", {"tensorflow", "jax"}, "jax"),
        ({}, "tensorflow", {"jax"}, "jax"),
        ({"use_tpu": True}, "tensorflow", EVERYTHING, "jax"),
        ({"use_tpu": True, "backend": "tensorflow"}, "tensorflow", {*EVERYTHING, "tensorflow-tpu"}, "tensorflow"),
        ({"backend": "jax", "fsdp": True}, "tensorflow", {"tensorflow", "jax"}, "jax"),
        ({"backend": "tensorflow"}, "jax", {"tensorflow", "jax"}, "tensorflow"),
    ],
)
def test_the_backend_is_chosen_before_keras_is_imported(monkeypatch, flags, environment, packages, chosen):
    installed(monkeypatch, packages, environment)
    assert choose_backend(DeviceOptions(**flags)) == chosen
    assert os.environ["KERAS_BACKEND"] == chosen


def test_tensorflow_computes_where_nothing_is_said(monkeypatch):
    installed(monkeypatch, EVERYTHING)
    monkeypatch.delenv("KERAS_BACKEND")
    assert choose_backend(DeviceOptions()) == "tensorflow"


@pytest.mark.parametrize(
    ("flags", "packages", "message"),
    [
        ({}, {"tensorflow"}, "KERAS_BACKEND=torch: there is no engine for it; give --backend=tensorflow or"),
        ({"backend": "jax"}, {"tensorflow"}, "--backend=jax: jax is not installed"),
        ({"backend": "tensorflow", "use_tpu": True}, EVERYTHING, "has no TPU runtime; give --backend=jax, or install"),
        (
            {"use_tpu": True, "precision": "float16"},
            EVERYTHING,
            "a TPU has no use for float16; give --precision=bfloat16",
        ),
        ({"use_tpu": True}, {"tensorflow", "jax"}, "no TPU runtime; run: make install EXTRA=tpu"),
        ({"use_tpu": True, "tpu_name": "grpc://10.0.0.2:8470"}, EVERYTHING, "on JAX the command runs on the TPU VM"),
        ({"use_tpu": True, "master": "grpc://10.0.0.2:8470"}, EVERYTHING, "--tpu_name=grpc://10.0.0.2:8470: a grpc"),
        ({"backend": "tensorflow", "fsdp": True}, EVERYTHING, "--fsdp=True needs the JAX engine: give --backend=jax$"),
        ({"backend": "tensorflow", "model_parallel": 2}, EVERYTHING, "--model_parallel=2 needs the JAX engine"),
        ({"backend": "tensorflow", "process_id": 0}, EVERYTHING, "give --backend=jax, or describe the workers in TF_C"),
        ({"backend": "jax", "num_processes": 2}, EVERYTHING, "--num_processes=2 without --coordinator_address and"),
    ],
)
def test_what_cannot_train_here_is_one_line(monkeypatch, flags, packages, message):
    installed(monkeypatch, packages, "torch")
    with pytest.raises(UsageError, match=message):
        choose_backend(DeviceOptions(**flags))
    assert os.environ["KERAS_BACKEND"] == "torch"


def test_away_from_the_tpu_the_command_to_give_there_is_told(monkeypatch):
    installed(monkeypatch, EVERYTHING, tpu=False)
    monkeypatch.setattr(sys, "argv", ["run_pretraining.py", "--input_file=records/*.tfrecord", "--use_tpu=True"])
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(UsageError) as error:
        choose_backend(DeviceOptions(use_tpu=True, tpu_name="mine", tpu_zone="us-central2-b", gcp_project="p"))
    told = shlex.split(str(error.value).split("start the run on the TPU's own: ")[1])
    place = ["--zone=us-central2-b", "--project=p", "--worker=all"]
    assert told[:-1] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "mine", *place]
    assert shlex.split(told[-1].removeprefix("--command="))[-4:] == ["python3", *sys.argv]


def test_cores_are_two_in_each_device_of_v4_and_v5p():
    def devices(kind, count):
        return [types.SimpleNamespace(device_kind=kind)] * count

    assert tpu_cores(devices("TPU v3", 8)) == 8
    assert tpu_cores(devices("TPU v4", 4)) == 8
    assert tpu_cores(devices("TPU v5", 4)) == 8
    assert tpu_cores(devices("TPU v5 lite", 4)) == 4


@pytest.mark.slow
def test_tensorflow_starts_without_a_word():
    code = (
        "from commands.startup import import_tensorflow as start; start(); import keras; print(keras.backend.backend())"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow"}
    started = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=environment, check=True
    )
    assert (started.stdout, started.stderr) == ("tensorflow\n", "")


def test_what_was_kept_back_is_shown_when_it_fails(capfd):
    def failing():
        with _stderr_kept_back():
            os.write(2, b"no CUDA 13\n")
            raise ImportError

    with pytest.raises(ImportError):
        failing()
    assert capfd.readouterr().err == "no CUDA 13\n"


@pytest.mark.parametrize(
    ("files", "attached"), [([], False), (["accel0"], True), (["vfio/0"], True), (["vfio/x"], False)]
)
def test_a_tpu_is_found_by_either_driver(tmp_path, files, attached):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert startup._tpu_is_attached(tmp_path) is attached


def test_a_distribution_is_there_or_not():
    assert startup._is_distributed("absl-py")
    assert not startup._is_distributed("a-package-that-nobody-wrote")


def test_nobody_at_the_coordinator_s_address_is_one_line_within_the_limit(monkeypatch, capsys):
    monkeypatch.setattr(startup, "WAITING_SECONDS", 0.3)
    monkeypatch.setattr(startup, "_TELL_SECONDS", 0.1)
    monkeypatch.setattr(startup, "_RETRY_SECONDS", 0.05)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UsageError, match=f"nobody answers at --coordinator_address={address} after 0.3 s"):
        startup._find_coordinator(address, 1)
    assert f"process 1 has waited 0 s for process 0 at {address}: Connection refused" in capsys.readouterr().err
    for wrong in ("x", "host:", ":1", "host:99999", "host:a"):
        with pytest.raises(UsageError, match=f"--coordinator_address={wrong}: expected HOST:PORT"):
            startup._find_coordinator(wrong, 1)


def test_a_first_process_that_stays_alone_ends_in_one_line():
    script = (
        "import sys, time; from commands import startup; startup.WAITING_SECONDS, startup._TELL_SECONDS = 2, 1;"
        "sys.argv[0] = 'verb.py'\nwith startup.patience('h:1'): time.sleep(60)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 2
    *waits, last = ended.stderr.splitlines()
    assert waits == [f"{n} s of 2: not all processes of this run have come to h:1" for n in (1, 2)]
    assert last.startswith("verb.py: the processes of the run did not come together at h:1 within 2 s: start the same")


@pytest.mark.parametrize(
    ("given", "environment", "sought"),
    [
        ({}, {}, None),
        ({"coordinator_address": "h:1", "num_processes": 3, "process_id": 0}, {}, []),
        ({"coordinator_address": "h:1", "num_processes": 3, "process_id": 2}, {}, [("h:1", 2)]),
        ({"use_tpu": True}, {}, []),
        ({}, {"JAX_COORDINATOR_ADDRESS": "h:2"}, []),
    ],
)
def test_processes_of_jax_meet_where_the_flags_say(monkeypatch, given, environment, sought):
    """Without an address nothing is waited for; process 0 is the one that is met, and seeks nobody."""
    told, found = [], []
    initialize = types.SimpleNamespace(initialize=lambda *values, **names: told.append((values, names)))
    jax = types.SimpleNamespace(distributed=initialize, process_count=lambda: 1)
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setattr(startup, "_find_coordinator", lambda *values: found.append(values))
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    usual = {"coordinator_address": None, "num_processes": None, "process_id": None, "use_tpu": False}
    options: Any = types.SimpleNamespace(**usual | given)
    startup.start_jax_processes(options)
    values = (options.coordinator_address, options.num_processes, options.process_id)
    waiting = {"initialization_timeout": 2 * startup.WAITING_SECONDS}
    assert told == ([] if sought is None else [(values, waiting)])
    assert found == (sought or [])


def test_a_tpu_that_belongs_to_no_pod_runs_alone_and_other_failures_are_one_line(monkeypatch):
    def fail(error):
        def initialize(*values, **names):
            raise error

        monkeypatch.setitem(
            sys.modules, "jax", types.SimpleNamespace(distributed=types.SimpleNamespace(initialize=initialize))
        )

    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    usual = {"coordinator_address": None, "num_processes": None, "process_id": None, "use_tpu": True}
    fail(ValueError("no pod"))
    startup.start_jax_processes(types.SimpleNamespace(**usual))  # pyright: ignore
    for more, error in (({}, RuntimeError("x")), ({"coordinator_address": "h:1"}, ValueError("x"))):
        fail(error)
        with pytest.raises(
            UsageError, match=r"the processes of the run did not come together at .* .x.: start the same"
        ):
            startup.start_jax_processes(types.SimpleNamespace(**usual | more))  # pyright: ignore
