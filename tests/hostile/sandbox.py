"""Run one call of a verb in a forked child that may take little time and memory, and see what becomes of its folder."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import hashlib
import importlib
import io
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Snapshot = dict[str, str]
"""Every file below a folder with a digest of its content; links by where they lead, folders end with /."""

GIB = 2**30
_SUBREAPER, _KEEP_CAPABILITIES = 36, 8
_NOBODY, _READ_ANYTHING = 65534, 2


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a call may take.

    Attributes:
        seconds: of a core, after which it hangs.
        wall_seconds: by the clock, for a call that waits.
        memory_bytes: of address space besides what the parent has.
        file_bytes: of one file.
        processes: that it may start.
    """

    seconds: int = 10
    wall_seconds: float = 60
    memory_bytes: int = 12 * GIB
    file_bytes: int = GIB
    processes: int = 40


@dataclasses.dataclass
class Observation:
    """What is seen of one call.

    Attributes:
        code: of the exit, negative for a signal; None where it was stopped because it hung.
        stdout: printed.
        stderr: printed.
        before: the files before the call.
        after: the files after it.
        strays: processes that outlived it.
        seconds: by the clock.
        core_seconds: of a core.
    """

    code: int | None
    stdout: str
    stderr: str
    before: Snapshot
    after: Snapshot
    strays: int
    seconds: float
    core_seconds: float = 0.0


def snapshot(folder: Path) -> Snapshot:
    """Return what lies below `folder`."""
    found: Snapshot = {}
    for root, folders, files in os.walk(folder):
        place = Path(root)
        links = [name for name in folders if (place / name).is_symlink()]
        found |= {f"{(place / name).relative_to(folder).as_posix()}/": "" for name in folders if name not in links}
        for name in [*files, *links]:
            path = place / name
            text = f"-> {path.readlink()}" if path.is_symlink() else digest(path)
            found[path.relative_to(folder).as_posix()] = text
    return found


def digest(path: Path) -> str:
    """Return the digest of a file's content."""
    return hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest() if path.is_file() else "special"


