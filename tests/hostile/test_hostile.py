"""A hundred wrong inputs of every class get one clear line; the judge sees what it is there to see."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.case import Base, Case, Expectation, Link, change
from tests.hostile.oracle import judge, judge_killed
from tests.hostile.run import ROOT, table
from tests.hostile.sandbox import Limits, kill_at, observe

CASES = 100
# A fork of a process that holds TensorFlow takes 20 ms: few are enough to see that they are counted.
LIMITS = Limits(seconds=1, wall_seconds=4, processes=4)
# A verb that does not exist: what it does is what a test plants.
BASE = Base("planted", "planted", {"text": "in/a.txt"}, (), ("out/",), ("text",), ("output",))


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str], list[dict]]:
    """Return the seeds, the finished runner and the lines that it left."""
    # In a process of its own: one that has computed with TensorFlow cannot fork.
    folder = tmp_path_factory.mktemp("hostile")
    seeds, output = folder / "seeds", folder / "found.jsonl"
    command = [sys.executable, "-m", "tests.hostile.run", f"--cases={CASES}", "--seed=1", "--jobs=2"]
    finished = subprocess.run(
        [*command, f"--seeds={seeds}", f"--output={output}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()] if output.is_file() else []
    return seeds, finished, lines


@pytest.mark.slow
def test_no_hostile_case_is_answered_badly(tried):
    _, finished, lines = tried
    failures = [line for line in lines if "faults" in line]
    told = [
        f"{line['again']} [{line['kind']}] {line['command']}\n    {line['change']}\n    {line['faults']}"
        for line in failures
    ]
    # pytest's processes cannot send text that is none.
    text = "\n".join([finished.stdout, *told, finished.stderr[-2000:]]).encode(errors="backslashreplace").decode()
    assert finished.returncode == 0, text


@pytest.mark.slow
def test_every_class_has_its_share_of_the_cases(tried):
    from tests.hostile.classes import CLASSES

    counts = tried[2][-1]["counts"]
    assert counts.keys() == {*CLASSES, "all"}
    assert sum(counts["all"].values()) == CASES
    assert sum(counts["control"].values()) >= CASES // 25


@pytest.mark.slow
def test_a_case_is_a_function_of_seed_and_index(tried):
    from tests.hostile.classes import kind_of, make_case

    # The runner makes some cases twice; those classes import TensorFlow and PyTorch.
    indices = [n for n in range(150) if kind_of(n) not in ("records", "tensors", "safetensors header", "torch file")]
    one, same, other = ([make_case(seed, n, tried[0]) for n in indices] for seed in (5, 5, 6))
    assert one == same
    assert [case.kind for case in one] == [case.kind for case in other]
    assert sum(a != b for a, b in zip(one, other, strict=True)) > 0.8 * len(indices)
    assert len({(case.flags, tuple(case.files.items())) for case in one}) > 0.8 * len(indices)


# -- the judge ---------------------------------------------------------------------------------------------------------


def refuses(line: str = "planted.py: in/a.txt: no text; give another", code: int = 2) -> None:
    print(line, file=sys.stderr)
    sys.exit(code)


def fails() -> None:
    raise KeyError("a")


def writes_over() -> None:
    Path("in/a.txt").write_text("other")
    refuses()


def removes() -> None:
    Path("victim").unlink()


def writes(name: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("half")


def leaves(name: str) -> None:
    writes(name)
    refuses()


def works_for_ever() -> None:
    while True:
        pass


def leaves_a_process() -> None:
    if os.fork() == 0:
        time.sleep(30)
    refuses()


def starts_many() -> None:
    for _ in range(1000):
        if os.fork() == 0:
            os._exit(0)


PLANTED: list[tuple[str, Callable[[], object], Expectation, str]] = [
    ("a refusal", refuses, "refuse", "refused"),
    ("success", lambda: None, "either", "succeeded"),
    ("output", lambda: writes("out/a"), "succeed", "succeeded"),
    ("a lock", lambda: leaves("out/.lock"), "refuse", "refused"),
    ("a word", lambda: print("in/a.txt is read as it is"), "refuse or name", "succeeded"),
    ("an OSError", lambda: refuses("planted.py: No such file or directory: in/a.txt", 1), "refuse", "refused"),
    ("damage that was found", lambda: (print("DAMAGED"), sys.exit(1)), "refuse", "refused"),
    ("no word", lambda: None, "refuse or name", "silent"),
    ("silence", lambda: None, "refuse", "silent"),
    ("a traceback", fails, "either", "traceback"),
    ("a refused control", refuses, "succeed", "refused what is right"),
    ("an input that changed", writes_over, "refuse", "input changed"),
    ("an input that is gone", removes, "succeed", "input changed"),
    ("a half output", lambda: leaves("out/a"), "refuse", "left-overs"),
    ("an output elsewhere", lambda: writes("in/b"), "succeed", "left-overs"),
    ("a loop", works_for_ever, "either", "hang"),
    ("a sleep", lambda: time.sleep(60), "either", "hang"),
    ("a crash", lambda: os.kill(os.getpid(), signal.SIGSEGV), "either", "crash"),
    ("a process", leaves_a_process, "refuse", "process left"),
    ("too many processes", starts_many, "either", "traceback"),
    ("too much memory", lambda: bytearray(1 << 44), "either", "traceback"),
    ("an odd code", lambda: sys.exit(7), "either", "odd code"),
    ("two lines", lambda: refuses("Warning: x\nplanted.py: in/a.txt: no text"), "refuse", "many lines"),
    ("no message", lambda: sys.exit(2), "refuse", "many lines"),
    ("a message of nothing", lambda: refuses("planted.py: something is wrong"), "refuse", "unclear"),
]


def planted(expect: Expectation = "either") -> Case:
    return change(BASE, "planted", "", expect, ["in/a.txt"], files={"in/a.txt": b"text\n", "victim": b"mine\n"})


@pytest.mark.parametrize(("plant", "expect", "outcome"), [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED])
def test_the_judge_sees_what_is_planted(plant: Callable[[], object], expect: Expectation, outcome: str, tmp_path: Path):
    case, folder, logs = planted(expect), tmp_path / "case", tmp_path / "logs"
    folder.mkdir()
    (logs / "elsewhere").mkdir(parents=True)
    case.place(tmp_path, folder)
    with warnings.catch_warnings():
        # JAX, if another test imported it, warns of forks.
        warnings.simplefilter("ignore")
        seen = observe(plant, folder, logs, LIMITS)  # pyright: ignore[reportArgumentType]
    verdict = judge(case, seen)
    assert verdict.outcome == outcome, (verdict, seen)


@pytest.mark.parametrize(("at", "left"), [(1, []), (2, ["out"]), (3, ["out", "out/a"]), (4, ["out", "out/b"])])
def test_a_call_is_killed_where_it_writes(at: int, left: list[str], tmp_path: Path):
    folder, logs = tmp_path / "case", tmp_path / "logs"
    (logs / "elsewhere").mkdir(parents=True)
    folder.mkdir()

    def write() -> None:
        kill_at(at, 0.0, folder)
        writes("out/a")
        Path("out/a").rename("out/b")
        Path("victim").write_text("other")

    case = planted()
    case.place(tmp_path, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = observe(write, folder, logs, LIMITS)
    assert seen.code == -signal.SIGKILL
    assert [name.rstrip("/") for name in sorted(seen.after) if name not in seen.before] == left
    assert judge_killed(case, seen) is None
    changed = dataclasses.replace(seen, after={**seen.after, "victim": "other"})
    assert (verdict := judge_killed(case, changed)) is not None
    assert verdict.outcome == "input changed"


def test_files_of_a_case_lie_where_it_says(tmp_path: Path):
    files = {"a/b": b"{case}/x", "link": Link("a/b"), "hard": Link("a/b", hard=True), "in/gone": None}
    case = change(BASE, "planted", "", "either", [], files=files, flags={"output": "{case}/out"}, uses=["in"])
    seeds, folder = tmp_path / "seeds", tmp_path / "case"
    (seeds / "in").mkdir(parents=True)
    (seeds / "in/gone").write_text("x")
    folder.mkdir()
    case.place(seeds, folder)
    assert (folder / "a/b").read_text() == f"{folder}/x"
    assert (folder / "link").is_symlink()
    assert (folder / "hard").samefile(folder / "a/b")
    assert not (folder / "in/gone").exists()
    assert case.arguments(folder) == ["--text=in/a.txt", f"--output={folder}/out"]


def test_the_table_counts_every_case_once():
    lines = [{"kind": "a", "outcome": "refused"}, {"kind": "a", "outcome": "hang"}, {"kind": "b", "outcome": "refused"}]
    rows = [line.split() for line in table(lines).splitlines()]
    assert rows[0] == ["class", "cases", "refused", "succeeded", "hang"]
    assert rows[1:] == [["a", "2", "1", ".", "1"], ["b", "1", "1", ".", "."], ["all", "3", "2", ".", "1"]]
