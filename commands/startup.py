"""Choosing the backend and starting it without chatter: a person sees the run or, in one line, what is wrong."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import shlex
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl.app import UsageError

from commands.options import DeviceOptions

WAITING_SECONDS = 300
"""How long a process waits for the others of its run: hosts of one start come within a minute or two."""
_RETRY_SECONDS, _TELL_SECONDS = 1.0, 30


def choose_backend(options: DeviceOptions) -> str:
    """Set KERAS_BACKEND by the flags and return it; call it before anything imports keras.

    Raises `UsageError` for a backend that is not installed, that has no engine, that has no TPU runtime, or that cannot
    do what other flags ask for.
    """
    chosen = options.backend
    if chosen == "auto":
        on_jax = options.use_tpu or not _is_installed("tensorflow")
        chosen = "jax" if on_jax else os.environ.get("KERAS_BACKEND", "tensorflow")
    if chosen not in ("tensorflow", "jax"):
        raise UsageError(
            f"KERAS_BACKEND={chosen}: there is no engine for it; give --backend=tensorflow or --backend=jax"
        )
    if not _is_installed(chosen):
        raise UsageError(f"--backend={chosen}: {chosen} is not installed; install it, or give another --backend")
    if options.use_tpu and options.precision == "float16":
        raise UsageError("--use_tpu=True --precision=float16: a TPU has no use for float16; give --precision=bfloat16")
    if chosen == "tensorflow":
        _check_tensorflow(options)
    elif options.use_tpu:
        _check_tpu_machine(options)
    if (options.num_processes or 1) > 1 and None in (options.coordinator_address, options.process_id):
        raise UsageError(
            f"--num_processes={options.num_processes} without --coordinator_address and --process_id: give all three"
        )
    os.environ["KERAS_BACKEND"] = chosen
    return chosen


def _check_tensorflow(options: DeviceOptions) -> None:
    for name, default in (
        ("model_parallel", 1),
        ("fsdp", False),
        ("coordinator_address", None),
        ("num_processes", None),
        ("process_id", None),
    ):
        if getattr(options, name) != default:
            instead = "" if name in ("model_parallel", "fsdp") else ", or describe the workers in TF_CONFIG"
            raise UsageError(f"--{name}={getattr(options, name)} needs the JAX engine: give --backend=jax{instead}")
    if options.use_tpu and not _is_distributed("tensorflow-tpu"):
        raise UsageError(
            "--use_tpu=True --backend=tensorflow: this TensorFlow has no TPU runtime; give --backend=jax, or install "
            "tensorflow-tpu 2.20.0"
        )


def _check_tpu_machine(options: DeviceOptions) -> None:
    name = options.tpu_name or options.master
    if name and name.startswith("grpc://"):
        raise UsageError(
            f"--tpu_name={name}: a grpc address is for TensorFlow's TPU runtime; on JAX the command runs on the TPU VM "
            "itself: give the TPU's name, or --backend=tensorflow"
        )
    if not _is_installed("libtpu"):
        raise UsageError(
            "--use_tpu=True: this installation has no TPU runtime; run: make install EXTRA=tpu, or train on CPU or GPU "
            "with --use_tpu=False"
        )
    if not _tpu_is_attached():
        places = {"zone": options.tpu_zone, "project": options.gcp_project}
        where = [f"--{flag}={value}" for flag, value in places.items() if value]
        command = shlex.join(["python3", *sys.argv])
        gcloud = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", name or "TPU_NAME", *where, "--worker=all"]
        raise UsageError(
            f"--use_tpu=True: no TPU is attached to this machine; start the run on the TPU's own: {shlex.join(gcloud)} "
            f"--command={shlex.quote(f'cd {Path.cwd().name} && {command}')}"
        )


def _tpu_is_attached(devices: Path = Path("/dev")) -> bool:
    """Whether the kernel shows a TPU: older drivers as accel0, newer ones as vfio/0."""
    return any(devices.glob("accel[0-9]*")) or any((devices / "vfio").glob("[0-9]*"))


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _is_distributed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def start_jax_processes(options: DeviceOptions) -> None:
    """Bring the processes of the run together, where there are several; call it before anything computes.

    On a TPU pod JAX finds out by itself who they are.

    Raises:
        UsageError: not all of them came.
    """
    if not (options.coordinator_address or "JAX_COORDINATOR_ADDRESS" in os.environ or options.use_tpu):
        return
    import jax

    address = options.coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS", "the pod's first host")
    if not options.use_tpu:
        count = f"all {options.num_processes}" if options.num_processes else "the"
        _say(f"waiting at most {WAITING_SECONDS} s for {count} processes of this run, which meet at {address}")
    try:
        if options.coordinator_address and options.process_id:
            _find_coordinator(options.coordinator_address, options.process_id)
        with patience(address):
            # JAX's own end of patience is a crash in C++, so that it has to come later than ours.
            jax.distributed.initialize(
                options.coordinator_address,
                options.num_processes,
                options.process_id,
                initialization_timeout=2 * WAITING_SECONDS,
            )
    except (RuntimeError, ValueError) as error:
        if options.use_tpu and not options.coordinator_address and isinstance(error, ValueError):
            # A TPU VM that belongs to no pod.
            return
        raise UsageError(
            f"the processes of the run did not come together at {address} ({' '.join(str(error).split())[:200]}): "
            "start the same command in each of them, with its own --process_id, and see whether one of them failed"
        ) from None
    if jax.process_count() > 1:
        from training.processes import JaxProcesses, use

        use(JaxProcesses())


def _find_coordinator(address: str, process_id: int) -> None:
    """Wait until the first process listens at HOST:PORT; JAX itself would end this process in C++, with a traceback.

    Raises `UsageError` for an address that is none, and where nobody listens within `WAITING_SECONDS`.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UsageError(f"--coordinator_address={address}: expected HOST:PORT of the process with --process_id=0")
    started, told, failure = time.monotonic(), 0.0, ""
    while (waited := time.monotonic() - started) < WAITING_SECONDS:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_RETRY_SECONDS):
                return
        except OSError as error:
            failure = error.strerror or str(error)
        if waited >= told + _TELL_SECONDS:
            told = waited
            _say(f"process {process_id} has waited {waited:.0f} s for process 0 at {address}: {failure}")
        time.sleep(_RETRY_SECONDS)
    raise UsageError(
        f"nobody answers at --coordinator_address={address} after {WAITING_SECONDS} s ({failure}): start the same "
        "command with --process_id=0 on that host, and see that its port can be reached"
    )