def observe(call: Callable[[], None], folder: Path, logs: Path, limits: Limits) -> Observation:
    """Run `call` in a child whose working folder is `folder`, and its words in `logs`; wait for its end."""
    before = snapshot(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _live(call, folder, logs, limits)
    code, core_seconds = _end_of(pid, started + limits.wall_seconds)
    seconds = time.monotonic() - started
    strays = _end_strays(pid)
    out, err = ((logs / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr"))
    return Observation(code, out, err, before, snapshot(folder), strays, seconds, core_seconds)


def adopt_orphans() -> None:
    """Become the parent of processes whose own parent dies, so that none is missed."""
    libc: Any = ctypes.CDLL(None)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)


def _end_of(pid: int, deadline: float) -> tuple[int | None, float]:
    """Wait for a child; return its code and its seconds of a core.

    The code is None for a child that had to be killed; its stack is then on its stderr.
    """
    pause = 0.001
    while True:
        found, status, used = os.wait4(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return None if code == -signal.SIGXCPU else code, used.ru_utime + used.ru_stime
        if time.monotonic() > deadline:
            break
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR1)
        time.sleep(0.3)
        os.killpg(pid, signal.SIGKILL)
    used = os.wait4(pid, 0)[2]
    return None, used.ru_utime + used.ru_stime


def _end_strays(group: int) -> int:
    """Return how many processes of the child's group still live two seconds after it, and kill them."""
    deadline = time.monotonic() + 2
    while _alive(group) and time.monotonic() < deadline:
        _reap()
        time.sleep(0.01)
    strays = _alive(group)
    if strays:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        time.sleep(0.05)
    _reap()
    return strays


def _alive(group: int) -> int:
    """Return 1 where the group has a process that is no zombie of ours."""
    _reap()
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return 0
    return 1


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


# -- inside the child --------------------------------------------------------------------------------------------------


def _live(call: Callable[[], None], folder: Path, logs: Path, limits: Limits) -> None:
    """Be the child: never returns."""
    code = 1
    try:
        os.setsid()
        _redirect(logs)
        os.chdir(folder)
        _give_up_rights(folder)
        _limit(limits)
        for name in ("TMPDIR", "HOME"):
            os.environ[name] = str(logs / "elsewhere")
        tempfile.tempdir = None  # what the parent found
        call()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        # What Python does with an exception that nobody catches.
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _redirect(logs: Path) -> None:
    """Let the three standard streams be files."""
    names = ((0, os.devnull, os.O_RDONLY), *((n, logs / w, os.O_WRONLY) for n, w in ((1, "stdout"), (2, "stderr"))))
    for number, name, mode in names:
        opened = os.open(name, mode | os.O_CREAT * bool(number) | os.O_APPEND, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=False)
    faulthandler.register(signal.SIGXCPU, file=2, all_threads=False, chain=True)


def _limit(limits: Limits) -> None:
    """Bound time, memory, size of files and number of processes."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = used + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Nobody pulls the plug, and a disk takes longer to sync than a call to answer.
    os.fsync = lambda _: None
    # SIGXCPU at the soft limit ends the process; of the parent's time nothing is counted.
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds + 2))
    fork, started = os.fork, [0]

    def counted() -> int:
        # As the kernel under `ulimit -u`, which does not hold for root.
        if started[0] >= limits.processes:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started[0] += 1
        return fork()

    os.fork = counted


def _give_up_rights(folder: Path) -> None:
    """As root become nobody, who may read everything and write in `folder` alone: no mistake reaches other files."""
    if os.geteuid() != 0:
        return
    libc: Any = ctypes.CDLL(None, use_errno=True)
    for place, folders, files in os.walk(folder):
        for name in ("", *folders, *files):
            os.chown(Path(place) / name, _NOBODY, _NOBODY, follow_symlinks=False)
    elsewhere = folder.parent / "logs/elsewhere"
    os.chown(elsewhere, _NOBODY, _NOBODY)
    libc.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header = struct.pack("<Ii", 0x20080522, 0)
    bits = 1 << _READ_ANYTHING
    if libc.capset(header, struct.pack("<6I", bits, bits, 0, 0, 0, 0)):
        raise OSError(ctypes.get_errno(), "capset")


# -- calls of verbs ----------------------------------------------------------------------------------------------------


def call_verb(verb: str, arguments: Sequence[str], *, trains: bool) -> None:
    """Do what `python VERB.py ARGUMENTS` does; without `trains` no step is computed. Ends by `SystemExit`."""
    from commands.flags import run

    sys.argv = [f"{verb}.py", *arguments]
    module: Any = importlib.import_module(verb)
    if verb.startswith("run_"):
        _without_compiling(trains=trains)
    if verb.startswith("convert_"):
        import conversion.parity

        parity: Any = conversion.parity
        parity.largest_differences = lambda *given: {"not compared": 0.0}
    if verb == "serve":
        _ends_once_ready()
    if verb.startswith("export_"):
        import serving.formats

        formats: Any = serving.formats
        formats.asked = lambda *given, **further: {}
        formats._measured = lambda name, *given: formats.Written(name, 1, (), (), 0.0, None)
    given = module.as_flags(arguments) if verb == "inspect_records" else arguments
    run(module.main, module.Options, given)


def _ends_once_ready() -> None:
    """Let a server do what it does at a signal as soon as its models are there."""
    import serving.server

    kind: Any = serving.server.Serving
    load = kind._load

    def loads_and_ends(self: Any, server: Any) -> None:
        load(self, server)
        self.stop()

    kind._load = loads_and_ends


def kill_at(number: int, seconds: float, folder: Path) -> None:
    """Kill this process when it is about to write, make, rename or remove the `number`-th time in `folder`, or later.

    The call of the system that writes may be one of a native library, of which Python sees nothing: some kills come
    `seconds` later.
    """
    begun, left = str(folder), number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "open":
            path, mode, flags = arguments
            if not isinstance(path, str | os.PathLike) or not (
                flags & _WRITES if mode is None else set("wax+") & {*mode}
            ):
                return
        elif event in _CHANGES and isinstance(arguments[0], str | os.PathLike):
            path = arguments[0]
        else:
            return
        # `Path.resolve` makes calls of its own.
        if not os.path.abspath(path).startswith(begun):  # noqa: PTH100
            return
        left -= 1
        if left == 0 and seconds:
            # Nobody handles this signal: it ends the process as SIGKILL does.
            signal.setitimer(signal.ITIMER_REAL, seconds)
        elif left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")


def _without_compiling(*, trains: bool) -> None:
    """Let TensorFlow compute step by step, which is quicker than compiling; or let the engine not train at all."""
    import tensorflow as tf

    from training.tensorflow_engine import TensorFlowEngine

    tf.config.run_functions_eagerly(True)
    if trains:
        return
    engine: Any = TensorFlowEngine

    def results(task: Any) -> dict[str, float]:
        terms = {f"{name}_loss": 1.0 for name in task.loss_weights}
        return {"loss": 1.0, **terms, **dict.fromkeys(task.metrics, 0.0)}

    def train(self: Any, batches: Sequence[Any]) -> list[dict[str, float]]:
        self.step += len(batches)
        numbers = {"learning_rate": 0.0, "gradient_norm": 0.0, "skipped": 0.0}
        return [results(self._task) | numbers for _ in batches]

    def evaluate(self: Any, batches: Any) -> dict[str, float]:
        for _ in batches:
            pass
        return results(self._task)

    engine.train, engine.evaluate = train, evaluate


def answer(verb: str, flags: Mapping[str, str], folder: Path) -> tuple[int, str]:
    """Call a verb in this process, in `folder`; return its exit code and what it printed."""
    from commands.flags import run

    module: Any = importlib.import_module(verb)
    if verb == "serve":
        _ends_once_ready()
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    words, code = io.StringIO(), 0
    with contextlib.chdir(folder), contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
        try:
            run(module.main, module.Options, arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, words.getvalue()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep back what is printed by Python."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
