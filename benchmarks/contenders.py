"""Contenders of a benchmark: a process each, which answers every line of its input with a line of JSON.

All warm up first, and then they take turns, so that whatever else the machine does falls on all of them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Contender:
    """A contender's process, seen from the one that compares.

    Attributes:
        name: of the contender.
        known: what it said once it was ready; `error` where it failed.
        answers: to every turn.
    """

    def __init__(self, process: subprocess.Popen[str], errors: Any, name: str) -> None:
        self.process, self.errors, self.name = process, errors, name
        self.answers: list[dict[str, Any]] = []
        self.known: dict[str, Any] = self._answer()

    def take_turn(self, what: str = "turn") -> None:
        """Let the contender do once what `what` says, unless it failed before."""
        if "error" not in self.known:
            self.answers.append(self.ask(what))

    def ask(self, what: str) -> dict[str, Any]:
        """Return the answer to one line."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{what}\n")  # pyright: ignore[reportOptionalMemberAccess]
            self.process.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        while line and not line.startswith("{"):
            line = self.process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        if line:
            return json.loads(line)
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines() or [f"ended with {self.process.wait()}"]
        print(f"{self.name} failed: {lines[-1]}")
        self.known = {"error": lines[-1][:200]}
        return self.known


@contextlib.contextmanager
def contender(name: str, module: str, flags: Sequence[str], environment: Mapping[str, str]) -> Iterator[Contender]:
    """Start `python -m MODULE FLAGS` as the contender called `name`; end it at the end."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *flags],
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield Contender(process, errors, name)
        finally:
            process.kill()
            process.communicate()


def installed(packages: Mapping[str, str]) -> list[str]:
    """Return the contenders whose package is there, of contender -> package; print which is not."""
    left = []
    for name, package in packages.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name} is left out: {package} not installed")
        else:
            left.append(name)
    return left


def flags_of(options: Any, **changes: Any) -> list[str]:
    """Return the options of a benchmark, some of them changed, as the flags of a contender's process."""
    given = {name: getattr(options, name) for name in options.__dataclass_fields__} | changes
    return [
        f"--{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in given.items()
        if value not in (None, (), "")
    ]


def environment(backend: str, threads: int) -> dict[str, str]:
    """Return the environment of a contender: its backend of Keras, and its threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    given = dict.fromkeys(names, str(threads)) | {"TF_NUM_INTEROP_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if backend == "jax" and "xla_cpu_multi_thread_eigen" not in os.environ.get("XLA_FLAGS", "") and threads == 1:
        given["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    return {**os.environ, **given, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}


# -- in a contender's process ------------------------------------------------------------------------------------------


def answer_turns(known: Mapping[str, Any], turns: Mapping[str, Callable[[], Mapping[str, float] | None]]) -> None:
    """Say what is known, then do for each line of the input what it names, and answer with the seconds that it took.

    What a turn returns is added to the answer. The line `memory` is answered with the most memory that the process ever
    had, `peak_bytes`.
    """
    print(json.dumps(known), flush=True)
    for line in sys.stdin:
        if (what := line.strip()) == "memory":
            # ru_maxrss counts kilobytes.
            print(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), flush=True)
            continue
        begin, processor = time.perf_counter(), time.process_time()
        further = turns[what]()
        took = {"seconds": time.perf_counter() - begin, "processor_seconds": time.process_time() - processor}
        print(json.dumps(took | dict(further or {})), flush=True)