@contextlib.contextmanager
def patience(address: str) -> Iterator[None]:
    """Say now and then that the block still waits, and end the process in one line after `WAITING_SECONDS`.

    The block is a call into C++ that cannot be interrupted; before it nothing has been written.
    """
    came = threading.Event()

    def watch() -> None:
        for waited in range(_TELL_SECONDS, WAITING_SECONDS + 1, _TELL_SECONDS):
            if came.wait(_TELL_SECONDS):
                return
            _say(f"{waited} s of {WAITING_SECONDS}: not all processes of this run have come to {address}")
        _say(
            f"{Path(sys.argv[0]).name}: the processes of the run did not come together at {address} within "
            f"{WAITING_SECONDS} s: start the same command in each of them, with its own --process_id from 0 to "
            "--num_processes - 1, and see whether one of them failed"
        )
        os._exit(2)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        came.set()
        watcher.join()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def start_backend(options: DeviceOptions) -> None:
    """Import what computes and let it look for devices; call it before anything imports keras.

    Raises `UsageError` where --use_tpu is given and JAX finds no TPU, or another number of cores than is asked for.
    """
    if os.environ["KERAS_BACKEND"] != "jax":
        import_tensorflow()
        return
    with _stderr_kept_back():
        # libtpu, where it is installed for plans alone, complains that it finds no TPU.
        import jax

        devices = jax.devices()
    if options.use_tpu and devices[0].platform != "tpu":
        raise UsageError(
            f"--use_tpu=True: JAX finds no TPU here but {devices[0].platform.upper()}; is another process using it?"
        )
    if options.use_tpu and options.num_tpu_cores and options.num_tpu_cores not in (len(devices), tpu_cores(devices)):
        raise UsageError(
            f"--num_tpu_cores={options.num_tpu_cores} but there are {tpu_cores(devices)} ({len(devices)} devices, "
            f"{devices[0].device_kind}): leave it out to use all"
        )


def tpu_cores(devices: Sequence[Any]) -> int:
    """Return how many cores the devices have: v4 and v5p join two in each."""
    joined = devices[0].device_kind in ("TPU v4", "TPU v5", "TPU v5p")
    return len(devices) * (2 if joined else 1)


@contextlib.contextmanager
def _stderr_kept_back() -> Iterator[None]:
    """Keep back what is written to stderr by any language; show it if the block fails."""
    sys.stderr.flush()
    visible = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(visible, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(visible, 2)
            os.close(visible)


def import_tensorflow() -> None:
    """Import TensorFlow and let it look for devices; call it before anything imports keras.

    What its native libraries print before they read TF_CPP_MIN_LOG_LEVEL is shown only if the import fails.
    """
    with _stderr_kept_back():
        import tensorflow as tf

        tf.config.list_physical_devices()
    # Each batch shape is compiled once, by design; the warning takes length-bucketed batches for a mistake.
    logging.getLogger("tensorflow").addFilter(lambda record: "triggered tf.function retracing" not in str(record.msg))
