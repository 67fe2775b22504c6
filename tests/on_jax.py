"""The environment of a process in which a test computes on JAX, on virtual CPU devices, and how XLA compiles in tests.

The tests compare what our code computes; how fast the compiled program runs is nothing to them, and the compiler takes
most of their time.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUICKLY_COMPILED = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
"""Flags with which XLA compiles the whole step of a model in less than half the CPU time that optimised code takes."""


@functools.cache
def _compiled() -> tempfile.TemporaryDirectory[str]:
    """Return the folder of what this test process and those that it starts have compiled, which goes at its end.

    A file that JAX is writing has half a program in it, so that the folder is no other test process's.
    """
    return tempfile.TemporaryDirectory(prefix="compiled-by-jax-")


def environment_on_jax(*folders: Path, devices: int = 1) -> dict[str, str]:
    """Return this process's environment changed for JAX on `devices` virtual devices.

    `folders`, where any are given, become all that is imported from besides the installed packages. What one of the
    processes has compiled the next one reads: a run that goes on has the step of the run that was stopped.
    """
    flags = f"--xla_force_host_platform_device_count={devices} {QUICKLY_COMPILED}"
    changed = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        changed["JAX_COMPILATION_CACHE_DIR"] = _compiled().name
    # By default JAX writes only what took a second to compile.
    changed |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    if folders:
        changed["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    return {**os.environ, **changed}
