"""Try thousands of hostile cases: `python -m tests.hostile.run --cases=100000 --seed=1 --jobs=2 --output=found.jsonl`.

Prints, by class, how the verbs answered, and writes every failure as a line of JSON. `--only=INDEX --keep=FOLDER` makes
one case again and leaves its files and the command. TensorFlow is imported once; each case is a fork of that process.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import gc
import importlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ground.words import one_line
from tests.hostile.case import CASE, Case
from tests.hostile.oracle import CLEAN, FAULTS, Verdict, judge, judge_killed, last_line
from tests.hostile.sandbox import Limits, Observation, adopt_orphans, call_verb, kill_at, observe

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "KERAS_BACKEND": "tensorflow",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}
# Importing JAX starts threads, which a fork does not take along.
_NOT_IN_THE_PARENT = ("jax", "jaxlib", "libtpu", "transformers", "apache_beam")


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the cases; return 1 where any failed."""
    options = _parser().parse_args(arguments)
    os.environ |= ENVIRONMENT
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hostile-", ignore_cleanup_errors=True) as temporary:
        work = Path(temporary)
        work.chmod(0o755)
        seeds = prepare(work, options.seeds)
        print(f"seeds and imports in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        if options.only is not None:
            return try_one(options, seeds, work)
        wanted = [options.first + number for number in range(options.cases)]
        results = Path(options.output or work / "results.jsonl").resolve()
        results.write_bytes(b"")
        workers = [
            _in_child(lambda part=wanted[job :: options.jobs], job=job: _work(options, part, seeds, work, job, results))
            for job in range(options.jobs)
        ]
        _wait(workers, results, len(wanted), started)
        lines = sorted(map(json.loads, results.read_text().splitlines()), key=lambda line: line["index"])
    failures = [line for line in lines if line["outcome"] not in CLEAN]
    if options.output:
        _write(Path(options.output), failures, lines)
    print(table(lines))
    seconds = time.monotonic() - started
    print(f"{len(lines):,} cases, {len(failures):,} failures, in {seconds:.0f} s; seed {options.seed}")
    return int(bool(failures) or len(lines) < len(wanted))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", help="JSON lines of the failures, and of the counts at the end")
    parser.add_argument("--only", type=int, help="index of one case that is made again")
    parser.add_argument("--keep", help="with --only: folder in which its files stay")
    parser.add_argument("--seeds", help="folder of seeds that an earlier call made, or that this one shall leave")
    parser.add_argument("--seconds", type=int, default=10, help="of a core that a call may take")
    return parser


def prepare(work: Path, given: str | None = None) -> Path:
    """Import what all calls need, and make the seeds in a fork; TensorFlow computes nothing in this process."""
    from commands.startup import import_tensorflow

    import_tensorflow()
    seeds = Path(given).resolve() if given else work / "seeds"
    modules = seeds / "modules.json"
    if not modules.is_file():
        _finish(_in_child(lambda: _make_seeds(seeds)))
    for name in json.loads(modules.read_text()):
        if name.split(".")[0] not in _NOT_IN_THE_PARENT:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    gc.collect()
    gc.freeze()
    return seeds


def _make_seeds(seeds: Path) -> None:
    """Make the seeds, and note the modules that this imported."""
    from tests.hostile.seeds import make_seeds

    made = seeds.with_name(f"{seeds.name}.unfinished")
    shutil.rmtree(made, ignore_errors=True)
    make_seeds(made)
    names = [name for name, module in sys.modules.items() if getattr(module, "__file__", None)]
    (made / "modules.json").write_text(json.dumps(names))
    made.rename(seeds)


def _in_child(function: Callable[[], object]) -> int:
    """Call a function in a fork; return its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        function()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _finish(pid: int) -> None:
    status = os.waitpid(pid, 0)[1]
    if status:
        raise RuntimeError(f"a part of the preparation ended with {os.waitstatus_to_exitcode(status)}")


def _wait(workers: Iterable[int], results: Path, total: int, started: float) -> None:
    """Wait for the workers, and say every ten seconds how far they are; end them with this process."""
    left = set(workers)
    said = time.monotonic()
    try:
        while left:
            left -= {pid for pid in left if os.waitpid(pid, os.WNOHANG)[0]}
            time.sleep(0.05)
            if time.monotonic() - said > 10:
                said = time.monotonic()
                with results.open("rb") as stream:
                    done = sum(1 for _ in stream)
                print(f"{done:,} of {total:,} cases in {said - started:.0f} s", file=sys.stderr, flush=True)
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)


def _work(options: Any, indices: Sequence[int], seeds: Path, work: Path, job: int, results: Path) -> None:
    """Try the cases of these numbers, one line of JSON each."""
    from tests.hostile.classes import kind_of

    adopt_orphans()
    gc.freeze()
    folder = work / f"job-{job}"
    output = os.open(results, os.O_WRONLY | os.O_APPEND)
    for index in indices:
        try:
            line = tried(options.seed, index, seeds, folder, Limits(seconds=options.seconds))
        except Exception:
            # One case that cannot be made is a failure, and the others go on.
            again = f"--seed={options.seed} --only={index}"
            line = {"index": index, "kind": kind_of(index), "outcome": "broken case", "seconds": 0, "again": again}
            line |= {"faults": [traceback.format_exc()[-1500:]], "command": "", "change": "", "core_seconds": 0}
        os.write(output, (json.dumps(line) + "\n").encode())
    shutil.rmtree(folder, ignore_errors=True)


def tried(seed: int, index: int, seeds: Path, folder: Path, limits: Limits) -> dict[str, Any]:
    """Make a case, try it and judge; return what a line of the results holds."""
    from tests.hostile.classes import make_case

    case = make_case(seed, index, seeds)
    if index % 16 == 0 and case != make_case(seed, index, seeds):
        raise RuntimeError(f"case {index} of seed {seed} ({case.kind}) is not the same when it is made again")
    seen, verdict = attempt(case, seeds, folder, limits)
    line: dict[str, Any] = {"index": index, "kind": case.kind, "outcome": verdict.outcome}
    line |= {"seconds": round(seen.seconds, 2), "core_seconds": round(seen.core_seconds, 2)}
    if not verdict.clean:
        line |= described(case, seen, verdict) | {"again": f"--seed={seed} --only={index}"}
    return line


def attempt(case: Case, seeds: Path, folder: Path, limits: Limits) -> tuple[Observation, Verdict]:
    """Lay out a case in `folder`, call its verb, and judge."""
    shutil.rmtree(folder, ignore_errors=True)
    inside, logs = folder / "case", folder / "logs"
    inside.mkdir(parents=True)
    (logs / "elsewhere").mkdir(parents=True)
    case.place(seeds, inside)
    arguments = case.arguments(inside)
    if case.killed_at:

        def killed() -> None:
            kill_at(case.killed_at, case.killed_after, inside)
            call_verb(case.verb, arguments, trains=case.trains)

        seen = observe(killed, inside, logs, limits)
        if (verdict := judge_killed(case, seen)) is not None:
            return seen, verdict
        for log in ("stdout", "stderr"):
            (logs / log).unlink()
    seen = observe(lambda: call_verb(case.verb, arguments, trains=case.trains), inside, logs, limits)
    # As they are printed: some bytes are no text.
    names = tuple(one_line(name.replace(CASE, str(inside))) for name in case.names)
    return seen, judge(dataclasses.replace(case, names=names), seen)


def described(case: Case, seen: Observation, verdict: Verdict) -> dict[str, Any]:
    """Return all that a person needs to see of a failure."""
    files = {
        name: content[:120].decode("latin-1") if isinstance(content, bytes) else str(content)
        for name, content in case.files.items()
    }
    return {
        "faults": verdict.faults,
        "base": case.base,
        "change": case.change,
        "expect": case.expect,
        "command": shlex.join([f"{case.verb}.py", *(flag[:300] for flag in case.flags)]),
        "files": files,
        "code": seen.code,
        "stdout": last_line(seen.stdout),
        "stderr": seen.stderr[-1500:],
    }


def try_one(options: Any, seeds: Path, work: Path) -> int:
    """Make one case again, and show what comes of it."""
    from tests.hostile.classes import make_case

    adopt_orphans()
    case = make_case(options.seed, options.only, seeds)
    folder = work / "job-only"
    seen, verdict = attempt(case, seeds, folder, Limits(seconds=options.seconds))
    print(json.dumps(described(case, seen, verdict), indent=2, ensure_ascii=False))
    print(f"\n--- stdout\n{seen.stdout}\n--- stderr\n{seen.stderr}\n--- {verdict.outcome}")
    if options.keep:
        keep = Path(options.keep)
        shutil.rmtree(keep, ignore_errors=True)
        case.place(seeds, keep)
        command = [sys.executable, str(ROOT / f"{case.verb}.py"), *case.arguments(keep)]
        print(f"cd {keep} && {shlex.join(command)}")
    return int(not verdict.clean)


def counted(lines: Iterable[dict[str, Any]]) -> dict[str, collections.Counter[str]]:
    """Return how often each class had each outcome, and under `all` their sum."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for line in lines:
        for name in (line["kind"], "all"):
            counts[name][line["outcome"]] += 1
    return counts


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Return the counts of outcomes by class, as text."""
    counts = counted(lines)
    columns = [outcome for outcome in (*CLEAN, *FAULTS) if counts["all"][outcome] or outcome in CLEAN]
    names = [*sorted(counts.keys() - {"all"}), "all"]
    numbers = [
        [name, str(counts[name].total()), *(str(counts[name][each] or ".") for each in columns)] for name in names
    ]
    rows = [["class", "cases", *columns], *numbers]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    )


def _write(path: Path, failures: Iterable[dict[str, Any]], lines: Iterable[dict[str, Any]]) -> None:
    content = [*failures, {"counts": counted(lines)}]
    path.write_text("".join(json.dumps(line) + "\n" for line in content), encoding="utf-8")


if __name__ == "__main__":
    # Memory in large pages makes a fork four times as quick; the allocator is told before Python starts.
    if "PYTHONMALLOC" not in os.environ:
        os.environ |= {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        os.execv(sys.executable, [sys.executable, "-m", "tests.hostile.run", *sys.argv[1:]])
    sys.exit(main())
