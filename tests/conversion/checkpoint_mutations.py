"""Checkpoints with bits turned, cut short, spliced or half there: each is refused in one line, or read as a checkpoint.

    python -m tests.conversion.checkpoint_mutations --cases=10000 --seed=0 --jobs=2

Nothing that a changed file says may run, hang, or ask for more memory than the files have bytes. The command runs
five hundred cases in a process, so that one that kills its process is named.
"""

import argparse
import concurrent.futures
import contextlib
import itertools
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl.app import UsageError

from conversion.beside import find_vocabulary, is_lowered, labels_of
from conversion.containers.torch_files import save_torch
from conversion.loading import ANY_HEAD, check_fits
from conversion.namings import NAMINGS
from conversion.readers import read_checkpoint
from conversion.rules import Translation
from conversion.writers import write_ours, write_plug, write_tf1, write_transformers
from tests.conversion.archive_mutations import mutate
from tests.conversion.conversion_cases import CONFIGS, random_tensors

_CHUNK = 500
WRONG = "wrong"
_SECONDS, _MEMORY_BYTES = 30, 6 * 2**30
_RAN = Path(tempfile.gettempdir()) / "checkpoint-mutations-ran"


class Payload:
    """What a pickle would run, were it allowed to."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {_RAN}",)


def _vocabulary(folder: Path) -> Path:
    path = folder.with_name(f"{folder.name}-vocab.txt")
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x4E00 + i) for i in range(27))]
    path.write_text("\n".join(entries) + "\n", encoding="utf-8")
    return path


def _transformers(folder: Path, **options: Any) -> None:
    labels = ("no", "yes", "perhaps")
    tensors = random_tensors("bert", num_labels=3)
    write_transformers(folder, CONFIGS["bert"], tensors, [_vocabulary(folder)], labels=labels, **options)


def _torch(folder: Path) -> None:
    _transformers(folder, pytorch_bin=True)
    (folder / "model.safetensors").unlink()


def _legacy(folder: Path) -> None:
    import torch

    _torch(folder)
    path = folder / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    torch.save({"model": state, "step": 3}, path, _use_new_zipfile_serialization=False)


def _payload(folder: Path) -> None:
    import torch

    _torch(folder)
    path = folder / "pytorch_model.bin"
    torch.save({"model": torch.load(path, weights_only=True), "opt": Payload()}, path)


def _paddle(folder: Path) -> None:
    _transformers(folder)
    naming = next(naming for naming in NAMINGS if naming.name == "ernie_m_paddle")
    tensors = {n: v for n, v in random_tensors("no_types").items() if n.split("/")[0] in ("backbone", "classifier")}
    named, _ = Translation(naming).exported(tensors)
    (folder / "model.safetensors").unlink()
    content = pickle.dumps({name: np.asarray(value) for name, value in named.items()}, protocol=4)
    (folder / "model_state.pdparams").write_bytes(content)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    changed = config | {"model_type": "ernie_m", "pad_token_id": 1, "architectures": None}
    (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8")


def _palm(folder: Path) -> None:
    write_transformers(folder, CONFIGS["palm"], random_tensors("palm"))
    naming = next(naming for naming in NAMINGS if naming.is_cut)
    save_torch(folder / "palm_model.pt", {"model": Translation(naming).exported(random_tensors("palm"))[0]})
    (folder / "model.safetensors").unlink()


def _ours(folder: Path) -> None:
    write_ours(folder, CONFIGS["bert"], random_tensors("bert", num_labels=3), labels=("a", "b", "c"))


FORMS: dict[str, Callable[[Path], object]] = {
    "tf1": lambda folder: write_tf1(folder, CONFIGS["zh_all"], random_tensors("zh_all"), [_vocabulary(folder)]),
    "safetensors": _transformers,
    "sharded": lambda folder: _transformers(folder, part_bytes=4000),
    "torch": _torch,
    "torch of old": _legacy,
    "torch with a payload": _payload,
    "paddle": _paddle,
    "palm": _palm,
    "plug": lambda folder: write_plug(folder, CONFIGS["palm"], random_tensors("palm"), count=2),
    "ours": lambda folder: write_ours(
        folder, CONFIGS["bert"], random_tensors("bert", num_labels=3), labels=("a", "b", "c")
    ),
}


def damage(folder: Path, draw: random.Random) -> str:
    """Change one file of a folder, or take it away; return what was done."""
    path = draw.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    way = draw.randrange(10)
    if way == 0:
        path.unlink()
        return f"{path.name} is gone"
    if way == 1:
        other = draw.choice(sorted(each for each in folder.iterdir() if each.is_file()))
        content = other.read_bytes()
        path.write_bytes(content)
        return f"{path.name} is {other.name}"
    path.write_bytes(mutate(path.read_bytes(), draw))
    return f"{path.name} is changed"


def judge(folder: Path) -> str:
    """Read a folder with all that lies beside; return what came of it, raise `AssertionError` if that is wrong."""
    try:
        checkpoint = read_checkpoint(folder)
        check_fits(checkpoint, ANY_HEAD, ANY_HEAD)
        for value in checkpoint.tensors.values():
            array = np.asarray(value)
            assert array.shape == value.shape, f"{array.shape} was read, {value.shape} was told"
        find_vocabulary(checkpoint, None)
        is_lowered(checkpoint)
        labels_of(checkpoint)
    except UsageError:
        return "refused"
    finally:
        assert not _RAN.exists(), "code of a file ran"
    return "taken"


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    def too_long(number: int, frame: object) -> None:
        raise TimeoutError(f"no answer within {_SECONDS} s")

    former = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def run(cases: range, seed: int) -> Counter[str]:
    """Try the changes of these numbers, which the seed decides; return how many were refused and taken, by form.

    What is neither is counted as `WRONG`, with a traceback on standard error.
    """
    outcomes: Counter[str] = Counter()
    base = Path(tempfile.mkdtemp(prefix="checkpoints-"))
    try:
        forms = {name: base / name.replace(" ", "_") for name in FORMS}
        for name, make in FORMS.items():
            make(forms[name])
            assert judge(forms[name]) == ("refused" if make is _payload else "taken"), name
        names = itertools.cycle(FORMS)
        for case, name in zip(range(cases.stop), names, strict=False):
            if case < cases.start:
                continue
            draw, folder = random.Random(f"{seed} {case}"), base / str(case)
            shutil.copytree(forms[name], folder)
            done = damage(folder, draw)
            try:
                with _bounded():
                    outcomes[f"{name}: {judge(folder)}"] += 1
            except Exception:
                print(f"{name}, seed {seed}, case {case}: {done}\n{traceback.format_exc(limit=-4)}", file=sys.stderr)
                outcomes[WRONG] += 1
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return outcomes


def _chunk(first: int, arguments: argparse.Namespace) -> tuple[Counter[str], str]:
    """Run some cases in a process; return the outcomes, and the end of what it said if it failed."""
    last = min(first + _CHUNK, arguments.cases)
    command = [sys.executable, "-m", "tests.conversion.checkpoint_mutations", f"--first={first}", f"--cases={last}"]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(
        [*command, f"--seed={arguments.seed}"], capture_output=True, text=True, check=False, env=environment
    )
    outcomes = Counter({name: int(n) for name, _, n in (line.rpartition("\t") for line in done.stdout.splitlines())})
    wrong = done.returncode or outcomes[WRONG]
    failure = f"cases {first} to {last}: exit {done.returncode}\n{done.stderr[-6000:]}" if wrong else ""
    return outcomes, failure


def main() -> int:
    """Run as many cases as the command line says and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.first is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
        for name, count in run(range(arguments.first, arguments.cases), arguments.seed).items():
            print(f"{name}\t{count}")
        return 0
    outcomes, failures = Counter[str](), []
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for found, failure in pool.map(lambda first: _chunk(first, arguments), range(0, arguments.cases, _CHUNK)):
            outcomes += found
            if failure:
                failures.append(failure)
                print(failure, flush=True)
    for name, count in sorted(outcomes.items()):
        print(f"{name:32} {count:8,}")
    print(f"{outcomes.total():,} changed checkpoints judged, {len(failures)} processes failed")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
