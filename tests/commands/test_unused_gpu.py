"""The line about a GPU that is there and not used, on machines made of files, environments and a fake nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands.unused_gpu import Machine, unused_gpu

SMI = "#!/bin/sh\necho 'NVIDIA L4, {driver}'\necho 'NVIDIA L4, {driver}'\n"
EVERYTHING = {"nvidia-cudnn-cu12", "jax-cuda12-plugin"}


def machine(folder: Path, packages: set[str], driver: str | None = "550.54.15", **environment: str) -> Machine:
    """Return a machine whose nvidia-smi, if it has one, lists two GPUs."""
    programs = folder / "bin"
    programs.mkdir()
    if driver is not None:
        (programs / "nvidia-smi").write_text(SMI.format(driver=driver))
        (programs / "nvidia-smi").chmod(0o755)
    return Machine(folder, {"PATH": str(programs), **environment}, packages.__contains__)


@pytest.mark.parametrize(
    ("backend", "packages", "driver", "environment", "reason"),
    [
        ("tensorflow", set(), "550.54.15", {}, "tensorflow is installed without CUDA; run: make install EXTRA=cuda"),
        ("jax", set(), "550.54.15", {}, "jax is installed without CUDA; run: make install EXTRA=cuda"),
        ("tensorflow", {"jax-cuda12-plugin"}, "550.54.15", {}, "for jax alone; give --backend=jax, or run: make"),
        ("tensorflow", EVERYTHING, "550.54.15", {"CUDA_VISIBLE_DEVICES": ""}, "hides it; unset CUDA_VISIBLE_DEVICES"),
        ("jax", EVERYTHING, "550.54.15", {"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES=-1 hides it"),
        ("jax", EVERYTHING, "550.54.15", {"JAX_PLATFORMS": "cpu"}, "JAX_PLATFORMS=cpu forbids it; unset JAX_PLATFORMS"),
        ("jax", EVERYTHING, "470.82.01", {}, "driver 470.82.01 is too old for CUDA 12; install driver 525 or newer"),
        ("jax", {"jax-cuda13-plugin"}, "550.54.15", {}, "driver 550.54.15 is too old for CUDA 13; install driver 580"),
        ("jax", EVERYTHING, "550.54.15", {"JAX_PLATFORMS": "cuda,cpu"}, "jax has CUDA and driver 550.54.15 is new"),
        ("tensorflow", EVERYTHING, "550.54.15", {"JAX_PLATFORMS": "cpu"}, "tensorflow has CUDA and driver"),
    ],
)
def test_the_reason_and_what_mends_it(
    tmp_path: Path, backend: str, packages: set[str], driver: str, environment: dict[str, str], reason: str
):
    told = unused_gpu(backend, machine(tmp_path, packages, driver, **environment))
    assert told
    assert told.startswith("2 x NVIDIA L4 is not used: ")
    assert reason in told
    assert "\n" not in told


def test_a_machine_without_a_gpu_has_no_such_line(tmp_path: Path):
    assert unused_gpu("jax", machine(tmp_path, set(), driver=None)) is None


def test_an_nvidia_smi_that_finds_nothing_is_no_gpu(tmp_path: Path):
    here = machine(tmp_path, set())
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert unused_gpu("jax", here) is None


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["dev/nvidia0", "dev/nvidiactl"], "its driver is not loaded"),
        (["proc/driver/nvidia/gpus/0000:01:00.0/information"], "its driver is not loaded"),
        (["dev/nvidia0", "proc/driver/nvidia/version"], "jax is installed without CUDA"),
        (["sys/bus/pci/devices/a/vendor", "sys/bus/pci/devices/a/class"], "its driver is not loaded"),
    ],
)
def test_without_nvidia_smi_the_files_of_the_driver_tell(tmp_path: Path, files: list[str], reason: str):
    here = machine(tmp_path, set(), driver=None)
    contents = {"vendor": "0x10de\n", "class": "0x030200\n"}
    contents["version"] = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n"
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(contents.get(Path(file).name, ""))
    told = unused_gpu("jax", here)
    assert told
    assert told.startswith("1 x NVIDIA GPU is not used: ")
    assert reason in told


def test_another_vendor_is_no_gpu_of_ours(tmp_path: Path):
    card = tmp_path / "sys/bus/pci/devices/a"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x1002\n")
    (card / "class").write_text("0x030000\n")
    assert unused_gpu("jax", machine(tmp_path, set(), driver=None)) is None
