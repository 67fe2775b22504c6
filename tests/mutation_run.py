"""Small wrong changes, one at a time, each against the tests of its part: which of them does no test notice?

    python -m tests.mutation_run --mutants=200 --output=/tmp/mutants.jsonl
    python -m tests.mutation_run --again --slow --output=/tmp/mutants.jsonl

Not part of `make test`. A mutant changes one place of one source file in a copy of the checkout; pytest then runs the
test files that know the module, in a process forked after the heavy imports. A mutant that fails a test is killed; the
survivors are listed with their change. Equivalent mutants (the change computes the same) are for a person to see.
"""

from __future__ import annotations

import argparse
import ast
import collections
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("modeling", "optimization", "tasks", "data", "training", "conversion", "commands", "ground", "serving")
VERBS = ("create_pretraining_data", "run_pretraining", "run_classifier", "inspect_records", "convert_checkpoint")
# Tests that use a part through the verbs; they come last, for mutants that the part's own tests let live.
THROUGH_VERBS = ("tests/test_flags_observable.py", "tests/test_verbs.py", "tests/test_fine_tuning.py")
CRASHES = (-signal.SIGSEGV, -signal.SIGABRT)

# Calls that tell something, or wait for the disk, and change nothing else.
_TOLD = ("say", "warn", "watch.stop", "os.fsync")
_COMPARISONS = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="}
_ARITHMETIC = {ast.Add: "-", ast.Sub: "+", ast.Mult: "+", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "+"}


@dataclass(frozen=True)
class Mutant:
    """One change: the characters [begin, end) of `path` become `text`."""

    path: str
    line: int
    begin: int
    end: int
    before: str
    text: str

    @property
    def title(self) -> str:
        return f"{self.path}:{self.line}: {' '.join(self.before.split())[:60]} -> {' '.join(self.text.split())[:60]}"


class _Places(ast.NodeVisitor):
    """Collects the mutants of one file.

    Left out are messages, help texts, typing and what only a script runs; `os.fsync`, which a test could see only by
    cutting the power; and `strict` of `zip`, which speaks only where a law that other tests hold is broken already.
    """

    def __init__(self, path: str, source: str):
        self.path, self.source = path, source
        self.found: list[Mutant] = []
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line.encode()))
        self.encoded = source.encode()

    def text(self, node: ast.AST) -> str:
        return ast.get_source_segment(self.source, node) or ""

    def add(self, node: ast.expr | ast.stmt, text: str) -> None:
        begin = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        before = self.encoded[begin:end].decode()
        if before != text:
            self.found.append(Mutant(self.path, node.lineno, begin, end, before, text))

    def visit_Raise(self, node: ast.Raise) -> None:
        """A message is no behaviour."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Nor is a text for the eye."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.without_decorators(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.without_decorators(node)

    def without_decorators(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        """Leave out decorators: whether a dataclass is frozen changes no result."""
        for child in ast.iter_child_nodes(node):
            if child not in node.decorator_list:
                self.visit(child)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None and not (isinstance(node.value, ast.Call) and self.text(node.value.func) == "flag"):
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        condition = self.text(node.test)
        if condition == "TYPE_CHECKING" or "__name__" in condition:
            return
        if not all(isinstance(each, ast.Raise) for each in node.body):
            self.add(node.test, f"not ({condition})")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.add(node.test, f"not ({self.text(node.test)})")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
            operator = _COMPARISONS[type(node.ops[0])]
            self.add(node, f"{self.text(node.left)} {operator} {self.text(node.comparators[0])}")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in _ARITHMETIC and not isinstance(node.left, ast.Constant | ast.List | ast.Tuple):
            self.add(node, f"({self.text(node.left)}) {_ARITHMETIC[type(node.op)]} ({self.text(node.right)})")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = " or " if isinstance(node.op, ast.And) else " and "
        self.add(node, other.join(f"({self.text(value)})" for value in node.values))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if type(node.value) is int and abs(node.value) < 1 << 16:
            self.add(node, str(node.value + 1))
        elif type(node.value) is float:
            self.add(node, repr(node.value * 2 + 0.1))
        elif type(node.value) is bool:
            self.add(node, str(not node.value))

    def visit_Call(self, node: ast.Call) -> None:
        name = self.text(node.func)
        if name.endswith(("print", *_TOLD, "print_table", "flag")):
            return
        if name == "zip":
            for each in node.args:
                self.visit(each)
            return
        for keyword in node.keywords:
            # An argument that is forgotten: the commonest way in which a flag comes to do nothing.
            if keyword.arg and not isinstance(keyword.value, ast.Constant):
                kept = [self.text(each) for each in node.args]
                kept += [
                    f"{each.arg}={self.text(each.value)}" if each.arg else f"**{self.text(each.value)}"
                    for each in node.keywords
                    if each is not keyword
                ]
                self.add(node, f"{name}({', '.join(kept)})")
        if len(node.args) == 2 and not node.keywords and not any(isinstance(each, ast.Starred) for each in node.args):
            self.add(node, f"{name}({self.text(node.args[1])}, {self.text(node.args[0])})")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            if not self.text(node.value.func).endswith(_TOLD):
                self.add(node, "pass")
            self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.add(node, "pass")
        self.generic_visit(node)


def mutants_of(path: Path) -> list[Mutant]:
    """Return every mutant of a file that still compiles."""
    source = path.read_text(encoding="utf-8")
    places = _Places(path.relative_to(ROOT).as_posix(), source)
    places.visit(ast.parse(source))
    return [mutant for mutant in places.found if _compiles(source, mutant)]


def _compiles(source: str, mutant: Mutant) -> bool:
    try:
        compile(changed(source, mutant), mutant.path, "exec")
    except SyntaxError:
        return False
    return True


def changed(source: str, mutant: Mutant) -> str:
    """Return the source with the mutant's change."""
    encoded = source.encode()
    return (encoded[: mutant.begin] + mutant.text.encode() + encoded[mutant.end :]).decode()


