"""Which existing files a job of data generation may replace or remove: those that it can prove to have written.

A manifest proves its shards by name and size. While a job is unfinished, `claims.json` in its work folder names the
files that it writes; they were checked before they were entered there. Of several jobs of a command those that are done
keep their work folder, with `done.json` in it, until all are: a command that was killed goes on with the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl.app import UsageError

from data.manifest import to_bytes
from data.manifest_shape import read_listing
from data.writing.output import Output
from ground.documents import read_json
from ground.files import real, write_atomically
from ground.locks import holding
from ground.outputs import Target, check_outputs, plain_file, plain_name

_CLAIMS, _PLAN, _DONE = "claims.json", "plan.json", "done.json"
_WORK = r"(span|piece|shard)-\d{6}[-.\w]*"
_KEPT = rf"{_CLAIMS}|{_PLAN}|{_DONE}|{_WORK}"
_OF_A_JOB = re.compile(rf"{_KEPT}|\.({_KEPT})(\.\d+)?\.tmp|\.nfs\w+")
# What the files begin with, a rename that a crash of the machine emptied aside.
_SIGNATURES = {_CLAIMS: b'["', _PLAN: b'{"recipe": {', _DONE: b'{"manifest": "'}
_PROOF = "no manifest beside it lists it with its size"


def check(output: Output, reads: Mapping[str, Iterable[Any]], num_examples: int | None = None) -> None:
    """Raise `UsageError` where a job would write over what it reads, or over a file that no job of `output` wrote.

    Args:
        output: where the job writes to.
        reads: its inputs by flag.
        num_examples: once it is known, and with it the number of files.
    """
    former, claims = _listed(output.manifest_path), _claims(output.work_path)

    def ours(path: Path) -> bool:
        name = os.path.relpath(path, output.manifest_path.parent)
        return plain_file(path, former.get(name)) or (real(path) in claims and not path.is_symlink())

    new = [] if output.shard_size and num_examples is None else output.paths(num_examples or 0)
    gone = [output.manifest_path.parent / name for name in former if plain_name(name)]
    files = dict.fromkeys([*new, *(path for path in gone if os.path.lexists(path))])
    check_outputs(
        reads,
        [
            *(Target(path, "--output_file", ours, _PROOF) for path in files),
            Target(output.manifest_path, "--output_file", _is_manifest, "it is not a manifest"),
            Target(output.work_path, "--output_file", _is_of_a_job, "it holds other files than a job's", folder=True),
        ],
    )


def claim(output: Output, paths: Iterable[Path]) -> None:
    """Enter the files that a job is about to write, which `check` has seen, in its work folder."""
    claims = sorted(str(path) for path in _claims(output.work_path) | {real(path) for path in paths})
    write_atomically(output.work_path / _CLAIMS, json.dumps(claims), sync=False)


def open_work(work: Path, plan: Mapping[str, Any]) -> None:
    """Keep a work folder that the same plan left, and clear any other, but for its claims.

    The plan begins with its recipe, and is removed last: by it a later job knows the folder as that of a job.

    Raises `UsageError` for a folder of somebody else.
    """
    content = json.dumps(plan, default=str).encode()
    if os.path.lexists(work) and not _is_of_a_job(work):
        raise UsageError(
            f"{work} is not the folder of an unfinished job: move it away, or give --output_file another name"
        )
    work.mkdir(parents=True, exist_ok=True)
    if not (work / _PLAN).is_file() or (work / _PLAN).read_bytes() != content:
        _clear(work, [_PLAN])
        write_atomically(work / _PLAN, content, sync=False)


def finish(output: Output, manifest: Mapping[str, Any]) -> None:
    """Note in the work folder of a job that its shards and this manifest are complete, and drop its parts."""
    _clear(output.work_path, [])
    write_atomically(output.work_path / _DONE, json.dumps({"manifest": _digest(manifest)}), sync=False)


def finished(output: Output) -> dict[str, Any] | None:
    """Return the manifest of a job that `finish` noted, of whose shards nothing changed since; None for any other.

    The work folder is that of the same plan: `open_work` clears every other.
    """
    with contextlib.suppress(OSError, UsageError):
        done = read_json(output.work_path / _DONE, dict[str, str], what="a note of finished work")
        manifest = read_listing(output.manifest_path)
        # How much there is of every language is written into it when all are done.
        known = {name: value for name, value in manifest.items() if name != "languages"}
        whole = all(
            plain_name(name) and plain_file(output.manifest_path.parent / name, size)
            for name, size in _listed(output.manifest_path).items()
        )
        if whole and done.get("manifest") == _digest(known):
            return known
    return None


def forget(work: Path) -> None:
    """Remove the work folder of a job that `finish` noted as done; nothing where there is none."""
    if (work / _DONE).is_file() and _is_of_a_job(work):
        remove_work(work)


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_bytes(manifest)).hexdigest()


def abandon(work: Path) -> None:
    """Remove the work folder of a job, unless it is what proves that shards are of that job."""
    if not (work / _CLAIMS).exists():
        with contextlib.suppress(OSError):
            remove_work(work)


def remove_work(work: Path) -> None:
    """Remove the work folder of a job; one that a kill leaves half removed is still known as a job's."""
    _clear(work, [_PLAN, _CLAIMS])
    work.rmdir()


