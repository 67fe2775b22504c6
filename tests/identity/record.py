"""Record the results that test_identity.py expects, with the code of any checkout.

    python -m tests.identity.record --code=CHECKOUT --parts=shards,losses

writes these parts of expected.json, by default all, as the code of CHECKOUT computes them, by default this one.
expected.json names the commit of each part. A change that is meant to alter bytes or numbers records them anew and says
so in its commit message.

With --before it also writes the records and the runs in before/, which newer code has to read. Newer code never writes
them. They and expected.json were made from commit 0e19f41 by

    git worktree add --detach /path/to/old 0e19f41
    python -m tests.identity.record --code=/path/to/old --before
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cases import (
    BEFORE,
    BOTH,
    CHINESE,
    CONFIGS,
    CONTINUED,
    DOCUMENTS,
    EXPECTED,
    INTERRUPTED_STEP,
    LOSSES,
    PAIRS,
    RECORDS,
    ROOT,
    RUNS,
    SENTENCEPIECE,
    SHARDS,
    TOKENIZERS,
    VOCABULARY_BEFORE,
)
from .measure import (
    batches,
    call,
    digest,
    lines_digest,
    read_curves,
    records_pattern,
    sentencepiece_shards,
    start,
    train_tokenizer,
    use_code,
    variables,
    wordpiece_shards,
)


def new_folder(parent: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=parent))


def record_tokenizers(folder: Path, code: Path) -> Any:
    return {name: digest(train_tokenizer(name, folder).read_bytes()) for name in TOKENIZERS}


def record_shards(folder: Path, code: Path) -> Any:
    return {name: wordpiece_shards(name, new_folder(folder)) for name in SHARDS}


def record_sentencepiece(folder: Path, code: Path) -> Any:
    models = {name: train_tokenizer(name, folder) for name in TOKENIZERS}
    return {
        name: sentencepiece_shards(name, new_folder(folder), models[row]) for name, (row, _) in SENTENCEPIECE.items()
    }


def record_batches(folder: Path, code: Path) -> Any:
    return {name: batches(records_pattern(name)) for name in RECORDS}


def record_variables(folder: Path, code: Path) -> Any:
    return {
        path.name: {name: lines_digest(lines) for name, lines in variables(path).items()}
        for path in sorted((ROOT / "albert_config").glob("*.json"))
    }


def record_losses(folder: Path, code: Path) -> Any:
    found = {}
    for backend in BOTH:
        names = [name for name, case in LOSSES.items() if backend in case.tested]
        results = start(code, backend, names, new_folder(folder)).results()
        found[backend] = {name: result["training"] for name, result in results.items()}
    return found


def record_continued(folder: Path, code: Path) -> Any:
    """Return the curves of old runs that newer code, whose numbers differ on purpose, takes to their end."""
    found = {}
    for name in CONTINUED:
        os.chdir(shutil.copytree(BEFORE, new_folder(folder) / "before"))
        call(RUNS[name][0], {"config": f"{name}/config.json"})
        found[name] = {phase: read_curves(Path(name), phase) for phase in ("train", "eval")}
    os.chdir(ROOT)
    return found


PARTS: dict[str, Callable[[Path, Path], Any]] = {
    "tokenizers": record_tokenizers,
    "shards": record_shards,
    "sentencepiece": record_sentencepiece,
    "batches": record_batches,
    "variables": record_variables,
    "losses": record_losses,
    "continued": record_continued,
}


def commit_of(code: Path) -> str:
    """Return the commit that is checked out, and whether files differ from it."""
    git = ["git", "-C", str(code)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    tracked = [*git, "status", "--porcelain", "--untracked-files=no"]
    changed = subprocess.run(tracked, capture_output=True, text=True, check=True).stdout
    return commit + (" with changes" if changed else "")


def make_before(code: Path) -> None:
    """Make before/ anew: vocabulary, configurations, records, runs that were killed, the losses of those left alone."""
    shutil.rmtree(BEFORE, ignore_errors=True)
    for folder in ("configs", "records", "pairs"):
        (BEFORE / folder).mkdir(parents=True)
    os.chdir(BEFORE)
    for name, config in CONFIGS.items():
        Path(f"configs/{name}.json").write_text(json.dumps(config, indent=2) + "\n")
    for split, count in PAIRS.items():
        lines = (ROOT / f"data/samples/pairs/{split}.txt").read_text(encoding="utf-8").splitlines()[:count]
        Path(f"pairs/{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    documents = CHINESE.read_text(encoding="utf-8").split("\n\n")[:DOCUMENTS]
    Path("text.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    call("train_tokenizer", VOCABULARY_BEFORE)
    for name, flags in RECORDS.items():
        call("create_pretraining_data", {**flags, "output_file": f"records/{name}.tfrecord"})
    curves = {}
    for name, (verb, flags) in RUNS.items():
        # The classifier begins with the weights of the interrupted run of pretraining, the only ones that are kept.
        call(verb, {**flags, "output_dir": "whole"})
        curves[name] = {phase: read_curves(Path("whole"), phase) for phase in ("train", "eval")}
        shutil.rmtree("whole")
        crash(code, verb, flags)
        for path in Path(name).iterdir():
            if path.name not in ("checkpoints", "best", "config.json", "model_config.json", "metrics.jsonl"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        # Without the lines of later steps: a test would take them for those of the run that goes on.
        metrics = Path(name) / "metrics.jsonl"
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        metrics.write_text("".join(line for line in lines if json.loads(line)["step"] <= INTERRUPTED_STEP))
    Path("whole_runs.json").write_text(json.dumps({"code": commit_of(code), **curves}, indent=1) + "\n")
    os.chdir(ROOT)


def crash(code: Path, verb: str, flags: Any) -> None:
    """Run a verb in before/ until its checkpoint of `INTERRUPTED_STEP`; raises `RuntimeError` if it was not killed."""
    command = [sys.executable, "-m", "tests.identity.crash", str(code), verb, str(INTERRUPTED_STEP), json.dumps(flags)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=BEFORE, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != -signal.SIGKILL:
        raise RuntimeError(f"{verb} was not killed but ended with {done.returncode}: {done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, default=ROOT)
    parser.add_argument("--parts", default=",".join(PARTS), type=lambda text: text.split(","))
    parser.add_argument("--before", action="store_true")
    options = parser.parse_args()
    code = options.code.resolve()
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    use_code(code)
    if options.before:
        make_before(code)
    expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {"code": {}}
    for name in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            expected[name] = PARTS[name](Path(folder), code)
        expected["code"][name] = commit_of(code)
        print(f"{name} recorded with the code of {expected['code'][name]}", flush=True)
    EXPECTED.write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