def chosen(number: int, seed: int, only: Sequence[str]) -> list[Mutant]:
    """Return about `number` mutants in random order, so that a run that is broken off has seen every part.

    A part has as many as its share of the source, a line at most one.
    """
    draw = random.Random(seed)
    paths = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]
    paths += [ROOT / f"{verb}.py" for verb in VERBS]
    paths = [path for path in paths if not only or path.relative_to(ROOT).as_posix().startswith(tuple(only))]
    by_place: dict[tuple[str, int], list[Mutant]] = collections.defaultdict(list)
    for path in paths:
        for mutant in mutants_of(path):
            by_place[mutant.path, mutant.line].append(mutant)
    places = sorted(by_place)
    return [draw.choice(by_place[place]) for place in draw.sample(places, min(number, len(places)))]


def outcomes_in(path: Path) -> dict[Mutant, bool]:
    """Return the mutants that a file of outcomes names, each with whether it was killed at last."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [json.loads(line) for line in lines]
    return {Mutant(**{field.name: row[field.name] for field in fields(Mutant)}): row["killed"] for row in rows}


def tests_of(path: str) -> list[str]:
    """Return the test files that know a source file: those of its own name, of its importers, then of the verbs."""
    module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    stem, part = module.rpartition(".")[2], module.partition(".")[0]
    listed = [test for test in sorted(ROOT.glob("tests/**/test_*.py")) if test.stem != "test_architecture"]
    package = re.escape(module.rpartition(".")[0])
    imported = re.compile(rf"\b{re.escape(module)}\b|from {package} import .*\b{stem}\b")
    ranks = {}
    for test in listed:
        name, text = test.relative_to(ROOT).as_posix(), test.read_text(encoding="utf-8")
        if test.stem == f"test_{stem}":
            ranks[name] = 0
        elif imported.search(text):
            ranks[name] = 1
        elif name.startswith(f"tests/{part}/"):
            ranks[name] = 2
        elif name in THROUGH_VERBS:
            ranks[name] = 3
    return sorted(ranks, key=lambda name: (ranks[name], name))


def prepare() -> None:
    """Import what every test needs, nothing of this project: children are forked from here."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = "1"
    import keras  # noqa: F401
    import pytest  # noqa: F401
    import tensorflow  # noqa: F401