def _clear(work: Path, last: Sequence[str]) -> None:
    """Remove the files of a work folder, but for claims that are not among the `last`, which are removed in the end."""
    names = {entry.name for entry in work.iterdir()} - {_PLAN, _CLAIMS}
    for name in (*sorted(names), *last):
        (work / name).unlink(missing_ok=True)


def remove_former(manifest_path: Path, current: Iterable[str] = ()) -> None:
    """Remove shards that only a former manifest of the same output names, so that no pattern mixes old and new.

    Only files of the manifest's own folder are removed, in the size that the manifest says.
    """
    kept = set(current)
    for name, size in _listed(manifest_path).items():
        path = manifest_path.parent / name
        if name not in kept and plain_name(name) and plain_file(path, size):
            path.unlink()


@contextlib.contextmanager
def locked(output_files: Sequence[str]) -> Iterator[None]:
    """Hold a lock for each output inside; raises `UsageError` where another process writes to one of them."""
    with contextlib.ExitStack() as stack:
        for name in sorted({str(real(Path(name))) for name in output_files if "://" not in name}):
            path = Path(name)
            stack.enter_context(holding(path.with_name(f".{path.name}.lock"), f"--output_file={path}"))
        yield


def _listed(manifest_path: Path) -> dict[str, int]:
    """Return the size of every file that a manifest lists; none where there is no manifest."""
    with contextlib.suppress(OSError, UsageError):
        return {shard["name"]: shard.get("bytes", -1) for shard in read_listing(manifest_path)["shards"]}
    return {}


def _is_manifest(path: Path) -> bool:
    with contextlib.suppress(OSError, UsageError):
        return not path.is_symlink() and "recipe" in read_listing(path)
    return False


def _is_of_a_job(work: Path) -> bool:
    """Whether a folder holds nothing but what a job keeps there; a folder that was made and not yet filled is one.

    Parts of the work prove nothing by their names alone: the plan lies beside them.
    """
    if work.is_symlink() or not work.is_dir():
        return False
    entries = {entry.name: entry for entry in list(work.iterdir())}
    if not all(_OF_A_JOB.fullmatch(name) and not entry.is_dir() for name, entry in entries.items()):
        return False
    planned = _PLAN in entries or not any(re.fullmatch(_WORK, name) for name in entries)
    return planned and all(_begins(entries[name], begin) for name, begin in _SIGNATURES.items() if name in entries)


def _begins(path: Path, begin: bytes) -> bool:
    """Whether a file is a plain one, and empty or of this beginning."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(begin)) in (begin, b"")


def _claims(work: Path) -> set[Path]:
    if not (os.path.lexists(work) and _is_of_a_job(work)):
        return set()
    with contextlib.suppress(OSError, UsageError):
        return {Path(path) for path in read_json(work / _CLAIMS, list[str], what="a list of shards")}
    return set()
