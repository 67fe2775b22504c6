"""Archives with bits turned, cut short or spliced: each is refused in one line, or gives the content of the original.

    python -m tests.conversion.archive_mutations --cases=10000 --seed=0

The content of a tar file that is not packed has no checksum: there only names and places are judged.
"""

import argparse
import contextlib
import io
import itertools
import random
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

from absl.app import UsageError

from conversion.archives import unpack
from conversion.contents import ARCHIVES, kind_of

TREE = {
    "model/config.json": b'{"vocab_size": 21128}' * 3,
    "model/vocab.txt": b"\n".join(b"token %d" % i for i in range(200)),
    "model/weights.bin": random.Random(5).randbytes(1500),
    "model/assets/spiece.model": bytes(700),
    "model/empty": b"",
    "model/" + "long/" * 30 + "name": b"x",
}
MODES = {"tar": "w", "gzip": "w:gz", "bzip2": "w:bz2", "xz": "w:xz"}


def pack(kind: str, tree: dict[str, bytes], *, form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return an archive of files by name; names that end in a slash are empty folders."""
    packed = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in tree.items():
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        return packed.getvalue()
    with tarfile.open(fileobj=packed, mode=MODES[kind], format=form) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, content in tree.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def content_of(folder: Path) -> dict[str, bytes]:
    """Return files by name below a folder, and empty folders with a slash."""
    return {
        path.relative_to(folder).as_posix() + ("/" if path.is_dir() else ""): b""
        if path.is_dir()
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Return the content changed in one to four places."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(changed)) if changed else 0
        # Archives keep what matters at their ends and at the heads of blocks.
        at = draw.choice((at, at, at // 512 * 512 + draw.randrange(512), len(changed) - 1 - draw.randrange(200)))
        at = max(0, min(at, len(changed) - 1))
        way = draw.randrange(7)
        if way <= 1 and changed:
            changed[at] ^= 1 << draw.randrange(8)
        elif way == 2:
            del changed[at:]
        elif way == 3:
            del changed[at : at + draw.choice((1, 2, 46, 512, 1024))]
        elif way == 4:
            start = draw.randrange(len(changed) + 1)
            changed[at:at] = changed[start : start + draw.choice((1, 30, 512, 2000))]
        elif way == 5:
            start = draw.randrange(len(changed) + 1)
            part = changed[start : start + draw.choice((1, 4, 8, 46, 512))]
            changed[at : at + len(part)] = part
        elif changed:
            changed[at : at + 4] = draw.choice((b"\xff" * 4, bytes(4), b"../.", b"/etc", draw.randbytes(4)))
    return bytes(changed)


def judge(kind: str, content: bytes, folder: Path, expected: dict[str, bytes]) -> str:
    """Unpack changed content below a new folder; return what came of it, raise `AssertionError` if that is wrong."""
    archive, target = folder / "in/archive", folder / "out/content"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(content)
    if kind_of(archive) not in ARCHIVES:
        return "no archive"
    outcome, line = "taken", ""
    try:
        unpack(archive, folder=target)
    except UsageError as error:
        outcome, line = "refused", str(error)
    assert line.isprintable(), f"not one line: {line!r}"
    assert sorted(path.name for path in folder.iterdir()) in (["in"], ["in", "out"])
    assert [path.name for path in (folder / "in").iterdir()] == ["archive"]
    left = [path.name for path in (folder / "out").iterdir()] if (folder / "out").exists() else []
    if outcome == "refused":
        assert left == [], f"refused, and {left} is there"
        return outcome
    assert left == ["content"]
    found = content_of(target / "files")
    assert all(not path.is_symlink() for path in target.rglob("*"))
    if kind != "tar":
        assert found == expected, f"{found.keys() ^ expected.keys() or 'content'} differs"
    return outcome


def run(cases: int, seed: int) -> Counter[str]:
    """Try so many changes, which the seed decides; return how many were refused and taken, by kind."""
    originals = {kind: pack(kind, TREE) for kind in ("zip", *MODES)}
    outcomes: Counter[str] = Counter()
    base = Path(tempfile.mkdtemp(prefix="archives-"))
    try:
        for case, (kind, original) in zip(range(cases), itertools.cycle(originals.items()), strict=False):
            changed = mutate(original, random.Random(f"{seed} {case}"))
            folder = base / str(case)
            try:
                outcomes[f"{kind} {judge(kind, changed, folder, TREE)}"] += 1
            except Exception as error:
                error.add_note(f"archive_mutations: kind {kind}, seed {seed}, case {case}")
                raise
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return outcomes


def main() -> None:
    """Run as many cases as the command line says and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes = run(arguments.cases, arguments.seed)
    for name, count in sorted(outcomes.items()):
        print(f"{name:16} {count:8,}")
    print(f"{outcomes.total():,} changed archives: each refused in one line, or of the same content")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
