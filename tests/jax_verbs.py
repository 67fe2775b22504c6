"""Verbs in a process of their own, on JAX: `jax_verbs.py CALLS.json`, a list of [verb, {flag: value}].

The verb `copy` copies a file or folder, `source` to `target`, as it stands between two calls, and leaves out `but`.
Prints the exit codes, and whether TensorFlow was imported for it.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from on_jax import ROOT, environment_on_jax


def call_on_jax(
    folder: Path, calls: Sequence[tuple[str, Mapping[str, object]]], devices: int = 1, code: int = 0
) -> str:
    """Call verbs, which are to exit with `code`, on virtual devices; returns what the process wrote to stderr."""
    path = folder / "calls.json"
    listed = [[verb, {name: str(value) for name, value in flags.items()}] for verb, flags in calls]
    path.write_text(json.dumps(listed))
    # The verbs choose their backend by their own flag.
    environment = environment_on_jax(devices=devices)
    environment.pop("KERAS_BACKEND", None)
    command = [sys.executable, "-W", "error", __file__, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    count = sum(verb != "copy" for verb, _ in calls)
    assert outcome == {"codes": [code] * count, "tensorflow": False}, done.stderr
    return done.stderr


def copy(source: str, target: str, but: str = "") -> None:
    if Path(source).is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(but))
    else:
        shutil.copyfile(source, target)


def main(path: str) -> None:
    sys.path.insert(0, str(ROOT))
    from commands.flags import run

    codes = []
    for verb, flags in json.loads(Path(path).read_text()):
        if verb == "copy":
            copy(**flags)
            continue
        module = importlib.import_module(verb)
        try:
            run(module.main, module.Options, [f"--{name}={value}" for name, value in flags.items()])
        except SystemExit as stopped:
            codes.append(stopped.code)
    print(json.dumps({"codes": codes, "tensorflow": "tensorflow" in sys.modules}))


if __name__ == "__main__":
    main(*sys.argv[1:])
