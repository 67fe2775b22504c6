"""Why an NVIDIA GPU of this machine is not used, and the command that mends it.

A run on a CPU beside an idle GPU is the commonest mistake of a first installation, and neither TensorFlow nor JAX calls
it one: both compute on the CPU and say little. Nothing is imported here: files, environment and packages tell.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

OLDEST_DRIVERS = {12: 525, 13: 580}
"""The first driver branch that runs programs of a CUDA version."""
_ON_CUDA = {
    "tensorflow": {"nvidia-cudnn-cu12": 12},
    "jax": {"jax-cuda12-plugin": 12, "jax-cuda13-plugin": 13},
}
"""The packages that bring CUDA to a backend, with the version of it."""
_DISPLAY = "0x03"


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _answer_of(command: list[str]) -> tuple[int, str]:
    """Return exit code and stdout of a command; 127 where it cannot be started or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return 127, ""
    return done.returncode, done.stdout


@dataclass(frozen=True)
class Machine:
    """What there is to look at: files below `root`, the environment, packages and programs; tests give others."""

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    is_installed: Callable[[str], bool] = _is_installed
    answer_of: Callable[[list[str]], tuple[int, str]] = _answer_of

    def gpus(self) -> Gpus | None:
        """Return the NVIDIA GPUs of this machine; None where there are none."""
        program = shutil.which("nvidia-smi", path=self.environment.get("PATH"))
        if program:
            code, text = self.answer_of([program, "--query-gpu=name,driver_version", "--format=csv,noheader"])
            rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if "," in line]
            if code == 0 and rows:
                return Gpus(rows[0][0], len(rows), rows[0][1])
        found = [*(self.root / "proc/driver/nvidia/gpus").glob("*"), *(self.root / "dev").glob("nvidia[0-9]*")]
        if not found and not self._has_nvidia_card():
            return None
        version = self._file("proc/driver/nvidia/version")
        number = re.search(r"\b(\d{3,}\.[\d.]+)\b", version)
        return Gpus("NVIDIA GPU", max(1, len(found)), number[1] if number else "")

    def _has_nvidia_card(self) -> bool:
        cards = (self.root / "sys/bus/pci/devices").glob("*")
        return any(
            self._file(card / "vendor").strip() == "0x10de" and self._file(card / "class").startswith(_DISPLAY)
            for card in cards
        )

    def _file(self, path: str | Path) -> str:
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


@dataclass(frozen=True)
class Gpus:
    """The NVIDIA GPUs of a machine; `driver` is empty where none is loaded."""

    name: str
    count: int
    driver: str


def unused_gpu(backend: str, machine: Machine | None = None) -> str | None:
    """Return, for a run on the CPU, which GPU it leaves unused, why, and what mends it; None where there is no GPU."""
    machine = machine or Machine()
    gpus = machine.gpus()
    if gpus is None:
        return None
    return f"{gpus.count} x {gpus.name} is not used: {_reason(backend, gpus, machine)}"


def _reason(backend: str, gpus: Gpus, machine: Machine) -> str:
    environment = machine.environment
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    platforms = environment.get("JAX_PLATFORMS") or environment.get("JAX_PLATFORM_NAME") or ""
    on_cuda = {name: [v for p, v in packages.items() if machine.is_installed(p)] for name, packages in _ON_CUDA.items()}
    other = "jax" if backend == "tensorflow" else "tensorflow"
    if visible is not None and visible.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={visible} hides it; unset CUDA_VISIBLE_DEVICES"
    if backend == "jax" and platforms and not re.search("cuda|gpu", platforms):
        return f"JAX_PLATFORMS={platforms} forbids it; unset JAX_PLATFORMS"
    if not gpus.driver:
        return "its driver is not loaded; install NVIDIA's driver, and see that `nvidia-smi` lists the GPU"
    cuda = max(on_cuda[backend], default=12)
    oldest = OLDEST_DRIVERS[cuda]
    if int(gpus.driver.split(".")[0]) < oldest:
        return f"driver {gpus.driver} is too old for CUDA {cuda}; install driver {oldest} or newer"
    if not on_cuda[backend] and on_cuda[other]:
        return f"CUDA is installed for {other} alone; give --backend={other}, or run: make install EXTRA=cuda"
    if not on_cuda[backend]:
        return f"{backend} is installed without CUDA; run: make install EXTRA=cuda"
    return (
        f"{backend} has CUDA and driver {gpus.driver} is new enough, yet it finds no GPU; "
        "see what TF_CPP_MIN_LOG_LEVEL=0 shows, and whether `nvidia-smi` answers"
    )