def run_tests(folder: Path, tests: Sequence[str], slow: bool, limit_seconds: float) -> int:
    """Run test files of a copy in a forked process; return its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        os.chdir(folder)
        sys.path[:] = [str(folder), *(each for each in sys.path if Path(each or ".").resolve() != ROOT)]
        import pytest

        arguments = [
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "--no-header",
            "--assert=plain",
            *([] if slow else ["-m", "not slow"]),
            *tests,
        ]
        code = 3
        try:
            code = int(pytest.main(arguments))
        finally:
            os._exit(code)
    end = time.monotonic() + limit_seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124


_passes_unchanged: dict[str, bool] = {}


def usable(tests: Sequence[str], folder: Path, options: argparse.Namespace) -> list[str]:
    """Return the test files that pass without a change: by the others every mutant would count as killed."""
    for test in tests:
        if test not in _passes_unchanged:
            code = run_tests(folder, [test], options.slow, options.limit_seconds)
            _passes_unchanged[test] = code in (0, 5)
            if code not in (0, 5):
                print(f"left out: {test} ends with exit status {code} without any change", flush=True)
    return [test for test in tests if _passes_unchanged[test]]


def judged(mutant: Mutant, folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Return what became of a mutant: the test files that killed it, or that it survived."""
    target, source = folder / mutant.path, (ROOT / mutant.path).read_text(encoding="utf-8")
    tests, begin = tests_of(mutant.path), time.monotonic()
    for number in range(0, len(tests), options.files_at_once):
        some = usable(tests[number : number + options.files_at_once], folder, options)
        if not some:
            continue
        target.write_text(changed(source, mutant), encoding="utf-8")
        try:
            code = run_tests(folder, some, options.slow, options.limit_seconds)
            if code in CRASHES:
                # A process forked after TensorFlow's import may crash by itself: asked twice.
                code = run_tests(folder, some, options.slow, options.limit_seconds)
        finally:
            target.write_text(source, encoding="utf-8")
        if code in (3, 4):
            raise RuntimeError(f"pytest itself failed with {code} on {' '.join(some)}")
        if code not in (0, 5):
            return {"killed": True, "code": code, "by": some, "seconds": time.monotonic() - begin}
    return {"killed": False, "code": 0, "by": tests, "seconds": time.monotonic() - begin}


def copies(count: int) -> Iterator[Path]:
    """Yield folders that each hold the checkout's files."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for _ in range(count):
        folder = Path(tempfile.mkdtemp(prefix="mutants_"))
        for name in filter(None, listed):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        if (ROOT / ".venv").is_dir():
            # create_pretrain_data.sh looks for it.
            (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        subprocess.run(["git", "add", "-A", "-f"], cwd=folder, check=True)
        yield folder


def main() -> int:
    """Run the mutants; return 1 if fewer than --at_least percent were killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=200, help="about how many")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--only", default="", help="files and folders, separated by commas")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--slow", action="store_true", help="run tests marked slow too")
    parser.add_argument("--files_at_once", type=int, default=4, help="test files of one process")
    parser.add_argument("--limit_seconds", type=float, default=240, help="a process that takes longer is a kill")
    parser.add_argument("--at_least", type=float, default=95, help="percent that have to be killed")
    parser.add_argument(
        "--output", default="mutants.jsonl", help="receives a line for every mutant; those that it names are not tried"
    )
    parser.add_argument("--again", action="store_true", help="try those that lived in --output once more, no others")
    options = parser.parse_args()
    known = outcomes_in(Path(options.output))
    if options.again:
        mutants = [mutant for mutant, killed in known.items() if not killed]
    else:
        mutants = chosen(options.mutants, options.seed, list(filter(None, options.only.split(","))))
        mutants = [mutant for mutant in mutants if mutant not in known]
    prepare()
    free: Queue[Path] = Queue()
    folders = list(copies(options.jobs))
    for folder in folders:
        free.put(folder)
    done = collections.Counter[bool]()

    def judge(mutant: Mutant) -> None:
        folder = free.get()
        try:
            outcome = judged(mutant, folder, options)
        finally:
            free.put(folder)
        done[bool(outcome["killed"])] += 1
        with Path(options.output).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**asdict(mutant), **outcome}) + "\n")
        word = "killed" if outcome["killed"] else "LIVES "
        print(f"[{done.total()}/{len(mutants)}] {word} {mutant.title}  ({outcome['seconds']:.0f} s)", flush=True)

    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(judge, mutants))
    finally:
        for folder in folders:
            shutil.rmtree(folder)
    outcomes = list(outcomes_in(Path(options.output)).values())
    score = 100 * sum(outcomes) / max(len(outcomes), 1)
    print(f"{sum(outcomes)} of {len(outcomes)} mutants killed: {score:.1f} %")
    return int(score < options.at_least)


if __name__ == "__main__":
    sys.exit(main())
