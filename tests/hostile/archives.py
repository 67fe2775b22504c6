"""Classes of wrong archives and addresses in the place of a checkpoint."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import warnings
import zipfile
from functools import cache
from pathlib import Path
from random import Random

from tests.conversion.archive_mutations import mutate
from tests.hostile.case import Case, Expectation, change
from tests.hostile.seeds import BASES

_CALLS = {"in/shared.tar.gz": "convert_from_archive", "in/shared.zip": "convert_from_zip"}


def archive(random: Random, seeds: Path) -> Case:
    """An archive is damaged, or holds what would be written beside its folder, be no file, or fill the disk."""
    name = random.choice(list(_CALLS))
    if random.random() < 0.5:
        content, text, expect = mutate((seeds / name).read_bytes(), random), "damaged", "either"
    else:
        text = random.choice(list(_MEMBERS))
        make = _zip if name.endswith(".zip") else _tar
        content, expect = make(seeds / "in/shared", text), _MEMBERS[text]
    base = BASES[_CALLS[name]]
    return change(base, "archive", f"{name}: {text}", expect, (name, Path(name).name), files={name: content})


_MEMBERS: dict[str, Expectation] = {
    "above the folder": "refuse",
    "an absolute name": "refuse",
    "a link": "refuse",
    "a device": "refuse",
    "a bomb": "refuse",
    "a name twice": "either",
    "a folder that is a file": "refuse",
    "a name of control characters": "either",
    "nothing": "refuse",
    "another file": "either",
}


def _tar(folder: Path, further: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted(folder.iterdir()) if further != "nothing" else ():
            archive.add(path, f"shared/{path.name}")
        member, content = tarfile.TarInfo(_names(folder)[further]), b"x" * 10
        if further == "a link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        elif further == "a device":
            member.type = tarfile.CHRTYPE
        elif further == "a bomb":
            content = _many_zeros()
        if further != "nothing":
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return gzip.compress(packed.getvalue(), 1, mtime=0)


def _zip(folder: Path, further: str) -> bytes:
    packed = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()) if further != "nothing" else ():
            archive.write(path, f"shared/{path.name}")
        member, content = zipfile.ZipInfo(_names(folder)[further]), b"x" * 10
        kinds = {"a link": stat.S_IFLNK, "a device": stat.S_IFCHR}
        member.external_attr = (kinds.get(further, stat.S_IFREG) | 0o644) << 16
        if further == "a bomb":
            content = _many_zeros()
        if further != "nothing":
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _names(folder: Path) -> dict[str, str]:
    """Return the name of the further member of each kind."""
    first = max(path.name for path in folder.iterdir())
    return dict.fromkeys(_MEMBERS, "shared/further") | {
        "above the folder": "shared/../../victim",
        "an absolute name": "/tmp/victim",
        "a name twice": f"shared/{first}",
        "a folder that is a file": f"shared/{first}/further",
        "a name of control characters": "shared/\x1b[31m\a",
    }


@cache
def _many_zeros() -> bytes:
    """Return what no archive of a checkpoint holds: a thousandth of its size when packed."""
    return bytes(300 * 2**20)


_ADDRESSES = (
    "http://127.0.0.1:9/model.tar.gz",
    "https://127.0.0.1:9/model.zip",
    "http://127.0.0.1:0/model.zip",
    "http://[::1/model.zip",
    "http:///model.zip",
    "http://127.0.0.1:99999/model.zip",
    "http://127.0.0.1:9/\x1b[31m.zip",
    "http://a b/model.zip",
    "http://",
    "HTTP://127.0.0.1:9/MODEL.TAR.GZ",
    "ftp://127.0.0.1/model.zip",
    "file:///etc/passwd",
    "s3://bucket/model",
)


def address(random: Random, seeds: Path) -> Case:
    """An address leads nowhere, or is none."""
    base = BASES[random.choice(("convert_from_archive", "convert_from_transformers", "classify", "pretrain"))]
    flag = "input" if base.verb == "convert_checkpoint" else "init_checkpoint"
    given = random.choice(_ADDRESSES)
    names = (f"--{flag}", "127.0.0.1", "://", "address")
    return change(base, "address", f"--{flag}={given}", "refuse", names, flags={flag: given})
